//! Sessions from the SSM API, and what they need of KMS and ECS. The only room that knows AWS's SDK.

mod apis;
mod caller;
mod credentials;
mod document;
mod ecs;
mod endpoint;
mod errors;
mod http;
mod json;
mod kms;
mod nodes;
mod profile;
mod query;
mod rest;
mod services;
mod signed;
mod token;
mod xml;

pub use caller::Caller;
pub use ecs::{EcsSpec, EcsTarget, RunningTask};
pub use nodes::Node;
pub use profile::names as profile_names;
pub use services::{ServiceEndpoint, ServiceSummary};
pub use token::DatabaseToken;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use ::http::HeaderMap;
use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_sdk_ssm::Client;
use aws_sdk_ssm::config::Builder as ConfigBuilder;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use tokio::time::timeout;
use url::Url;

use self::apis::Apis;
use self::credentials::CredentialsSource;
use self::document::{Parameters, Ways};
use self::errors::{Call, api_error};
use self::profile::Profile;
use super::{BoxFuture, DataKey, ProviderError, ProviderErrorKind, SessionProvider, SessionTicket, StartRequest};
use crate::transport::sigv4;

/// Where the API is and who calls it. What is `None` comes from the environment and the profile, as with every AWS tool.
#[derive(Clone, Debug, Default)]
pub struct AwsConfig {
    /// A named profile. It goes before credentials in the environment.
    pub profile: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The API's endpoint, if it is not AWS's.
    pub endpoint_url: Option<String>,
    /// Who calls, if it is not whom the environment and the profile say.
    pub credentials: Option<AwsCredentials>,
}

/// Long-lived or temporary credentials, as the AWS tools call their parts.
#[derive(Clone, PartialEq, Eq)]
pub struct AwsCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`. A secret.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`; only temporary credentials have one. A secret.
    pub session_token: Option<String>,
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsCredentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// Reading the configuration files may take so long.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(5);
/// Credential processes and SSO may take so long.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);
/// Signing the upgrade is the better way, not the only one: it waits less.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 3;

/// Sessions from the SSM API.
#[derive(Debug)]
pub struct AwsProvider {
    client: Client,
    credentials: CredentialsSource,
    region: String,
    endpoint: String,
    apis: Apis,
}

impl AwsProvider {
    /// Reads the configuration. Calls nothing yet.
    ///
    /// # Errors
    /// No region, an unknown profile, files that can't be read, a malformed endpoint.
    pub async fn new(config: AwsConfig) -> Result<Self, ProviderError> {
        let loaded = timeout(CONFIG_TIMEOUT, Self::load(&config)).await.unwrap_or_else(|_| {
            Err(errors::credentials(
                "reading the AWS configuration took too long: is ~/.aws on a dead network drive?".into(),
            ))
        });
        loaded.map_err(|error| match error.kind {
            // Nothing was asked of the API yet.
            ProviderErrorKind::Invalid => ProviderError { kind: ProviderErrorKind::Configuration, ..error },
            _ => error,
        })
    }

    async fn load(config: &AwsConfig) -> Result<Self, ProviderError> {
        if let Some(endpoint) = &config.endpoint_url {
            endpoint::check(endpoint)?;
        }
        let profile = Profile::load(config).await?;
        let region = profile::region(config).await?;
        let http = http::client()?;
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .http_client(http.clone())
            .timeout_config(timeouts())
            .retry_config(retries())
            // Each call brings its own.
            .no_credentials()
            .identity_cache(IdentityCache::no_cache());
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        let shared = loader.load().await;
        let endpoint = endpoint::of_ssm(config, &shared).await?;
        let mut service = ConfigBuilder::from(&shared).http_client(http::client_for(&endpoint, http.clone())?);
        if let Some(endpoint) = &config.endpoint_url {
            // On the service alone: the credentials' own calls (SSO, STS) go where they belong.
            service = service.endpoint_url(endpoint);
        }
        let credentials = CredentialsSource::new(config.credentials.clone(), profile, region.clone(), http.clone());
        let apis = Apis { config: config.clone(), shared, region: region.clone(), http };
        Ok(Self { client: Client::from_conf(service.build()), credentials, region, endpoint, apis })
    }

    async fn start(&self, request: &StartRequest) -> Result<SessionTicket, ProviderError> {
        let target = match EcsSpec::of_target(&request.target)? {
            Some(spec) => Some(self.resolve_ecs(&spec).await?.target),
            None => None,
        };
        let credentials = self.credentials.resolve(CREDENTIALS_TIMEOUT).await?;
        let Ways { first, otherwise } = self.ways(request, &credentials).await?;
        let start = |parameters| self.start_with(request, target.clone(), parameters, credentials.clone());
        match (start(first).await, otherwise) {
            (Err(refused), Some(parameters)) if refused.kind == ProviderErrorKind::Invalid => {
                start(parameters).await.map_err(|error| document::both(&refused, error))
            }
            (done, _) => done,
        }
    }

