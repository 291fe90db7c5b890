//! The AWS Session Manager data channel as pure state machines.
//!
//! Nothing here does I/O, reads a clock or draws random numbers. Received bytes, the time and a seed are arguments;
//! bytes to send and events are results. A driver owns the sockets; see [`Session`] for its contract.
//!
//! The layers, from the bottom up:
//!
//! | module | converts between |
//! |---|---|
//! | wire | bytes ↔ [`AgentMessage`], a zero-copy view |
//! | channel | messages that can be lost, repeated and reordered ↔ payloads in order, exactly once ([`DataChannel`]) |
//! | handshake | payloads ↔ what the two ends have negotiated |
//! | cipher | payloads ↔ encrypted payloads, with a data key from KMS ([`PlaintextKey`]) |
//! | mux | one byte stream ↔ many streams ([`Mux`], smux version 1) |
//! | session | all of these layers together ([`Session`]) |
//! | [`relay`] | many connections ↔ several byte streams that can start and end at any time: the protocol of the project's own relay |
//!
//! Every type has the same four kinds of methods: getters, `handle_*` (something happened), commands, and `poll_*`
//! (what to do next). The complete loop of a driver:
//!
//! ```
//! use std::time::Instant;
//! use bytes::Bytes;
//! use ssm_proto::Session;
//!
//! /// Handles one message from the WebSocket. Returns the messages to send now.
//! /// `session.poll_timeout()` returns the time of the next call of `handle_timeout`.
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
//! # Single messages
//!
//! [`AgentMessage::decode`] decodes one message from bytes, for example of a capture. The payload of data in a port session
//! with a multiplexer is a piece of one byte stream in each direction, which a [`Deframer`] splits into the frames of smux
//! version 1:
//!
//! ```
//! use ssm_proto::{AgentMessage, Bytes, Deframer, MessageType, PayloadType};
//!
//! /// Prints one message. Each direction needs its own `frames`, created by `Deframer::new(1)`.
//! fn print(raw: Bytes, frames: &mut Deframer) -> Result<(), Box<dyn std::error::Error>> {
//!     let message = AgentMessage::decode(raw)?;
//!     println!("{:?} {} {:?}", message.message_type(), message.sequence_number(), message.payload_type());
//!     if message.payload_type() == PayloadType::Output {
//!         frames.push(message.into_payload());
//!         while let Some(frame) = frames.next_frame()? {
//!             println!("  {frame:?}");
//!         }
//!     }
//!     Ok(())
//! }
//! # use ssm_proto::{Header, MessageBuf, Uuid};
//! # let mut header = Header::new(MessageType::InputStreamData, 1, Uuid::nil());
//! # header.payload_type = PayloadType::Output;
//! # let syn = [1, 0, 0, 0, 3, 0, 0, 0];
//! # print(header.seal(MessageBuf::from(syn.as_slice())), &mut Deframer::new(1)).unwrap();
//! ```
//!
//! A message can arrive twice, or out of order. A [`DataChannel`] removes the duplicates and restores the order. To read a
//! capture, use one channel for each direction, with the side that receives (`Side::Agent` for the client's messages): call
//! `handle_connected`, then `handle_input` with each message, poll the events, and discard the results of `poll_transmit`.
//! Acknowledgements are read by [`Acknowledge::decode`].
//!
//! Whether a port session has a multiplexer follows from its handshake: the session type is `LocalPortForwarding`, the agent
//! is newer than [`Version::AGENT_MUX`] ([`Version::client_sees_newer_than`]), and the client is [`Version::CLIENT_MUX`] or
//! newer ([`Version::agent_compares`]). Other port sessions carry one connection's bytes without frames. In a shell or a
//! command, the payload is text of the terminal.
//!
//! The requirements are in the modules `protocol` and `relay_protocol`. Comments cite their numbers (`DC-7`).

// Time and randomness are arguments (clippy.toml lists the methods).
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

