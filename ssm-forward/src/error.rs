//! Errors, grouped by the part that is at fault. All errors can be cloned and compared, so that callers can match on variants.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ssm_proto::relay::RefusalKind;
use ssm_proto::{ConfigError, SessionError};

use crate::text::{bounded, one_line};
use crate::{ProviderError, TransportError};

/// Why a forwarder or a session could not start, or ended. Each message is one line.
///
/// The variant names the part that is at fault, and the value inside describes the cause:
///
/// ```
/// use ssm_forward::{ForwardError, ProbeError, ProviderErrorKind, StreamError};
///
/// fn advice(error: &ForwardError) -> &'static str {
///     match error {
///         ForwardError::Provider(error) => match error.kind {
///             ProviderErrorKind::AccessDenied => "ask for the IAM permission",
///             ProviderErrorKind::NotConnected => "start the instance, or its agent",
///             ProviderErrorKind::Throttled => "try again later",
///             _ => "see the message",
///         },
///         ForwardError::RemoteRefused { source: ProbeError::Stream(StreamError::Refused), .. } => "start the server",
///         ForwardError::RemoteRefused { .. } => "look at the firewall",
///         ForwardError::SessionEnded(reason) => match reason {
///             ssm_forward::CloseReason::Closed(_) => "the service ended the session",
///             _ => "see the message",
///         },
///         _ => "see the message",
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The local socket cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The requested address.
        address: String,
        /// The system's error.
        source: SystemError,
    },
    /// The settings are impossible. Nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The API refused the request or cannot be reached. [`ProviderError::kind`] distinguishes, for example, denied access, a
    /// target that is not connected, and throttling.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The WebSocket could not be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The WebSocket was lost before the session was ready, and the session cannot be resumed.
    #[error("the session cannot be resumed: {0}")]
    NotResumed(#[source] DialError),
    /// The agent refused the session or violated the protocol.
    #[error("{}", bounded(.0.to_string()))]
    Agent(#[source] SessionError),
    /// [`ForwardConfig::wait_ready`](crate::ForwardConfig::wait_ready): the remote port does not accept connections.
    #[error("the remote port does not answer ({destination}): {source}")]
    RemoteRefused {
        /// The host and port, or the port of the target.
        destination: String,
        /// What happened to the connection.
        source: ProbeError,
    },
    /// The session was not ready in time.
    #[error(
        "{target} was not ready within {} s: is its agent online, and can it reach the service?",
        .limit.as_secs_f32()
    )]
    TimedOut {
        /// The target of the request.
        target: String,
        /// The timeout.
        limit: Duration,
    },
    /// The session ended while it was in use, or before it was ready.
    #[error(transparent)]
    SessionEnded(CloseReason),
    /// The forwarder had ended, or ended before it accepted a connection that was passed to it
    /// ([`Entrance::hand_in`](crate::Entrance::hand_in), [`Dialed::carry`](crate::Dialed::carry)).
    #[error("the forwarder has ended")]
    ForwarderEnded,
    /// The target has no relay. Without a relay, connections cannot choose their destination
    /// ([`ForwarderBuilder::dial`](crate::ForwarderBuilder::dial)).
    #[error("{why}")]
    NoRelay {
        /// The reason, in one line.
        why: String,
    },
}

impl From<DialError> for ForwardError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Provider(error) => Self::Provider(error),
            DialError::Transport(error) => Self::Transport(error),
        }
    }
}

