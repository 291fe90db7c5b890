//! What a session tells its driver.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::ChannelStats;
use crate::handshake::KeyRequest;
use crate::mux::StreamId;
use crate::wire::ChannelClosed;

/// How a session's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionMode {
    /// A port, many streams at a time (smux).
    Mux,
    /// A port, one connection at a time, one after the other: agents up to 3.0.196.0.
    Basic,
    /// A port, and the session is one connection (SSH).
    Plain,
    /// A shell or a command: one stream whose output has two kinds, beside it terminal size and exit code.
    Shell,
}

/// Which output of a command a chunk belongs to. On a terminal all is [`Output::Stdout`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Output {
    /// Standard output, or both where they are not kept apart. Also a client's input.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
}

/// Something that a [`Session`](super::Session) wants its driver to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The handshake is over, or there is none: streams can be opened.
    Ready(SessionMode),
    /// There is a stream (agent side): the client opened it, or the session is one.
    Opened(StreamId),
    /// A stream that had nothing to read has something.
    Readable(StreamId),
    /// A stream that refused a write has room.
    Writable(StreamId),
    /// The peer ended the stream: end of file after what is still to be read.
    Finished(StreamId),
    /// The agent could not reach the destination; the stream is over.
    Refused(StreamId),
    /// The far side said nothing for as long as [`MuxConfig::linger`](crate::MuxConfig::linger) after the local end had
    /// finished (client side). The stream is over, and nobody knows whether its answer was whole.
    Silent {
        /// Which.
        stream: StreamId,
        /// Whether the far side ever said anything.
        answered: bool,
        /// How long it was silent, at least.
        silence: Duration,
    },
    /// The command ended (client side). What it wrote may still be to be read, or to come.
    ExitCode(i64),
    /// The client's terminal has this size (agent side).
    Resized(TerminalSize),
    /// The session is to be encrypted (client side): have KMS make a data key (`kms:GenerateDataKey`, 64 bytes), then call
    /// [`Session::provide_data_key`](super::Session::provide_data_key) or
    /// [`Session::refuse_data_key`](super::Session::refuse_data_key).
    DataKeyNeeded(KeyRequest),
    /// The client made a data key (agent side): have KMS decrypt this one (`kms:Decrypt`), then call
    /// [`Session::provide_plaintext_key`](super::Session::provide_plaintext_key).
    DecryptNeeded(KeyRequest, Bytes),
    /// A text for the person at the client.
    Message(String),
    /// The other end's data channel is inactive.
    Paused,
    /// It is active again.
    Resumed,
    /// The agent is there, and does not begin: another client used the session before (client side). Shells without a
    /// handshake that say nothing for a while look the same.
    SeemsUsed,
    /// The client ends the session (agent side).
    Terminated,
    /// The service ended the session.
    Closed(ChannelClosed),
    /// The session can't go on. Drain [`Session::poll_transmit`](super::Session::poll_transmit) once more, then end it.
    Failed(String),
}

/// Why a stream can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The handshake is not over.
    #[error("the session is not ready")]
    NotReady,
    /// The agent carries one connection at a time and there is one.
    #[error("the agent carries one connection at a time")]
    Busy,
}

/// What a session did so far, and what it holds now.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionStats {
    /// The data channel's counters.
    pub channel: ChannelStats,
    /// Streams that are not over.
    pub streams: usize,
    /// Bytes that wait to be read, over all streams.
    pub receive_bytes: usize,
}
