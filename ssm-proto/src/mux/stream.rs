//! The state of one stream, and its two queues.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;

use super::receive::ReceiveQueue;
use crate::wire::MessageBuf;

/// Unsent chunks and their total length.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl ByteQueue {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns whether the total equals the sum of the chunks.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_counted(&self) -> bool {
        self.bytes == self.chunks.iter().map(Bytes::len).sum::<usize>()
    }

    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }

    /// Moves exactly `length` bytes, which must be present, into `buf`.
    pub(crate) fn copy_to(&mut self, buf: &mut MessageBuf, mut length: usize) {
        self.bytes -= length;
        while length > 0 {
            let Some(front) = self.chunks.front_mut() else { return };
            let take = length.min(front.len());
            buf.put_slice(front.get(..take).unwrap_or_default());
            length -= take;
            if take == front.len() {
                self.chunks.pop_front();
            } else {
                front.advance(take);
            }
        }
    }
}

/// ```text
///  local:  Open ── finish ──► Held ── abandoned, or peer's FIN ──► Finishing ── FIN sent ──► Finished
///            └───────────────── (agent side, or reset) ─────────────────▲
///  remote: Open ── FIN ──► finished
/// ```
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) send: ByteQueue,
    pub(super) receive: ReceiveQueue,
    pub(super) local: LocalEnd,
    pub(super) remote_finished: bool,
    /// Whether SYN has not been sent yet.
    pub(super) opening: bool,
    /// Whether received data is discarded, because the stream has no reader any more.
    pub(super) discard: bool,
    /// Whether a write was refused, so that the owner waits for space in the queue.
    pub(super) write_refused: bool,
    pub(super) received_any: bool,
    /// Whether the reader has read all data and waits for more.
    pub(super) reader_waits: bool,
    /// Whether the stream is in one of the scheduler's queues.
    pub(super) scheduled: bool,
    /// Number of bytes that the stream may still send in this turn.
    pub(super) deficit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalEnd {
    Open,
    /// The local end finished; FIN has not been sent.
    Held,
    Finishing,
    Finished,
}

/// The contents of a receive buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) bytes: usize,
    /// How many bytes of memory the chunks keep alive beyond their own data.
    pub(super) slack: usize,
}

impl Stream {
    pub(super) fn new(opening: bool) -> Self {
        Self {
            send: ByteQueue::default(),
            receive: ReceiveQueue::default(),
            local: LocalEnd::Open,
            remote_finished: false,
            opening,
            discard: false,
            write_refused: false,
            received_any: false,
            reader_waits: false,
            scheduled: false,
            deficit: 0,
        }
    }

    pub(super) fn held(&self) -> Held {
        Held { bytes: self.receive.len(), slack: self.receive.slack() }
    }

    pub(super) fn has_something_to_send(&self) -> bool {
        self.opening || !self.send.is_empty() || self.local == LocalEnd::Finishing
    }

    pub(super) fn is_over(&self) -> bool {
        self.local == LocalEnd::Finished && (self.discard || (self.remote_finished && self.receive.is_empty()))
    }
}
