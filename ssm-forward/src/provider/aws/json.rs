//! Services with AWS's JSON 1.1 protocol.

use std::fmt::Debug;

use ::http::Request;
use ::http::header::CONTENT_TYPE;
use aws_sdk_ssm::error::ErrorMetadata;
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::signed::{Service, malformed, not_built};
use super::{AwsProvider, ProviderError};

/// A service that uses this protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonService {
    pub(super) service: Service,
    /// The prefix of the call's name in `x-amz-target`.
    target: &'static str,
}

pub(super) const KMS: JsonService = JsonService { service: Service { id: "KMS", name: "kms" }, target: "TrentService" };
pub(super) const ECS: JsonService =
    JsonService { service: Service { id: "ECS", name: "ecs" }, target: "AmazonEC2ContainerServiceV20141113" };

impl AwsProvider {
    /// Makes the call `name`.
    ///
    /// # Errors
    /// Returns the same errors as [`super::signed::SignedApi::send`].
    pub(super) async fn ask<O>(
        &self,
        service: JsonService,
        name: &'static str,
        input: &impl Serialize,
    ) -> Result<O, ProviderError>
    where
        O: DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = self.apis.signed(service.service).await?;
        let request = request(service, name, input)?;
        self.renewing(|credentials| api.send(name, request.clone(), credentials, self.credentials.remedy(), read)).await
    }
}

fn request(service: JsonService, name: &str, input: &impl Serialize) -> Result<Request<String>, ProviderError> {
    let body = serde_json::to_string(input).map_err(|error| not_built(name, &error))?;
    Request::post("/")
        .header(CONTENT_TYPE, "application/x-amz-json-1.1")
        .header("x-amz-target", format!("{}.{name}", service.target))
        .body(body)
        .map_err(|error| not_built(name, &error))
}

/// Parses the answer of a successful or a failed call.
pub(super) fn read<O: DeserializeOwned>(response: &HttpResponse) -> Result<O, OrchestratorError<ErrorMetadata>> {
    let body = response.body().bytes().unwrap_or_default();
    if !response.status().is_success() {
        return Err(OrchestratorError::operation(refusal(response.headers().get("x-amzn-errortype"), body)));
    }
    serde_json::from_slice(body).map_err(|error| {
        malformed(&format!("not the JSON that was expected, line {} column {}", error.line(), error.column()))
    })
}

/// Parses an error. The code is in the header or in `__type`, possibly between a namespace and a URL:
/// `com.amazonaws.x#Code:http://…`.
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
    use std::time::{Duration, SystemTime};

    use aws_credential_types::Credentials;
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
    use serde_json::json;

    use super::super::http;
    use super::super::signed::SignedApi;
    use super::*;

    /// 2026-01-01T00:00:00Z.
    const TIME: Duration = Duration::from_secs(1_767_225_600);

    fn request(
        service: JsonService,
        endpoint: &str,
        region: &str,
        call: &str,
        input: &Value,
        token: Option<&str>,
    ) -> HttpRequest {
        let http = http::client(None).unwrap();
        let api = SignedApi::at(service.service, endpoint.to_owned(), region.to_owned(), http);
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), None, "test");
        let request = super::request(service, call, input).unwrap();
        api.prepare(call, request, credentials, SystemTime::UNIX_EPOCH + TIME).unwrap()
    }

    /// The expected values are the ones that botocore computes for the same request.
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

    const WORDS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\"tasks\"",
        "\"taskArn\"",
        "\"Plaintext\"",
        "\"__type\"",
        "\"message\"",
        "\"a#b:c\"",
        "null",
        "1e999",
        "-0",
        "\\ud800",
        "[[[[[[[[[[[[",
        "<html>",
    ];

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_or_malformed(text in crate::random_text::of_words(WORDS), refused in proptest::prelude::any::<bool>()) {
            outcome_of(&format!("{text}hush"), refused);
        }
    }

    #[test]
    fn the_corpus_is_read_or_malformed() {
        let seeds: [&[u8]; 6] = [
            br#"o{"taskArns":["arn:aws:ecs:eu-west-1:1:task/prod/1"]}"#,
            br#"o{"tasks":[{"taskArn":"a","containers":[{"name":"app","runtimeId":"r","managedAgents":[]}]}],"failures":[]}"#,
            br#"o{"SessionId":"s-1","StreamUrl":"wss://h/s-1","TokenValue":"hush"}"#,
            br#"r{"__type":"a#AccessDeniedException:b","message":"No."}"#,
            br#"r{"__type":"DoesNotExistException","Message":"hush"}"#,
            b"r<html>hush</html>",
        ];
        crate::replay::corpus("api_answer", &seeds, 5000, |input| {
            // The first byte of the input selects the HTTP status.
            let (refused, text) = input.split_first().map_or((false, input), |(first, rest)| (*first == b'r', rest));
            outcome_of(&String::from_utf8_lossy(text), refused)
        });
    }

    /// Checks that any answer is either read or reported as malformed, and that no error quotes it, because it may contain a
    /// secret.
    fn outcome_of(text: &str, refused: bool) -> String {
        use aws_smithy_runtime_api::http::StatusCode;

        let status = StatusCode::try_from(if refused { 400_u16 } else { 200 }).unwrap();
        let response = HttpResponse::new(status, text.to_owned().into());
        match read::<Value>(&response) {
            Ok(value) => match value {
                Value::Object(map) => format!("an object {}", if map.is_empty() { "empty" } else { "full" }),
                Value::Array(_) => "an array".into(),
                _ => "a value".into(),
            },
            Err(error) => {
                let error = format!("{error:?}");
                assert!(refused || !error.contains("hush"), "{error}");
                error
            }
        }
    }
}
