//! Settings of a session.

use std::time::Duration;

use ssm_proto::{ClientConfig, Pace};

use super::resume::RetryPolicy;
use super::termination::Terminations;
use crate::transport::{StreamEndpoint, StreamUrl, StreamUrlPolicy, TransportError, TransportOptions};

/// Settings of a [`Session`](crate::Session).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionConfig {
    /// Timeout of [`Session::start`](crate::Session::start) as a whole: the API's call, the WebSocket and the handshake. A
    /// [`Forwarder`](crate::Forwarder) sets it to its [`connect_timeout`](crate::ForwardConfig::connect_timeout). Default: 60 s.
    pub start_timeout: Duration,
    /// The settings of the protocol.
    pub protocol: ClientConfig,
    /// The hosts to which the session's token may be sent.
    pub stream_url_policy: StreamUrlPolicy,
    /// The host of the data channel, if it differs from the host of the stream URL. Default: `None`, the host of the stream URL.
    pub stream_endpoint: Option<StreamEndpoint>,
    /// How the WebSocket is opened.
    pub transport: TransportOptions,
    /// Rate limit of messages (DC-16).
    pub pacing: Pacing,
    /// How a lost WebSocket is reconnected.
    pub retry: RetryPolicy,
    /// How a lost connection is detected.
    pub liveness: Liveness,
    /// The calls that terminate the sessions.
    pub terminations: Terminations,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(60),
            protocol: ClientConfig::default(),
            stream_url_policy: StreamUrlPolicy::default(),
            stream_endpoint: None,
            transport: TransportOptions::default(),
            pacing: Pacing::default(),
            retry: RetryPolicy::default(),
            liveness: Liveness::default(),
            terminations: Terminations::default(),
        }
    }
}

impl SessionConfig {
    /// Returns the URL of the data channel: `text` with the configured host.
    pub(super) fn stream_url(&self, text: &str) -> Result<StreamUrl, TransportError> {
        StreamUrl::parse_at(text, &self.stream_url_policy, self.stream_endpoint.as_ref())
    }
}

/// Rate limit of a session's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pacing {
    /// 900 messages per second if the data channel leads to another machine. This is below 1000, the rate at which the service is
    /// reported to close the data channel. No limit if it leads to this machine.
    #[default]
    Auto,
    /// This number of messages per second, at least 1.
    PerSecond(u32),
    /// No limit.
    Unlimited,
}

/// Rate below the limit that others measured, with a margin for the clocks of both ends.
const SAFE_PACE: u32 = 900;

impl Pacing {
    pub(super) fn pace(self, is_local: bool) -> Option<Pace> {
        match self {
            Self::Auto => (!is_local).then(|| Pace::per_second(SAFE_PACE)),
            Self::PerSecond(messages) => Some(Pace::per_second(messages)),
            Self::Unlimited => None,
        }
    }
}

/// How a lost connection is detected.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Liveness {
    /// Duration of silence after which a ping is sent. Default: 30 s, less than the idle timeouts of NATs and load balancers
    /// (OPEN-7).
    pub ping_interval: Duration,
    /// Duration of silence after a ping, after which the connection counts as lost. Default: 10 s.
    pub pong_timeout: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { ping_interval: Duration::from_secs(30), pong_timeout: Duration::from_secs(10) }
    }
}
