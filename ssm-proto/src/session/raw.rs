//! Port sessions without a multiplexer: the payloads are one stream's bytes. `docs/protocol.md`, PORT-*.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::mux::{ByteQueue, MuxEvent, StreamId, WriteError};
use crate::wire::{MessageBuf, PortFlag};
use crate::{Side, Timeout, TimeoutReason};

/// In basic mode nobody ever says that the far side is done: this much silence after the local end finished counts as it.
const QUIET: Duration = Duration::from_secs(1);

/// One connection at a time over a session that knows no streams.
#[derive(Debug)]
pub(super) struct Raw {
    side: Side,
    /// Basic mode: connections follow each other. Otherwise the session is one connection.
    basic: bool,
    send_queue: usize,
    receive_store: usize,
    current: Option<StreamId>,
    next: u32,
    send: ByteQueue,
    receive: ByteQueue,
    wants_room: bool,
    finished: Option<Finish>,
    /// The flag that is to follow the data.
    flag: Option<PortFlag>,
    /// What comes before this number is acknowledged belongs to a connection that is over.
    discard_until: Option<i64>,
    remote_finished: bool,
    /// Agent side: connections that follow one that the client has ended and the destination not yet.
    later: VecDeque<Later>,
    events: VecDeque<MuxEvent>,
}

/// What came for a connection whose turn it is not yet.
#[derive(Debug, Default)]
struct Later {
    data: ByteQueue,
    finished: bool,
}

#[derive(Clone, Copy, Debug)]
enum Finish {
    AfterQuiet { until: Instant },
    Now,
}

impl Raw {
    pub(super) fn new(side: Side, basic: bool, send_queue: usize, receive_store: usize) -> Self {
        let mut raw = Self {
            side,
            basic,
            send_queue,
            receive_store,
            current: None,
            next: 1,
            send: ByteQueue::default(),
            receive: ByteQueue::default(),
            wants_room: false,
            finished: None,
            flag: None,
            discard_until: None,
            remote_finished: false,
            later: VecDeque::new(),
            events: VecDeque::new(),
        };
        if side == Side::Agent {
            raw.begin();
        }
        raw
    }

    fn begin(&mut self) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.current = Some(id);
        self.finished = None;
        if self.side == Side::Agent {
            self.remote_finished = false;
            self.events.push_back(MuxEvent::Opened(id));
        }
        if !self.receive.is_empty() {
            self.events.push_back(MuxEvent::Readable(id));
        }
        if self.remote_finished {
            self.events.push_back(MuxEvent::Finished { stream: id, received_any: true });
        }
        id
    }

    /// `None`: the one connection that is possible is there already.
    pub(super) fn open(&mut self) -> Option<StreamId> {
        let taken = self.current.is_some() || self.flag.is_some() || (!self.basic && self.next > 1);
        (!taken).then(|| self.begin())
    }

    pub(super) fn stream_count(&self) -> usize {
        usize::from(self.current.is_some())
    }

    pub(super) fn receive_bytes(&self) -> usize {
        self.receive.len() + self.later.iter().map(|later| later.data.len()).sum::<usize>()
    }

    pub(super) fn is_congested(&self) -> bool {
        self.receive_bytes() >= self.receive_store
    }

    pub(super) fn write(&mut self, id: StreamId, data: Bytes) -> Result<(), WriteError> {
        if self.current != Some(id) || self.finished.is_some() {
            return Err(WriteError::Closed);
        }
        if self.send.len() >= self.send_queue {
            self.wants_room = true;
            return Err(WriteError::Full(data));
        }
        self.send.push(data);
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

    pub(super) fn finish(&mut self, now: Instant, id: StreamId) {
        if self.current != Some(id) || self.finished.is_some() {
            return;
        }
        self.finished = match self.side {
            Side::Client => Some(Finish::AfterQuiet { until: now + QUIET }),
            Side::Agent => Some(Finish::Now),
        };
        self.end_if_done();
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

    pub(super) fn handle_input(&mut self, now: Instant, data: Bytes, acknowledged: impl Fn(i64) -> bool) {
        if let Some(number) = self.discard_until {
            if !acknowledged(number) {
                return;
            }
            self.discard_until = None;
        }
        if let Some(Finish::AfterQuiet { until }) = &mut self.finished {
            *until = now + QUIET;
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
        let was_empty = self.receive.is_empty();
        self.receive.push(data);
        match self.current {
            Some(id) if was_empty => self.events.push_back(MuxEvent::Readable(id)),
            // The agent connects again for data that comes after its destination was gone (PORT-3).
            None if self.side == Side::Agent => drop(self.begin()),
            _ => {}
        }
    }

    /// The client's connection ended (agent side).
    pub(super) fn handle_disconnect(&mut self) {
        if let Some(later) = self.later.back_mut() {
            later.finished = true;
        } else if let Some(id) = self.current.filter(|_| !self.remote_finished) {
            self.remote_finished = true;
            self.events.push_back(MuxEvent::Finished { stream: id, received_any: true });
        }
    }

    /// The session is over.
    pub(super) fn handle_closed(&mut self) {
        if std::mem::replace(&mut self.remote_finished, true) {
            return;
        }
        let finished = self.current.map(|id| MuxEvent::Finished { stream: id, received_any: true });
        self.events.extend(finished);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(Finish::AfterQuiet { until }) = self.finished
            && now >= until
            && self.basic
        {
            self.finished = Some(Finish::Now);
            self.end_if_done();
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Timeout> {
        match self.finished {
            Some(Finish::AfterQuiet { until }) if self.basic => {
                Some(Timeout { at: until, reason: TimeoutReason::Linger })
            }
            _ => None,
        }
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
        if self.wants_room && self.send.len() <= self.send_queue / 2 {
            self.wants_room = false;
            self.events.extend(self.current.map(MuxEvent::Writable));
        }
        self.end_if_done();
    }

    /// The flag that is due once the data before it is sent.
    pub(super) fn take_flag(&mut self) -> Option<PortFlag> {
        if self.send.is_empty() { self.flag.take() } else { None }
    }

    /// The flag went out with this number.
    pub(super) fn flag_sent(&mut self, number: i64) {
        self.discard_until = Some(number);
    }

    fn end_if_done(&mut self) {
        if matches!(self.finished, Some(Finish::Now)) && self.send.is_empty() && self.current.take().is_some() {
            self.receive.clear();
            self.remote_finished = false;
            if self.side == Side::Client && self.basic {
                self.flag = Some(PortFlag::DisconnectToPort);
            }
            if let Some(later) = self.later.pop_front() {
                self.receive = later.data;
                let id = self.begin();
                if later.finished {
                    self.remote_finished = true;
                    self.events.push_back(MuxEvent::Finished { stream: id, received_any: true });
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
        let mut raw = Raw::new(Side::Client, false, 100, 100);
        raw.handle_input(Instant::now(), Bytes::from_static(b"banner"), |_| true);
        raw.handle_closed();
        let id = raw.open().unwrap();
        assert_eq!(raw.poll_event(), Some(MuxEvent::Readable(id)));
        assert_eq!(raw.poll_event(), Some(MuxEvent::Finished { stream: id, received_any: true }));
        assert!(!raw.is_finished(id));
        assert_eq!(raw.read(id).unwrap(), "banner");
        assert!(raw.is_finished(id));
    }
}
