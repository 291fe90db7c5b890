//! Settings of a forwarder.

use std::time::Duration;

use crate::pool::PoolConfig;
use crate::relay::RelayConfig;
use crate::session::SessionConfig;

/// Settings of a [`Forwarder`](crate::Forwarder).
///
/// It is changed field by field, because fields may be added:
///
/// ```
/// let mut config = ssm_forward::ForwardConfig::default();
/// config.wait_ready = true;
/// config.pool.size = ssm_forward::PoolSize::Fixed(2);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ForwardConfig {
    /// Check that the remote port accepts a connection before [`ForwardEvent::Ready`](crate::ForwardEvent::Ready) is
    /// reported. Default: false.
    pub wait_ready: bool,
    /// Timeout for StartSession, the data channel, the handshake and `wait_ready` together. With a relay, the session
    /// that places it has as long once more, and copying and starting it 90 s. Default: 30 s.
    pub connect_timeout: Duration,
    /// How long starting the first session is repeated while the target is not connected. Each attempt has
    /// `connect_timeout`. Default: zero, no repetition.
    pub wait_connected: Duration,
    /// After a local program ends its sending side: how long the far side may be silent before the connection is given
    /// up and reset. Silence counts only while this side was connected, was reading and had read everything. A server that
    /// answers only after the end of its input is given up in this way, because it cannot see that end; see
    /// [`StreamSender::finish`](crate::StreamSender::finish). Default: 30 s.
    pub linger: Duration,
    /// A connection without an answer causes a warning after this time, at most once a minute. Default: 10 s.
    pub answer_patience: Duration,
    /// Maximum payload of a message to the agent, in bytes. Default: 1024, like the official client.
    pub max_payload: usize,
    /// Prevent the idle timeout of sessions while nothing is forwarded. This needs multiplexing, which old agents do
    /// not support. Default: false, the idle timeout applies.
    pub keep_alive: bool,
    /// Start a session only when a connection comes, and terminate it when there was no connection for this long. If a
    /// session cannot be started, only the connections that wait for it are reset; the next connection tries again.
    /// Default: `None`, the session is started at once.
    pub lazy: Option<Duration>,
    /// How many sessions there are, and what happens when one is gone.
    pub pool: PoolConfig,
    /// Carry the connections by a relay on the node, if one can be started there. Default: none.
    pub relay: Option<RelayConfig>,
    /// The session's own settings. Some of them are replaced: those that are named `connect_timeout` (here
    /// `start_timeout`), `linger` and `max_payload` above, the multiplexer's keep-alive if `keep_alive` is set, and
    /// `ports_only`, which is always set.
    pub session: SessionConfig,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            wait_ready: false,
            connect_timeout: Duration::from_secs(30),
            wait_connected: Duration::ZERO,
            linger: Duration::from_secs(30),
            answer_patience: Duration::from_secs(10),
            max_payload: 1024,
            keep_alive: false,
            lazy: None,
            pool: PoolConfig::default(),
            relay: None,
            session: SessionConfig::default(),
        }
    }
}
