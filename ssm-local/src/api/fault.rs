//! Responses of the API that faults inject.

use http::StatusCode;
use serde_json::{Value, json};

use super::{ApiError, Outcome, set};
use crate::broker::Broker;
use crate::faults::ApiAnswer;

/// Returns the response of a fault. The operation is performed only if the response is derived from its result.
pub(super) async fn answer(broker: &Broker, answer: ApiAnswer, call: impl FnOnce() -> Outcome) -> Outcome {
    match answer {
        ApiAnswer::ExpiredCredentials => {
            Err(ApiError::new("ExpiredTokenException", "The security token included in the request is expired"))
        }
        ApiAnswer::Throttled => Err(ApiError::new("ThrottlingException", "Rate exceeded")),
        ApiAnswer::Forbidden => Err(error(StatusCode::FORBIDDEN, "AccessDeniedException", "Access denied.")),
        ApiAnswer::Error => Err(error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            "An error occurred on the server side.",
        )),
        ApiAnswer::Unavailable => Err(error(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "The service is not available at the moment.",
        )),
        ApiAnswer::Silence => std::future::pending().await,
        ApiAnswer::NoToken | ApiAnswer::ExpiredToken | ApiAnswer::NewUrl => {
            let mut ticket = call()?;
            change(broker, answer, &mut ticket);
            Ok(ticket)
        }
    }
}

fn error(status: StatusCode, code: &'static str, message: &str) -> ApiError {
    ApiError { status, ..ApiError::new(code, message) }
}

fn change(broker: &Broker, answer: ApiAnswer, ticket: &mut Value) {
    let Some(session) = ticket.get("SessionId").and_then(Value::as_str).and_then(|id| broker.session(id)) else {
        return;
    };
    match answer {
        ApiAnswer::NoToken => *ticket = json!({ "SessionId": session.id }),
        ApiAnswer::ExpiredToken => session.expire_token(),
        // The response for a session that has ended has no URL.
        _ if ticket.get("StreamUrl").is_some() => {
            session.relocate();
            set(ticket, "StreamUrl", json!(broker.stream_url(&session.id)));
        }
        _ => {}
    }
}
