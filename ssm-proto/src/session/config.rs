//! Knobs of a session.

use std::time::Duration;

use crate::channel::ChannelConfig;
use crate::handshake::{AgentKms, Identity, PortProperties, SessionType};
use crate::mux::MuxConfig;

/// Knobs of a client's session.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// What the client says its version is. Default: `1.2.764.0`, the oldest that AWS supports.
    pub client_version: String,
    /// Whom a KMS data key is for. Default: empty; only encrypted sessions need it.
    pub identity: Identity,
    /// Encrypt a port session if the agent asks for it. Default: no; it is refused as unsupported, and the session fails.
    /// No official agent asks.
    pub kms_on_ports: bool,
    /// Fail with a clear text if the session is a shell or a command. Default: no.
    pub ports_only: bool,
    /// Somebody else started the session: tell by [`SessionEvent::SeemsUsed`](super::SessionEvent::SeemsUsed) if another
    /// client used it before. Default: no.
    pub inherited: bool,
    /// Largest payload of a message, in bytes, before encryption. Default: 1024, as the official client.
    pub max_payload: usize,
    /// The data channel.
    pub channel: ChannelConfig,
    /// The streams; of them, a session without a multiplexer heeds the send queue and the receive store of one stream.
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

/// Knobs of an agent's session.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// What the agent says its version is; decides the mode together with the client's.
    pub agent_version: String,
    /// What the session carries, as the document says. Default: a port, multiplexed.
    pub session_type: SessionType,
    /// Encrypt with a data key of KMS. Default: no.
    pub kms: Option<AgentKms>,
    /// Whom the data key is for. Default: empty.
    pub identity: Identity,
    /// Largest payload of a message, in bytes, before encryption. Default: 1024, as the official agent.
    pub max_payload: usize,
    /// The data channel.
    pub channel: ChannelConfig,
    /// The streams; see [`ClientConfig::mux`].
    pub mux: MuxConfig,
    /// Habits of the official agent that a client must survive.
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

/// Habits of the official agent right after the handshake (HS-8, DC-11). All off by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentQuirks {
    /// For this long after HandshakeComplete, data is acknowledged and thrown away.
    pub discard_for: Duration,
    /// For this long after HandshakeComplete, data is refused without an acknowledgement.
    pub refuse_for: Duration,
}
