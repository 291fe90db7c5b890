//! Many streams over one byte stream: smux version 1, both sides. `docs/protocol.md`, MUX-*.

#[cfg(any(test, feature = "fuzzing"))]
mod check;
mod config;
mod frame;
mod receive;
mod stream;

pub use frame::{Deframer, Frame, FrameError, FrameKind, StreamId};
pub(crate) use receive::ReceiveQueue;
pub(crate) use stream::ByteQueue;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::wire::MessageBuf;
use crate::{Side, Timeout, TimeoutReason};
pub use config::MuxConfig;
pub(crate) use frame::FRAME_HEADER;
use frame::Framer;
use receive::owned_if_small;
use stream::{Held, LocalEnd, Stream};

/// Maximum length of sent frames; received frames may have up to 65 535 bytes (MUX-3).
const MAX_FRAME_DATA: usize = 32_768;
/// How many bytes of memory all receive buffers together may keep alive beyond their own data. Above this limit, buffered data is
/// copied.
const MAX_SLACK: usize = 16 << 20;
/// The client's first stream (MUX-5).
const FIRST_STREAM: u32 = 3;
/// Maximum number of streams that have ended at this end but may still be refused by the peer. Agents answer each FIN, so there are
/// few such streams.
const MAX_FORGOTTEN: usize = 4096;
/// Maximum number of streams that a client can have open at an agent. Further streams are ignored.
const MAX_STREAMS: usize = 1 << 16;

/// One side of the multiplexer.
///
/// Streams are scheduled by deficit round robin. A stream that was idle goes first, so that a keystroke or a new
/// connection does not wait behind bulk data (FQ-CoDel's scheduler, RFC 8290 section 4).
pub struct Mux {
    side: Side,
    config: MuxConfig,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u32,
    deframer: Deframer,
    framer: Framer,
    /// Streams that had nothing to send before and have had no turn since.
    fresh: VecDeque<StreamId>,
    /// Streams that have used up a turn.
    busy: VecDeque<StreamId>,
    keep_alive_due: Option<Instant>,
    keep_alive_queued: bool,
    silent_since: Option<Instant>,
    /// Number of refusals whose FIN has not arrived yet. The refusal flag does not name the stream; the FIN that follows it does
    /// (PORT-6).
    refusals: usize,
    /// Client side: streams that were dropped before any data arrived for them.
    forgotten: BTreeSet<StreamId>,
    receive_bytes: usize,
    receive_slack: usize,
    streams_over_limit: usize,
    events: VecDeque<MuxEvent>,
}

/// An event that a [`Mux`] reports to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MuxEvent {
    /// The peer opened a stream (agent side).
    Opened(StreamId),
    /// A stream that had no unread data has data now.
    Readable(StreamId),
    /// A stream that refused a write accepts data again.
    Writable(StreamId),
    /// The peer ended the stream. The end of file follows after the unread data.
    Finished(StreamId),
    /// The agent could not connect to the destination, and ended the stream.
    Refused(StreamId),
}

/// The reason why data was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The stream's send queue is full; the data is returned. [`MuxEvent::Writable`] reports when to try again.
    #[error("the stream's send queue is full")]
    Full(Bytes),
    /// The stream was finished or reset, or never existed.
    #[error("the stream is closed")]
    Closed,
    /// The session has no standard error; only the agent's side of a shell or a command has one.
    #[error("there is no standard error to write to")]
    NoStderr,
}

/// Buffered data is left out, because it contains users' input and output.
impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux")
            .field("side", &self.side)
            .field("streams", &self.streams.len())
            .field("receive_bytes", &self.receive_bytes)
            .finish_non_exhaustive()
    }
}

impl Mux {
    /// Creates a multiplexer without streams.
    pub fn new(side: Side, config: MuxConfig, now: Instant) -> Self {
        Self {
            side,
            streams: BTreeMap::new(),
            next_stream: FIRST_STREAM,
            deframer: Deframer::new(1),
            framer: Framer::new(side == Side::Client),
            fresh: VecDeque::new(),
            busy: VecDeque::new(),
            keep_alive_due: config.keep_alive.map(|interval| now + interval),
            keep_alive_queued: false,
            silent_since: config.peer_timeout.map(|_| now),
            refusals: 0,
            forgotten: BTreeSet::new(),
            receive_bytes: 0,
            receive_slack: 0,
            streams_over_limit: 0,
            events: VecDeque::new(),
            config,
        }
    }

    /// Returns the number of streams that have not ended.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Returns the number of unread bytes of all streams together.
    pub fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    /// Returns the stream with the most unread bytes. While the session is congested, it waits for the reader of this stream.
    pub fn slowest_reader(&self) -> Option<StreamId> {
        self.longest(|stream| stream.receive.len())
    }

