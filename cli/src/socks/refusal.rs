//! The reasons why a client gets no connection, and their codes in each protocol.

use fast_socks5::ReplyError;
use ssm_forward::RefusalKind as NodeRefusal;
use ssm_forward::{ForwardError, ProbeError, ProviderErrorKind, StreamError};

use super::access::Destination;

/// The reason why a client gets no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: RefusalKind,
    /// The reason in one line.
    pub(super) text: String,
}

/// The kind of a [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusalKind {
    /// The lists do not permit the destination.
    NotAllowed,
    /// The destination refuses connections.
    Refused,
    /// The node cannot resolve or reach the host, or the node itself is not connected.
    Unreachable,
    /// The destination did not answer in time.
    TimedOut,
    /// The limit on destinations or on connections is reached.
    Full,
    /// No session can be started, or an internal error.
    Failed,
}

impl Refusal {
    pub(super) fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Creates the refusal for a destination that could not be reached over its own sessions.
    pub(super) fn of(error: &ForwardError) -> Self {
        let kind = match error {
            ForwardError::TimedOut { .. } | ForwardError::RemoteRefused { source: ProbeError::TimedOut(_), .. } => {
                RefusalKind::TimedOut
            }
            ForwardError::RemoteRefused { .. } => RefusalKind::Refused,
            // The agent reports these errors if it cannot resolve the name or cannot connect.
            ForwardError::Agent(_) | ForwardError::SessionEnded(_) => RefusalKind::Unreachable,
            ForwardError::Provider(error) if error.kind == ProviderErrorKind::NotConnected => RefusalKind::Unreachable,
            _ => RefusalKind::Failed,
        };
        Self::new(kind, error.to_string())
    }

    /// Creates the refusal for a destination to which the relay could not connect.
    pub(super) fn of_relay(destination: &Destination, error: &StreamError) -> Self {
        let StreamError::Unreachable { kind, why } = error else {
            return Self::new(RefusalKind::Failed, format!("{destination}: {error}"));
        };
        let kind = match kind {
            NodeRefusal::Refused => RefusalKind::Refused,
            NodeRefusal::TimedOut => RefusalKind::TimedOut,
            NodeRefusal::Unreachable | NodeRefusal::UnknownHost => RefusalKind::Unreachable,
            NodeRefusal::Limit => RefusalKind::Full,
            _ => RefusalKind::Failed,
        };
        Self::new(kind, format!("{destination}: the node could not connect: {why}"))
    }
}

impl RefusalKind {
    /// Returns the reply code of SOCKS5.
    pub(super) fn socks5(self) -> ReplyError {
        match self {
            Self::NotAllowed => ReplyError::ConnectionNotAllowed,
            Self::Refused => ReplyError::ConnectionRefused,
            Self::Unreachable => ReplyError::HostUnreachable,
            Self::TimedOut => ReplyError::TtlExpired,
            Self::Full | Self::Failed => ReplyError::GeneralFailure,
        }
    }

    /// Returns the status code and text of HTTP.
    pub(super) fn http(self) -> &'static str {
        match self {
            Self::NotAllowed => "403 Forbidden",
            Self::Refused | Self::Unreachable | Self::Failed => "502 Bad Gateway",
            Self::TimedOut => "504 Gateway Timeout",
            Self::Full => "503 Service Unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_relay_says_is_what_the_client_is_told() {
        let destination = Destination::new("db.internal", 5432).unwrap();
        let kind = |error| Refusal::of_relay(&destination, &error).kind;
        for (of_node, told) in [
            (NodeRefusal::Refused, RefusalKind::Refused),
            (NodeRefusal::TimedOut, RefusalKind::TimedOut),
            (NodeRefusal::Unreachable, RefusalKind::Unreachable),
            (NodeRefusal::UnknownHost, RefusalKind::Unreachable),
            (NodeRefusal::Limit, RefusalKind::Full),
        ] {
            assert_eq!(kind(StreamError::Unreachable { kind: of_node, why: "no".into() }), told, "{of_node:?}");
        }
        assert_eq!(kind(StreamError::Refused), RefusalKind::Failed);
    }
}
