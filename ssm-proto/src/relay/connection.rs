//! One connection at one end: data to be sent, and received data, which is put in order.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes};

use super::frame::{begin_data, finish_data};
use super::{ConnectionId, Refusal, ResetReason};

/// Number of bytes that may be sent before the first credit arrives (RELAY-11).
pub(super) const INITIAL_CREDIT: u64 = 64 << 10;
/// Maximum number of unread bytes that the receiver of one connection keeps.
const MAX_WINDOW: u64 = 8 << 20;
/// Maximum length of a chunk into which small received pieces are joined.
const JOINED: usize = 4 << 10;
/// Maximum number of unsent bytes. At this limit the writer has to wait.
const SEND_BUFFER: usize = 256 << 10;

/// The direction to the other end.
#[derive(Debug, Default)]
pub(super) struct Sending {
    chunks: VecDeque<Bytes>,
    waiting: usize,
    /// Offset of the next byte to send.
    offset: u64,
    limit: u64,
    finished: bool,
    fin_sent: bool,
    /// Whether a write was refused, so that the writer must be notified when the buffer has space.
    pub(super) full: bool,
}

/// The next frame to send in a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    Data,
    Fin(u64),
}

impl Sending {
    fn new() -> Self {
        Self { limit: INITIAL_CREDIT, ..Self::default() }
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.waiting < SEND_BUFFER
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        self.waiting += chunk.len();
        self.chunks.push_back(chunk);
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) fn fin_sent(&self) -> bool {
        self.fin_sent
    }

    pub(super) fn raise(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    pub(super) fn next(&self) -> Next {
        match self.waiting {
            0 if self.finished && !self.fin_sent => Next::Fin(self.offset),
            0 => Next::Nothing,
            _ if self.offset < self.limit => Next::Data,
            _ => Next::Nothing,
        }
    }

    pub(super) fn sent_fin(&mut self) {
        self.fin_sent = true;
    }

    /// Returns the next DATA frame, with at most `max` bytes.
    pub(super) fn take(&mut self, id: ConnectionId, max: usize, number: u64) -> Bytes {
        let credit = usize::try_from(self.limit - self.offset).unwrap_or(usize::MAX);
        let length = max.min(self.waiting).min(credit);
        let mut frame = begin_data(id, self.offset, length);
        let mut left = length;
        while left > 0
            && let Some(chunk) = self.chunks.front_mut()
        {
            let part = left.min(chunk.len());
            frame.extend_from_slice(chunk.get(..part).unwrap_or_default());
            chunk.advance(part);
            left -= part;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.waiting -= length;
        self.offset += length as u64;
        finish_data(frame, number)
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.waiting = 0;
    }
}

/// The direction from the other end.
#[derive(Debug)]
pub(super) struct Receiving {
    ready: VecDeque<Bytes>,
    /// Data that arrived out of order, by offset.
    early: BTreeMap<u64, Bytes>,
    /// Offset of the next byte in order.
    expected: u64,
    /// Number of bytes that were read.
    consumed: u64,
    limit: u64,
    window: u64,
    fin: Option<u64>,
}

impl Receiving {
    fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            early: BTreeMap::new(),
            expected: 0,
            consumed: 0,
            limit: INITIAL_CREDIT,
            window: INITIAL_CREDIT,
            fin: None,
        }
    }

