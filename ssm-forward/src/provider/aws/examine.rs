//! Calls that help to find out why sessions fail. They change nothing.

use std::fmt::Debug;
use std::time::SystemTime;

use ::http::Request;
use aws_sdk_ssm::error::ErrorMetadata;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::errors::invalid;
use super::http::is_loopback;
use super::signed::{Service, SignedApi, malformed, not_built};
use super::{AwsProvider, ProviderError, ProviderErrorKind, called_by, endpoint};
use crate::StreamEndpoint;

const SSM: Service = Service { id: "SSM", name: "ssm" };
/// The document that contains an account's preferences in a region. It is also the document of sessions that name none.
const PREFERENCES: &str = "SSM-SessionManagerRunShell";
/// The idle timeout of an account that sets none, in minutes.
const IDLE_MINUTES: u32 = 20;

/// The preferences of Session Manager of an account in one region: requirements for its sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preferences {
    /// Idle timeout of a session, in minutes. `None`: the account sets none, so that AWS's default applies.
    pub idle_minutes: Option<u32>,
    /// Maximum duration of a session, in minutes. `None`: there is no maximum.
    pub max_minutes: Option<u32>,
    /// The KMS key that encrypts sessions in addition to TLS.
    pub kms_key: Option<String>,
    /// The user that runs the shells. `None`: the agent's `ssm-user`. Empty: the user that the caller's tag names.
    pub run_as: Option<String>,
    /// Whether the output of shells is stored in S3 or CloudWatch.
    pub logged: bool,
}

impl AwsProvider {
    /// Returns when the last used credentials expire. `None` if they do not expire, or if this is not known.
    pub async fn credentials_end(&self) -> Option<SystemTime> {
        self.credentials.end().await
    }

    /// Returns what to do if the credentials are not accepted, as a part of a sentence, often with a command.
    pub fn credentials_remedy(&self) -> String {
        self.credentials.remedy()
    }

    /// Returns the time of SSM's clock. Needs no credentials.
    ///
    /// # Errors
    /// Returns an error if SSM cannot be reached, or if its answer does not contain the time.
    pub async fn api_time(&self) -> Result<SystemTime, ProviderError> {
        const NAME: &str = "its time";
        let request = Request::get("/").body(SdkBody::empty()).map_err(|error| not_built(NAME, &error))?;
        let request = HttpRequest::try_from(request).map_err(|error| not_built(NAME, &error))?;
        let http = self.apis.http.clone();
        let api = SignedApi::at(SSM, self.endpoint.clone(), self.settings.region.clone(), http);
        api.invoke(NAME, request, String::new(), date).await
    }

    /// Returns the URL of the data channels, as far as it is known before a session is started. If `given` is set, it replaces the
    /// URL. `None`: the SSM API is on this machine, and only its answer to StartSession contains the URL.
    ///
    /// # Errors
    /// Returns an error if no endpoint is known in the region, or if the configured one is invalid.
    pub async fn channel_url(&self, given: Option<&StreamEndpoint>) -> Result<Option<Url>, ProviderError> {
        let configured = self.stream_endpoint()?;
        if let Some(endpoint) = given.or(configured.as_ref()) {
            return Ok(Some(endpoint.as_url().clone()));
        }
        if is_loopback(&self.endpoint) {
            return Ok(None);
        }
        let url = endpoint::of_channel(&self.settings).await?;
        Url::parse(&url).map(Some).map_err(|error| invalid(error.to_string()))
    }

    /// Returns the account's preferences of Session Manager.
    ///
    /// # Errors
    /// Returns an error if access is denied (`ssm:GetDocument`), or if the content is invalid.
    pub async fn preferences(&self) -> Result<Preferences, ProviderError> {
        const CALL: &str = "GetDocument";
        let call = |credentials| {
            let call = self.client.get_document().name(PREFERENCES).customize();
            async { call.config_override(called_by(credentials)).send().await.map_err(|e| self.error(CALL, &e)) }
        };
        let answer = match self.renewing(call).await {
            Ok(answer) => answer,
            // An account that never set preferences has no such document.
            Err(error) if error.message.contains("InvalidDocument") => return Ok(Preferences::default()),
            Err(error) => return Err(error),
        };
        let content = answer.content.ok_or_else(|| self.missing(CALL, "Content"))?;
        Preferences::parse(&content).ok_or_else(|| ProviderError {
            kind: ProviderErrorKind::Service,
            message: format!("the document {PREFERENCES} is not the JSON of a session document"),
        })
    }
}

/// Returns the `Date` header of any answer, also of an error.
fn date(response: &HttpResponse) -> Result<SystemTime, OrchestratorError<ErrorMetadata>> {
    let header = response.headers().get("date").ok_or_else(|| malformed("without its time"))?;
    let date = DateTime::from_str(header, Format::HttpDate).map_err(|_| malformed("its time"))?;
    SystemTime::try_from(date).map_err(|_| malformed("its time"))
}

impl Preferences {
    /// Returns the idle timeout of a session, in minutes: the account's, or AWS's default of 20.
    pub fn idle_minutes_or_default(&self) -> u32 {
        self.idle_minutes.unwrap_or(IDLE_MINUTES)
    }

    fn parse(content: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            inputs: Value,
        }
        let Document { inputs } = serde_json::from_str(content).ok()?;
        let text = |key: &str| inputs.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let minutes = |key: &str| text(key).and_then(|text| text.parse().ok());
        let runs_as = inputs.get("runAsEnabled").and_then(Value::as_bool) == Some(true);
        Some(Self {
            idle_minutes: minutes("idleSessionTimeout"),
            max_minutes: minutes("maxSessionDuration"),
            kms_key: text("kmsKeyId").map(str::to_owned),
            run_as: runs_as.then(|| text("runAsDefaultUser").unwrap_or_default().to_owned()),
            logged: text("s3BucketName").or_else(|| text("cloudWatchLogGroupName")).is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_from_their_document() {
        let content = r#"{"schemaVersion": "1.0", "sessionType": "Standard_Stream", "inputs": {
            "s3BucketName": "", "cloudWatchLogGroupName": "sessions", "kmsKeyId": "alias/x", "runAsEnabled": true,
            "runAsDefaultUser": "", "idleSessionTimeout": "5", "maxSessionDuration": ""}}"#;
        let wanted = Preferences {
            idle_minutes: Some(5),
            max_minutes: None,
            kms_key: Some("alias/x".into()),
            run_as: Some(String::new()),
            logged: true,
        };
        assert_eq!(wanted.idle_minutes_or_default(), 5);
        assert_eq!(Preferences::parse(content), Some(wanted));
        assert_eq!(Preferences::parse("{}"), Some(Preferences::default()));
        assert_eq!(Preferences::default().idle_minutes_or_default(), 20);
        assert_eq!(Preferences::parse("schemaVersion: 1"), None);
    }
}