    /// Returns the stream with the most unsent bytes. While the peer accepts nothing, the session probably waits for this stream's
    /// destination.
    pub fn slowest_destination(&self) -> Option<StreamId> {
        self.longest(|stream| stream.send.len())
    }

    fn longest(&self, bytes: impl Fn(&Stream) -> usize) -> Option<StreamId> {
        let waiting = self.streams.iter().map(|(id, stream)| (bytes(stream), *id)).filter(|(bytes, _)| *bytes > 0);
        // Of several streams with the same number of bytes, the oldest one is returned.
        waiting.max_by_key(|(bytes, id)| (*bytes, std::cmp::Reverse(*id))).map(|(_, id)| id)
    }

    /// Returns whether the receive buffer of one stream, or of all streams together, is full. The owner must then read nothing more
    /// from the peer until streams are read.
    pub fn is_congested(&self) -> bool {
        self.streams_over_limit > 0 || self.receive_bytes >= self.config.receive_total
    }

    /// Returns whether [`Mux::poll_transmit`] has something to write.
    pub fn wants_transmit(&self) -> bool {
        self.keep_alive_queued || !self.fresh.is_empty() || !self.busy.is_empty()
    }

    /// Opens a stream (client side).
    pub fn open(&mut self) -> StreamId {
        debug_assert_eq!(self.side, Side::Client, "a stream opened by the agent would use a stream id of the client");
        let id = StreamId(self.next_stream);
        self.next_stream = self.next_stream.wrapping_add(2);
        self.streams.insert(id, Stream::new(true));
        self.schedule(id);
        id
    }

    /// Adds data to the stream's send queue.
    ///
    /// # Errors
    /// Returns [`WriteError::Full`] with the data if the queue is full; no data is ever dropped. Returns [`WriteError::Closed`] if
    /// the stream is closed.
    pub fn write(&mut self, id: StreamId, data: Bytes) -> Result<(), WriteError> {
        let limit = self.config.send_queue;
        let stream =
            self.streams.get_mut(&id).filter(|stream| stream.local == LocalEnd::Open).ok_or(WriteError::Closed)?;
        if stream.send.len() >= limit {
            stream.write_refused = true;
            return Err(WriteError::Full(data));
        }
        if !data.is_empty() {
            stream.send.push(data);
            self.schedule(id);
        }
        Ok(())
    }

    /// Returns the number of bytes that can be written before the send queue is full.
    pub fn writable(&self, id: StreamId) -> usize {
        let stream = self.streams.get(&id).filter(|stream| stream.local == LocalEnd::Open);
        stream.map_or(0, |stream| self.config.send_queue.saturating_sub(stream.send.len()))
    }

    /// Removes and returns the next chunk of unread data.
    pub fn read(&mut self, id: StreamId) -> Option<Bytes> {
        let stream = self.streams.get_mut(&id)?;
        let before = stream.held();
        let chunk = stream.receive.pop()?;
        let after = stream.held();
        self.account(before, after);
        self.remove_if_over(id);
        Some(chunk)
    }

