//! Errors with the structure and the names of AWS.

use http::StatusCode;

use crate::broker::PortsOnly;
use crate::document::ParameterError;

/// An error that a client sees as an exception of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// The exception's name.
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    /// Creates an exception that is the caller's fault.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into() }
    }

    /// Creates the error for a member of the request that violates a constraint of the service's model.
    pub(crate) fn constraint(member: &str, value: Option<&str>, constraint: &str) -> Self {
        let value = value.map_or_else(|| "null".to_owned(), |value| format!("'{value}'"));
        let text = format!(
            "1 validation error detected: Value {value} at '{member}' failed to satisfy constraint: Member must {constraint}"
        );
        Self::new("ValidationException", text)
    }

    pub(crate) fn not_connected(target: &str) -> Self {
        Self::new("TargetNotConnected", format!("{target} is not connected."))
    }

    pub(crate) fn no_document(name: &str) -> Self {
        Self::new("InvalidDocument", format!("Document with name {name} does not exist."))
    }

    pub(crate) fn no_session(id: &str) -> Self {
        Self::new("DoesNotExistException", format!("Session {id} does not exist."))
    }

    pub(crate) fn filter_key(key: &str) -> Self {
        Self::new("InvalidFilterKey", format!("The filter key {key} is not valid."))
    }
}

impl From<PortsOnly> for ApiError {
    fn from(error: PortsOnly) -> Self {
        Self::new("AccessDeniedException", error.to_string())
    }
}

impl From<ParameterError> for ApiError {
    fn from(error: ParameterError) -> Self {
        let code = match error {
            ParameterError::Unknown { .. } => "ParameterNotFound",
            ParameterError::Missing(_) | ParameterError::Mismatch { .. } => "InvalidParameters",
            ParameterError::Inputs(_) => "InvalidDocument",
        };
        Self::new(code, error.to_string())
    }
}
