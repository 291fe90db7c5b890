//! Messages in transit, each with its time of arrival.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// One direction of a session.
#[derive(Debug)]
pub(super) struct Line {
    /// The messages, ordered by arrival and then by departure.
    held: BTreeMap<(Instant, u64), Bytes>,
    bytes: usize,
    departures: u64,
    /// The latest arrival. Messages that are sent later do not arrive before it.
    last: Instant,
    /// The time until which the sender's link is busy.
    busy: Instant,
}

/// Maximum number of messages in transit. At this limit, no more are accepted from the sender.
const MAX_MESSAGES: usize = 4096;
const MAX_BYTES: usize = 16 << 20;

impl Line {
    pub(super) fn new(now: Instant) -> Self {
        Self { held: BTreeMap::new(), bytes: 0, departures: 0, last: now, busy: now }
    }

    /// Returns when a message of this size has passed through a link with this rate, after the messages before it.
    pub(super) fn transmit(&mut self, now: Instant, bytes: usize, rate: u64) -> Instant {
        let seconds = bytes as f64 / rate.max(1) as f64;
        self.busy = self.busy.max(now) + Duration::from_secs_f64(seconds);
        self.busy
    }

    /// Adds a message that arrives at `due`. Unless the message is `late`, the messages before it arrive earlier.
    pub(super) fn push(&mut self, due: Instant, late: bool, message: Bytes) {
        let due = if late { due } else { due.max(self.last) };
        if !late {
            self.last = due;
        }
        self.bytes += message.len();
        self.held.insert((due, self.departures), message);
        self.departures += 1;
    }

    /// Moves the messages that have arrived to `out`.
    pub(super) fn release(&mut self, now: Instant, out: &mut VecDeque<Bytes>) {
        while let Some(first) = self.held.first_entry().filter(|first| first.key().0 <= now) {
            let message = first.remove();
            self.bytes -= message.len();
            out.push_back(message);
        }
    }

    /// Moves all messages to `out`.
    pub(super) fn release_all(&mut self, out: &mut VecDeque<Bytes>) {
        self.bytes = 0;
        out.extend(std::mem::take(&mut self.held).into_values());
    }

    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.held.first_key_value().map(|((due, _), _)| *due)
    }

    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }
}
