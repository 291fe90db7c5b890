//! The configuration that a provider uses, for display.

use super::errors::invalid;
use super::{AwsProvider, ProviderError};
use crate::StreamEndpoint;

/// The configuration that an [`AwsProvider`] uses. It contains no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsOrigin {
    /// The selected profile. It may not exist.
    pub profile: String,
    /// The source of the credentials, as a part of a sentence, or the reason why they cannot be obtained.
    pub credentials: String,
    /// The region.
    pub region: String,
    /// The URL of the SSM API.
    pub endpoint: String,
}

impl AwsProvider {
    /// Returns the configuration in use. Reads the configuration files, but does not get credentials.
    pub async fn origin(&self) -> AwsOrigin {
        AwsOrigin {
            profile: self.selected.name().to_owned(),
            credentials: self.credentials.describe().await.unwrap_or_else(|error| error.message),
            region: self.settings.region.clone(),
            endpoint: self.endpoint.clone(),
        }
    }

    /// Returns the configured replacement for the host of stream URLs: `AWS_ENDPOINT_URL_SSMMESSAGES`, or `ssmmessages` in the
    /// `services` of the profile.
    ///
    /// # Errors
    /// Returns an error if the value is not a valid endpoint.
    pub fn stream_endpoint(&self) -> Result<Option<StreamEndpoint>, ProviderError> {
        let refused = |error| invalid(format!("AWS_ENDPOINT_URL_SSMMESSAGES, or the profile's services: {error}"));
        self.settings.stream_endpoint().map(|endpoint| endpoint.parse().map_err(refused)).transpose()
    }

    /// Returns the path of the CA bundle that the environment or the profile names.
    pub fn ca_bundle(&self) -> Option<&std::path::Path> {
        self.settings.ca_bundle.as_ref().map(|bundle| &*bundle.path)
    }
}
