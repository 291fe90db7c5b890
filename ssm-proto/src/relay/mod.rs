//! The relay's protocol: connections spread over several pipes that come and go.
//!
//! A pipe is a byte stream between the client and the relay on the node, one per session. Pipes are cut without notice; what was
//! on the way is sent again over the others. The requirements are in `docs/relay.md` (RELAY-1 …).
//!
//! | part | what it turns into what |
//! |---|---|
//! | [`Greeting`] | a pipe that anybody may have opened → one whose ends both know the secret |
//! | [`Link`] | pipes → connections: byte streams in order, each with its own flow control |
//! | [`BlockEncoder`], [`BlockDecoder`] | a connection's bytes ↔ blocks, compressed where that pays |
//!
//! A driver's rule is the same as for [`Session`](crate::Session): mutate once, then take what there is from
//! [`Link::poll_transmit`] and [`Link::poll_event`], and call [`Link::handle_timeout`] when [`Link::poll_timeout`] says so.

mod block;
mod connection;
mod frame;
mod link;
mod numbers;
mod pipe;
mod secret;

pub use block::{BlockDecoder, BlockEncoder, BlockError, Compressor, MAX_BLOCK};
pub use frame::RelayFrameError;
pub use link::{ConnectionState, Link, LinkError, LinkEvent, LinkStats};
pub use secret::{Greeting, GreetingError, RELAY_VERSION, RelaySecret, RelaySide};

/// Numbers a connection for as long as the link lives. The client counts them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u32);

/// Numbers a pipe, for one end alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipeId(pub u64);

/// Where the relay is to connect. See [`Destination::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// A name that the node resolves, or an address.
    pub host: String,
    /// The TCP port, not 0.
    pub port: u16,
}

/// Why the relay did not connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people, in the words of the node's system; one line, at most 512 bytes.
    pub text: String,
}

/// What kind of [`Refusal`] it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalKind {
    /// Anything else.
    Other = 0,
    /// Nothing listens there.
    Refused = 1,
    /// Nothing answered in time.
    TimedOut = 2,
    /// There is no way to it.
    Unreachable = 3,
    /// The node knows no such name.
    UnknownHost = 4,
    /// The relay has too many connections.
    Limit = 5,
}

impl RefusalKind {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Refused,
            2 => Self::TimedOut,
            3 => Self::Unreachable,
            4 => Self::UnknownHost,
            5 => Self::Limit,
            _ => Self::Other,
        }
    }
}

/// Why a connection is over in both directions at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ResetReason {
    /// The program at that end reset it, or is gone.
    Reset = 0,
    /// The program at that end ended its sending side and takes no more: what it sent is still to be delivered.
    Abandoned = 1,
}

impl ResetReason {
    fn from_code(code: u8) -> Self {
        if code == 1 { Self::Abandoned } else { Self::Reset }
    }
}

/// Connections of a link at one time, at most (RELAY-15).
pub const MAX_CONNECTIONS: usize = 4096;
/// Pipes of a link at one time, at most (RELAY-15).
pub const MAX_PIPES: usize = 64;

/// How long a link without pipes waits for one before its connections are given up (RELAY-14).
pub const GRACE: std::time::Duration = std::time::Duration::from_secs(60);
