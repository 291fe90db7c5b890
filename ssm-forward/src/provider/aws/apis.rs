//! Clients of services other than SSM. Their endpoints are derived from one configuration.

use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::settings::Settings;
use super::signed::{Service, SignedApi};
use super::{ProviderError, endpoint};

/// Creates the clients of services on demand. Most sessions need none.
#[derive(Clone, Debug)]
pub(super) struct Apis {
    pub(super) settings: Settings,
    pub(super) http: SharedHttpClient,
}

impl Apis {
    /// Creates a client of `service`. Does not make a call yet.
    ///
    /// # Errors
    /// Returns an error if no endpoint of the service is known in the region.
    pub(super) async fn signed(&self, service: Service) -> Result<SignedApi, ProviderError> {
        let endpoint = endpoint::of(service, &self.settings).await?;
        Ok(SignedApi::at(service, endpoint, self.settings.region.clone(), self.http.clone()))
    }
}
