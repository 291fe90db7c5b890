//! Roles that are assumed with other credentials, and the AWS CLI's cache of their credentials.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use serde::Deserialize;
use sha1::{Digest, Sha1};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::credentials::{Fetcher, is_valid};
use super::errors::credentials as refused;
use super::query::{self, STS};
use super::source::{Role, option};
use super::{files, process};
use crate::{ProviderError, ProviderErrorKind, Secret};

/// Time for the user to find the device and to type the code.
const CODE_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns the credentials that the AWS CLI has stored after its own last call, if they are still valid.
pub(super) async fn cached(role: &Role) -> Option<Credentials> {
    let path = files::folder().join("cli/cache").join(format!("{}.json", cache_key(role)));
    let text = tokio::fs::read(path).await.ok()?;
    let cached: Cached = serde_json::from_slice(&text).ok()?;
    let credentials = cached.credentials.of(role, "cli cache").ok()?;
    is_valid(&credentials).then_some(credentials)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Cached {
    credentials: Keys,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Keys {
    access_key_id: String,
    secret_access_key: Secret,
    session_token: Secret,
    expiration: String,
}

impl Keys {
    fn of(self, role: &Role, origin: &'static str) -> Result<Credentials, String> {
        let mut credentials = Credentials::builder()
            .access_key_id(self.access_key_id)
            .secret_access_key(self.secret_access_key.expose())
            .session_token(self.session_token.expose())
            .expiry(process::time(&self.expiration)?)
            .provider_name(origin);
        // arn:aws:iam::123456789012:role/NAME
        credentials.set_account_id(role.arn.split(':').nth(4).map(Into::into));
        Ok(credentials.build())
    }
}

/// Returns the name of the AWS CLI's cache file: the SHA-1 of the call's arguments as Python writes them in JSON.
fn cache_key(role: &Role) -> String {
    let text = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name:?}: {}", json(value)));
    let arguments = [
        role.duration.map(|seconds| format!("\"DurationSeconds\": {seconds}")),
        text("ExternalId", &role.external_id),
        Some(format!("\"RoleArn\": {}", json(&role.arn))),
        text("RoleSessionName", &role.session_name),
        text("SerialNumber", &role.mfa_serial),
    ];
    let arguments: Vec<String> = arguments.into_iter().flatten().collect();
    let digest = Sha1::digest(format!("{{{}}}", arguments.join(", ")));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(text: &str) -> String {
    let mut json = String::new();
    for char in serde_json::Value::from(text).to_string().chars() {
        if char.is_ascii() {
            json.push(char);
        } else {
            char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| json.push_str(&format!("\\u{unit:04x}")));
        }
    }
    json
}

/// Assumes the role with the credentials `base`.
///
/// # Errors
/// Returns an error if there is no MFA code, or if the service refuses.
pub(super) async fn assume(role: &Role, base: Credentials, fetcher: &Fetcher) -> Result<Credentials, ProviderError> {
    const CALL: &str = "AssumeRole";
    let code = match &role.mfa_serial {
        Some(serial) => Some(code(role, serial, fetcher).await?),
        None => None,
    };
    let session_name = role.session_name.clone().unwrap_or_else(session_name);
    let duration = role.duration.map(|seconds| seconds.to_string());
    let parameters = [
        ("RoleArn", Some(&role.arn)),
        ("RoleSessionName", Some(&session_name)),
        ("DurationSeconds", duration.as_ref()),
        ("ExternalId", role.external_id.as_ref()),
        ("SerialNumber", role.mfa_serial.as_ref()),
        ("TokenCode", code.as_ref()),
    ];
    let parameters: Vec<_> = parameters.into_iter().filter_map(|(name, value)| Some((name, value?.as_str()))).collect();
    let api = fetcher.apis.signed(STS.service).await?;
    let request = query::request(STS, CALL, &parameters)?;
    let called = api.send(CALL, request, base, role.base.remedy(), query::read::<Answer>).await;
    let answer = called.map_err(|error| {
        let message = format!("the role {} of the AWS profile {:?}: {}", role.arn, role.profile, error.message);
        let kind = match error.kind {
            ProviderErrorKind::AccessDenied | ProviderErrorKind::Invalid => ProviderErrorKind::Credentials,
            kind => kind,
        };
        ProviderError { kind, message }
    })?;
    answer.assume_role_result.credentials.of(role, CALL).map_err(refused)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    assume_role_result: Cached,
}

/// Does not print the fields, because they are secret.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

pub(super) fn session_name() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("aws-ssm-forward-{}", since.as_secs())
}

/// Asks the user for the code that the MFA device shows.
async fn code(role: &Role, serial: &str, fetcher: &Fetcher) -> Result<String, ProviderError> {
    let refused = |cause: &str| {
        refused(format!(
            "the AWS profile {:?} has mfa_serial = {serial}: its code is needed, but {cause}; \
             run aws sts get-caller-identity{}, which keeps the role's credentials for an hour, and try again",
            role.profile,
            option(&role.profile)
        ))
    };
    let person = fetcher.person.clone();
    if !person.can_answer() {
        return Err(refused("there is no terminal to ask for it"));
    }
    let question = format!("MFA code for {serial}: ");
    let asked = timeout(CODE_TIMEOUT, spawn_blocking(move || person.ask(&question))).await;
    let code = asked
        .map_err(|_| refused("it was not entered"))?
        .map_err(|error| refused(&error.to_string()))?
        .map_err(|error| refused(&error.to_string()))?;
    Ok(code.trim().to_owned()).and_then(|code| if code.is_empty() { Err(refused("none was typed")) } else { Ok(code) })
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;

    fn role(external_id: Option<&str>, session_name: Option<&str>, mfa: Option<&str>, duration: Option<i32>) -> Role {
        Role {
            profile: "p".into(),
            arn: "arn:aws:iam::123456789012:role/admin".into(),
            external_id: external_id.map(str::to_owned),
            session_name: session_name.map(str::to_owned),
            mfa_serial: mfa.map(str::to_owned),
            duration,
            base: Source::Metadata,
        }
    }

    /// The expected names are the ones that botocore computes.
    #[test]
    fn the_file_of_the_aws_cli_is_found() {
        let mfa = Some("arn:aws:iam::123456789012:mfa/me");
        for (role, key) in [
            (role(None, None, None, None), "85df843ebbf3964c64e26d66d796d302b1a7a5ff"),
            (role(None, None, mfa, Some(3600)), "36cb7b4dfac6d25573d3a58386ddc41df0795b31"),
            (role(Some("ü\"x"), Some("me"), mfa, None), "e91dd5dde807714c06668831927c5539a8bb51fc"),
        ] {
            assert_eq!(cache_key(&role), key);
        }
    }
}
