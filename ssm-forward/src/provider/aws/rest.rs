//! Services with AWS's REST-JSON protocol. Only GET is supported.

use std::fmt::Debug;

use ::http::Request;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::signed::{Service, not_built};
use super::{AwsProvider, ProviderError, json};

pub(super) const EKS: Service = Service { id: "EKS", name: "eks" };
/// The endpoint, the signature and the permissions of OpenSearch still use its old name.
pub(super) const OPENSEARCH: Service = Service { id: "OpenSearch", name: "es" };

impl AwsProvider {
    /// Makes the call `name`: gets `item` in the folder `path`, which ends with a slash.
    ///
    /// # Errors
    /// Returns the same errors as [`super::signed::SignedApi::send`].
    pub(super) async fn get<O>(
        &self,
        service: Service,
        name: &'static str,
        path: &str,
        item: &str,
    ) -> Result<O, ProviderError>
    where
        O: DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let path = format!("{path}{}", utf8_percent_encode(item, NON_ALPHANUMERIC));
        self.get_list(service, name, &path, &[]).await
    }

    /// Makes the call `name`: gets the content of `path`, filtered by the parameters.
    ///
    /// # Errors
    /// Returns the same errors as [`super::signed::SignedApi::send`].
    pub(super) async fn get_list<O>(
        &self,
        service: Service,
        name: &'static str,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<O, ProviderError>
    where
        O: DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = self.apis.signed(service).await?;
        let mut path = path.to_owned();
        if !parameters.is_empty() {
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
            path = format!("{path}?{query}");
        }
        let request = Request::get(path).body(String::new()).map_err(|error| not_built(name, &error))?;
        let read = json::read::<O>;
        self.renewing(|credentials| api.send(name, request.clone(), credentials, self.credentials.remedy(), read)).await
    }
}
