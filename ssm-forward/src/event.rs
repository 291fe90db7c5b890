//! What a forwarder tells about itself.

use std::net::SocketAddr;
use std::time::Duration;

/// Something that happened to a forwarder; see [`crate::ForwarderBuilder::on_event`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ForwardEvent {
    /// StartSession is being called.
    Starting {
        /// The managed node.
        target: String,
    },
    /// The target is not connected; it is waited for ([`ForwardConfig::wait_connected`](crate::ForwardConfig::wait_connected)).
    AwaitingTarget {
        /// What StartSession answered.
        cause: String,
        /// How long it is waited for at most.
        patience: Duration,
    },
    /// The API granted a session; its data channel is being opened.
    SessionStarted {
        /// The session's id.
        session_id: String,
    },
    /// The agent completed the handshake (and, if asked for, the remote port answered): connections are served.
    Ready {
        /// Where the forwarder listens, with the real port.
        local: LocalAddr,
        /// The session's id.
        session_id: String,
        /// What the agent says its version is.
        agent_version: String,
        /// How long it took since the start.
        elapsed: Duration,
    },
    /// A local program connected.
    ConnectionOpened {
        /// Counts from 1 per forwarder.
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
    /// The data channel is gone; the session may live on and is being resumed.
    Reconnecting {
        /// What happened.
        cause: String,
        /// Counts from 1 since the last time it was connected.
        attempt: u32,
        /// The wait before this attempt.
        delay: Duration,
    },
    /// The data channel is back, nothing was lost.
    Reconnected {
        /// How long it was away.
        outage: Duration,
    },
    /// A session is gone for good; connections that used it are reset.
    SessionLost {
        /// The session's id.
        session_id: String,
        /// Why.
        reason: String,
        /// How many connections used it. With none, the next connection starts a new session.
        connections: usize,
    },
    /// A new session is about to be started.
    Restarting {
        /// Why: what ended the last one, or the last attempt.
        cause: String,
        /// Counts from 1 since the last session that lived.
        attempt: u32,
        /// The wait before this attempt.
        delay: Duration,
    },
    /// A new session serves connections.
    Restarted {
        /// Its id.
        session_id: String,
        /// How long there was none.
        outage: Duration,
    },
    /// Another session serves connections, because they would have had to share the others: [`crate::PoolSize::Auto`].
    SessionAdded {
        /// Its id.
        session_id: String,
        /// How many there are now.
        sessions: usize,
        /// The most that there may be.
        max: usize,
    },
    /// A text from the far side that the person should see.
    Message {
        /// One or more lines.
        text: String,
    },
    /// Something that was asked for can't be had, or a connection holds up others; the forwarder goes on.
    Warning {
        /// What.
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
}

impl std::fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}
