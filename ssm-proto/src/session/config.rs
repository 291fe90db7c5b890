//! Settings of a session.

use std::time::Duration;

use crate::channel::ChannelConfig;
use crate::handshake::{AgentKms, Identity, PortProperties, SessionType};
use crate::mux::{FRAME_HEADER, MuxConfig};
use crate::wire::MAX_PAYLOAD;

/// Settings of a client's session.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The version that the client reports. Default: `1.2.764.0`, the oldest that AWS supports.
    pub client_version: String,
    /// The session that a KMS data key is bound to. Default: empty; only encrypted sessions need an identity.
    pub identity: Identity,
    /// Whether to encrypt a port session if the agent requests it. Default: no; the request is refused as unsupported, and the
    /// session fails. No official agent requests this.
    pub kms_on_ports: bool,
    /// Whether to fail with a clear message if the session is a shell or a command. Default: no.
    pub ports_only: bool,
    /// Whether another program started the session. If so, [`SessionEvent::SeemsUsed`](super::SessionEvent::SeemsUsed) reports that
    /// another client used the session before. Default: no.
    pub inherited: bool,
    /// Maximum payload of a message in bytes, before encryption. At least 9, a frame's header and one byte. Default:
    /// 1024, like the official client.
    pub max_payload: usize,
    /// Settings of the data channel.
    pub channel: ChannelConfig,
    /// Settings of the streams. A session without a multiplexer uses only the send queue and the receive buffer of one stream.
    pub mux: MuxConfig,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            client_version: "1.2.764.0".into(),
            identity: Identity::default(),
            kms_on_ports: false,
            ports_only: false,
            inherited: false,
            max_payload: 1024,
            channel: ChannelConfig::default(),
            mux: MuxConfig::default(),
        }
    }
}

impl ClientConfig {
    /// Checks whether a session can work with these settings. With invalid settings, [`Session::client`](super::Session::client)
    /// creates a session that fails at once.
    ///
    /// # Errors
    /// Returns the invalid setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        check(self.max_payload, &self.channel, &self.mux)
    }
}

/// Settings of an agent's session.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The version that the agent reports. The session's mode depends on this version and the client's version.
    pub agent_version: String,
    /// What the session carries, according to the document. Default: a port, multiplexed.
    pub session_type: SessionType,
    /// The parameters of encryption with a data key from KMS. Default: none, so the session is not encrypted.
    pub kms: Option<AgentKms>,
    /// The session that the data key is bound to. Default: empty.
    pub identity: Identity,
    /// Maximum payload of a message in bytes, before encryption. Default: 1024, like the official agent.
    pub max_payload: usize,
    /// Settings of the data channel.
    pub channel: ChannelConfig,
    /// Settings of the streams; see [`ClientConfig::mux`].
    pub mux: MuxConfig,
    /// Behaviour of the official agent that clients must handle.
    pub quirks: AgentQuirks,
}

impl Default for AgentConfig {
    fn default() -> Self {
        let kind = Some(super::LOCAL_PORT_FORWARDING.into());
        Self {
            agent_version: "3.3.987.0".into(),
            session_type: SessionType::Port(PortProperties { kind, ..PortProperties::default() }),
            kms: None,
            identity: Identity::default(),
            max_payload: 1024,
            channel: ChannelConfig::default(),
            mux: MuxConfig::default(),
            quirks: AgentQuirks::default(),
        }
    }
}

impl AgentConfig {
    /// Checks whether a session can work with these settings, like [`ClientConfig::check`].
    ///
    /// # Errors
    /// Returns the invalid setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        check(self.max_payload, &self.channel, &self.mux)
    }
}

/// The reason why no session can work with the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// [`ClientConfig::max_payload`] is too small for a frame, or larger than the maximum of a message.
    #[error("a maximum payload of {0} bytes is not possible: it must be from {MIN_PAYLOAD} to {MAX_PAYLOAD} bytes")]
    MaxPayload(usize),
    /// The capacity of a queue, a buffer or a window is 0.
    #[error("{0} must not be 0")]
    Zero(&'static str),
}

/// Length of two frames' headers, because a FIN must not begin a message (MUX-12).
pub(super) const MIN_PAYLOAD: usize = 2 * FRAME_HEADER;

fn check(max_payload: usize, channel: &ChannelConfig, mux: &MuxConfig) -> Result<(), ConfigError> {
    if !(MIN_PAYLOAD..=MAX_PAYLOAD).contains(&max_payload) {
        return Err(ConfigError::MaxPayload(max_payload));
    }
    let limits = [
        ("channel.window", channel.window),
        ("channel.window_bytes", channel.window_bytes),
        ("mux.send_queue", mux.send_queue),
        ("mux.receive_store", mux.receive_store),
        ("mux.receive_total", mux.receive_total),
    ];
    match limits.iter().find(|(_, limit)| *limit == 0) {
        Some((name, _)) => Err(ConfigError::Zero(name)),
        None => Ok(()),
    }
}

/// Behaviour of the official agent right after the handshake (HS-8, DC-11). Default: all of it is off.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentQuirks {
    /// Duration after HandshakeComplete in which data is acknowledged and discarded.
    pub discard_for: Duration,
    /// Duration after HandshakeComplete in which data is neither accepted nor acknowledged.
    pub refuse_for: Duration,
}
