//! What the two ends tell each other before the session's bytes flow. `docs/protocol.md`, HS-*.

mod agent;
mod body;
mod client;
mod version;

pub use agent::AgentHandshake;
pub use body::{
    ActionStatus, HandshakeComplete, HandshakeRequest, HandshakeResponse, PortProperties, ProcessedAction,
    RequestedAction, SessionType,
};
pub use client::ClientHandshake;
pub use version::Version;

use crate::wire::{MessageBuf, PayloadType};

const SESSION_TYPE: &str = "SessionType";
const KMS_ENCRYPTION: &str = "KMSEncryption";

/// What a side has to do next in the handshake.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HandshakeStep {
    /// Send this payload.
    Send(PayloadType, Vec<u8>),
    /// The handshake is over and the session may begin.
    Complete(HandshakeComplete),
}

impl HandshakeStep {
    /// The payload to send, if that is the step.
    pub(crate) fn into_message(self) -> Option<(PayloadType, MessageBuf)> {
        match self {
            Self::Send(payload_type, payload) => Some((payload_type, MessageBuf::from(payload.as_slice()))),
            Self::Complete(_) => None,
        }
    }
}

/// Why a handshake failed. Says who is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The other end sent something that can't be read.
    #[error("the other end's {what} can't be read: {why}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The agent asks for something that this client can't do.
    #[error("the agent asks for {0}, which this client does not support")]
    Unsupported(String),
    /// The client could not do what it was asked.
    #[error("the client refused: {0}")]
    Refused(String),
    /// The other end said nothing in time.
    #[error("Handshake timed out. Please ensure that you have the latest version of the session manager plugin.")]
    TimedOut,
}
