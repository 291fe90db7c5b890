//! The profile that is in use, and the region.

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{Profile as ConfiguredProfile, ProfileFileRegionProvider, ProfileSet};
use aws_types::os_shim_internal::{Env, Fs};

use super::errors::{chain, credentials};
use super::{AwsConfig, ProviderError, ProviderErrorKind};

/// What the AWS configuration files say about who calls.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    /// The name, if `--profile` gave it: then the environment's credentials do not count.
    pub(super) explicit: Option<String>,
    /// What to do when the credentials are no good.
    pub(super) remedy: String,
}

/// Chains of `source_profile` are followed so far.
const MAX_SOURCES: usize = 8;

impl Profile {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is malformed, or the profile that was asked for does not exist.
    pub(super) async fn load(config: &AwsConfig) -> Result<Self, ProviderError> {
        if config.credentials.is_some() {
            return Ok(Self { explicit: None, remedy: "pass other credentials".to_owned() });
        }
        let explicit = config.profile.clone();
        let set =
            aws_config::profile::load(&Fs::real(), &Env::real(), &Default::default(), explicit.clone().map(Into::into))
                .await
                .map_err(|error| {
                    credentials(format!("the AWS configuration files can't be used: {}", chain(&error)))
                })?;
        let in_environment = explicit.is_none() && is_set("AWS_ACCESS_KEY_ID");
        let asked = explicit.is_some() || is_set("AWS_PROFILE");
        let name = set.selected_profile();
        if asked && !in_environment && set.get_profile(name).is_none() {
            return Err(credentials(unknown(name, &set)));
        }
        let sources = sources(&set, name);
        if let Some(lost) = sources.iter().find(|source| set.get_profile(source).is_none() && **source != name) {
            return Err(credentials(format!("the AWS profile {name:?} builds on {lost:?}, which does not exist")));
        }
        let of_profile =
            |source: &&str| set.get_profile(source).is_some_and(|profile| profile.get("login_session").is_some());
        if let Some(login) = sources.iter().find(|source| of_profile(source)).filter(|_| !in_environment) {
            return Err(credentials(format!(
                "the AWS profile {login:?} comes from aws login, which is not supported directly: \
                 eval \"$(aws configure export-credentials --profile {login} --format env)\""
            )));
        }
        let sso = sources.iter().filter_map(|source| set.get_profile(source)).any(uses_sso);
        let remedy = if in_environment {
            "set new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN".to_owned()
        } else if !sso {
            "get new credentials and try again".to_owned()
        } else if name == "default" {
            "log in again: aws sso login".to_owned()
        } else {
            format!("log in again: aws sso login --profile {name}")
        };
        Ok(Self { explicit, remedy })
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn unknown(name: &str, set: &ProfileSet) -> String {
    let mut known: Vec<&str> = set.profiles().collect();
    known.sort_unstable();
    match known.as_slice() {
        [] => format!("there is no AWS profile {name:?}, nor any other: create it with aws configure --profile {name}"),
        _ => format!("there is no AWS profile {name:?}; there are: {}", known.join(", ")),
    }
}

/// The names of the profiles in the AWS configuration files, sorted; none if the files can't be read.
pub async fn names() -> Vec<String> {
    let set = aws_config::profile::load(&Fs::real(), &Env::real(), &Default::default(), None).await;
    let mut names: Vec<_> = set.iter().flat_map(ProfileSet::profiles).map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// The profile and those it builds on, existing or not.
fn sources<'a>(set: &'a ProfileSet, name: &'a str) -> Vec<&'a str> {
    let next = |name: &&'a str| set.get_profile(name).and_then(|profile| profile.get("source_profile"));
    std::iter::successors(Some(name), next).take(MAX_SOURCES).collect()
}

fn uses_sso(profile: &ConfiguredProfile) -> bool {
    ["sso_session", "sso_start_url"].iter().any(|key| profile.get(key).is_some())
}

/// The region from the argument, the environment or the profile. The instance's own metadata is not asked: on a laptop that
/// is a wait for nothing.
pub(super) async fn region(config: &AwsConfig) -> Result<String, ProviderError> {
    let error = |message| ProviderError { kind: ProviderErrorKind::Region, message };
    let region = match &config.region {
        Some(region) => region.clone(),
        None => region_of_environment(config).await.ok_or_else(|| {
            error("no AWS region: pass --region, set AWS_REGION, or put a region into the profile".to_owned())
        })?,
    };
    if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(error(format!("{region:?} is not the name of an AWS region, such as eu-central-1")));
    }
    Ok(region)
}

async fn region_of_environment(config: &AwsConfig) -> Option<String> {
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &config.profile {
        profile = profile.profile_name(name);
    }
    let region = match EnvironmentVariableRegionProvider::new().region().await {
        Some(region) => Some(region),
        None => profile.build().region().await,
    };
    region.map(|region| region.as_ref().to_owned())
}
