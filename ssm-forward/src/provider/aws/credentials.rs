//! Who calls: credentials as every AWS tool finds them, but never old ones.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::Region;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::{self, credentials::ImdsCredentialsProvider};
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use tokio::time::timeout;

use super::errors::{credentials, credentials_error};
use super::profile::Profile;
use super::{AwsCredentials, ProviderError};

/// An instance's metadata service answers at once, or this is no instance.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// Credentials that end this soon are not used any more.
const MARGIN: Duration = Duration::from_secs(60);

/// Where credentials come from.
#[derive(Debug)]
pub(super) struct CredentialsSource {
    given: Option<Credentials>,
    profile: Profile,
    region: String,
    http: SharedHttpClient,
    latest: Mutex<Option<Credentials>>,
}

impl CredentialsSource {
    pub(super) fn new(given: Option<AwsCredentials>, profile: Profile, region: String, http: SharedHttpClient) -> Self {
        let given = given.map(|given| {
            Credentials::new(given.access_key_id, given.secret_access_key, given.session_token, None, "given")
        });
        Self { given, profile, region, http, latest: Mutex::new(None) }
    }

    /// What to do when the credentials are no good.
    pub(super) fn remedy(&self) -> &str {
        &self.profile.remedy
    }

    /// Resolves credentials from the beginning: the files are read again, so that a login since the last time counts.
    ///
    /// # Errors
    /// There are none, they can't be had, or not within `limit`.
    pub(super) async fn resolve(&self, limit: Duration) -> Result<Credentials, ProviderError> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let chain = self.chain();
        let found = match timeout(limit, chain.provide_credentials()).await {
            Ok(found) => found.map_err(|error| credentials_error(&error, &self.profile))?,
            Err(_) => {
                return Err(credentials(format!("getting AWS credentials took longer than {} s", limit.as_secs())));
            }
        };
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        Ok(found)
    }

    /// What the call before used, if it is good for a while: one dial asks a credential process, and perhaps the person in
    /// front of it, once.
    ///
    /// # Errors
    /// As [`CredentialsSource::resolve`].
    pub(super) async fn current(&self, limit: Duration) -> Result<Credentials, ProviderError> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let good = |credentials: &Credentials| credentials.expiry().is_none_or(|end| end > SystemTime::now() + MARGIN);
        match latest.filter(good) {
            Some(credentials) => Ok(credentials),
            None => self.resolve(limit).await,
        }
    }

    /// The order of the AWS CLI: with an explicit profile the environment does not count.
    fn chain(&self) -> CredentialsProviderChain {
        let config = ProviderConfig::without_region()
            .with_region(Some(Region::new(self.region.clone())))
            .with_http_client(self.http.clone());
        let files = ProfileFileCredentialsProvider::builder().configure(&config);
        let chain = match &self.profile.explicit {
            Some(name) => CredentialsProviderChain::first_try("Profile", files.profile_name(name).build()),
            None => CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
                .or_else("Profile", files.build())
                .or_else("WebIdentityToken", WebIdentityTokenCredentialsProvider::builder().configure(&config).build()),
        };
        let metadata = imds::Client::builder()
            .configure(&config)
            .max_attempts(1)
            .connect_timeout(METADATA_TIMEOUT)
            .read_timeout(METADATA_TIMEOUT)
            .build();
        chain.or_else("EcsContainer", EcsCredentialsProvider::builder().configure(&config).build()).or_else(
            "Ec2InstanceMetadata",
            ImdsCredentialsProvider::builder().configure(&config).imds_client(metadata).build(),
        )
    }
}
