//! Pending acknowledgements: which are delayed, and for how long.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::Acknowledge;

/// When this many acknowledgements are pending, all are sent. At the agent's rate this happens before the delay is over, so that no
/// timer has to fire.
const BATCH: usize = 4;
/// Maximum length of the queue. Messages beyond this limit are neither accepted nor acknowledged, so the peer retransmits them.
const MOST: usize = 20_000;

/// A queue that is delayed for a moment and then sent as a whole.
#[derive(Debug)]
pub(super) struct Acks {
    waiting: VecDeque<Acknowledge>,
    delay: Duration,
    /// When the delayed acknowledgements are sent.
    due: Option<Instant>,
}

impl Acks {
    pub(super) fn new(delay: Duration) -> Self {
        Self { waiting: VecDeque::new(), delay, due: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    #[cfg(feature = "fuzzing")]
    pub(super) fn is_bounded(&self) -> bool {
        self.waiting.len() <= MOST
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST
    }

    /// Adds an acknowledgement that may be delayed.
    pub(super) fn push(&mut self, ack: Acknowledge, now: Instant) {
        self.waiting.push_back(ack);
        let full = self.waiting.len() >= BATCH;
        self.expect(if full { now } else { now + self.delay });
    }

    /// Adds an acknowledgement that is sent immediately, together with the delayed ones.
    pub(super) fn push_urgent(&mut self, ack: Acknowledge, now: Instant) {
        self.waiting.push_back(ack);
        self.expect(now);
    }

    /// Ends the delay, because another message is sent and the acknowledgements can share its write.
    pub(super) fn hasten(&mut self, now: Instant) {
        if !self.is_empty() {
            self.expect(now);
        }
    }

    /// Removes and returns the next acknowledgement, if the delay is over.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Acknowledge> {
        self.due.filter(|due| *due <= now)?;
        let next = self.waiting.pop_front();
        if self.is_empty() {
            self.due = None;
        }
        next
    }

    /// When the delay is over.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn expect(&mut self, due: Instant) {
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }
}
