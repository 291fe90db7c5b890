//! Converts bytes of a binary WebSocket message to [`AgentMessage`] and back. `docs/protocol.md`, WIRE-*.

mod ack;
mod control;
mod digest;
mod message;
mod outgoing;
mod types;

pub use ack::Acknowledge;
pub use control::{ChannelClosed, OpenDataChannel, publication};
pub use digest::PayloadDigest;
pub use message::{AgentMessage, DecodeError, Header, MAX_PAYLOAD};
pub use outgoing::MessageBuf;
pub use types::{HeaderForm, MessageType, Padding, PayloadType, PortFlag, UnknownType};
