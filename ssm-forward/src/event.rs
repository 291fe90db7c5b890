//! What a forwarder reports.

use std::net::SocketAddr;
use std::time::Duration;

/// Something that happened to a forwarder; see [`crate::ForwarderBuilder::on_event`].
///
/// Texts are for people; programs use the variants, and the error of [`crate::Forwarder::run`]. Events of connections and
/// of sessions have no fixed order: a connection can open before there is a session, and close before the loss of its
/// session is reported.
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
        /// StartSession's answer.
        cause: String,
        /// Maximum duration of the wait.
        patience: Duration,
    },
    /// The API granted a session; its data channel is being opened.
    SessionStarted {
        /// The session's id.
        session_id: String,
    },
    /// The agent completed the handshake and, if requested, the remote port accepted a connection: the forwarder
    /// accepts connections.
    Ready {
        /// The listening address, with the actual port.
        local: LocalAddr,
        /// The session's id.
        session_id: String,
        /// The version that the agent reports.
        agent_version: String,
        /// Time since the start.
        elapsed: Duration,
    },
    /// A local program connected.
    ConnectionOpened {
        /// The connection's number, from 1 for each forwarder.
        connection: u64,
        /// The program's address; `None` for a Unix socket.
        peer: Option<SocketAddr>,
    },
    /// A connection ended.
    ConnectionClosed {
        /// The same number as in `ConnectionOpened`.
        connection: u64,
        /// Bytes from the local program to the remote end.
        bytes_up: u64,
        /// Bytes from the remote end to the local program.
        bytes_down: u64,
        /// The agent could not connect to the destination.
        refused: bool,
        /// `None`: both ends finished; otherwise what went wrong.
        error: Option<String>,
    },
    /// The data channel is lost. The session may still exist and is being resumed.
    Reconnecting {
        /// What happened.
        cause: String,
        /// The attempt's number, from 1 since the data channel was lost.
        attempt: u32,
        /// Delay before this attempt. Also the first attempt has one if the last connection did not live for long.
        delay: Duration,
    },
    /// The data channel is connected again; nothing was lost.
    Reconnected {
        /// Duration of the outage.
        outage: Duration,
    },
    /// A session is permanently gone. Connections that used it are reset, unless they had already received everything.
    SessionLost {
        /// The session's id.
        session_id: String,
        /// Why.
        reason: String,
        /// Number of connections that are cut off. If there is none, the next connection starts a new session. Through
        /// a relay it is always 0: other sessions, or the next one, continue the connections.
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
        /// Its id.
        session_id: String,
        /// How long there was no session.
        outage: Duration,
    },
    /// A further session accepts connections, which otherwise would have had to share the others:
    /// [`crate::PoolSize::Auto`].
    SessionAdded {
        /// Its id.
        session_id: String,
        /// Present number of sessions.
        sessions: usize,
        /// Maximum number of sessions.
        max: usize,
    },
    /// [`ForwardConfig::lazy`](crate::ForwardConfig::lazy): it listens without a session; the next connection starts
    /// one.
    Waiting {
        /// Why the last session could not be had; `None` if nothing failed.
        cause: Option<String>,
    },
    /// A text from the far side for the user.
    Message {
        /// One or more lines.
        text: String,
    },
    /// Something requested is not possible, or a connection holds up others; the forwarder continues.
    Warning {
        /// The warning.
        text: String,
    },
    /// The forwarder ended.
    Closed {
        /// Why.
        reason: String,
    },
}

/// Where a forwarder listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalAddr {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(std::path::PathBuf),
    /// Nowhere: connections are handed in ([`crate::Entrance`]).
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
