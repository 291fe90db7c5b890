//! Services that speak AWS's JSON 1.1 protocol, called without a generated client: for a call or two it would take minutes
//! to build.

use std::fmt::Debug;
use std::time::SystemTime;

use ::http::Request;
use ::http::header::CONTENT_TYPE;
use aws_config::{BehaviorVersion, SdkConfig};
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
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::Layer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::{Position, Url};

use super::errors::{Call, api_error, invalid};
use super::{AwsConfig, ProviderError, endpoint, http, retries, timeouts};

/// A service's names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    /// In the endpoint, in the signature and in permissions.
    name: &'static str,
    /// In `x-amz-target`, before the call.
    target: &'static str,
}

pub(super) const KMS: Service = Service { name: "kms", target: "TrentService" };
pub(super) const ECS: Service = Service { name: "ecs", target: "AmazonEC2ContainerServiceV20141113" };

/// One service at one endpoint.
#[derive(Debug)]
pub(super) struct JsonApi {
    service: Service,
    endpoint: String,
    region: String,
    http: SharedHttpClient,
}

impl JsonApi {
    /// `http` is the client for hosts out there. Calls nothing yet.
    pub(super) async fn new(
        service: Service,
        config: &AwsConfig,
        shared: &SdkConfig,
        region: String,
        http: SharedHttpClient,
    ) -> Result<Self, ProviderError> {
        Ok(Self { service, endpoint: endpoint::of(service.name, config, shared).await?, region, http })
    }

    /// Calls `name`. Neither the answer nor the signature gets into a log.
    ///
    /// # Errors
    /// The endpoint is malformed or out of reach, the service refuses, the answer is none.
    pub(super) async fn call<O>(
        &self,
        name: &'static str,
        input: &impl Serialize,
        credentials: Credentials,
        remedy: &str,
    ) -> Result<O, ProviderError>
    where
        O: DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let request = self.request(name, input, credentials, SystemTime::now())?;
        let mut secret = Layer::new("answers are secret");
        secret.store_put(SensitiveOutput);
        let operation = Operation::builder()
            .service_name(self.service.name)
            .operation_name(name)
            .behavior_version(BehaviorVersion::latest())
            .http_client(http::client_for(&self.endpoint, self.http.clone())?)
            .endpoint_url(&self.endpoint)
            .no_auth()
            .timeout_config(timeouts())
            .standard_retry(&retries())
            .retry_classifier(TransientErrorClassifier::<ErrorMetadata>::new())
            .retry_classifier(AwsErrorCodeClassifier::<ErrorMetadata>::new())
            .retry_classifier(HttpStatusCodeClassifier::default())
            .runtime_plugin(StaticRuntimePlugin::new().with_config(secret.freeze()))
            .serializer(|request: HttpRequest| Ok(request))
            .deserializer(read::<O>)
            .build();
        operation.invoke(request).await.map_err(|error| api_error(&self.named(name, remedy), &error))
    }

    /// What the errors say about a call.
    pub(super) fn named<'a>(&'a self, name: &'a str, remedy: &'a str) -> Call<'a> {
        Call { service: self.service.name, name, endpoint: &self.endpoint, remedy }
    }

    /// The signed request, still without its host: the orchestrator puts the endpoint before the path.
    fn request(
        &self,
        name: &str,
        input: &impl Serialize,
        credentials: Credentials,
        time: SystemTime,
    ) -> Result<HttpRequest, ProviderError> {
        let refused = |error: String| invalid(format!("{name} could not be asked: {error}"));
        let endpoint = endpoint::parse(&self.endpoint)
            .map_err(|error| refused(format!("the endpoint {:?} of {}: {error}", self.endpoint, self.service.name)))?;
        let body = serde_json::to_string(input).map_err(|error| refused(error.to_string()))?;
        let mut request = Request::post("/")
            .header(CONTENT_TYPE, "application/x-amz-json-1.1")
            .header("x-amz-target", format!("{}.{name}", self.service.target))
            .body(body)
            .map_err(|error| refused(error.to_string()))?;
        self.sign(&mut request, &endpoint, credentials, time).map_err(refused)?;
        HttpRequest::try_from(request.map(SdkBody::from)).map_err(|error| refused(error.to_string()))
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
        let url = format!("{}/", endpoint.as_str().trim_end_matches('/'));
        let host = &endpoint[Position::BeforeHost..Position::AfterPort];
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()));
        let body = SignableBody::Bytes(request.body().as_bytes());
        let signable = SignableRequest::new("POST", url, headers.chain([("host", host)]), body)
            .map_err(|error| error.to_string())?;
        let (instructions, _) = sign(signable, &params).map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }
}

