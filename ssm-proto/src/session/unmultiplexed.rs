//! Port sessions without a multiplexer: the payloads are one stream's bytes. `docs/protocol.md`, PORT-*.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::mux::{ByteQueue, MuxConfig, MuxEvent, ReceiveQueue, StreamId, WriteError};
use crate::wire::{MessageBuf, PortFlag};
use crate::{Side, Timeout, TimeoutReason};

/// In basic mode the end of an answer is never reported. After the local end has finished and a part of the answer has arrived,
/// this much silence counts as the end of the answer.
const QUIET: Duration = Duration::from_secs(3);
/// The agent retransmits its oldest message after 1.1 s at the latest (DC-9, DC-10). After this much silence, no data of an ended
/// connection is in transit any more, unless the same message was lost twice.
const SETTLED: Duration = Duration::from_millis(1500);
/// Number of bytes that a queued connection counts in addition to its data.
const LATER: usize = 256;

/// One connection at a time, in a session without streams.
#[derive(Debug)]
pub(super) struct Unmultiplexed {
    side: Side,
    /// Whether the session is in basic mode, in which connections follow each other. Otherwise the session is one connection.
    basic: bool,
    send_queue: usize,
    receive_store: usize,
    /// Maximum silence after the local end has finished, before the answer is given up.
    linger: Duration,
    current: Option<StreamId>,
    next: u32,
    send: ByteQueue,
    receive: ReceiveQueue,
    write_refused: bool,
    /// Whether data arrived after the last write.
    answered: bool,
    /// Whether the reader has read all data and waits for more.
    reader_waits: bool,
    finished: Option<Finish>,
    /// The flag to send after the data.
    flag: Option<PortFlag>,
    /// When data arrived last, or a WebSocket was replaced. The message after that may have been lost.
    disturbed_at: Option<Instant>,
    /// Client, basic mode: the connection that ended last, until the next one begins. Data that arrives in the meantime belongs to
    /// it.
    last: Option<Last>,
    remote_finished: bool,
    /// Agent side: connections after one that the client has ended but the destination has not.
    later: VecDeque<Later>,
    events: VecDeque<MuxEvent>,
}

/// A connection that has ended. No message marks the end of the data of its destination.
#[derive(Debug, Default)]
struct Last {
    /// The number of the flag that reports the end to the agent, once it is sent.
    flag: Option<i64>,
    /// No more data of the connection is expected after this time.
    settles_at: Option<Instant>,
    settled: bool,
}

/// Data that arrived for a connection that has not begun yet.
#[derive(Debug, Default)]
struct Later {
    data: ReceiveQueue,
    finished: bool,
}

#[derive(Clone, Copy, Debug)]
enum Finish {
    /// The local end finished; the remote side was not notified yet.
    Held,
    Now,
}

impl Unmultiplexed {
    pub(super) fn new(side: Side, basic: bool, config: &MuxConfig) -> Self {
        let mut single = Self {
            side,
            basic,
            send_queue: config.send_queue,
            receive_store: config.receive_store,
            linger: config.linger,
            current: None,
            next: 1,
            send: ByteQueue::default(),
            receive: ReceiveQueue::default(),
            write_refused: false,
            answered: false,
            reader_waits: false,
            finished: None,
            flag: None,
            disturbed_at: None,
            last: None,
            remote_finished: false,
            later: VecDeque::new(),
            events: VecDeque::new(),
        };
        if side == Side::Agent {
            single.begin();
        }
        single
    }

