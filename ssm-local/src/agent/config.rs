//! The protocol settings of the agent for the two profiles.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssm_proto::{AgentConfig, AgentQuirks, ChannelConfig, Clock, Pace, Retransmission, Session, SessionType};
use tokio::time::Instant;

use super::AgentSpec;
use crate::Profile;

/// Maximum payload that the fast agent sends, in bytes.
const FAST_PAYLOAD: usize = 32 << 10;
/// Maximum payload that the official agent sends, in bytes.
pub(super) const REAL_PAYLOAD: usize = 1024;
/// The rate of the official agent. It sleeps for a millisecond after each message, which takes this long in practice (measured).
/// The burst of two compensates for a timer that fired late.
const REAL_PACE: Pace = Pace { interval: Duration::from_micros(1130), burst: 2 };
/// Time after the handshake in which the official agent neither accepts nor acknowledges data.
const REAL_START: Duration = Duration::from_millis(3);

/// Creates a session's protocol state. `is_paced`: the data is sent by a loop that sleeps.
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
        kms: spec.encryption.as_ref().filter(|_| encrypted).map(|encryption| encryption.agent_request()),
        identity: spec.identity.clone(),
        // Official agents acknowledge immediately.
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

/// Returns the channel settings of a session with a terminal, whose output does not wait for acknowledgements. The official agent
/// reads no acknowledgements while the program on the terminal reads no input. If the output waited, a program that reads no input
/// until its output is read would wait forever.
fn terminal_channel(channel: ChannelConfig) -> ChannelConfig {
    const MESSAGES: usize = 100_000;
    const BYTES: usize = 100 << 20;
    ChannelConfig { window: MESSAGES, window_bytes: BYTES, retransmission: Retransmission::HeadOnly, ..channel }
}
