//! Signed calls of AWS services without a generated client, with the SDK's own HTTP client, timeouts and retries.
//!
//! A generated client per service would add minutes to the first build, for one or two kinds of calls each.

use std::fmt::Debug;
use std::time::SystemTime;

use ::http::Request;
use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_runtime::retries::classifiers::AwsErrorCodeClassifier;
use aws_sdk_ssm::error::ErrorMetadata;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime::client::retries::classifiers::{HttpStatusCodeClassifier, TransientErrorClassifier};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError, SensitiveOutput};
use aws_smithy_runtime_api::client::runtime_plugin::StaticRuntimePlugin;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::Layer;
use url::{Position, Url};

use super::errors::{Call, api_error, invalid};
use super::{ProviderError, endpoint, retries, timeouts};

/// The names of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    /// The name in AWS's models (`Auto Scaling`). The variable `AWS_ENDPOINT_URL_AUTO_SCALING` and the key in the profile are
    /// derived from it.
    pub(super) id: &'static str,
    /// The name in the endpoint, in the signature and in permissions.
    pub(super) name: &'static str,
}

/// One service at one endpoint.
#[derive(Debug)]
pub(super) struct SignedApi {
    service: Service,
    endpoint: String,
    region: String,
    http: SharedHttpClient,
}

/// Parses an answer, or returns the error that it contains.
pub(super) type Read<O> = fn(&HttpResponse) -> Result<O, OrchestratorError<ErrorMetadata>>;

impl SignedApi {
    /// Returns the API of the service at `endpoint`. `http` is the client that reaches it.
    pub(super) fn at(service: Service, endpoint: String, region: String, http: SharedHttpClient) -> Self {
        Self { service, endpoint, region, http }
    }

    /// Sends `request`, whose URI consists of the path and the query only. Neither the answer nor the signature is
    /// logged.
    ///
    /// # Errors
    /// Returns an error if the endpoint is malformed or cannot be reached, if the service refuses, or if its answer cannot be
    /// parsed.
    pub(super) async fn send<O>(
        &self,
        name: &'static str,
        request: Request<String>,
        credentials: Credentials,
        remedy: String,
        read: Read<O>,
    ) -> Result<O, ProviderError>
    where
        O: Debug + Send + Sync + 'static,
    {
        let request = self.prepare(name, request, credentials, SystemTime::now())?;
        self.invoke(name, request, remedy, read).await
    }

    /// Sends a request that is already signed, or needs no signature.
    ///
    /// # Errors
    /// Returns the same errors as [`SignedApi::send`].
    pub(super) async fn invoke<O>(
        &self,
        name: &'static str,
        request: HttpRequest,
        remedy: String,
        read: Read<O>,
    ) -> Result<O, ProviderError>
    where
        O: Debug + Send + Sync + 'static,
    {
        let mut secret = Layer::new("answers are secret");
        secret.store_put(SensitiveOutput);
        let operation = Operation::builder()
            .service_name(self.service.name)
            .operation_name(name)
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .endpoint_url(&self.endpoint)
            .no_auth()
            .timeout_config(timeouts())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .standard_retry(&retries())
            .retry_classifier(TransientErrorClassifier::<ErrorMetadata>::new())
            .retry_classifier(AwsErrorCodeClassifier::<ErrorMetadata>::new())
            .retry_classifier(HttpStatusCodeClassifier::default())
            .runtime_plugin(StaticRuntimePlugin::new().with_config(secret.freeze()))
            .serializer(|request: HttpRequest| Ok(request))
            .deserializer(read)
            .build();
        // Boxed, because the type of this future is deeply nested, and it is used in futures that are already deeply nested.
        Box::pin(operation.invoke(request)).await.map_err(|error| api_error(&self.named(name, &remedy), &error))
    }

    /// Describes a call, for error messages.
    pub(super) fn named<'a>(&'a self, name: &'a str, remedy: &'a str) -> Call<'a> {
        Call { service: self.service.name, name, endpoint: &self.endpoint, remedy }
    }

    /// Returns the signed request. Its URI has no host, because the orchestrator adds the endpoint before the path.
    pub(super) fn prepare(
        &self,
        name: &str,
        mut request: Request<String>,
        credentials: Credentials,
        time: SystemTime,
    ) -> Result<HttpRequest, ProviderError> {
        let endpoint = endpoint::parse(&self.endpoint).map_err(|error| {
            let (url, service) = (&self.endpoint, self.service.name);
            invalid(format!("{name} could not be called: the endpoint {url:?} of {service}: {error}"))
        })?;
        self.sign(&mut request, &endpoint, credentials, time).map_err(|error| not_built(name, &error))?;
        HttpRequest::try_from(request.map(SdkBody::from)).map_err(|error| not_built(name, &error))
    }

    fn sign(
        &self,
        request: &mut Request<String>,
        endpoint: &Url,
        credentials: Credentials,
        time: SystemTime,
    ) -> Result<(), String> {
        let identity = credentials.into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service.name)
            .time(time)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let url = format!("{}{}", endpoint.as_str().trim_end_matches('/'), request.uri());
        let host = &endpoint[Position::BeforeHost..Position::AfterPort];
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()));
        let body = SignableBody::Bytes(request.body().as_bytes());
        let signable = SignableRequest::new(request.method().as_str(), url, headers.chain([("host", host)]), body)
            .map_err(|error| error.to_string())?;
        let (instructions, _) = sign(signable, &params).map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }
}

/// The error for a request that could not be built.
pub(super) fn not_built(name: &str, error: &dyn std::fmt::Display) -> ProviderError {
    invalid(format!("{name} could not be called: {error}"))
}

/// The error for an answer that is malformed at `place`. It does not contain the parser's own message, which may quote the answer
/// and so a secret.
pub(super) fn malformed(place: &str) -> OrchestratorError<ErrorMetadata> {
    OrchestratorError::response(place.to_owned().into())
}
