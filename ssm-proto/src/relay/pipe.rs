//! One pipe: its frames in flight, and the amount of data that has arrived over it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::frame::Deframer;
use super::{FeedId, RelaySide};
use crate::window::Window;

/// Number of unacknowledged received bytes after which a pipe is acknowledged (RELAY-8).
const ACK_BYTES: u64 = 16 << 10;
/// The same number for a feed. It is larger because a feed is faster and each of its acknowledgements is a separate message.
const FEED_ACK_BYTES: u64 = 64 << 10;
/// Maximum time from the first unacknowledged byte to the acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// The window's unit, in bytes.
const UNIT: u64 = 1 << 10;
/// Maximum window, in units.
const MAX_WINDOW: usize = 1 << 10;
/// A pipe that acknowledges nothing for this time, or for four round trips if that is longer, is suspect (RELAY-10).
const PATIENCE: Duration = Duration::from_millis(500);

/// The state of one pipe or feed at one end.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) deframer: Deframer,
    /// The feed's identifier; `None` for a pipe. Only the relay sends over a feed.
    feed: Option<FeedId>,
    /// Number of bytes of numbered frames that were sent.
    sent: u64,
    acked: u64,
    flight: VecDeque<Flying>,
    window: Window,
    smoothed: Option<Duration>,
    /// Whether the pipe gets no new frames until it acknowledges something.
    suspect: bool,
    /// Whether the other end has sent HAVE over this pipe. Before that, a numbered frame could be one that has arrived already.
    begun: bool,
    /// Number of bytes of numbered frames that were received.
    received: u64,
    /// Number of received bytes that were acknowledged.
    acknowledged: u64,
    newest: Option<Instant>,
    ack_due: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Flying {
    number: u64,
    /// The position at the end of the frame.
    end: u64,
    at: Instant,
}

impl Pipe {
    pub(super) fn new() -> Self {
        Self {
            deframer: Deframer::default(),
            feed: None,
            sent: 0,
            acked: 0,
            flight: VecDeque::new(),
            window: Window::new(MAX_WINDOW),
            smoothed: None,
            suspect: false,
            begun: false,
            received: 0,
            acknowledged: 0,
            newest: None,
            ack_due: None,
        }
    }

    /// Creates a feed. The client acknowledges it at once, because the relay sends nothing over a feed before its first
    /// acknowledgement.
    pub(super) fn new_feed(side: RelaySide, now: Instant, id: FeedId) -> Self {
        let is_client = side == RelaySide::Client;
        Self {
            feed: Some(id),
            window: Window::careful(MAX_WINDOW),
            begun: is_client,
            ack_due: is_client.then_some(now),
            ..Self::new()
        }
    }

    /// Returns the feed's identifier. `None` for a pipe, over which frames travel in both directions.
    pub(super) fn feed(&self) -> Option<FeedId> {
        self.feed
    }

    /// Returns whether this is a feed that the client has not acknowledged yet.
    pub(super) fn is_unproved_feed(&self) -> bool {
        self.feed.is_some() && !self.begun
    }

    /// Makes an acknowledgement due, because the last one may be lost. This is only needed for feeds: a pipe's own acknowledgements
    /// are lost only together with the pipe.
    pub(super) fn acknowledge_again(&mut self, now: Instant) {
        self.ack_due = Some(now);
    }

    /// Returns when a numbered frame was last received over the pipe.
    pub(super) fn last_received(&self) -> Option<Instant> {
        self.newest
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.sent - self.acked
    }

    /// Returns whether another frame may be sent over the pipe.
    pub(super) fn has_capacity(&self) -> bool {
        self.begun && !self.suspect && self.window.has_capacity(units(self.in_flight()))
    }

    /// Handles a received frame. Returns whether it is the first one, which must be HAVE.
    pub(super) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    /// Returns an estimate of how soon a frame sent now would arrive, for comparing pipes.
    pub(super) fn load(&self) -> (u64, Duration) {
        (self.in_flight(), self.smoothed.unwrap_or_default())
    }

    /// Records that a numbered frame of this length was sent over the pipe.
    pub(super) fn send(&mut self, now: Instant, number: u64, length: usize) {
        self.sent += length as u64;
        self.flight.push_back(Flying { number, end: self.sent, at: now });
    }

    /// Handles that the other end has received everything up to this position. Returns the numbers of the acknowledged frames, or
    /// `None` if fewer bytes were sent.
    pub(super) fn handle_ack(&mut self, now: Instant, position: u64, held: Duration) -> Option<Vec<u64>> {
        if position > self.sent {
            return None;
        }
        let before = self.in_flight();
        let mut numbers = Vec::new();
        let mut newest = None;
        while let Some(first) = self.flight.front().copied().filter(|first| first.end <= position) {
            self.flight.pop_front();
            self.acked = first.end;
            newest = Some(first);
            numbers.push(first.number);
        }
        if let Some(newest) = newest {
            let sample = now.saturating_duration_since(newest.at).saturating_sub(held);
            self.smoothed = Some(self.smoothed.map_or(sample, |smoothed| (smoothed * 7 + sample) / 8));
            self.suspect = false;
            self.window.handle_ack(now, in_units(newest.end), Some(sample), units(before), in_units(self.sent));
        }
        Some(numbers)
    }

    /// Returns the numbers of the frames in flight, which are lost if the pipe ends now.
    pub(super) fn flying(&self) -> impl Iterator<Item = u64> {
        self.flight.iter().map(|flying| flying.number)
    }

    /// Returns when the pipe becomes suspect.
    pub(super) fn suspect_at(&self) -> Option<Instant> {
        let oldest = self.flight.front().filter(|_| !self.suspect)?;
        Some(oldest.at + PATIENCE.max(self.smoothed.unwrap_or_default() * 4) + ACK_DELAY)
    }

    /// Marks the pipe as suspect. Returns the numbers of the frames in flight.
    pub(super) fn suspect(&mut self) -> impl Iterator<Item = u64> {
        self.suspect = true;
        if let Some(oldest) = self.flight.front() {
            self.window.handle_late(in_units(oldest.end), in_units(self.sent));
        }
        self.flying()
    }

    /// Records that a numbered frame of this length was received over the pipe.
    pub(super) fn receive(&mut self, now: Instant, length: usize) {
        self.received += length as u64;
        self.newest = Some(now);
        let enough = if self.feed.is_some() { FEED_ACK_BYTES } else { ACK_BYTES };
        let due = if self.received - self.acknowledged >= enough { now } else { now + ACK_DELAY };
        self.ack_due = Some(self.ack_due.map_or(due, |before| before.min(due)));
    }

    pub(super) fn ack_due(&self) -> Option<Instant> {
        self.ack_due
    }

    /// Returns the position to acknowledge, and the age of the newest frame in microseconds.
    pub(super) fn take_ack(&mut self, now: Instant) -> Option<(u64, u32)> {
        self.ack_due.take()?;
        self.acknowledged = self.received;
        let held = now.saturating_duration_since(self.newest.unwrap_or(now)).as_micros();
        Some((self.received, u32::try_from(held).unwrap_or(u32::MAX)))
    }
}

fn units(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX)
}

/// Converts a position to the window's units.
fn in_units(position: u64) -> i64 {
    i64::try_from(position / UNIT).unwrap_or(i64::MAX)
}
