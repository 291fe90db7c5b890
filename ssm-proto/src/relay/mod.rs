//! The relay's protocol: connections spread over several pipes, which can start and end at any time.
//!
//! A pipe is a byte stream between the client and the relay on the node; there is one in each session. Pipes can end without
//! notice. Data in transit is then sent again over the other pipes. A feed is a pipe from the relay to the client only: the output
//! of a command, which the agent does not slow down. The requirements are in `docs/relay.md` (RELAY-1 …).
//!
//! | part | input and output |
//! |---|---|
//! | [`Greeting`] | a pipe that any program may have opened → a pipe whose two ends know the secret |
//! | [`escape_feed`], [`FeedDecoder`] | a feed's bytes ↔ output that the agent's filter does not change |
//! | [`Link`] | pipes → connections: byte streams in order, each with its own flow control |
//! | [`Presence`] | the results of the client's attempts to open pipes → whether the relay has ended |
//! | [`BlockEncoder`], [`BlockDecoder`] | a connection's bytes ↔ blocks, compressed where this helps |
//!
//! The contract of a driver is the same as for [`Session`](crate::Session): change the state once, then poll
//! [`Link::poll_transmit`] and [`Link::poll_event`] until nothing is left, and call [`Link::handle_timeout`] at the time that
//! [`Link::poll_timeout`] returns.

mod block;
mod connection;
mod escape;
mod frame;
mod link;
mod numbers;
mod pipe;
mod presence;
mod secret;

pub use block::{BlockDecoder, BlockEncoder, BlockError, Compressor, MAX_BLOCK};
pub use escape::{FeedDecoder, FeedError, escape_feed};
pub use frame::RelayFrameError;
pub use link::{ConnectionState, Link, LinkError, LinkEvent, LinkStats};
pub use presence::Presence;
pub use secret::{Greeting, GreetingError, RELAY_VERSION, RelaySecret, RelaySide, feed_answer};

/// The number of a connection, unique during the lifetime of the link. The client assigns the numbers in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u32);

/// The number of a pipe. Each end uses its own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipeId(pub u64);

/// The identifier of a feed at both ends: the relay's nonce of its greeting.
///
/// Only the relay and the reader of the feed know it. An acknowledgement with this identifier therefore proves that the feed
/// arrives at the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedId(pub [u8; 16]);

/// The host and port to which the relay connects. See [`Destination::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// A name that the node resolves, or an address.
    pub host: String,
    /// The TCP port, not 0.
    pub port: u16,
}

/// The reason why the relay did not connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of the failure, for programs.
    pub kind: RefusalKind,
    /// The error text of the node's system, for users; one line, at most 512 bytes.
    pub text: String,
}

/// The kind of a [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum RefusalKind {
    /// Any other reason.
    Other = 0,
    /// Nothing listens at the destination.
    Refused = 1,
    /// The destination did not answer in time.
    TimedOut = 2,
    /// There is no route to the destination.
    Unreachable = 3,
    /// The node cannot resolve the host name.
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

/// The reason why both directions of a connection ended at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ResetReason {
    /// The program at the sender's end reset the connection or has ended.
    Reset = 0,
    /// The program at the sender's end has ended its sending side and reads no more. Data that it sent is still delivered.
    Abandoned = 1,
}

impl ResetReason {
    fn from_code(code: u8) -> Self {
        if code == 1 { Self::Abandoned } else { Self::Reset }
    }
}

/// Maximum number of simultaneous connections of a link (RELAY-15).
pub const MAX_CONNECTIONS: usize = 4096;
/// Maximum number of simultaneous pipes of a link, without feeds (RELAY-15).
pub const MAX_PIPES: usize = 64;
/// Maximum number of simultaneous feeds of a link (RELAY-15).
pub const MAX_FEEDS: usize = 8;

/// Time for which a link without pipes keeps its connections (RELAY-14).
pub const GRACE: std::time::Duration = std::time::Duration::from_secs(60);
