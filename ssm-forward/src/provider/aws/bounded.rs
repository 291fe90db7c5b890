//! An HTTP client whose answers have an end.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_runtime_api::shared::IntoShared;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Longest answer, in bytes. A page of a thousand instances with all their tags has some megabytes, other answers far less.
const MAX_ANSWER: usize = 16 << 20;

/// The client, but an answer longer than [`MAX_ANSWER`] is an error: the SDK keeps answers as a whole.
pub(super) fn bounded(client: SharedHttpClient) -> SharedHttpClient {
    BoundedClient(client).into_shared()
}

#[derive(Debug)]
struct BoundedClient(SharedHttpClient);

impl HttpClient for BoundedClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(BoundedConnector(self.0.http_connector(settings, components)))
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_base_client_config(components, config)
    }

    fn validate_final_config(&self, components: &RuntimeComponents, config: &ConfigBag) -> Result<(), BoxError> {
        self.0.validate_final_config(components, config)
    }
}

#[derive(Debug)]
struct BoundedConnector(SharedHttpConnector);

impl HttpConnector for BoundedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let call = self.0.call(request);
        HttpConnectorFuture::new(async move { Ok(call.await?.map(bounded_body)) })
    }
}

fn bounded_body(body: SdkBody) -> SdkBody {
    let named = |error: BoxError| -> BoxError {
        match error.is::<LengthLimitError>() {
            true => format!("the answer is longer than {} MiB", MAX_ANSWER >> 20).into(),
            false => error,
        }
    };
    SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER).map_err(named))
}
