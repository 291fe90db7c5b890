//! Why forwarding failed. The variants tell which part is at fault.

use crate::ProviderError;
use crate::session::DialError;

/// Why a forwarder could not start, or ended. Each message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The local socket cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The requested address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The API refused.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The WebSocket could not be opened.
    #[error("{0}")]
    Transport(String),
    /// The agent refused or misbehaved.
    #[error("{0}")]
    Agent(String),
    /// `wait_ready`: the remote port does not accept connections.
    #[error("{0}")]
    RemoteRefused(String),
    /// It took longer than `connect_timeout`.
    #[error("{0}")]
    TimedOut(String),
    /// The session ended while it was in use.
    #[error("{0}")]
    SessionEnded(String),
}

impl From<DialError> for ForwardError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Provider(error) => Self::Provider(error),
            DialError::Transport(error) => Self::Transport(error.to_string()),
        }
    }
}
