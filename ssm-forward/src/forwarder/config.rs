//! Settings of a forwarder.

use std::time::Duration;

use crate::pool::PoolConfig;
use crate::relay::RelayConfig;
use crate::session::SessionConfig;

/// Settings of a [`Forwarder`](crate::Forwarder).
///
/// Set it field by field, because fields may be added:
///
/// ```
/// let mut config = ssm_forward::ForwardConfig::default();
/// config.wait_ready = true;
/// config.pool.size = ssm_forward::PoolSize::Fixed(2);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ForwardConfig {
    /// Whether to check that the remote port accepts a connection before [`ForwardEvent::Ready`](crate::ForwardEvent::Ready) is
    /// reported. Default: false.
    pub wait_ready: bool,
    /// Timeout for StartSession, the data channel, the handshake and `wait_ready` together. With a relay, the session that places
    /// the relay has the same timeout in addition, and copying and starting the relay has 90 s. Default: 30 s.
    pub connect_timeout: Duration,
    /// How long the start of the first session is repeated while the target is not connected. Each attempt has the timeout
    /// `connect_timeout`. Default: zero, no repetition.
    pub wait_connected: Duration,
    /// How long the remote side may be silent after a local program has ended its sending side. After this time, the connection is
    /// abandoned and reset. Silence counts only while this side was connected, was reading and had read everything. A server that
    /// answers only after the end of its input is abandoned in this way, because it cannot see that end; see
    /// [`StreamSender::finish`](crate::StreamSender::finish). Default: 30 s.
    pub linger: Duration,
    /// A connection without an answer causes a warning after this time, at most once a minute. Default: 10 s.
    pub answer_patience: Duration,
    /// Maximum payload of a message to the agent, in bytes. Default: 1024, as in the official client.
    pub max_payload: usize,
    /// Whether to prevent the idle timeout of sessions while nothing is forwarded. This needs multiplexing, which old agents do not
    /// support. Default: false, the idle timeout applies.
    pub keep_alive: bool,
    /// If set, a session is started only when there is a connection, and is terminated after this time without connections. If a
    /// session cannot be started, only the connections that wait for it are reset, and the next connection tries again. Default:
    /// `None`, the session is started immediately.
    pub lazy: Option<Duration>,
    /// Number of sessions, and the behaviour when a session is lost.
    pub pool: PoolConfig,
    /// If set, a relay on the node carries the connections, provided that one can be started there. Default: `None`.
    pub relay: Option<RelayConfig>,
    /// The settings of each session. Some of them are overwritten: `start_timeout` by `connect_timeout`, `linger` and `max_payload`
    /// by the fields above, the multiplexer's keep-alive if `keep_alive` is set, and `ports_only`, which is always set.
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
