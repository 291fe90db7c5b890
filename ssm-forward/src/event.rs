//! Events that a forwarder reports.

use std::net::SocketAddr;
use std::time::Duration;

/// An event of a forwarder; see [`crate::ForwarderBuilder::on_event`].
///
/// Texts are for users. Programs use the variants, and the error of [`crate::Forwarder::run`]. Events of connections and events of
/// sessions have no fixed order: a connection can open before there is a session, and can close before the loss of its session is
/// reported.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ForwardEvent {
    /// StartSession is being called.
    Starting {
        /// The managed node.
        target: String,
    },
    /// The target is not connected; the forwarder waits for it
    /// ([`ForwardConfig::wait_connected`](crate::ForwardConfig::wait_connected)).
    AwaitingTarget {
        /// The API's answer to StartSession.
        cause: String,
        /// Maximum duration of the wait.
        patience: Duration,
    },
    /// The API granted a session; its data channel is being opened.
    SessionStarted {
        /// The session's id.
        session_id: String,
    },
    /// The agent completed the handshake and, if requested, the remote port accepted a connection. The forwarder now accepts
    /// connections.
    Ready {
        /// The listening address, with the actual port.
        local: LocalAddr,
        /// The session's id.
        session_id: String,
        /// The agent's version, as reported by the agent.
        agent_version: String,
        /// Time since the forwarder was started.
        elapsed: Duration,
    },
    /// A local program connected.
    ConnectionOpened {
        /// The connection's number, from 1 for each forwarder.
        connection: u64,
        /// The program's address. `None` for a Unix socket.
        peer: Option<SocketAddr>,
    },
    /// A connection ended.
    ConnectionClosed {
        /// The same number as in `ConnectionOpened`.
        connection: u64,
        /// Number of bytes from the local program to the remote end.
        bytes_up: u64,
        /// Number of bytes from the remote end to the local program.
        bytes_down: u64,
        /// Whether the agent could not connect to the destination.
        refused: bool,
        /// The error. `None` if both ends finished normally.
        error: Option<String>,
    },
    /// The data channel is lost. The session may still exist and is being resumed.
    Reconnecting {
        /// The cause of the loss.
        cause: String,
        /// The attempt's number, from 1 since the data channel was lost.
        attempt: u32,
        /// Delay before this attempt. The first attempt has a delay too if the last connection was short-lived.
        delay: Duration,
    },
    /// The data channel is connected again. No data was lost.
    Reconnected {
        /// Duration of the outage.
        outage: Duration,
    },
    /// A session is permanently lost. Connections that used it are reset, unless they had already received everything.
    SessionLost {
        /// The session's id.
        session_id: String,
        /// The reason.
        reason: String,
        /// Number of connections that are cut off. If it is 0, the next connection starts a new session. Through a relay it is
        /// always 0: the connections continue on other sessions, or on the next one.
        connections: usize,
    },
    /// A new session is about to be started.
    Restarting {
        /// Why the last session, or the last attempt, ended.
        cause: String,
        /// The attempt's number, from 1 since the last session that carried data for some time.
        attempt: u32,
        /// Delay before this attempt.
        delay: Duration,
    },
    /// A new session accepts connections.
    Restarted {
        /// The session's id.
        session_id: String,
        /// Time without a session.
        outage: Duration,
    },
    /// A further session accepts connections that otherwise would have had to share the other sessions: [`crate::PoolSize::Auto`].
    SessionAdded {
        /// The session's id.
        session_id: String,
        /// Current number of sessions.
        sessions: usize,
        /// Maximum number of sessions.
        max: usize,
    },
    /// [`ForwardConfig::lazy`](crate::ForwardConfig::lazy): the forwarder listens without a session. The next connection starts
    /// one.
    Waiting {
        /// Why the last session ended or could not be started. `None` if there was no error.
        cause: Option<String>,
    },
    /// A text from the agent for the user.
    Message {
        /// One or more lines.
        text: String,
    },
    /// A requested function is not available, or a connection blocks others. The forwarder continues.
    Warning {
        /// The warning.
        text: String,
    },
    /// The forwarder ended.
    Closed {
        /// The reason.
        reason: String,
    },
}

/// The address on which a forwarder listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalAddr {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(std::path::PathBuf),
    /// No address: another part of the program passes the connections ([`crate::Entrance`]).
    HandedIn,
}

impl std::fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::HandedIn => f.write_str("connections that are handed in"),
        }
    }
}
