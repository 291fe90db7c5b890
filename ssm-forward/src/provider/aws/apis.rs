//! What calling any service beside SSM takes: endpoints follow from one configuration.

use aws_config::SdkConfig;
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::signed::{Service, SignedApi};
use super::{AwsConfig, ProviderError, endpoint};

/// Makes the services' clients when they are needed: most sessions need none.
#[derive(Debug)]
pub(super) struct Apis {
    pub(super) config: AwsConfig,
    pub(super) shared: SdkConfig,
    pub(super) region: String,
    /// For hosts that are not on this machine.
    pub(super) http: SharedHttpClient,
}

impl Apis {
    /// A client of `service`. Calls nothing yet.
    ///
    /// # Errors
    /// No endpoint of the service is known in the region.
    pub(super) async fn signed(&self, service: Service) -> Result<SignedApi, ProviderError> {
        let endpoint = endpoint::of(service, &self.config, &self.shared).await?;
        Ok(SignedApi::at(service, endpoint, self.region.clone(), self.http.clone()))
    }
}
