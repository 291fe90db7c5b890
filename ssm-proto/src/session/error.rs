//! The reasons why sessions fail.

use std::time::Duration;

use super::ConfigError;
use crate::cipher::CipherError;
use crate::handshake::{HandshakeError, Version};
use crate::mux::FrameError;
use crate::wire::PayloadType;

/// The reason why a session cannot continue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The handshake failed. The inner error shows which end is at fault.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The peer sent a payload that is not encrypted with the session's key.
    #[error("the other end's {payload_type:?} can't be decrypted: {source}")]
    Undecryptable {
        /// The payload's type.
        payload_type: PayloadType,
        /// The decryption error.
        source: CipherError,
    },
    /// The peer sent bytes that are not frames.
    #[error("the stream of frames is broken: {0}")]
    Frames(#[from] FrameError),
    /// The peer, which should send keep-alive frames, was silent for this time.
    #[error("the other end sent no keep-alive for {} s", .0.as_secs())]
    NoKeepAlive(Duration),
    /// The session's type is not allowed by [`ClientConfig::ports_only`](super::ClientConfig::ports_only): its document starts a
    /// shell or a command, of this type.
    #[error("the session carries {0}, not a port: check the document")]
    NotAPort(String),
    /// The agent is too old for a remote host, and would connect to a port of its own machine (PORT-8).
    #[error(
        "the node's SSM agent {version} cannot reach {host} and would use the port of its own machine: update it to {} \
         or newer",
        Version::AGENT_REMOTE_HOST
    )]
    AgentTooOld {
        /// The agent's version.
        version: String,
        /// The remote host.
        host: String,
    },
    /// The caller reported that KMS provides no data key ([`Session::refuse_data_key`](super::Session::refuse_data_key)). The text
    /// is the caller's.
    #[error("KMS provides no key to encrypt the session: {0}")]
    NoDataKey(String),
    /// The settings of this end are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A payload of this end cannot be encrypted.
    #[error(transparent)]
    Unencryptable(CipherError),
}
