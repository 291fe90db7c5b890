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
    /// Time limit of [`Session::start`](crate::Session::start) as a whole: the API's call, the WebSocket and the
    /// handshake. A [`Forwarder`](crate::Forwarder) sets it to its
    /// [`connect_timeout`](crate::ForwardConfig::connect_timeout). Default: 60 s.
    pub start_timeout: Duration,
    /// The protocol's own settings.
    pub protocol: ClientConfig,
    /// Which hosts may get the session's token.
    pub stream_url_policy: StreamUrlPolicy,
    /// Where the data channel is, if not at the stream URL's host. Default: at that host.
    pub stream_endpoint: Option<StreamEndpoint>,
    /// How the WebSocket is opened.
    pub transport: TransportOptions,
    /// Rate limit of messages (DC-16).
    pub pacing: Pacing,
    /// How a lost WebSocket is reconnected.
    pub retry: RetryPolicy,
    /// How a dead WebSocket is detected.
    pub liveness: Liveness,
    /// The calls that terminate its sessions.
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
    /// The URL of the data channel: `text` with the configured host.
    pub(super) fn stream_url(&self, text: &str) -> Result<StreamUrl, TransportError> {
        StreamUrl::parse_at(text, &self.stream_url_policy, self.stream_endpoint.as_ref())
    }
}

/// Rate limit of a session's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pacing {
    /// 900 per second if the data channel leads to another machine, below the 1000 at which the service is reported to
    /// close it; no limit on this machine.
    #[default]
    Auto,
    /// This many, at least 1.
    PerSecond(u32),
    /// No limit.
    Unlimited,
}

/// Below the limit that others measured, with a margin for the clocks of both ends.
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

/// How a dead peer is detected.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Liveness {
    /// A ping is sent after this much silence. Default: 30 s, less than the idle timeouts of NATs and load balancers
    /// (OPEN-7).
    pub ping_interval: Duration,
    /// After this much silence after a ping, the path counts as dead. Default: 10 s.
    pub pong_timeout: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { ping_interval: Duration::from_secs(30), pong_timeout: Duration::from_secs(10) }
    }
}
