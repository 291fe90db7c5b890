//! Sessions from the SSM API, and the calls of other AWS services that they need. This is the only module that uses the AWS SDK.

mod apis;
mod bounded;
mod cache;
mod caller;
mod credentials;
mod document;
mod ecs;
mod endpoint;
mod errors;
mod examine;
mod files;
mod http;
mod instances;
mod json;
mod kms;
mod network;
mod nodes;
mod origin;
mod person;
mod process;
mod query;
mod rest;
mod role;
mod services;
mod settings;
mod signed;
mod source;
mod token;
mod xml;

pub use cache::LookupCache;
pub use caller::Caller;
pub use ecs::{EcsSpec, EcsTarget, RunningTask};
pub use examine::Preferences;
pub use files::{ConfigurationFile, configuration_files, profile_names};
pub use network::{NetworkPlace, SecurityGroup, SecurityRule, Verdict, VpcEndpoint};
pub use nodes::Node;
pub use origin::AwsOrigin;
pub use person::Person;
pub use services::{ServiceEndpoint, ServiceSummary};
pub use token::DatabaseToken;

/// The argument type of [`AwsProvider::from_sdk_config`].
pub use aws_types::SdkConfig;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ::http::HeaderMap;
use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_ssm::Client;
use aws_sdk_ssm::config::{Builder as ConfigBuilder, StalledStreamProtectionConfig};
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use url::Url;

use self::apis::Apis;
use self::credentials::{CredentialsSource, Fetcher};
use self::document::{ParameterSets, Parameters};
use self::errors::{Call, api_error};
use self::files::Files;
use self::person::LogOnly;
use self::settings::Settings;
use self::source::Selected;
use super::{
    BoxFuture, DataKey, ProviderError, ProviderErrorKind, Secret, SessionProvider, SessionTicket, StartRequest,
};
use crate::transport::{region_of, sigv4};

/// The endpoint of the API and the identity of the caller. Fields that are `None` come from the environment and the profile, as in
/// every AWS tool.
#[derive(Clone, Debug, Default)]
pub struct AwsConfig {
    /// A named profile. It takes precedence over credentials in the environment.
    pub profile: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The endpoint of the API. `None`: AWS's endpoint, unless the environment or the profile sets another one.
    pub endpoint_url: Option<String>,
    /// A PEM file with certificate authorities to trust in addition to the system's, for the API and for a proxy over TLS.
    pub ca_bundle: Option<PathBuf>,
    /// The caller's credentials, if they do not come from the environment or the profile.
    pub credentials: Option<AwsCredentials>,
    /// Asks the user for the code of an MFA device, and reports what the provider waits for. `None`: the user is not asked, and
    /// reports are logged.
    pub person: Option<Arc<dyn Person>>,
}

/// Long-lived or temporary credentials, with the names that AWS tools use.
#[derive(Clone, PartialEq, Eq)]
pub struct AwsCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Secret,
    /// `AWS_SESSION_TOKEN`. Only temporary credentials have one.
    pub session_token: Option<Secret>,
}

impl From<AwsCredentials> for SharedCredentialsProvider {
    fn from(given: AwsCredentials) -> Self {
        // The SDK's `Credentials` also overwrite their memory when they are dropped.
        let token = given.session_token.map(|token| token.expose().clone());
        Self::new(Credentials::new(given.access_key_id, given.secret_access_key.expose(), token, None, "given"))
    }
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsCredentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// Timeout for resolving a name, TCP, a proxy and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// Timeout of one attempt, with its whole answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of all attempts and the delays between them. It is long enough for three attempts that cannot connect, so that the error
/// contains their cause.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(25);
const ATTEMPTS: u32 = 3;

/// Returns the value of an environment variable. An empty value counts as not set.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Starts sessions through the SSM API.
#[derive(Debug)]
pub struct AwsProvider {
    client: Client,
    credentials: CredentialsSource,
    settings: Settings,
    selected: Selected,
    endpoint: String,
    apis: Apis,
    warned_unsigned: AtomicBool,
    cache: Option<LookupCache>,
}

impl AwsProvider {
    /// Reads the configuration. Makes no call and does not look up credentials: they are first needed, and can first fail, at the
    /// first call.
    ///
    /// # Errors
    /// Returns an error if there is no region, if the endpoint is malformed, or if the CA bundle cannot be read.
    pub async fn new(config: AwsConfig) -> Result<Self, ProviderError> {
        let given = config.credentials.clone().map(SharedCredentialsProvider::from);
        Self::load(config, given, |_| {}).await
    }

    /// Uses the region, the endpoint and the credentials that the program has configured for the AWS SDK. Settings that this
    /// configuration does not contain come from the environment and the profile, as for [`AwsProvider::new`]. The HTTP client of
    /// the configuration is not used: proxies and certificate authorities come from the environment.
    ///
    /// # Errors
    /// Returns the same errors as [`AwsProvider::new`].
    pub async fn from_sdk_config(sdk: &SdkConfig) -> Result<Self, ProviderError> {
        let config = AwsConfig {
            region: sdk.region().map(ToString::to_string),
            endpoint_url: sdk.endpoint_url().map(str::to_owned),
            ..AwsConfig::default()
        };
        let adjust = |settings: &mut Settings| {
            settings.fips = sdk.use_fips().unwrap_or(settings.fips);
            settings.dual_stack = sdk.use_dual_stack().unwrap_or(settings.dual_stack);
        };
        Self::load(config, sdk.credentials_provider(), adjust).await
    }

