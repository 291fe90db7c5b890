//! The caller's credentials. They are found in the same way as by the AWS CLI, but expired ones are never used.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ::http::HeaderValue;
use aws_config::Region;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::{self, credentials::ImdsCredentialsProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::sso::SsoCredentialsProvider;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use tokio::time::timeout;

use super::apis::Apis;
use super::errors::{credentials as refused, credentials_error};
use super::files::Files;
use super::person::Person;
use super::source::{Selected, Source, Sso, option};
use super::{BoxFuture, ProviderError, process, role, variable};

/// Timeout of the metadata service. On an instance, it answers quickly. Without an answer, this machine is not an instance.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for a service that issues credentials. A credential process and the user's input have their own timeouts.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(20);
/// The upgrade request does not need a signature, although signing is preferred. So the timeout is shorter.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(5);
/// Credentials that expire within this time are not used.
const MARGIN: Duration = Duration::from_secs(60);

/// The source of the credentials.
#[derive(Debug)]
pub(super) struct CredentialsSource {
    selected: Selected,
    fetcher: Fetcher,
    /// The last result. Concurrent callers wait for the same result, so that the user is asked only once.
    held: tokio::sync::Mutex<Option<Held>>,
    remedy: Mutex<Option<String>>,
}

/// The means to get credentials.
#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) apis: Apis,
    pub(super) person: Arc<dyn Person>,
    /// The program's own credentials, which replace the ones from the environment and the files.
    pub(super) given: Option<SharedCredentialsProvider>,
}

#[derive(Debug)]
struct Held {
    source: Source,
    credentials: Credentials,
}

impl CredentialsSource {
    pub(super) fn new(selected: Selected, fetcher: Fetcher) -> Self {
        Self { selected, fetcher, held: tokio::sync::Mutex::default(), remedy: Mutex::default() }
    }

    pub(super) fn person(&self) -> &dyn Person {
        &*self.fetcher.person
    }

    /// Returns when the current credentials expire. `None` if this is not known, or if they do not expire.
    pub(super) async fn end(&self) -> Option<SystemTime> {
        self.held.lock().await.as_ref().and_then(|held| held.credentials.expiry())
    }

    /// Returns what to do if the credentials are not accepted.
    pub(super) fn remedy(&self) -> String {
        let remedy = self.remedy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        remedy.unwrap_or_else(|| "get other credentials and try again".to_owned())
    }

    /// Returns a description of the credentials for the user.
    ///
    /// # Errors
    /// Returns the same errors as [`CredentialsSource::current`], as far as they can be known without getting the credentials.
    pub(super) async fn describe(&self) -> Result<String, ProviderError> {
        match self.source().await? {
            Source::Given => Ok("given by the program".to_owned()),
            source => Ok(source.describe()),
        }
    }

    /// Returns the credentials for a call. The files are read each time, so that a login in the meantime takes effect. Credentials
    /// that were expensive to get are kept until they expire.
    ///
    /// # Errors
    /// Returns an error if there are no credentials, or if they cannot be obtained.
    pub(super) async fn current(&self) -> Result<Credentials, ProviderError> {
        let source = self.source().await?;
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.source == source && is_valid(&held.credentials)) {
            return Ok(held.credentials.clone());
        }
        let credentials = self.fetcher.fetch(&source, &self.selected).await?;
        *held = Some(Held { source, credentials: credentials.clone() });
        Ok(credentials)
    }

    /// Returns new credentials after the service has refused `expired`.
    ///
    /// # Errors
    /// Returns the same errors as [`CredentialsSource::current`].
    pub(super) async fn renewed(&self, expired: &Credentials) -> Result<Credentials, ProviderError> {
        self.held.lock().await.take_if(|held| held.credentials.access_key_id() == expired.access_key_id());
        self.current().await
    }

    /// Returns credentials that can be obtained quickly and without the user. `None` if that is not possible.
    ///
    /// # Errors
    /// Returns the same errors as [`CredentialsSource::current`], or an error if it takes too long.
    pub(super) async fn quickly_available(&self) -> Result<Option<Credentials>, ProviderError> {
        let source = self.source().await?;
        if source.may_take_long() {
            let held = self.held.try_lock().ok();
            let held = held.as_deref().and_then(Option::as_ref);
            let held = held.filter(|held| held.source == source && is_valid(&held.credentials));
            return Ok(held.map(|held| held.credentials.clone()));
        }
        let seconds = SIGNING_TIMEOUT.as_secs();
        let late = |_| Err(refused(format!("getting AWS credentials takes longer than {seconds} s")));
        timeout(SIGNING_TIMEOUT, self.current()).await.unwrap_or_else(late).map(Some)
    }

    async fn source(&self) -> Result<Source, ProviderError> {
        let source = match self.fetcher.given {
            Some(_) => Source::Given,
            None => Source::choose(&Files::read().await?, &self.selected)?,
        };
        *self.remedy.lock().unwrap_or_else(PoisonError::into_inner) = Some(source.remedy());
        Ok(source)
    }
}

pub(super) fn is_valid(credentials: &Credentials) -> bool {
    credentials.expiry().is_none_or(|end| end > SystemTime::now() + MARGIN)
}

