//! Control of faults at run time, over the same port. Requests are signed like requests of the API: with the same secret, for the
//! service `ssm`.
//!
//! | request | effect |
//! |---|---|
//! | `GET /faults` | returns the faults in force, as JSON |
//! | `PUT /faults` | replaces the faults; the body is the same JSON |
//! | `POST /faults` | adds a fault; the body is its text |
//! | `DELETE /faults` | removes all faults |
//! | `POST /control/EFFECT` | makes a fault happen once, now; the body is the part of its text after the effect |

use std::time::SystemTime;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use crate::api::SSM_SERVICE;
use crate::broker::Broker;
use crate::faults::{Fault, FaultError, Faults};

/// Effects that have a different name as commands.
const COMMANDS: [(&str, &str); 1] = [("terminate", "end")];

/// Returns whether a path belongs to the control endpoint.
pub(crate) fn is_for(path: &str) -> bool {
    path == "/faults" || path.starts_with("/control/")
}

/// Answers one request with the faults that are then in force, or with an error.
pub(crate) async fn answer(broker: &Broker, head: &Parts, body: &[u8]) -> Response<Bytes> {
    if let Err(refusal) = broker.access().verify(head, body, SSM_SERVICE, SystemTime::now()) {
        return respond(StatusCode::FORBIDDEN, json!({ "error": refusal.message }).to_string());
    }
    let body = String::from_utf8_lossy(body);
    let body = body.trim();
    let outcome = match (&head.method, head.uri.path().strip_prefix("/control/")) {
        (&Method::GET, None) => Ok(()),
        (&Method::DELETE, None) => set(broker, Ok(Faults::new())).await,
        (&Method::PUT, None) => set(broker, Faults::from_json(body)).await,
        (&Method::POST, None) => set(broker, body.parse().map(|fault| broker.faults().get().with(fault))).await,
        (&Method::POST, Some(effect)) => strike(broker, effect, body).await,
        _ => {
            let error =
                json!({ "error": "supported requests: GET, PUT, POST, DELETE /faults, and POST /control/EFFECT" });
            return respond(StatusCode::METHOD_NOT_ALLOWED, error.to_string());
        }
    };
    match outcome {
        Ok(()) => respond(StatusCode::OK, broker.faults().get().to_json()),
        Err(error) => respond(StatusCode::BAD_REQUEST, json!({ "error": error.to_string() }).to_string()),
    }
}

async fn set(broker: &Broker, faults: Result<Faults, FaultError>) -> Result<(), FaultError> {
    broker.set_faults(faults?).await;
    Ok(())
}

async fn strike(broker: &Broker, effect: &str, keys: &str) -> Result<(), FaultError> {
    let effect = COMMANDS.iter().find(|(command, _)| *command == effect).map_or(effect, |(_, effect)| *effect);
    let fault: Fault = if keys.is_empty() { effect.parse() } else { format!("{effect},{keys}").parse() }?;
    broker.strike_once(fault).await
}

fn respond(status: StatusCode, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body + "\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