#[cfg(feature = "session")]
mod channel;
#[cfg(feature = "session")]
mod cipher;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
/// The protocol's requirements, numbered, each with its source. There is no code in this module.
#[cfg(all(doc, not(doctest)))]
#[doc = include_str!("../protocol.md")]
pub mod protocol {}
/// The requirements of the relay's protocol, numbered, and how a relay is used. There is no code in this module.
#[cfg(all(doc, not(doctest)))]
#[doc = include_str!("../relay.md")]
pub mod relay_protocol {}
#[cfg(feature = "session")]
mod handshake;
#[cfg(feature = "session")]
mod mux;
pub mod relay;
#[cfg(feature = "session")]
mod secret;
#[cfg(feature = "session")]
mod session;
#[cfg(feature = "testing")]
pub mod testing;
mod window;
#[cfg(feature = "session")]
mod wire;

#[cfg(feature = "session")]
pub use channel::{ChannelConfig, ChannelEvent, ChannelStats, DataChannel, Full, Pace, Retransmission, RttEstimator};
#[cfg(feature = "session")]
pub use cipher::{CipherError, PlaintextKey};
#[cfg(feature = "session")]
pub use handshake::{
    ActionStatus, AgentHandshake, AgentKms, ClientHandshake, DataKey, HandshakeComplete, HandshakeError,
    HandshakeRequest, HandshakeResponse, HandshakeStep, Identity, KeyRequest, KmsResult, PortProperties,
    ProcessedAction, RequestedAction, SessionType, Version,
};
#[cfg(feature = "session")]
pub use mux::{Deframer, Frame, FrameError, FrameKind, Mux, MuxConfig, MuxEvent, StreamId, WriteError};
#[cfg(feature = "session")]
pub use secret::Secret;
#[cfg(feature = "session")]
pub use session::{
    AgentConfig, AgentQuirks, ClientConfig, ConfigError, OpenError, Output, Session, SessionError, SessionEvent,
    SessionMode, SessionStats, TerminalSize,
};
#[cfg(feature = "session")]
pub use wire::{
    Acknowledge, AgentMessage, ChannelClosed, DecodeError, Header, HeaderForm, MAX_PAYLOAD, MessageBuf, MessageType,
    OpenDataChannel, Padding, PayloadDigest, PayloadType, PortFlag, UnknownType, publication,
};

#[cfg(feature = "session")]
use std::time::{Duration, Instant};

/// The type of received and sent bytes.
pub use bytes::Bytes;
/// The type of message ids.
#[cfg(feature = "session")]
pub use uuid::Uuid;

/// One of the two ends of a session.
#[cfg(feature = "session")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that requested the session. It sends `input_stream_data`.
    Client,
    /// The end on the managed node. It sends `output_stream_data`.
    Agent,
}

#[cfg(feature = "session")]
impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Agent,
            Self::Agent => Self::Client,
        }
    }
}

/// Relates the monotonic clock of the `now` arguments to the wall clock that messages carry (CreatedDate).
#[cfg(feature = "session")]
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// A point in time of the monotonic clock.
    pub start: Instant,
    /// The same point in time, as the duration since the Unix epoch.
    pub unix: Duration,
}

#[cfg(feature = "session")]
impl Clock {
    /// Milliseconds since the Unix epoch at `now`; at least 1, because 0 is invalid on the wire.
    pub fn unix_millis(&self, now: Instant) -> u64 {
        let since_epoch = self.unix + now.saturating_duration_since(self.start);
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// The next time at which `handle_timeout` has something to do, and the reason.
#[cfg(feature = "session")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// The time.
    pub at: Instant,
    /// The reason.
    pub reason: TimeoutReason,
}

/// The reason for a [`Timeout`].
#[cfg(feature = "session")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeoutReason {
    /// The retransmission timeout of a message expires.
    Retransmit,
    /// The acknowledgement delay is over.
    Acknowledge,
    /// The service reported the other end as inactive. A probe checks whether it is active again.
    PauseProbe,
    /// The agent needs a moment after the handshake before it accepts data.
    HandshakeGrace,
    /// The other end did not answer the handshake in time.
    HandshakeAnswer,
    /// A half-closed stream has waited for the linger time without an answer.
    Linger,
    /// In basic mode: no data of the previous connection is in transit any more, so the next connection may begin.
    Settled,
    /// The rate limit allows the next message.
    Pace,
    /// A keep-alive frame is due.
    KeepAlive,
    /// A session that another client started has not begun in time.
    Inherited,
}

#[cfg(feature = "session")]
impl Timeout {
    /// Returns the earlier of two optional timeouts.
    pub(crate) fn earliest(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

/// Includes the README, so that its examples run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