/// Rejects credentials that are not valid in a header, for example with several lines. The SDK's signer would panic on them.
fn sendable(credentials: Credentials, source: &Source) -> Result<Credentials, ProviderError> {
    let plain = |text: &str| HeaderValue::from_str(text).is_ok();
    if plain(credentials.access_key_id()) && credentials.session_token().is_none_or(plain) {
        return Ok(credentials);
    }
    let place = source.describe();
    Err(refused(format!(
        "the access key id or the session token from {place} contains a line break or a character that a header cannot contain"
    )))
}

impl Fetcher {
    fn fetch<'a>(
        &'a self,
        source: &'a Source,
        selected: &'a Selected,
    ) -> BoxFuture<'a, Result<Credentials, ProviderError>> {
        Box::pin(async move {
            let found = match source {
                Source::Given => match &self.given {
                    Some(given) => self.ask(given.clone(), source, selected).await,
                    None => Err(refused("the program gives no AWS credentials".to_owned())),
                },
                Source::Keys { keys, .. } => Ok(keys.clone()),
                Source::Process { profile, command } => process::run(profile, command, &*self.person).await,
                Source::Login { profile } => Err(refused(format!(
                    "the AWS profile {profile:?} comes from aws login (login_session), which only the AWS CLI can use: {}",
                    source.remedy()
                ))),
                Source::Role(role) => match role::cached(role).await {
                    Some(credentials) => Ok(credentials),
                    None => role::assume(role, self.fetch(&role.base, selected).await?, self).await,
                },
                Source::Sso(sso) => self.ask(self.sso(sso), source, selected).await,
                Source::WebIdentity { role_arn, token_file, session_name, .. } => {
                    let provider = self.web_identity(role_arn, token_file, session_name.as_deref());
                    self.ask(provider, source, selected).await
                }
                Source::Container => {
                    let container = EcsCredentialsProvider::builder().configure(&self.config()).build();
                    self.ask(container, source, selected).await
                }
                Source::Metadata => self.ask(self.metadata(), source, selected).await,
            };
            found.and_then(|credentials| sendable(credentials, source))
        })
    }

    async fn ask(
        &self,
        provider: impl ProvideCredentials,
        source: &Source,
        selected: &Selected,
    ) -> Result<Credentials, ProviderError> {
        let limit = SERVICE_TIMEOUT.as_secs();
        match timeout(SERVICE_TIMEOUT, provider.provide_credentials()).await {
            Ok(Err(_)) if *source == Source::Metadata => Err(refused(no_credentials(selected))),
            Ok(found) => found.map_err(|error| credentials_error(&error, source)),
            Err(_) => Err(refused(format!("AWS credentials from {} took longer than {limit} s", source.describe()))),
        }
    }

    fn config(&self) -> ProviderConfig {
        ProviderConfig::without_region()
            .with_region(Some(Region::new(self.apis.settings.region.clone())))
            .with_http_client(self.apis.http.clone())
    }

    fn sso(&self, sso: &Sso) -> SsoCredentialsProvider {
        let mut builder = SsoCredentialsProvider::builder();
        builder.set_session_name(sso.session.clone());
        builder
            .configure(&self.config())
            .account_id(&sso.account)
            .role_name(&sso.role)
            .start_url(&sso.start_url)
            .region(Region::new(sso.region.clone()))
            .build()
    }

    fn web_identity(&self, role: &str, file: &str, session: Option<&str>) -> WebIdentityTokenCredentialsProvider {
        let configuration = StaticConfiguration {
            web_identity_token_file: file.into(),
            role_arn: role.to_owned(),
            session_name: session.map_or_else(role::session_name, str::to_owned),
        };
        WebIdentityTokenCredentialsProvider::builder()
            .configure(&self.config())
            .static_configuration(configuration)
            .build()
    }

    fn metadata(&self) -> ImdsCredentialsProvider {
        let mut client = imds::Client::builder()
            .configure(&self.config())
            .max_attempts(1)
            .connect_timeout(METADATA_TIMEOUT)
            .read_timeout(METADATA_TIMEOUT);
        // The SDK would use an empty variable as an endpoint.
        if std::env::var_os(METADATA_ENDPOINT).is_some() && variable(METADATA_ENDPOINT).is_none() {
            client = client.endpoint("http://169.254.169.254").unwrap_or_else(|never| {
                tracing::debug!(%never, "metadata endpoint");
                imds::Client::builder().configure(&self.config())
            });
        }
        ImdsCredentialsProvider::builder().configure(&self.config()).imds_client(client.build()).build()
    }
}

const METADATA_ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// The error message if no source has credentials. The metadata service is the last source; its own error would not help on a
/// machine that is not an instance.
fn no_credentials(selected: &Selected) -> String {
    match selected {
        Selected::Explicit(name) => {
            let option = option(name);
            format!("no AWS credentials in the profile {name:?}: add them with aws configure{option}")
        }
        Selected::Implicit(_) => "no AWS credentials: pass --profile, log in (aws sso login, aws configure) or set \
                                  AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            .to_owned(),
    }
}
