//! Decides which credentials are used, as the AWS CLI does, from the environment and the files alone.

use aws_credential_types::Credentials;

use super::errors::credentials as refused;
use super::files::{Files, Profile, credentials_file, places};
use super::variable;
use crate::ProviderError;

/// The source of credentials. Equal sources return the same credentials, as far as the files show.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// The program that uses this library provides them.
    Given,
    /// The keys are configured directly.
    Keys { place: String, keys: Credentials },
    /// A command prints them.
    Process { profile: String, command: String },
    /// IAM Identity Center, after `aws sso login`.
    Sso(Box<Sso>),
    /// A token in a file, as in Kubernetes.
    WebIdentity { place: String, role_arn: String, token_file: String, session_name: Option<String> },
    /// `aws login`.
    Login { profile: String },
    /// A role that is assumed with other credentials.
    Role(Box<Role>),
    /// The container's credential endpoint.
    Container,
    /// The instance's metadata service.
    Metadata,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sso {
    pub(super) profile: String,
    pub(super) session: Option<String>,
    pub(super) start_url: String,
    pub(super) region: String,
    pub(super) account: String,
    pub(super) role: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Role {
    pub(super) profile: String,
    pub(super) arn: String,
    pub(super) external_id: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) mfa_serial: Option<String>,
    pub(super) duration: Option<i32>,
    /// The credentials with which the role is assumed.
    pub(super) base: Source,
}

/// The selected profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selected {
    /// The profile was requested by name. The environment's credentials are ignored.
    Explicit(String),
    /// The profile is named by a variable, or is `default`.
    Implicit(String),
}

const DEFAULT: &str = "default";

impl Selected {
    pub(super) fn new(given: Option<&str>) -> Self {
        match given.filter(|name| !name.is_empty()) {
            Some(name) => Self::Explicit(name.to_owned()),
            None => Self::Implicit(of_environment().unwrap_or_else(|| DEFAULT.to_owned())),
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Explicit(name) | Self::Implicit(name) => name,
        }
    }

    /// Returns the name, if it was requested.
    pub(super) fn asked(&self) -> Option<&str> {
        Some(self.name()).filter(|name| matches!(self, Self::Explicit(_)) || *name != DEFAULT)
    }

    /// Whether this is the profile `default`. Callers without a profile use this name, whether the profile exists or not.
    fn is_default(&self) -> bool {
        self.name() == DEFAULT
    }
}

fn of_environment() -> Option<String> {
    variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"))
}

impl Source {
    /// Chooses the source as the AWS CLI does.
    ///
    /// # Errors
    /// Returns an error if a requested profile does not exist, or is incomplete.
    pub(super) fn choose(files: &Files, selected: &Selected) -> Result<Self, ProviderError> {
        let explicit = matches!(selected, Selected::Explicit(_));
        let name = selected.name();
        if !explicit && let Some(keys) = of_variables() {
            return Ok(keys);
        }
        if files.profile(name).is_none() && !selected.is_default() {
            return Err(refused(unknown(name, files)));
        }
        let assumes = files.profile(name).is_some_and(Profile::assumes_role);
        if !explicit
            && !assumes
            && let Some(identity) = web_identity_of_variables()
        {
            return Ok(identity);
        }
        let mut chain = Chain { files, seen: Vec::new() };
        if let Some(source) = chain.of_profile(name)? {
            return Ok(source);
        }
        if let Some(keys) = of_variables().filter(|_| selected.is_default()) {
            return Ok(keys);
        }
        let container = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
        Ok(if container.iter().any(|name| variable(name).is_some()) { Self::Container } else { Self::Metadata })
    }

    /// Whether getting the credentials may need the user, or may take arbitrarily long.
    pub(super) fn may_take_long(&self) -> bool {
        match self {
            Self::Process { .. } => true,
            Self::Role(role) => role.mfa_serial.is_some() || role.base.may_take_long(),
            _ => false,
        }
    }

