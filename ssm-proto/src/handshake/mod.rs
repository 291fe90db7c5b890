//! The negotiation between the two ends before session data flows. `docs/protocol.md`, HS-*.

mod agent;
mod body;
mod client;
mod kms;
mod version;

pub use agent::AgentHandshake;
pub use body::{
    ActionStatus, HandshakeComplete, HandshakeRequest, HandshakeResponse, PortProperties, ProcessedAction,
    RequestedAction, SessionType,
};
pub use client::ClientHandshake;
pub use kms::{AgentKms, DataKey, Identity, KeyRequest, KmsResult};
pub use version::Version;

use bytes::Bytes;

use crate::cipher::CipherError;
use crate::wire::PayloadType;

const SESSION_TYPE: &str = "SessionType";
const KMS_ENCRYPTION: &str = "KMSEncryption";

/// The next action of a side in the handshake.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HandshakeStep {
    /// Send this payload.
    Send(PayloadType, Vec<u8>),
    /// Client side: let KMS create a data key of 64 bytes, then call [`ClientHandshake::provide_data_key`].
    GenerateDataKey(KeyRequest),
    /// Agent side: let KMS decrypt this data key, then call [`AgentHandshake::provide_plaintext_key`].
    DecryptDataKey(KeyRequest, Bytes),
    /// There is no handshake: the agent's session has begun (HS-1).
    Skip,
    /// The handshake is complete and the session can begin.
    Complete(HandshakeComplete),
}

impl HandshakeStep {
    fn send(payload_type: PayloadType, body: &impl serde::Serialize) -> Self {
        Self::Send(payload_type, serde_json::to_vec(body).unwrap_or_default())
    }
}

/// The reason why a handshake failed. The variant shows which end is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The other end sent a message that cannot be parsed.
    #[error("the other end's {what} can't be read: {why}")]
    Malformed {
        /// The message.
        what: &'static str,
        /// The parse error.
        why: String,
    },
    /// The agent requested an action that this client does not support.
    #[error("the agent requests {0}, which this client does not support")]
    Unsupported(String),
    /// The client could not perform the requested action.
    #[error("the client refused: {0}")]
    Refused(String),
    /// The agent's challenge is not encrypted with the session's data key.
    #[error("the agent's challenge can't be decrypted: {0}")]
    Challenge(CipherError),
    /// The other end did not answer in time.
    #[error("Handshake timed out. Please ensure that you have the latest version of the session manager plugin.")]
    TimedOut,
}
