//! The events that a session reports to its driver.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::SessionError;
use crate::channel::ChannelStats;
use crate::handshake::KeyRequest;
use crate::mux::StreamId;
use crate::wire::ChannelClosed;

/// How a session carries its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionMode {
    /// A port, with many streams at a time (smux).
    Mux,
    /// A port, with one connection after the other, for agents up to 3.0.196.0.
    Basic,
    /// A port, where the session is one connection (SSH).
    Plain,
    /// A shell or a command: one stream whose output has two kinds, with terminal size and exit code.
    Shell,
}

/// The output of a command that a chunk belongs to. On a terminal, all output is [`Output::Stdout`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Output {
    /// Standard output, or both outputs if they are not kept separate. A client's input has this value too.
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

/// An event that a [`Session`](super::Session) reports to its driver.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The handshake is complete, or there is none. Streams can be opened.
    Ready(SessionMode),
    /// There is a new stream (agent side): the client opened it, or the whole session is one stream.
    Opened(StreamId),
    /// A stream that had no unread data has data now.
    Readable(StreamId),
    /// A stream that refused a write accepts data again.
    Writable(StreamId),
    /// The peer ended the stream. The end of file follows after the unread data.
    Finished(StreamId),
    /// The agent could not reach the destination. The stream has ended.
    Refused(StreamId),
    /// The remote side was silent for [`MuxConfig::linger`](crate::MuxConfig::linger) after the local end had finished (client
    /// side). The stream has ended, and whether the answer was complete is not known.
    Silent {
        /// The stream.
        stream: StreamId,
        /// Whether the remote side ever sent anything.
        answered: bool,
        /// Minimum duration of the silence.
        silence: Duration,
    },
    /// The command ended (client side). There may still be unread output, or output that has not arrived yet.
    ExitCode(i64),
    /// The new size of the client's terminal (agent side).
    Resized(TerminalSize),
    /// The session is to be encrypted (client side): let KMS create a data key (`kms:GenerateDataKey`, 64 bytes), then call
    /// [`Session::provide_data_key`](super::Session::provide_data_key) or
    /// [`Session::refuse_data_key`](super::Session::refuse_data_key).
    DataKeyNeeded(KeyRequest),
    /// The client has obtained a data key from KMS (agent side): let KMS decrypt it (`kms:Decrypt`), then call
    /// [`Session::provide_plaintext_key`](super::Session::provide_plaintext_key).
    DecryptNeeded(KeyRequest, Bytes),
    /// A text for the user of the client.
    Message(String),
    /// The other end's data channel is inactive.
    Paused,
    /// The other end's data channel is active again.
    Resumed,
    /// The agent is connected but does not begin the handshake: another client used the session before (client side). A shell
    /// without a handshake that has no output for a while looks the same.
    SeemsUsed,
    /// The client ends the session (agent side).
    Terminated,
    /// The service ended the session.
    Closed(ChannelClosed),
    /// The session cannot continue. Drain [`Session::poll_transmit`](super::Session::poll_transmit) once more, then end the
    /// session.
    Failed(SessionError),
}

/// The reason why a stream cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The handshake is not complete.
    #[error("the session is not ready")]
    NotReady,
    /// The agent carries one connection at a time, and a connection exists already.
    #[error("the agent carries one connection at a time")]
    Busy,
}

/// Counters of a session and its current state.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionStats {
    /// The data channel's counters.
    pub channel: ChannelStats,
    /// Number of streams that have not ended.
    pub streams: usize,
    /// Number of unread bytes of all streams together.
    pub receive_bytes: usize,
}