    /// Returns a description for the user, as a part of a sentence.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Given => "the program itself".to_owned(),
            Self::Keys { place, .. } => format!("keys in {place}"),
            Self::Process { profile, .. } => format!("the credential_process of the profile {profile:?}"),
            Self::Sso(sso) => format!("IAM Identity Center, the role {} of the profile {:?}", sso.role, sso.profile),
            Self::WebIdentity { place, role_arn, .. } => format!("a web identity token for {role_arn}, of {place}"),
            Self::Login { profile } => format!("aws login, of the profile {profile:?}"),
            Self::Role(role) => {
                format!(
                    "the role {} of the profile {:?}, assumed with {}",
                    role.arn,
                    role.profile,
                    role.base.describe()
                )
            }
            Self::Container => "the container's agent".to_owned(),
            Self::Metadata => "the instance's metadata service".to_owned(),
        }
    }

    /// Returns what to do if the credentials are not accepted.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::Keys { place, .. } if place == ENVIRONMENT => {
                "set new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN".to_owned()
            }
            Self::Keys { place, .. } => format!("put new credentials into {place} and try again"),
            Self::Sso(sso) => format!("log in again: aws sso login{}", option(&sso.profile)),
            Self::Login { profile } => format!(
                "get them from the AWS CLI: eval \"$(aws configure export-credentials{} --format env)\"",
                option(profile)
            ),
            Self::Role(role) => role.base.remedy(),
            Self::Given => "get other credentials and try again".to_owned(),
            _ => "get new credentials and try again".to_owned(),
        }
    }
}

/// Returns `--profile NAME` for a command line, or an empty text for the default profile.
pub(super) fn option(profile: &str) -> String {
    let plain = profile.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./@+:".contains(&byte));
    match profile {
        DEFAULT => String::new(),
        _ if plain => format!(" --profile {profile}"),
        _ => format!(" --profile '{}'", profile.replace('\'', r"'\''")),
    }
}

const ENVIRONMENT: &str = "the environment";

fn of_variables() -> Option<Source> {
    let token = variable("AWS_SESSION_TOKEN").or_else(|| variable("AWS_SECURITY_TOKEN"));
    let (id, secret) = variable("AWS_ACCESS_KEY_ID").zip(variable("AWS_SECRET_ACCESS_KEY"))?;
    Some(Source::Keys { place: ENVIRONMENT.to_owned(), keys: Credentials::new(id, secret, token, None, ENVIRONMENT) })
}

fn web_identity_of_variables() -> Option<Source> {
    let (token_file, role_arn) = variable("AWS_WEB_IDENTITY_TOKEN_FILE").zip(variable("AWS_ROLE_ARN"))?;
    let session_name = variable("AWS_ROLE_SESSION_NAME");
    Some(Source::WebIdentity { place: ENVIRONMENT.to_owned(), role_arn, token_file, session_name })
}

fn unknown(name: &str, files: &Files) -> String {
    let known: Vec<&str> = files.names().collect();
    let there = match known.as_slice() {
        [] => format!("there is no profile at all: create it with aws configure{}", option(name)),
        _ => format!("the existing profiles are {}", known.join(", ")),
    };
    format!("there is no AWS profile {name:?} in {}; {there}", places())
}

/// Follows references from profile to profile.
struct Chain<'a> {
    files: &'a Files,
    seen: Vec<String>,
}