/// Converts the reason why a session ended before it was ready.
impl From<CloseReason> for ForwardError {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Agent(error) => Self::Agent(error),
            CloseReason::Lost(error) => Self::NotResumed(error),
            reason => Self::SessionEnded(reason),
        }
    }
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// [`Session::terminate`](crate::Session::terminate) was called, or the [`Session`](crate::Session) was dropped.
    #[error("terminated")]
    Terminated,
    /// The service closed the session. The text is the reason that the service sent; it is often empty.
    #[error("{}", closed(.0))]
    Closed(String),
    /// The agent refused the session or violated the protocol.
    #[error("{}", bounded(.0.to_string()))]
    Agent(#[source] SessionError),
    /// The WebSocket was lost and the session cannot be resumed.
    #[error("the session cannot be resumed: {0}")]
    Lost(#[source] DialError),
    /// A bug in this library: the session's task panicked.
    #[error("the session's task ended unexpectedly")]
    Panicked,
}

fn closed(text: &str) -> String {
    match text.trim() {
        "" => "the session was closed by the service".into(),
        _ => format!("the session was closed by the service: {}", one_line(text)),
    }
}

/// Why the data channel's WebSocket could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The API grants no token, or the upgrade request cannot be signed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The host cannot be reached, or refuses the connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Why the check whether the destination accepts connections failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The connection failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// There was no answer within this time.
    #[error("no connection within {:.1} s; a firewall or security group may drop the packets to it", .0.as_secs_f32())]
    TimedOut(Duration),
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The agent could not connect to the destination.
    #[error(
        "the agent could not connect to the destination: nothing listens there, or it is not reachable from the node"
    )]
    Refused,
    /// The destination sent nothing for [`MuxConfig::linger`](ssm_proto::MuxConfig::linger) after the stream was finished here,
    /// although this side could have received data. The stream was abandoned. It is not known whether the answer was complete.
    #[error("the destination sent nothing for {} s after the end of the input, {}", .silence.as_secs_f32(), match .answered {
        true => "and did not end the connection",
        false => "and never answered",
    })]
    Silent {
        /// Whether the destination ever sent data.
        answered: bool,
        /// Minimum duration of the silence.
        silence: Duration,
    },
    /// The relay on the node could not connect to the destination.
    #[error("the node could not connect to the destination: {why}")]
    Unreachable {
        /// The kind of the error, for programs.
        kind: RefusalKind,
        /// The error message of the node's system.
        why: String,
    },
    /// The destination reset the connection. Only a relay can detect this.
    #[error("the destination reset the connection")]
    Reset,
    /// The relay sent invalid data.
    #[error("the relay's data is damaged")]
    Damaged,
    /// The agent closed the stream, or the stream was finished on this side.
    #[error("the stream is closed")]
    Closed,
    /// The session has ended.
    #[error(transparent)]
    SessionEnded(CloseReason),
    /// There was no session for this time: [`PoolConfig::hold`](crate::PoolConfig::hold).
    #[error("there was no session for {} s", .0.as_secs())]
    NoSession(Duration),
    /// The relay on the node has ended.
    #[error("{why}")]
    RelayEnded {
        /// The reason, in one line.
        why: String,
    },
    /// The relay has reached its maximum number of connections.
    #[error("the relay has too many connections")]
    RelayFull,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Refused => io::ErrorKind::ConnectionRefused,
            StreamError::Unreachable { kind: RefusalKind::TimedOut, .. } => io::ErrorKind::TimedOut,
            StreamError::Unreachable { kind: RefusalKind::Unreachable, .. } => io::ErrorKind::HostUnreachable,
            StreamError::Unreachable { .. } => io::ErrorKind::ConnectionRefused,
            StreamError::Damaged => io::ErrorKind::InvalidData,
            StreamError::Silent { .. } | StreamError::NoSession(_) => io::ErrorKind::TimedOut,
            StreamError::Closed => io::ErrorKind::BrokenPipe,
            StreamError::RelayFull => io::ErrorKind::QuotaExceeded,
            StreamError::Reset | StreamError::SessionEnded(_) | StreamError::RelayEnded { .. } => {
                io::ErrorKind::ConnectionReset
            }
        };
        Self::new(kind, error)
    }
}

/// An [`io::Error`] that can be cloned and compared.
#[derive(Clone, Debug)]
pub struct SystemError(Arc<io::Error>);

impl SystemError {
    /// The kind of error.
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl From<io::Error> for SystemError {
    fn from(error: io::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl PartialEq for SystemError {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

impl Eq for SystemError {}

impl std::fmt::Display for SystemError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SystemError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::ProviderErrorKind;

    #[test]
    fn errors_are_told_apart_by_variants_and_keep_their_sources() {
        let gone = ProviderError { kind: ProviderErrorKind::SessionGone, message: "it is gone".into() };
        let reason = CloseReason::Lost(gone.clone().into());
        let error = ForwardError::from(reason.clone());
        assert_eq!(error, ForwardError::NotResumed(DialError::Provider(gone)));
        assert_eq!(error.to_string(), "the session cannot be resumed: it is gone");
        assert!(error.source().is_some_and(|source| source.downcast_ref::<DialError>().is_some()));
        let stream = StreamError::SessionEnded(reason);
        assert_eq!(stream.to_string(), error.to_string());
        assert!(stream.source().is_some_and(|source| source.downcast_ref::<DialError>().is_some()));
        assert_eq!(io::Error::from(stream.clone()).kind(), io::ErrorKind::ConnectionReset);
        let source = io::Error::from(stream.clone()).into_inner().unwrap();
        assert_eq!(source.downcast_ref::<StreamError>(), Some(&stream));
    }

    #[test]
    fn a_systems_error_is_compared_by_what_it_says() {
        let in_use = || SystemError::from(io::Error::from(io::ErrorKind::AddrInUse));
        assert_eq!(in_use(), in_use());
        assert_ne!(in_use(), SystemError::from(io::Error::from(io::ErrorKind::PermissionDenied)));
    }
}