    /// Adds received data. Returns whether more data can be read now.
    ///
    /// # Errors
    /// Returns the violation if the other end was not allowed to send this data (RELAY-12).
    pub(super) fn push(&mut self, offset: u64, data: Bytes) -> Result<bool, &'static str> {
        let end = offset.checked_add(data.len() as u64).ok_or("an offset beyond the maximum")?;
        if end > self.limit {
            return Err("data beyond the credit");
        }
        if self.fin.is_some_and(|fin| end > fin) {
            return Err("data beyond the end");
        }
        let before = self.early.range(..=offset).next_back().map(|(from, data)| from + data.len() as u64);
        let after = self.early.range(offset..).next().map(|(from, _)| *from);
        if offset < self.expected || before.is_some_and(|to| to > offset) || after.is_some_and(|from| from < end) {
            return Err("the same bytes twice");
        }
        if offset > self.expected {
            self.early.insert(offset, data);
            return Ok(false);
        }
        self.append(data);
        while let Some(data) = self.early.remove(&self.expected) {
            self.append(data);
        }
        Ok(true)
    }

    /// Appends the next bytes in order. Small pieces are joined, because each piece on its own would need many times its size in
    /// memory.
    fn append(&mut self, data: Bytes) {
        self.expected += data.len() as u64;
        match self.ready.back_mut().filter(|last| last.len() + data.len() <= JOINED) {
            Some(last) => *last = [last.as_ref(), data.as_ref()].concat().into(),
            None => self.ready.push_back(data),
        }
    }

    /// Returns the number of pieces that arrived out of order.
    pub(super) fn early(&self) -> usize {
        self.early.len()
    }

    /// Handles that the other end has ended its direction at this offset.
    ///
    /// # Errors
    /// Returns the violation if the other end was not allowed to end its direction at this offset.
    pub(super) fn end(&mut self, offset: u64) -> Result<(), &'static str> {
        let last = self.early.last_key_value().map_or(self.expected, |(from, data)| from + data.len() as u64);
        if self.fin.is_some() || offset < last {
            return Err("an end before data that was sent");
        }
        self.fin = Some(offset);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let chunk = self.ready.pop_front()?;
        self.consumed += chunk.len() as u64;
        Some(chunk)
    }

    /// Returns whether all data up to the end was read.
    pub(super) fn is_over(&self) -> bool {
        self.fin == Some(self.consumed)
    }

    /// Returns the maximum number of bytes that may have to be kept: the bytes that the other end may have sent and that were not
    /// read.
    pub(super) fn promised(&self) -> u64 {
        self.fin.unwrap_or(self.limit) - self.consumed
    }

    /// Returns whether half of the credit is used up.
    pub(super) fn wants_grant(&self) -> bool {
        self.fin.is_none() && self.limit - self.consumed <= self.window / 2
    }

    /// Returns a new credit if it is greater than the last one. The new credit exceeds the initial credit only as far as `spare`
    /// bytes allow.
    pub(super) fn grant(&mut self, spare: u64) -> Option<u64> {
        let wanted = if self.ready.is_empty() { (self.window * 2).min(MAX_WINDOW) } else { self.window };
        self.window = wanted.min(spare).max(INITIAL_CREDIT);
        // Granted credit cannot be withdrawn.
        let limit = self.limit.max(self.consumed + self.window);
        (std::mem::replace(&mut self.limit, limit) < limit).then_some(limit)
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// Whether the connection is open. At the relay: OPEN has arrived. At the client: the relay has connected.
    pub(super) open: bool,
    pub(super) refused: Option<Refusal>,
    pub(super) reset: Option<ResetReason>,
    /// Whether this end has stopped using the connection: written data is still sent, and received data is dropped.
    pub(super) abandoned: bool,
    /// Whether the connection is in the queue of connections that have something to send.
    pub(super) queued: bool,
    /// A new credit that must be sent.
    pub(super) grant: Option<u64>,
    /// Number of the connection's frames that are not acknowledged.
    pub(super) outstanding: u32,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            sending: Sending::new(),
            receiving: Receiving::new(),
            open: false,
            refused: None,
            reset: None,
            abandoned: false,
            queued: false,
            grant: None,
            outstanding: 0,
        }
    }

    /// Returns whether the connection has ended: it was reset or refused, or both directions have ended in order.
    pub(super) fn is_over(&self) -> bool {
        self.reset.is_some() || self.refused.is_some() || (self.sending.fin_sent() && self.receiving.is_over())
    }

    pub(super) fn has_something_to_send(&self) -> bool {
        self.reset.is_none() && (self.grant.is_some() || self.sending.next() != Next::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses up the whole credit, and returns the new credit.
    fn use_up(receiving: &mut Receiving, spare: u64) -> u64 {
        let credit = receiving.limit - receiving.consumed;
        let data = vec![0; usize::try_from(credit).unwrap()];
        receiving.push(receiving.expected, data.into()).unwrap();
        receiving.pop().unwrap();
        receiving.grant(spare).unwrap() - receiving.consumed
    }

    #[test]
    fn a_window_grows_while_there_is_memory_and_shrinks_when_there_is_none() {
        let mut receiving = Receiving::new();
        let windows: Vec<u64> = (0..8).map(|_| use_up(&mut receiving, u64::MAX)).collect();
        assert_eq!((windows[0], windows[7]), (2 * INITIAL_CREDIT, MAX_WINDOW));
        assert_eq!(use_up(&mut receiving, 3 * INITIAL_CREDIT), 3 * INITIAL_CREDIT);
        assert_eq!(use_up(&mut receiving, 0), INITIAL_CREDIT);
    }

    #[test]
    fn pieces_of_a_byte_do_not_wait_one_by_one() {
        let mut receiving = Receiving::new();
        for offset in 0..INITIAL_CREDIT {
            receiving.push(offset, Bytes::from_static(b"x")).unwrap();
        }
        assert_eq!(receiving.ready.len() as u64, INITIAL_CREDIT / JOINED as u64);
        assert_eq!(receiving.ready.iter().map(Bytes::len).sum::<usize>() as u64, INITIAL_CREDIT);
    }

    #[test]
    fn a_credit_that_was_given_is_not_taken_back() {
        let mut receiving = Receiving::new();
        for _ in 0..8 {
            use_up(&mut receiving, u64::MAX);
        }
        let (limit, half) = (receiving.limit, vec![0; usize::try_from(MAX_WINDOW / 2).unwrap()]);
        receiving.push(receiving.expected, half.into()).unwrap();
        receiving.pop().unwrap();
        assert!(receiving.wants_grant());
        assert_eq!((receiving.grant(0), receiving.limit), (None, limit));
        assert_eq!(receiving.promised(), MAX_WINDOW / 2);
    }
}
