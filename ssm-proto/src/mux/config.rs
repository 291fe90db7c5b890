//! Settings of the multiplexer.

use std::time::Duration;

/// Settings of a [`Mux`](super::Mux).
#[derive(Clone, Debug)]
pub struct MuxConfig {
    /// Maximum number of bytes in a stream's send queue before [`Mux::write`](super::Mux::write) refuses. Default: 256 KiB.
    pub send_queue: usize,
    /// Maximum number of unread bytes of one stream before the session is congested. Default: 4 MiB, like the peers.
    pub receive_store: usize,
    /// Maximum number of unread bytes of all streams together before the session is congested. Default: 16 MiB.
    pub receive_total: usize,
    /// The scheduler's quantum: the number of bytes that a stream may send before the next stream's turn. Default: 1024, one
    /// message.
    pub quantum: usize,
    /// Client side, used by [`Session`](crate::Session): how long the remote side may be silent after the local end finished,
    /// before the stream is given up (MUX-9). Silence counts only while the remote side has received all written data and its
    /// answer could have been received. Default: 30 s.
    pub linger: Duration,
    /// Interval of keep-alive frames. Default: none are sent, except to agents that expect them.
    pub keep_alive: Option<Duration>,
    /// Maximum time without any data from the peer, after which the session ends. Default: no limit.
    pub peer_timeout: Option<Duration>,
}

impl Default for MuxConfig {
    fn default() -> Self {
        Self {
            send_queue: 256 << 10,
            receive_store: 4 << 20,
            receive_total: 16 << 20,
            quantum: 1024,
            linger: Duration::from_secs(30),
            keep_alive: None,
            peer_timeout: None,
        }
    }
}