    async fn start_with(
        &self,
        request: &StartRequest,
        target: Option<String>,
        parameters: Parameters,
        credentials: Credentials,
    ) -> Result<SessionTicket, ProviderError> {
        let output = self
            .client
            .start_session()
            .target(target.as_ref().unwrap_or(&request.target))
            .set_document_name(request.document.clone())
            .set_parameters((!parameters.is_empty()).then(|| parameters.into_iter().collect()))
            .set_reason(request.reason.clone())
            .customize()
            .config_override(called_by(credentials))
            .send()
            .await
            .map_err(|error| self.error("StartSession", &error))?;
        let field = |name: &str, value: Option<String>| {
            value.filter(|value| !value.is_empty()).ok_or_else(|| self.missing("StartSession", name))
        };
        Ok(SessionTicket {
            session_id: field("SessionId", output.session_id)?,
            stream_url: field("StreamUrl", output.stream_url)?,
            token: field("TokenValue", output.token_value)?,
            target,
        })
    }

    async fn resume(&self, session_id: &str) -> Result<SessionTicket, ProviderError> {
        let credentials = self.credentials.resolve(CREDENTIALS_TIMEOUT).await?;
        let output = self
            .client
            .resume_session()
            .session_id(session_id)
            .customize()
            .config_override(called_by(credentials))
            .send()
            .await
            .map_err(|error| self.error("ResumeSession", &error))?;
        let token = output.token_value.filter(|token| !token.is_empty()).ok_or_else(|| ProviderError {
            kind: ProviderErrorKind::SessionGone,
            message: format!("session {session_id} is over: it timed out or was terminated"),
        })?;
        let stream_url = output.stream_url.unwrap_or_default();
        Ok(SessionTicket { session_id: session_id.to_owned(), stream_url, token, target: None })
    }

    async fn terminate(&self, session_id: &str) -> Result<(), ProviderError> {
        self.renewing(|credentials| self.terminate_as(session_id, credentials)).await
    }

    async fn terminate_as(&self, session_id: &str, credentials: Credentials) -> Result<(), ProviderError> {
        let call = self.client.terminate_session().session_id(session_id).customize();
        let answer = call.config_override(called_by(credentials)).send().await;
        answer.map(drop).map_err(|error| self.error("TerminateSession", &error))
    }

    /// The profile that was asked for, by the configuration or by the environment.
    fn profile_name(&self) -> Option<String> {
        let variable = || std::env::var("AWS_PROFILE").ok();
        self.apis.config.profile.clone().or_else(variable).filter(|name| !name.is_empty())
    }

    /// Calls with the credentials of the call before; once more with new ones if those are expired.
    async fn renewing<O, F>(&self, call: impl Fn(Credentials) -> F) -> Result<O, ProviderError>
    where
        F: Future<Output = Result<O, ProviderError>>,
    {
        match call(self.credentials.current(CREDENTIALS_TIMEOUT).await?).await {
            Err(error) if error.kind == ProviderErrorKind::ExpiredCredentials => {
                call(self.credentials.resolve(CREDENTIALS_TIMEOUT).await?).await
            }
            answer => answer,
        }
    }

    /// Signs if it can. What can't be signed goes out unsigned, as the official client's does.
    async fn sign(&self, url: &Url) -> HeaderMap {
        if sigv4::is_presigned(url) {
            return HeaderMap::new();
        }
        let signed = match self.credentials.current(SIGNING_TIMEOUT).await {
            Ok(credentials) => sigv4::sign_upgrade(url, &self.region, credentials, SystemTime::now()),
            Err(error) => Err(error.message),
        };
        signed.unwrap_or_else(|error| {
            tracing::info!(error, "the data channel is opened unsigned");
            HeaderMap::new()
        })
    }

    fn error<E>(&self, call: &str, error: &SdkError<E, HttpResponse>) -> ProviderError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        api_error(&self.named(call), error)
    }

    fn missing(&self, call: &str, field: &str) -> ProviderError {
        self.named(call).answered_without(field)
    }

    fn named<'a>(&'a self, name: &'a str) -> Call<'a> {
        Call { service: "ssm", name, endpoint: &self.endpoint, remedy: self.credentials.remedy() }
    }
}

impl SessionProvider for AwsProvider {
    fn start<'a>(&'a self, request: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(self.start(request))
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(self.resume(session_id))
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(self.terminate(session_id))
    }

    fn sign_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        Box::pin(async move { Ok(self.sign(url).await) })
    }

    fn data_key<'a>(
        &'a self,
        key_id: &'a str,
        context: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<DataKey, ProviderError>> {
        Box::pin(self.data_key(key_id, context))
    }
}

/// One call's override of the client's configuration.
fn called_by(credentials: Credentials) -> ConfigBuilder {
    ConfigBuilder::new().credentials_provider(credentials)
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}

fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(ATTEMPTS)
}
