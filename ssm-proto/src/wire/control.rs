//! Messages that the service sends, and the text frame that opens a data channel.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::message::Header;
use super::outgoing::MessageBuf;
use super::types::{HeaderForm, MessageType, Padding};
use crate::Secret;

/// The first frame of a WebSocket, which is text: opens the data channel (OPEN-3).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpenDataChannel {
    /// The version `1.0`. Some clients send it as a number.
    #[serde(default, deserialize_with = "text_or_number")]
    pub message_schema_version: String,
    /// A new UUID.
    #[serde(default)]
    pub request_id: String,
    /// The session's token.
    pub token_value: Secret,
    /// The agent's instance id; only the agent sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_instance_id: Option<String>,
    /// A UUID, chosen once per process and kept across reconnects.
    #[serde(default)]
    pub client_id: String,
    /// The client's version; only the client sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
}

impl OpenDataChannel {
    /// Creates the message of a client.
    pub fn client(request_id: Uuid, token: impl Into<Secret>, client_id: Uuid, version: impl Into<String>) -> Self {
        Self {
            message_schema_version: "1.0".into(),
            request_id: request_id.to_string(),
            token_value: token.into(),
            client_instance_id: None,
            client_id: client_id.to_string(),
            client_version: Some(version.into()),
        }
    }

    /// Encodes the text frame.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Decodes the text frame.
    ///
    /// # Errors
    /// Returns the kind of the JSON error. The text never contains the token.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| format!("not an OpenDataChannel message ({:?})", error.classify()))
    }
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Version {
        Text(String),
        Number(f64),
    }
    Ok(match Version::deserialize(deserializer)? {
        Version::Text(text) => text,
        Version::Number(number) => format!("{number:.1}"),
    })
}

impl fmt::Debug for OpenDataChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDataChannel")
            .field("client_id", &self.client_id)
            .field("client_version", &self.client_version)
            .field("token_value", &self.token_value)
            .finish_non_exhaustive()
    }
}

/// The service's message that the session has ended (WIRE-9).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChannelClosed {
    /// The text `channel_closed`.
    pub message_type: String,
    /// A UUID.
    pub message_id: String,
    /// The managed node.
    pub destination_id: String,
    /// The session.
    pub session_id: String,
    /// The schema version 1.
    pub schema_version: i64,
    /// Milliseconds since the Unix epoch, as text.
    pub created_date: String,
    /// The agent's reason for the end of the session; often empty.
    pub output: String,
}

impl ChannelClosed {
    /// Decodes the payload. A payload that cannot be decoded counts as an end without a text, because the session has ended in any
    /// case.
    pub fn decode(payload: &[u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_default()
    }

    /// Encodes the whole message in the form that the service is reported to use: short header, NUL padding.
    pub fn encode(session_id: &str, target: &str, output: &str, created_date: u64, message_id: Uuid) -> Bytes {
        let body = Self {
            message_type: "channel_closed".into(),
            message_id: message_id.to_string(),
            destination_id: target.into(),
            session_id: session_id.into(),
            schema_version: 1,
            created_date: created_date.to_string(),
            output: output.into(),
        };
        let payload = serde_json::to_vec(&body).unwrap_or_default();
        service_header(MessageType::ChannelClosed, created_date, message_id).seal(MessageBuf::from(payload.as_slice()))
    }
}

/// Encodes a whole `start_publication` or `pause_publication` message: the other end's data channel is active or inactive (DC-12).
pub fn publication(start: bool, created_date: u64, message_id: Uuid) -> Bytes {
    let message_type = if start { MessageType::StartPublication } else { MessageType::PausePublication };
    let header = Header { form: HeaderForm::Full, ..service_header(message_type, created_date, message_id) };
    header.seal(MessageBuf::from(b"{}".as_slice()))
}

fn service_header(message_type: MessageType, created_date: u64, message_id: Uuid) -> Header {
    Header { form: HeaderForm::Short, padding: Padding::Nul, ..Header::new(message_type, created_date, message_id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_version_may_be_a_number() {
        for version in ["1", "1.0", "\"1.0\""] {
            let open = OpenDataChannel::from_json(&format!(r#"{{"MessageSchemaVersion":{version},"TokenValue":"t"}}"#));
            assert_eq!(open.map(|open| open.message_schema_version), Ok("1.0".into()));
        }
    }
}
