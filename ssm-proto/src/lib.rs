//! The AWS Session Manager data channel as pure state machines.
//!
//! Nothing here does I/O, reads a clock or draws randomness: bytes, the time and a seed come in as arguments, bytes and
//! events come out. A driver owns the sockets; see [`Session`] for its contract.
//!
//! The floors, from the bottom:
//!
//! | module | what it turns into what |
//! |---|---|
//! | wire | bytes ↔ [`AgentMessage`], a zero-copy view |
//! | channel | messages that get lost, repeated and reordered ↔ payloads in order, exactly once ([`DataChannel`]) |
//! | handshake | payloads ↔ what the two ends agreed on |
//! | cipher | payloads ↔ payloads that only the holders of a KMS data key read ([`PlaintextKey`]) |
//! | mux | one byte stream ↔ many streams ([`Mux`], smux version 1) |
//! | session | all of it together ([`Session`]) |
//!
//! Every type speaks the same four verbs: getters, `handle_*` (something happened), commands, and `poll_*` (what is to be
//! done). A driver's whole loop:
//!
//! ```
//! use std::time::Instant;
//! use bytes::Bytes;
//! use ssm_proto::Session;
//!
//! /// One message arrived from the WebSocket. Gives what is to be sent now; `poll_timeout` tells when to call again.
//! fn drive(session: &mut Session, message: Bytes, now: Instant) -> Vec<Bytes> {
//!     if let Err(error) = session.handle_input(now, message) {
//!         eprintln!("dropped: {error}");
//!     }
//!     session.handle_timeout(now);
//!     while let Some(event) = session.poll_event() {
//!         eprintln!("{event:?}");
//!     }
//!     std::iter::from_fn(|| session.poll_transmit(now)).collect()
//! }
//! # use ssm_proto::{AgentConfig, ClientConfig, Clock};
//! # let now = Instant::now();
//! # let clock = Clock { start: now, unix: std::time::Duration::from_secs(1) };
//! # let mut agent = Session::agent(AgentConfig::default(), clock, 1);
//! # let mut client = Session::client(ClientConfig::default(), clock, 2);
//! # agent.handle_connected(now);
//! # client.handle_connected(now);
//! # let request = agent.poll_transmit(now).unwrap();
//! # assert_eq!(drive(&mut client, request, now).len(), 2, "an acknowledgement and the answer");
//! ```
//!
//! Requirements are numbered in `docs/protocol.md`; comments cite the numbers.

mod channel;
mod cipher;
pub mod fuzzing;
mod handshake;
mod mux;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;

pub use channel::{ChannelConfig, ChannelEvent, ChannelStats, DataChannel, Full, Pace, Retransmission, RttEstimator};
pub use cipher::{CipherError, PlaintextKey};
pub use handshake::{
    ActionStatus, AgentHandshake, AgentKms, ClientHandshake, DataKey, HandshakeComplete, HandshakeError,
    HandshakeRequest, HandshakeResponse, HandshakeStep, Identity, KeyRequest, KmsResult, PortProperties,
    ProcessedAction, RequestedAction, SessionType, Version,
};
pub use mux::{Deframer, Frame, FrameError, FrameKind, Mux, MuxConfig, MuxEvent, StreamId, WriteError};
pub use session::{
    AgentConfig, AgentQuirks, ClientConfig, OpenError, Output, Session, SessionEvent, SessionMode, SessionStats,
    TerminalSize,
};
pub use wire::{
    Acknowledge, AgentMessage, ChannelClosed, DecodeError, Header, HeaderForm, MAX_PAYLOAD, MessageBuf, MessageType,
    OpenDataChannel, Padding, PayloadDigest, PayloadType, PortFlag, UnknownType, publication,
};

use std::time::{Duration, Instant};

/// Which end of the session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that asked for the session; sends `input_stream_data`.
    Client,
    /// The end on the managed node; sends `output_stream_data`.
    Agent,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Agent,
            Self::Agent => Self::Client,
        }
    }
}

/// Ties the monotonic clock of `now` arguments to the wall clock that messages carry (their CreatedDate).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// A moment of the monotonic clock.
    pub start: Instant,
    /// The same moment as time since the Unix epoch.
    pub unix: Duration,
}

impl Clock {
    /// Milliseconds since the Unix epoch at `now`; at least 1, because 0 is invalid on the wire.
    pub fn unix_millis(&self, now: Instant) -> u64 {
        let since_epoch = self.unix + now.saturating_duration_since(self.start);
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// The next moment at which `handle_timeout` has something to do, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// When.
    pub at: Instant,
    /// What for.
    pub reason: TimeoutReason,
}

/// What a [`Timeout`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeoutReason {
    /// A message was not acknowledged in time.
    Retransmit,
    /// Acknowledgements waited long enough for company.
    Acknowledge,
    /// The other end is said to be away; see whether it is back.
    PauseProbe,
    /// The agent needs a moment after the handshake before it takes data.
    HandshakeGrace,
    /// The other end did not answer the handshake.
    HandshakeAnswer,
    /// A stream whose local end is finished waited long enough for the answer.
    Linger,
    /// The message budget allows the next message.
    Pace,
    /// A keep-alive frame is due.
    KeepAlive,
    /// A session that somebody else started does not begin.
    Inherited,
}

impl Timeout {
    /// The earlier of two optional time-outs.
    pub(crate) fn earliest(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}