    /// Returns whether the peer ended the stream and all its data was read.
    pub fn is_finished(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.remote_finished && stream.receive.is_empty())
    }

    /// Ends the local sending side.
    ///
    /// The agent side sends FIN once all data is sent. The client side holds FIN back until the peer's FIN arrives or the stream is
    /// abandoned, because the peer forgets a stream when it receives FIN and would discard its answer (MUX-8, MUX-9).
    pub fn finish(&mut self, id: StreamId) {
        let side = self.side;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.local == LocalEnd::Open) else { return };
        if side == Side::Client && !stream.remote_finished {
            stream.local = LocalEnd::Held;
        } else {
            stream.local = LocalEnd::Finishing;
            self.schedule(id);
        }
    }

    /// Returns whether the local end finished and the FIN is held back.
    pub(crate) fn is_held(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.local == LocalEnd::Held)
    }

    /// Returns whether the stream has data or a frame that is not sent yet.
    pub(crate) fn has_unsent(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(Stream::has_something_to_send)
    }

    /// Returns whether any data ever arrived for the stream.
    pub(crate) fn is_answered(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.received_any)
    }

    /// Records that the reader has read all data and waits for more.
    pub(crate) fn set_reader_waits(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reader_waits = true;
        }
    }

    pub(crate) fn reader_waits(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.reader_waits)
    }

    /// Handles the agent's report that it could not reach the destination of a stream. The FIN that follows identifies the stream.
    pub fn handle_refusal(&mut self) {
        self.refusals += 1;
    }

    /// Ends the stream in both directions once the queued data is sent, without waiting for an answer. The peer's FIN is still
    /// reported as [`MuxEvent::Finished`]. If the destination was refused, this is the only report.
    pub fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.local != LocalEnd::Finished) {
            stream.local = LocalEnd::Finishing;
            self.schedule(id);
        }
    }

    /// Drops the stream and its queued data immediately. The peer receives FIN.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send.clear();
        }
        self.abandon(id);
    }

    /// Ends the stream without a reader: queued data is sent, then FIN; data that still arrives is discarded.
    pub fn abandon(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.held();
        stream.receive.clear();
        stream.discard = true;
        if stream.local != LocalEnd::Finished {
            stream.local = LocalEnd::Finishing;
        }
        self.account(before, Held::default());
        self.schedule(id);
        self.remove_if_over(id);
    }

    /// Handles the next chunk of the peer's byte stream, in order.
    ///
    /// # Errors
    /// Returns an error if the byte stream is not smux. The session cannot continue.
    pub fn handle_input(&mut self, now: Instant, chunk: Bytes) -> Result<(), FrameError> {
        self.silent_since = self.silent_since.map(|_| now);
        let message = chunk.len();
        self.deframer.push(chunk);
        while let Some(frame) = self.deframer.next_frame()? {
            match frame.kind {
                FrameKind::Psh => self.handle_data(frame.stream, frame.data, message),
                FrameKind::Syn => self.handle_syn(frame.stream),
                FrameKind::Fin => self.handle_fin(frame.stream),
                FrameKind::Nop | FrameKind::Upd => {}
            }
        }
        Ok(())
    }

    fn handle_syn(&mut self, id: StreamId) {
        if self.side == Side::Agent && self.streams.len() < MAX_STREAMS && !self.streams.contains_key(&id) {
            self.streams.insert(id, Stream::new(false));
            self.events.push_back(MuxEvent::Opened(id));
        }
    }

    fn handle_data(&mut self, id: StreamId, data: Bytes, message: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            self.forgotten.remove(&id);
            return;
        };
        stream.received_any = true;
        if stream.discard {
            return;
        }
        let before = stream.held();
        stream.reader_waits = false;
        stream.receive.push(owned_if_small(data, message));
        if before.bytes == 0 {
            self.events.push_back(MuxEvent::Readable(id));
        }
        let after = stream.held();
        self.account(before, after);
    }

    fn handle_fin(&mut self, id: StreamId) {
        let side = self.side;
        let Some(stream) = self.streams.get_mut(&id) else {
            if self.forgotten.remove(&id) {
                self.refusals = self.refusals.saturating_sub(1);
            }
            return;
        };
        if stream.remote_finished {
            return;
        }
        stream.remote_finished = true;
        // A stream that received data was not refused, so the flag belongs to another stream.
        let refused = self.refusals > 0 && !stream.received_any;
        self.refusals -= usize::from(refused);
        if !stream.discard {
            self.events.push_back(if refused { MuxEvent::Refused(id) } else { MuxEvent::Finished(id) });
        }
        // The agent forgets a stream when it sends FIN, so queued data has no destination any more (MUX-8).
        if side == Side::Client && stream.local != LocalEnd::Finished {
            stream.send.clear();
            stream.local = LocalEnd::Finishing;
            self.schedule(id);
        }
        self.remove_if_over(id);
    }

    /// Handles the timeouts that have expired. Call it at the time of [`Mux::poll_timeout`].
    ///
    /// # Errors
    /// Returns the duration of the silence if the peer was silent for longer than the configuration allows.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Duration> {
        if let (Some(due), Some(interval)) = (self.keep_alive_due, self.config.keep_alive)
            && now >= due
        {
            self.keep_alive_due = Some(now + interval);
            self.keep_alive_queued = true;
        }
        match (self.silent_since, self.config.peer_timeout) {
            (Some(since), Some(limit)) if now >= since + limit => Err(limit),
            _ => Ok(()),
        }
    }

    /// Returns when [`Mux::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        let keep_alive = self.keep_alive_due.map(|at| Timeout { at, reason: TimeoutReason::KeepAlive });
        let silence = self.silent_since.zip(self.config.peer_timeout).map(|(since, limit)| since + limit);
        let silence = silence.map(|at| Timeout { at, reason: TimeoutReason::KeepAlive });
        Timeout::earliest(keep_alive, silence)
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<MuxEvent> {
        self.events.pop_front()
    }

    /// Fills `buf`, which must be empty, with as many frames of as many streams as fit.
    pub fn poll_transmit(&mut self, buf: &mut MessageBuf) {
        if self.keep_alive_queued && self.framer.remaining(buf) >= FRAME_HEADER {
            self.keep_alive_queued = false;
            self.framer.put_header(buf, FrameKind::Nop, StreamId(0), 0);
        }
        while self.framer.remaining(buf) > FRAME_HEADER {
            let Some(id) = self.fresh.pop_front().or_else(|| self.busy.pop_front()) else { break };
            let alone = self.fresh.is_empty() && self.busy.is_empty();
            match self.fill_from(id, buf, alone) {
                Turn::Done => self.remove_if_over(id),
                Turn::Over => self.busy.push_back(id),
                Turn::MessageFull => self.busy.push_front(id),
            }
        }
        self.framer.end(buf);
    }

    /// Estimates the number of bytes that [`Mux::poll_transmit`] would write into an empty `buf`, for the allocation.
    pub fn pending_hint(&self) -> usize {
        let first = self.fresh.front().or_else(|| self.busy.front());
        let bytes = first.and_then(|id| self.streams.get(id)).map_or(0, |stream| stream.send.len());
        let others = self.fresh.len() + self.busy.len();
        let turns = if others > 1 { self.config.quantum } else { 0 };
        (bytes + (others + 2) * (2 * FRAME_HEADER)).saturating_add(turns)
    }

    fn fill_from(&mut self, id: StreamId, buf: &mut MessageBuf, alone: bool) -> Turn {
        let Some(stream) = self.streams.get_mut(&id) else { return Turn::Done };
        if stream.deficit == 0 {
            stream.deficit = self.config.quantum;
        }
        if stream.opening {
            stream.opening = false;
            self.framer.put_header(buf, FrameKind::Syn, id, 0);
        }
        // A stream without competitors may fill the whole message.
        let allowance = if alone { usize::MAX } else { stream.deficit };
        let remaining = self.framer.remaining(buf).saturating_sub(FRAME_HEADER);
        let length = stream.send.len().min(allowance).min(remaining).min(MAX_FRAME_DATA);
        if let Some(length) = u16::try_from(length).ok().filter(|length| *length > 0) {
            self.framer.put_header(buf, FrameKind::Psh, id, length);
            stream.send.copy_to(buf, usize::from(length));
        }
        stream.deficit = stream.deficit.saturating_sub(length);
        if stream.write_refused && stream.send.len() <= self.config.send_queue / 2 {
            stream.write_refused = false;
            self.events.push_back(MuxEvent::Writable(id));
        }
        if stream.send.is_empty() && stream.local == LocalEnd::Finishing && self.framer.remaining(buf) >= FRAME_HEADER {
            self.framer.put_header(buf, FrameKind::Fin, id, 0);
            stream.local = LocalEnd::Finished;
            // Like the peer's own library, the agent side forgets a stream when it sends FIN.
            stream.discard |= self.side == Side::Agent;
        }
        if !stream.has_something_to_send() {
            stream.scheduled = false;
            stream.deficit = 0;
            Turn::Done
        } else if stream.deficit == 0 {
            Turn::Over
        } else {
            Turn::MessageFull
        }
    }

    fn schedule(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.scheduled
            && stream.has_something_to_send()
        {
            stream.scheduled = true;
            self.fresh.push_back(id);
        }
    }

    /// Updates the totals after a stream's receive buffer changed.
    fn account(&mut self, before: Held, after: Held) {
        self.receive_bytes = self.receive_bytes + after.bytes - before.bytes;
        self.receive_slack = self.receive_slack + after.slack - before.slack;
        let limit = self.config.receive_store;
        match (before.bytes >= limit, after.bytes >= limit) {
            (false, true) => self.streams_over_limit += 1,
            (true, false) => self.streams_over_limit -= 1,
            _ => {}
        }
        if self.receive_slack > MAX_SLACK {
            self.streams.values_mut().for_each(|stream| stream.receive.settle());
            self.receive_slack = 0;
        }
    }

    fn remove_if_over(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get(&id)
            && stream.is_over()
            && !stream.scheduled
        {
            let before = stream.held();
            let may_be_refused = self.side == Side::Client && !stream.remote_finished && !stream.received_any;
            self.streams.remove(&id);
            self.account(before, Held::default());
            if may_be_refused {
                self.forgotten.insert(id);
                if self.forgotten.len() > MAX_FORGOTTEN {
                    self.forgotten.pop_first();
                }
            }
        }
    }
}

/// How a stream's part of a message ended.
enum Turn {
    /// The stream has nothing more to send.
    Done,
    /// The stream's quantum is used up.
    Over,
    /// The message is full; the turn continues in the next one.
    MessageFull,
}

#[cfg(test)]
mod tests;
