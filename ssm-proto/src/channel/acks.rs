//! Acknowledgements that are to be sent: which wait for company, and for how long.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::Acknowledge;

/// So many wait for no more. At the agent's pace they come together before the delay is over, so that no timer fires.
const BATCH: usize = 4;
/// That may wait for the socket; beyond it messages are refused, and so will be sent again.
const MOST: usize = 20_000;

/// A queue that is held back for a moment, and leaves as a whole.
#[derive(Debug)]
pub(super) struct Acks {
    waiting: VecDeque<Acknowledge>,
    delay: Duration,
    /// When those that wait are to leave.
    due: Option<Instant>,
}

impl Acks {
    pub(super) fn new(delay: Duration) -> Self {
        Self { waiting: VecDeque::new(), delay, due: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST
    }

    /// One that may wait for company.
    pub(super) fn push(&mut self, ack: Acknowledge, now: Instant) {
        self.waiting.push_back(ack);
        let full = self.waiting.len() >= BATCH;
        self.expect(if full { now } else { now + self.delay });
    }

    /// One that leaves at once, with those that wait.
    pub(super) fn push_urgent(&mut self, ack: Acknowledge, now: Instant) {
        self.waiting.push_back(ack);
        self.expect(now);
    }

    /// Something else is sent: those that wait go with it.
    pub(super) fn hasten(&mut self, now: Instant) {
        if !self.is_empty() {
            self.expect(now);
        }
    }

    /// The next one, if it is time.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Acknowledge> {
        self.due.filter(|due| *due <= now)?;
        let next = self.waiting.pop_front();
        if self.is_empty() {
            self.due = None;
        }
        next
    }

    /// When they leave without company.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn expect(&mut self, due: Instant) {
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }
}
