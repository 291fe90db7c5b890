//! The SSM API, and the parts of KMS and ECS that sessions need: JSON 1.1, one operation per call.

mod documents;
mod ecs;
mod error;
mod fault;
mod input;
mod instances;
mod inventory;
mod kms;
mod session;

pub(crate) use error::ApiError;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::broker::Broker;

/// The response of an operation, or the exception that the client receives.
pub(crate) type Outcome = Result<Value, ApiError>;

/// Answers one call, if it is signed with the correct secret.
pub(crate) async fn answer(broker: &Broker, head: &Parts, body: &[u8]) -> Response<Bytes> {
    let operation = operation(&head.headers);
    let outcome = match broker.access().verify(head, body, service(operation), SystemTime::now()) {
        Ok(()) => outcome(broker, operation, body).await,
        Err(refusal) => Err(refusal),
    };
    match &outcome {
        Ok(_) => tracing::debug!(operation, "answered"),
        Err(error) => tracing::debug!(operation, code = error.code, error.message, "refused"),
    }
    respond(outcome)
}

async fn outcome(broker: &Broker, operation: &str, body: &[u8]) -> Outcome {
    let call = || dispatch(broker, operation, body);
    let name = operation.rsplit('.').next().unwrap_or_default();
    match broker.faults().api(Instant::now().into_std(), name) {
        Some(answer) => fault::answer(broker, answer, call).await,
        None => call(),
    }
}

fn operation(headers: &HeaderMap) -> &str {
    headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The prefix of KMS operation names in the `X-Amz-Target` header.
const KMS: &str = "TrentService";
const ECS: &str = "AmazonEC2ContainerServiceV20141113";

/// Returns the service in the scope of a signature for this operation.
fn service(operation: &str) -> &'static str {
    match operation.split_once('.') {
        Some((KMS, _)) => "kms",
        Some((ECS, _)) => "ecs",
        _ => SSM_SERVICE,
    }
}

/// The signature service of SSM operations and of unknown operations.
pub(crate) const SSM_SERVICE: &str = "ssm";

fn dispatch(broker: &Broker, operation: &str, body: &[u8]) -> Outcome {
    match operation.split_once('.') {
        Some(("AmazonSSM", operation)) => dispatch_ssm(broker, operation, body),
        Some((KMS, operation)) => kms::dispatch(broker, operation, body),
        Some((ECS, operation)) => ecs::dispatch(broker, operation, body),
        _ => Err(unknown()),
    }
}

fn unknown() -> ApiError {
    ApiError::new("UnknownOperationException", "The local Session Manager does not support this operation.")
}

fn dispatch_ssm(broker: &Broker, operation: &str, body: &[u8]) -> Outcome {
    match operation {
        "StartSession" => session::start(broker, parse(body)?),
        "ResumeSession" => session::resume(broker, parse(body)?),
        "TerminateSession" => session::terminate(broker, parse(body)?),
        "DescribeSessions" => session::describe(broker, parse(body)?),
        "GetConnectionStatus" => instances::connection_status(broker, parse(body)?),
        "DescribeInstanceInformation" => instances::describe(broker, parse(body)?),
        "GetInventory" => inventory::get(broker, parse(body)?),
        "GetDocument" => documents::get(broker, parse(body)?),
        "DescribeDocument" => documents::describe(broker, parse(body)?),
        "ListDocuments" => documents::list(broker, parse(body)?),
        _ => Err(unknown()),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"{}".as_slice() } else { body };
    serde_json::from_slice(body).map_err(|error| ApiError::new("SerializationException", error.to_string()))
}

/// Creates a response in JSON 1.1.
pub(crate) fn respond(outcome: Outcome) -> Response<Bytes> {
    let (status, code, body) = match outcome {
        Ok(body) => (StatusCode::OK, None, body),
        Err(error) => (error.status, Some(error.code), json!({ "__type": error.code, "message": error.message })),
    };
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
    if let Ok(id) = HeaderValue::try_from(Uuid::new_v4().to_string()) {
        headers.insert("x-amzn-requestid", id);
    }
    if let Some(code) = code {
        headers.insert("x-amzn-errortype", HeaderValue::from_static(code));
    }
    response
}

/// Sets a member of an object.
fn set(object: &mut Value, member: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(member.into(), value);
    }
}

/// Returns a date in JSON 1.1: seconds since the Unix epoch, with milliseconds.
fn timestamp(time: SystemTime) -> Value {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    json!(u64::try_from(millis).unwrap_or(u64::MAX) as f64 / 1000.0)
}