impl Chain<'_> {
    /// Returns `None` if the profile contains nothing about credentials.
    fn of_profile(&mut self, name: &str) -> Result<Option<Source>, ProviderError> {
        let nothing = Profile::default();
        let profile = self.files.profile(name).unwrap_or(&nothing);
        if let Some(arn) = profile.get("role_arn").filter(|_| profile.assumes_role()) {
            return self.role(name, profile, arn).map(|role| Some(Source::Role(Box::new(role))));
        }
        self.own(name, profile)
    }

    /// Returns the credentials of a profile without references to another one.
    fn own(&self, name: &str, profile: &Profile) -> Result<Option<Source>, ProviderError> {
        if let Some(token_file) = profile.get("web_identity_token_file") {
            let role_arn = required(name, profile, "role_arn", "web_identity_token_file")?;
            return Ok(Some(Source::WebIdentity {
                place: format!("the profile {name:?}"),
                role_arn,
                token_file: token_file.to_owned(),
                session_name: profile.get("role_session_name").map(str::to_owned),
            }));
        }
        if profile.get("sso_role_name").or_else(|| profile.get("sso_account_id")).is_some() {
            return self.sso(name, profile).map(|sso| Some(Source::Sso(Box::new(sso))));
        }
        if profile.in_credentials_file {
            return keys(name, profile).map(Some);
        }
        if profile.get("login_session").is_some() {
            return Ok(Some(Source::Login { profile: name.to_owned() }));
        }
        if let Some(command) = profile.raw("credential_process") {
            return Ok(Some(Source::Process { profile: name.to_owned(), command: command.to_owned() }));
        }
        if profile.get("aws_access_key_id").or_else(|| profile.get("aws_secret_access_key")).is_some() {
            return keys(name, profile).map(Some);
        }
        Ok(None)
    }

    fn sso(&self, name: &str, profile: &Profile) -> Result<Sso, ProviderError> {
        let named = profile.get("sso_session");
        let session = match named {
            Some(session) => self.files.sso_session(session).ok_or_else(|| {
                profile_error(
                    name,
                    &format!("names the sso_session {session:?}, but there is no section [sso-session {session}]"),
                )
            })?,
            None => profile.clone(),
        };
        Ok(Sso {
            profile: name.to_owned(),
            session: named.map(str::to_owned),
            start_url: required(name, &session, "sso_start_url", "sso_account_id")?,
            region: required(name, &session, "sso_region", "sso_account_id")?,
            account: required(name, profile, "sso_account_id", "sso_role_name")?,
            role: required(name, profile, "sso_role_name", "sso_account_id")?,
        })
    }

    fn role(&mut self, name: &str, profile: &Profile, arn: &str) -> Result<Role, ProviderError> {
        if self.seen.iter().any(|seen| seen == name) {
            return Err(profile_error(name, "refers to itself by source_profile"));
        }
        self.seen.push(name.to_owned());
        let text = |key: &str| profile.get(key).map(str::to_owned);
        Ok(Role {
            profile: name.to_owned(),
            arn: arn.to_owned(),
            external_id: text("external_id"),
            session_name: text("role_session_name"),
            mfa_serial: text("mfa_serial"),
            duration: profile.get("duration_seconds").and_then(|seconds| seconds.parse().ok()),
            base: self.base(name, profile)?,
        })
    }

    /// Returns the credentials with which the role of a profile is assumed.
    fn base(&mut self, name: &str, profile: &Profile) -> Result<Source, ProviderError> {
        match (profile.get("source_profile"), profile.get("credential_source")) {
            (Some(_), Some(_)) => Err(profile_error(name, "has both source_profile and credential_source: remove one of them")),
            (None, None) => Err(profile_error(name, "has a role_arn, but neither source_profile nor credential_source")),
            (None, Some(source)) => match source {
                "Environment" => of_variables().ok_or_else(|| {
                    profile_error(name, "has credential_source = Environment, but AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")
                }),
                "EcsContainer" => Ok(Source::Container),
                "Ec2InstanceMetadata" => Ok(Source::Metadata),
                other => Err(profile_error(
                    name,
                    &format!("has the unknown credential_source {other:?}: it is Environment, EcsContainer or Ec2InstanceMetadata"),
                )),
            },
            (Some(source), None) => {
                let missing = || profile_error(name, &format!("refers to the profile {source:?} (source_profile), which does not exist"));
                let base = self.files.profile(source).ok_or_else(missing)?;
                let has_keys = base.get("aws_access_key_id").or_else(|| base.get("aws_secret_access_key")).is_some();
                let found = if has_keys { self.own(source, base)? } else { self.of_profile(source)? };
                found.ok_or_else(|| {
                    profile_error(name, &format!("refers to the profile {source:?} (source_profile), which has no credentials"))
                })
            }
        }
    }
}

fn keys(name: &str, profile: &Profile) -> Result<Source, ProviderError> {
    let id = required(name, profile, "aws_access_key_id", "aws_secret_access_key")?;
    let secret = required(name, profile, "aws_secret_access_key", "aws_access_key_id")?;
    let token = profile.get("aws_session_token").or_else(|| profile.get("aws_security_token")).map(str::to_owned);
    let place = if profile.in_credentials_file {
        format!("the profile {name:?} in {}", credentials_file().display())
    } else {
        format!("the profile {name:?}")
    };
    Ok(Source::Keys { place, keys: Credentials::new(id, secret, token, None, "profile") })
}

fn required(name: &str, profile: &Profile, key: &str, because: &str) -> Result<String, ProviderError> {
    let missing = || profile_error(name, &format!("has {because}, but {key} is missing"));
    profile.get(key).map(str::to_owned).ok_or_else(missing)
}

fn profile_error(name: &str, what: &str) -> ProviderError {
    refused(format!("the AWS profile {name:?} {what}; its files are {}", places()))
}