/// The answer, or why there is none.
fn read<O: DeserializeOwned>(response: &HttpResponse) -> Result<O, OrchestratorError<ErrorMetadata>> {
    let body = response.body().bytes().unwrap_or_default();
    if !response.status().is_success() {
        return Err(OrchestratorError::operation(refusal(response.headers().get("x-amzn-errortype"), body)));
    }
    serde_json::from_slice(body).map_err(|error| {
        // The error's own text quotes the answer.
        let (line, column) = (error.line(), error.column());
        OrchestratorError::response(format!("not the JSON that was expected, line {line} column {column}").into())
    })
}

/// The code stands in the header or in `__type`, perhaps between a namespace and a URL: `com.amazonaws.x#Code:http://…`.
fn refusal(header: Option<&str>, body: &[u8]) -> ErrorMetadata {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |names: &[&str]| names.iter().find_map(|name| body.get(name)?.as_str());
    let code = header.or_else(|| text(&["__type", "code"])).unwrap_or_default();
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.split(':').next().unwrap_or(code);
    let mut refusal = ErrorMetadata::builder();
    if !code.is_empty() {
        refusal = refusal.code(code);
    }
    if let Some(message) = text(&["message", "Message"]) {
        refusal = refusal.message(message);
    }
    refusal.build()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// 2026-01-01T00:00:00Z.
    const TIME: Duration = Duration::from_secs(1_767_225_600);

    fn request(
        service: Service,
        endpoint: &str,
        region: &str,
        call: &str,
        input: &Value,
        token: Option<&str>,
    ) -> HttpRequest {
        let http = http::client().unwrap();
        let api = JsonApi { service, endpoint: endpoint.to_owned(), region: region.to_owned(), http };
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), None, "test");
        api.request(call, input, credentials, SystemTime::UNIX_EPOCH + TIME).unwrap()
    }

    /// The numbers are botocore's for the same request.
    #[test]
    fn requests_are_signed_as_other_clients_sign_them() {
        let input = json!({"KeyId": "alias/session"});
        let url = "https://kms.eu-west-1.amazonaws.com";
        let signed = request(KMS, url, "eu-west-1", "GenerateDataKey", &input, Some("SESSIONTOKENEXAMPLE"));
        assert_eq!(signed.headers().get("x-amz-security-token"), Some("SESSIONTOKENEXAMPLE"));
        assert_eq!(
            signed.headers().get("authorization").unwrap(),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-west-1/kms/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, \
             Signature=537f7de0206b907c1a09c03292f8fb4b3fafc99ba5d9457924534a5c4a7c0899"
        );
        let signed = request(ECS, "http://127.0.0.1:4566", "us-east-1", "ListTasks", &json!({"cluster": "prod"}), None);
        assert_eq!(
            signed.headers().get("authorization").unwrap(),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/ecs/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-target, \
             Signature=bc9b630afd418212cfa6c2758d5d010554e646b5d026cc6ae04a7b7f426c182c"
        );
    }

    #[test]
    fn the_code_of_a_refusal_is_found_wherever_it_stands() {
        for (header, body) in [
            (None, r#"{"__type":"NotFoundException","message":"No."}"#),
            (None, r#"{"__type":"com.amazonaws.kms#NotFoundException","Message":"No."}"#),
            (Some("NotFoundException:http://internal.amazon.com/coral/"), r#"{"message":"No."}"#),
        ] {
            let refusal = refusal(header, body.as_bytes());
            assert_eq!((refusal.code(), refusal.message()), (Some("NotFoundException"), Some("No.")), "{body}");
        }
        assert_eq!(refusal(None, b"<html>").code(), None);
    }
}
