//! The JSON bodies (HS-2 … HS-5).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kms::KmsResult;

/// The agent's message to the client: the agent's version, and the actions that the client must perform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeRequest {
    /// The agent's version.
    #[serde(default)]
    pub agent_version: String,
    /// The requested actions, in order.
    #[serde(default)]
    pub requested_client_actions: Vec<RequestedAction>,
}

/// One action of a [`HandshakeRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestedAction {
    /// `SessionType` or `KMSEncryption`.
    pub action_type: String,
    /// The parameters. Their structure depends on the type. `SessionType`:
    /// `{"SessionType": "Port", "Properties": {"portNumber": "80", "type": "LocalPortForwarding"}}`. `KMSEncryption`:
    /// `{"KMSKeyId": "…"}`.
    #[serde(default)]
    pub action_parameters: Value,
}

/// The parameters of a `SessionType` action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SessionTypeParameters {
    pub(super) session_type: String,
    #[serde(default)]
    pub(super) properties: Value,
}

/// The client's message to the agent: the results of the actions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    /// The client's version. The agent uses it to decide about multiplexing and keep-alives.
    pub client_version: String,
    /// One entry per requested action.
    pub processed_client_actions: Vec<ProcessedAction>,
    /// Error texts of failed actions.
    pub errors: Option<Vec<String>>,
}

/// The result of one requested action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    /// The action's type, the same as in the request.
    pub action_type: String,
    /// Whether the action succeeded.
    pub action_status: ActionStatus,
    /// The result of a `KMSEncryption` action; `None` for all other actions, even if the client sends a value.
    #[serde(default, deserialize_with = "lenient")]
    pub action_result: Option<KmsResult>,
    /// Why the action failed; empty if it succeeded.
    #[serde(default)]
    pub error: String,
}

/// The status of an action. The agent ends the session after any status other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
#[non_exhaustive]
pub enum ActionStatus {
    /// Number 1 on the wire.
    Success,
    /// Number 2 on the wire.
    Failed,
    /// Number 3 on the wire.
    Unsupported,
    /// Any other number. An old client, which writes its status to another field, sends 0.
    Other(i64),
}

impl From<i64> for ActionStatus {
    fn from(number: i64) -> Self {
        match number {
            1 => Self::Success,
            2 => Self::Failed,
            3 => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

impl From<ActionStatus> for i64 {
    fn from(status: ActionStatus) -> Self {
        match status {
            ActionStatus::Success => 1,
            ActionStatus::Failed => 2,
            ActionStatus::Unsupported => 3,
            ActionStatus::Other(other) => other,
        }
    }
}

/// The agent's message to the client that the session begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HandshakeComplete {
    /// Duration of the handshake in nanoseconds.
    pub handshake_time_to_complete: i64,
    /// A text for the user of the client.
    pub customer_message: String,
}

/// What a session carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionType {
    /// A shell on a terminal.
    StandardStream,
    /// A command on a terminal.
    InteractiveCommands,
    /// A command without a terminal.
    NonInteractiveCommands,
    /// Connections to a port.
    Port(PortProperties),
}

impl SessionType {
    pub(super) fn from_wire(name: &str, properties: &Value) -> Option<Self> {
        match name {
            "Standard_Stream" => Some(Self::StandardStream),
            "InteractiveCommands" => Some(Self::InteractiveCommands),
            "NonInteractiveCommands" => Some(Self::NonInteractiveCommands),
            "Port" => Some(Self::Port(serde_json::from_value(properties.clone()).unwrap_or_default())),
            _ => None,
        }
    }

    /// Returns the name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StandardStream => "Standard_Stream",
            Self::InteractiveCommands => "InteractiveCommands",
            Self::NonInteractiveCommands => "NonInteractiveCommands",
            Self::Port(_) => "Port",
        }
    }

    pub(super) fn to_action(&self) -> RequestedAction {
        let properties = match self {
            Self::Port(properties) => serde_json::to_value(properties).unwrap_or_default(),
            _ => Value::Null,
        };
        let parameters = SessionTypeParameters { session_type: self.name().into(), properties };
        RequestedAction {
            action_type: super::SESSION_TYPE.into(),
            action_parameters: serde_json::to_value(parameters).unwrap_or_default(),
        }
    }
}

/// The properties of a port session, as the document resolved them. All values are strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortProperties {
    /// The client's listening port; any port if it is `0` or absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub local_port_number: Option<String>,
    /// The destination's port.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub port_number: Option<String>,
    /// The destination's host; absent for the agent's own machine.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub host: Option<String>,
    /// `LocalPortForwarding`; absent for plain streams (SSH).
    #[serde(rename = "type", skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub kind: Option<String>,
    /// `unix` if the client is to listen on a Unix socket.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub local_connection_type: Option<String>,
    /// The path of the Unix socket.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub local_unix_socket: Option<String>,
}

/// For actions that the official client does not know, it writes a number to this field. Such a value is read as `None`.
fn lenient<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<KmsResult>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
}

/// Accepts a string, or a number that a document did not quote. Any other value is read as `None`.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}