    async fn load(
        config: AwsConfig,
        given: Option<SharedCredentialsProvider>,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<Self, ProviderError> {
        Self::try_load(config, given, adjust).await.map_err(|error| match error.kind {
            // No request was made yet, so the configuration is invalid.
            ProviderErrorKind::Invalid => ProviderError { kind: ProviderErrorKind::Configuration, ..error },
            _ => error,
        })
    }

    async fn try_load(
        config: AwsConfig,
        given: Option<SharedCredentialsProvider>,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<Self, ProviderError> {
        let selected = Selected::new(config.profile.as_deref());
        let files = Files::read().await;
        // Unreadable files cause an error at the first call only. A session that another program started may not need them.
        let mut settings = match &files {
            Ok(files) => Settings::new(&config, files, &selected)?,
            Err(error) => Settings::new(&config, &Files::default(), &selected).map_err(|_| error.clone())?,
        };
        adjust(&mut settings);
        if let Some(endpoint) = &settings.given_endpoint {
            endpoint::check("--endpoint-url", endpoint)?;
        }
        let endpoint = endpoint::of_ssm(&settings).await?;
        endpoint::check("the endpoint of SSM", &endpoint)?;
        let http = http::client(settings.ca_bundle.as_ref())?;
        let client = client(&settings, http.clone());
        let person = config.person.unwrap_or_else(|| Arc::new(LogOnly));
        let apis = Apis { settings: settings.clone(), http };
        let fetcher = Fetcher { apis: apis.clone(), person, given };
        let credentials = CredentialsSource::new(selected.clone(), fetcher);
        let warned_unsigned = AtomicBool::new(false);
        Ok(Self { client, credentials, settings, selected, endpoint, apis, warned_unsigned, cache: None })
    }

    /// Gets credentials, so that later calls do not have to wait for the user.
    ///
    /// # Errors
    /// Returns an error if there are no credentials, or if they cannot be obtained.
    pub async fn authenticate(&self) -> Result<(), ProviderError> {
        self.credentials.current().await.map(drop)
    }

    async fn start(&self, request: &StartRequest) -> Result<SessionTicket, ProviderError> {
        let target = match EcsSpec::of_target(&request.target)? {
            Some(spec) => Some(self.resolve_ecs(&spec).await?.target),
            None => None,
        };
        let credentials = self.credentials.current().await?;
        let ParameterSets { first, otherwise } = self.parameter_sets(request, &credentials).await?;
        let start = |parameters| self.start_with(request, target.clone(), parameters);
        match (start(first).await, otherwise) {
            (Err(refused), Some(parameters)) if refused.kind == ProviderErrorKind::Invalid => {
                start(parameters).await.map_err(|error| document::both_refused(&refused, error))
            }
            (done, _) => done,
        }
    }

    async fn start_with(
        &self,
        request: &StartRequest,
        target: Option<String>,
        parameters: Parameters,
    ) -> Result<SessionTicket, ProviderError> {
        let parameters = (!parameters.is_empty()).then(|| parameters.into_iter().collect());
        let call = |credentials| {
            let target = target.as_ref().unwrap_or(&request.target);
            let call = self.client.start_session().target(target).set_document_name(request.document.clone());
            let call = call.set_parameters(Option::clone(&parameters)).set_reason(request.reason.clone()).customize();
            async {
                call.config_override(called_by(credentials)).send().await.map_err(|e| self.error("StartSession", &e))
            }
        };
        let output = self.renewing(call).await?;
        let field = |name: &str, value: Option<String>| {
            value.filter(|value| !value.is_empty()).ok_or_else(|| self.missing("StartSession", name))
        };
        Ok(SessionTicket {
            session_id: field("SessionId", output.session_id)?,
            stream_url: field("StreamUrl", output.stream_url)?,
            token: field("TokenValue", output.token_value)?.into(),
            target,
        })
    }

    async fn resume(&self, session_id: &str) -> Result<SessionTicket, ProviderError> {
        let call = |credentials| {
            let call = self.client.resume_session().session_id(session_id).customize();
            async {
                call.config_override(called_by(credentials)).send().await.map_err(|e| self.error("ResumeSession", &e))
            }
        };
        let output = self.renewing(call).await?;
        if let Some(other) = output.session_id().filter(|id| !id.is_empty() && *id != session_id) {
            return Err(ProviderError {
                kind: ProviderErrorKind::Service,
                message: format!(
                    "ResumeSession for session {session_id} was answered for another session: {}",
                    crate::text::one_line(other)
                ),
            });
        }
        let token = output.token_value.filter(|token| !token.is_empty()).ok_or_else(|| ProviderError {
            kind: ProviderErrorKind::SessionGone,
            message: format!("session {session_id} is over: it timed out or was terminated"),
        })?;
        let stream_url = output.stream_url.unwrap_or_default();
        Ok(SessionTicket { session_id: session_id.to_owned(), stream_url, token: token.into(), target: None })
    }

    async fn terminate(&self, session_id: &str) -> Result<(), ProviderError> {
        self.renewing(|credentials| self.terminate_as(session_id, credentials)).await
    }

    async fn terminate_as(&self, session_id: &str, credentials: Credentials) -> Result<(), ProviderError> {
        let call = self.client.terminate_session().session_id(session_id).customize();
        let answer = call.config_override(called_by(credentials)).send().await;
        answer.map(drop).map_err(|error| self.error("TerminateSession", &error))
    }

    /// Returns the profile that the configuration or the environment selects.
    fn profile_name(&self) -> Option<String> {
        self.selected.asked().map(str::to_owned)
    }

    /// Makes a call, and repeats it once with new credentials if the current ones have expired.
    async fn renewing<O, F>(&self, call: impl Fn(Credentials) -> F) -> Result<O, ProviderError>
    where
        F: Future<Output = Result<O, ProviderError>>,
    {
        let credentials = self.credentials.current().await?;
        let answer = match call(credentials.clone()).await {
            Err(error) if error.kind == ProviderErrorKind::ExpiredCredentials => {
                let renewed = self.credentials.renewed(&credentials).await?;
                if renewed == credentials { Err(error) } else { call(renewed).await }
            }
            answer => answer,
        };
        answer.map_err(|error| self.placed(error))
    }

    /// Adds the region and the profile to errors that depend on them.
    fn placed(&self, error: ProviderError) -> ProviderError {
        match error.kind {
            ProviderErrorKind::AccessDenied
            | ProviderErrorKind::Throttled
            | ProviderErrorKind::Unreachable
            | ProviderErrorKind::Service => {
                let message = format!("{}; region: {}", error.message, self.place());
                ProviderError { message, ..error }
            }
            _ => error,
        }
    }

    /// Signs the upgrade request if that is possible quickly. Otherwise the request is sent unsigned, as the official client does.
    async fn sign(&self, url: &Url) -> HeaderMap {
        if sigv4::is_presigned(url) {
            return HeaderMap::new();
        }
        let signed = match self.credentials.quickly_available().await {
            Ok(Some(credentials)) => self.signed(url, credentials),
            Ok(None) => {
                tracing::debug!("the data channel is opened unsigned: getting credentials may take a long time");
                return HeaderMap::new();
            }
            Err(error) => Err(error.message),
        };
        signed.unwrap_or_else(|error| {
            if !self.warned_unsigned.swap(true, Ordering::Relaxed) {
                let person = self.credentials.person();
                person.tell(&format!("warning: the data channel is opened without a signature: {error}"));
            }
            HeaderMap::new()
        })
    }

    /// Returns the headers of the signature for `url`, in the region of the URL.
    fn signed(&self, url: &Url, credentials: Credentials) -> Result<HeaderMap, String> {
        let region = region_of(url).unwrap_or_else(|| self.settings.region.clone());
        sigv4::sign_upgrade(url, &region, credentials, SystemTime::now())
    }

    /// Signs the upgrade request, even if that takes long, because the service refused the unsigned request.
    async fn sign_after_refusal(&self, url: &Url) -> Result<HeaderMap, ProviderError> {
        if sigv4::is_presigned(url) {
            return Ok(HeaderMap::new());
        }
        let credentials = self.credentials.current().await?;
        self.signed(url, credentials).map_err(errors::invalid)
    }

    fn error<E>(&self, call: &str, error: &SdkError<E, HttpResponse>) -> ProviderError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        api_error(&self.named(call, &self.credentials.remedy()), error)
    }

    fn missing(&self, call: &str, field: &str) -> ProviderError {
        self.named(call, "").answered_without(field)
    }

    fn named<'a>(&'a self, name: &'a str, remedy: &'a str) -> Call<'a> {
        Call { service: "ssm", name, endpoint: &self.endpoint, remedy }
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

    fn sign_refused_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        Box::pin(self.sign_after_refusal(url))
    }

    fn data_key<'a>(
        &'a self,
        key_id: &'a str,
        context: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<DataKey, ProviderError>> {
        Box::pin(self.data_key(key_id, context))
    }
}

/// Creates the client of SSM. Each call overrides its credentials.
fn client(settings: &Settings, http: SharedHttpClient) -> Client {
    let given = settings.ssm_endpoint();
    let mut config = ConfigBuilder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.region.clone()))
        .http_client(http)
        .timeout_config(timeouts())
        // The protection would count the wait for a connection as a stalled upload, and would hide the actual cause.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .retry_config(retries())
        .identity_cache(IdentityCache::no_cache())
        .use_fips(settings.fips && given.is_none())
        .use_dual_stack(settings.dual_stack && given.is_none());
    config.set_endpoint_url(given);
    Client::from_conf(config.build())
}

/// Overrides the client's credentials for one call.
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
