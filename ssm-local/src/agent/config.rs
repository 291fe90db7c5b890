//! The protocol settings of the agent for its two profiles.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssm_proto::{AgentConfig, AgentQuirks, ChannelConfig, Clock, Pace, Retransmission, Session, SessionType};
use tokio::time::Instant;

use super::AgentSpec;
use crate::Profile;

/// Largest payload that the fast agent sends.
const FAST_PAYLOAD: usize = 32 << 10;
/// Largest payload that the official agent sends.
pub(super) const REAL_PAYLOAD: usize = 1024;
/// The official agent sleeps for a millisecond after each message, which takes this long in practice (measured). The
/// burst of two makes up for a timer that fired late.
const REAL_PACE: Pace = Pace { interval: Duration::from_micros(1130), burst: 2 };
/// For this long after the handshake, the official agent neither accepts nor acknowledges data.
const REAL_START: Duration = Duration::from_millis(3);

/// Creates a session's protocol state. `is_paced`: what it sends comes from a loop that sleeps.
pub(super) fn protocol(spec: &AgentSpec, session_type: SessionType, is_paced: bool) -> Session {
    let clock = Clock {
        start: Instant::now().into_std(),
        unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    };
    Session::agent(config(spec, session_type, is_paced), clock, fastrand::u64(..))
}

fn config(spec: &AgentSpec, session_type: SessionType, is_paced: bool) -> AgentConfig {
    // No official agent encrypts ports (KMS-*).
    let encrypted = !matches!(session_type, SessionType::Port(_));
    let has_terminal = matches!(session_type, SessionType::StandardStream | SessionType::InteractiveCommands);
    let base = AgentConfig {
        agent_version: spec.agent_version.clone(),
        session_type,
        kms: spec.encryption.as_ref().filter(|_| encrypted).map(|encryption| encryption.wish()),
        identity: spec.identity.clone(),
        // Agents acknowledge immediately.
        channel: ChannelConfig { ack_delay: Duration::ZERO, ..ChannelConfig::default() },
        ..AgentConfig::default()
    };
    let base = match has_terminal {
        true => AgentConfig { channel: terminal_channel(base.channel), ..base },
        false => base,
    };
    match spec.profile {
        Profile::Fast => AgentConfig { max_payload: FAST_PAYLOAD, ..base },
        Profile::Real => AgentConfig {
            max_payload: REAL_PAYLOAD,
            channel: ChannelConfig {
                retransmission: Retransmission::HeadOnly,
                pace: is_paced.then_some(REAL_PACE),
                ..base.channel
            },
            quirks: AgentQuirks { refuse_for: REAL_START, ..AgentQuirks::default() },
            ..base
        },
    }
}

/// A terminal's output does not wait for acknowledgements. The official agent reads none while the program on the
/// terminal takes no input, and a program that waits for its output to be read would wait forever.
fn terminal_channel(channel: ChannelConfig) -> ChannelConfig {
    const MESSAGES: usize = 100_000;
    const BYTES: usize = 100 << 20;
    ChannelConfig { window: MESSAGES, window_bytes: BYTES, retransmission: Retransmission::HeadOnly, ..channel }
}