    fn begin(&mut self) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.current = Some(id);
        self.finished = None;
        (self.answered, self.reader_waits) = (false, false);
        if self.side == Side::Agent {
            self.remote_finished = false;
            self.events.push_back(MuxEvent::Opened(id));
        }
        if !self.receive.is_empty() {
            self.events.push_back(MuxEvent::Readable(id));
        }
        if self.remote_finished {
            self.events.push_back(MuxEvent::Finished(id));
        }
        id
    }

    /// Opens the connection. Returns `None` if the only possible connection exists already, or if data of the last one may still
    /// arrive.
    pub(super) fn open(&mut self) -> Option<StreamId> {
        let possible = self.basic || self.next == 1;
        let free = self.current.is_none() && self.last.as_ref().is_none_or(|last| last.settled);
        (possible && free).then(|| {
            self.last = None;
            self.begin()
        })
    }

    /// Handles that a WebSocket is connected.
    pub(super) fn handle_connected(&mut self, now: Instant) {
        self.disturb(now);
    }

    fn disturb(&mut self, now: Instant) {
        self.disturbed_at = Some(now);
        if let Some(last) = &mut self.last {
            last.settled = false;
        }
    }

    /// Checks whether data of the last connection may still arrive. No data can arrive if the agent has acknowledged the end of the
    /// connection, no message is missing, and a message that was lost after the last data would have been retransmitted by now. The
    /// agent itself sends nothing more until it receives data of the next connection.
    pub(super) fn look(&mut self, now: Instant, can_receive: bool, acknowledged: impl Fn(i64) -> bool) {
        let Some(last) = &mut self.last else { return };
        let complete = can_receive && last.flag.is_some_and(acknowledged);
        let settles_at = self.disturbed_at.map_or(now, |at| at + SETTLED);
        last.settled = complete && now >= settles_at;
        last.settles_at = Some(settles_at).filter(|_| complete && !last.settled);
    }

    /// Returns when to call [`Unmultiplexed::look`] next.
    pub(super) fn poll_timeout(&self) -> Option<Timeout> {
        let at = self.last.as_ref()?.settles_at?;
        Some(Timeout { at, reason: TimeoutReason::Settled })
    }

    /// Asserts the invariants between two calls.
    #[cfg(feature = "fuzzing")]
    pub(super) fn check(&self) {
        debug_assert!(self.later.is_empty() || self.side == Side::Agent, "only an agent queues connections");
        debug_assert!(self.later.is_empty() || self.current.is_some(), "a queued connection does not begin");
        debug_assert!(self.current.is_some() || self.send.is_empty(), "unsent data belongs to no connection");
        debug_assert!(self.send.is_counted() && self.receive.is_counted(), "bytes are miscounted");
    }

    pub(super) fn stream_count(&self) -> usize {
        usize::from(self.current.is_some())
    }

    pub(super) fn receive_bytes(&self) -> usize {
        self.receive.len() + self.later.iter().map(|later| later.data.len()).sum::<usize>()
    }

    pub(super) fn is_congested(&self) -> bool {
        self.receive_bytes() + self.later.len() * LATER >= self.receive_store
    }

    pub(super) fn write(&mut self, id: StreamId, data: Bytes) -> Result<(), WriteError> {
        if self.current != Some(id) || self.finished.is_some() {
            return Err(WriteError::Closed);
        }
        // The client's connection has ended, and the agent closes its own. Data that the agent still reads would reach the client's
        // next connection.
        if self.side == Side::Agent && self.basic && self.remote_finished {
            return Ok(());
        }
        if self.send.len() >= self.send_queue {
            self.write_refused = true;
            return Err(WriteError::Full(data));
        }
        if !data.is_empty() {
            self.send.push(data);
            self.answered = false;
        }
        Ok(())
    }

    pub(super) fn writable(&self, id: StreamId) -> usize {
        if self.current != Some(id) || self.finished.is_some() {
            return 0;
        }
        self.send_queue.saturating_sub(self.send.len())
    }

    pub(super) fn read(&mut self, id: StreamId) -> Option<Bytes> {
        if self.current == Some(id) { self.receive.pop() } else { None }
    }

    pub(super) fn is_finished(&self, id: StreamId) -> bool {
        self.current != Some(id) || (self.remote_finished && self.receive.is_empty())
    }

    pub(super) fn finish(&mut self, id: StreamId) {
        if self.current != Some(id) || self.finished.is_some() {
            return;
        }
        self.finished = match self.side {
            Side::Client => Some(Finish::Held),
            Side::Agent => Some(Finish::Now),
        };
        self.end_if_done();
    }

    /// Returns whether the local end finished and the remote side was not notified.
    pub(super) fn is_held(&self, id: StreamId) -> bool {
        self.current == Some(id) && matches!(self.finished, Some(Finish::Held)) && !self.remote_finished
    }

    pub(super) fn has_unsent(&self, id: StreamId) -> bool {
        self.current == Some(id) && !self.send.is_empty()
    }

    /// Returns whether data arrived after the last write.
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Returns how much silence counts as the end of the answer.
    pub(super) fn linger(&self) -> Duration {
        if self.basic && self.answered { self.linger.min(QUIET) } else { self.linger }
    }

    pub(super) fn set_reader_waits(&mut self, id: StreamId) {
        self.reader_waits |= self.current == Some(id);
    }

    pub(super) fn reader_waits(&self) -> bool {
        self.reader_waits
    }

    /// Handles that the remote side was silent for [`Unmultiplexed::linger`]. Returns `true` if this is the end of its answer; the
    /// stream then remains until it is dropped.
    pub(super) fn end_by_silence(&mut self) -> bool {
        let ends = self.basic && self.answered;
        if ends {
            self.handle_closed();
        }
        ends
    }

    pub(super) fn reset(&mut self, id: StreamId) {
        if self.current == Some(id) {
            self.send.clear();
            self.abandon(id);
        }
    }

    pub(super) fn abandon(&mut self, id: StreamId) {
        if self.current == Some(id) {
            self.finished = Some(Finish::Now);
            self.end_if_done();
        }
    }

    pub(super) fn handle_input(&mut self, now: Instant, data: Bytes) {
        self.disturb(now);
        if self.last.is_some() {
            return;
        }
        if self.side == Side::Agent && self.current.is_some() && self.remote_finished {
            if self.later.back().is_none_or(|later| later.finished) {
                self.later.push_back(Later::default());
            }
            if let Some(later) = self.later.back_mut() {
                later.data.push(data);
            }
            return;
        }
        (self.answered, self.reader_waits) = (true, false);
        let was_empty = self.receive.is_empty();
        self.receive.push(data);
        match self.current {
            Some(id) if was_empty => self.events.push_back(MuxEvent::Readable(id)),
            // The agent connects again when data arrives after its destination closed (PORT-3).
            None if self.side == Side::Agent => drop(self.begin()),
            _ => {}
        }
    }

    /// Handles that the client's connection ended (agent side).
    pub(super) fn handle_disconnect(&mut self) {
        if let Some(later) = self.later.back_mut() {
            later.finished = true;
        } else if let Some(id) = self.current.filter(|_| !self.remote_finished) {
            self.remote_finished = true;
            self.send.clear();
            if std::mem::take(&mut self.write_refused) {
                self.events.push_back(MuxEvent::Writable(id));
            }
            self.events.push_back(MuxEvent::Finished(id));
        }
    }

    /// Handles that the session has ended, or that this end considers the answer complete.
    pub(super) fn handle_closed(&mut self) {
        if std::mem::replace(&mut self.remote_finished, true) {
            return;
        }
        let finished = self.current.map(MuxEvent::Finished);
        self.events.extend(finished);
    }

    pub(super) fn poll_event(&mut self) -> Option<MuxEvent> {
        self.events.pop_front()
    }

    pub(super) fn wants_transmit(&self) -> bool {
        !self.send.is_empty() || self.flag.is_some()
    }

    pub(super) fn pending_hint(&self) -> usize {
        self.send.len()
    }

    pub(super) fn poll_transmit(&mut self, buf: &mut MessageBuf) {
        let length = buf.remaining().min(self.send.len());
        if length > 0 {
            self.send.copy_to(buf, length);
        }
        if self.write_refused && self.send.len() <= self.send_queue / 2 {
            self.write_refused = false;
            self.events.extend(self.current.map(MuxEvent::Writable));
        }
        self.end_if_done();
    }

    /// Removes and returns the flag, if all data before it is sent.
    pub(super) fn take_flag(&mut self) -> Option<PortFlag> {
        if self.send.is_empty() { self.flag.take() } else { None }
    }

    /// Records that the flag was sent with this number.
    pub(super) fn flag_sent(&mut self, number: i64) {
        if let Some(last) = &mut self.last {
            last.flag = Some(number);
        }
    }

    fn end_if_done(&mut self) {
        if matches!(self.finished, Some(Finish::Now)) && self.send.is_empty() && self.current.take().is_some() {
            self.receive.clear();
            self.remote_finished = false;
            if self.side == Side::Client && self.basic {
                self.flag = Some(PortFlag::DisconnectToPort);
                self.last = Some(Last::default());
            }
            if let Some(later) = self.later.pop_front() {
                self.receive = later.data;
                let id = self.begin();
                if later.finished {
                    self.remote_finished = true;
                    self.events.push_back(MuxEvent::Finished(id));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ended_before_anybody_looked_is_read_to_its_end() {
        let mut single = Unmultiplexed::new(Side::Client, false, &MuxConfig::default());
        single.handle_input(Instant::now(), Bytes::from_static(b"banner"));
        single.handle_closed();
        let id = single.open().unwrap();
        assert_eq!(single.poll_event(), Some(MuxEvent::Readable(id)));
        assert_eq!(single.poll_event(), Some(MuxEvent::Finished(id)));
        assert!(!single.is_finished(id));
        assert_eq!(single.read(id).unwrap(), "banner");
        assert!(single.is_finished(id));
    }

    #[test]
    fn what_the_destination_of_an_ended_connection_still_says_reaches_no_other() {
        let mut agent = Unmultiplexed::new(Side::Agent, true, &MuxConfig::default());
        let first = StreamId(1);
        agent.write(first, Bytes::from_static(b"of the first")).unwrap();
        agent.handle_disconnect();
        agent.handle_input(Instant::now(), Bytes::from_static(b"question"));
        agent.write(first, Bytes::from_static(b"more of the first")).unwrap();
        agent.finish(first);
        agent.write(StreamId(2), Bytes::from_static(b"answer")).unwrap();
        let mut buf = MessageBuf::with_limit(100, 100);
        agent.poll_transmit(&mut buf);
        assert_eq!(buf.payload(), b"answer");
    }

    /// Creates a client in basic mode whose first connection was just reset, and whose flag was sent as number 5.
    fn after_a_connection() -> Unmultiplexed {
        let mut client = Unmultiplexed::new(Side::Client, true, &MuxConfig::default());
        let first = client.open().unwrap();
        client.reset(first);
        assert_eq!(client.take_flag(), Some(PortFlag::DisconnectToPort));
        client.flag_sent(5);
        client
    }

    #[test]
    fn the_next_connection_begins_when_the_agent_knows_that_the_last_one_is_over() {
        let (mut client, now) = (after_a_connection(), Instant::now());
        client.look(now, true, |number| number < 5);
        assert_eq!(client.open(), None, "the agent may still send data of the first connection");
        client.look(now, false, |_| true);
        assert_eq!(client.open(), None, "a message is missing");
        client.look(now, true, |_| true);
        let second = client.open().unwrap();
        // The acknowledgement counts once: a later message that is lost has no effect.
        client.look(now, true, |_| false);
        client.handle_input(now, Bytes::from_static(b"answer"));
        assert_eq!(client.read(second).unwrap(), "answer");
    }

    #[test]
    fn data_of_a_connection_that_is_over_reaches_no_other_though_a_message_of_it_is_lost() {
        let (mut client, start) = (after_a_connection(), Instant::now());
        client.handle_input(start, Bytes::from_static(b"of the first"));
        client.look(start, true, |_| true);
        assert_eq!(client.open(), None, "the agent was sending: the next message may have been lost");
        let due = client.poll_timeout().unwrap().at;
        client.handle_input(start + Duration::from_secs(1), Bytes::from_static(b"retransmitted"));
        client.look(due, true, |_| true);
        assert_eq!(client.open(), None);
        client.handle_connected(due);
        client.look(due + Duration::from_secs(1), true, |_| true);
        assert_eq!(client.open(), None, "messages may have been lost with the last WebSocket");
        let due = client.poll_timeout().unwrap().at;
        client.look(due, true, |_| true);
        let second = client.open().unwrap();
        assert_eq!((client.read(second), client.poll_timeout()), (None, None));
    }
}
