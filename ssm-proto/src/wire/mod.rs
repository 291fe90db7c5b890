//! Bytes of a binary WebSocket message ↔ [`AgentMessage`]. `docs/protocol.md`, WIRE-*.

mod ack;
mod control;
mod message;
mod outgoing;
mod types;

pub use ack::Acknowledge;
pub use control::{ChannelClosed, OpenDataChannel, publication};
pub use message::{AgentMessage, DecodeError, Header, MAX_PAYLOAD};
pub use outgoing::MessageBuf;
pub use types::{HeaderForm, MessageType, Padding, PayloadDigest, PayloadType, PortFlag, UnknownType};
