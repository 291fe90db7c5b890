//! Limits the amount in flight to what the path can carry without a queue (DC-17, RELAY-9).
//!
//! The unit is a message for a session, and a KiB for a relay's pipe.

use std::time::{Duration, Instant};

/// A congestion window that follows the delay, after TCP Vegas and LEDBAT (RFC 6817).
///
/// The shortest recent round-trip time is considered the path's own delay. Any additional time is queueing delay: in the service,
/// or at an agent whose destination is slow. The window grows while the queueing delay is below a target, and shrinks in proportion
/// above it. A queue that never empties would in time be considered the path's own delay, so the queue is drained for two round
/// trips every ten seconds. Loss is a poor signal, because a WebSocket does not lose messages. But a timeout halves the window,
/// once for all messages that were in flight.
#[derive(Debug)]
pub(crate) struct Window {
    max: f64,
    messages: f64,
    /// Whether the window doubles each round trip, until a queue appears for the first time.
    probing: bool,
    base: ShortestLately,
    round: Round,
    /// While the queue is drained: the window to return to, and the remaining round trips.
    draining: Option<(f64, u8)>,
    drained_at: Option<Instant>,
    /// The number below which timeouts of messages were counted already.
    late_until: i64,
}

/// A measurement from the sending of a message to its acknowledgement, which includes all messages acknowledged in between.
#[derive(Debug, Default)]
struct Round {
    /// The round ends when this number is acknowledged.
    last: i64,
    shortest: Option<Duration>,
    /// Whether the window limited sending during the round.
    limited: bool,
}

/// Target queueing delay. A keystroke in the same session waits for this time.
const TARGET: Duration = Duration::from_millis(15);
const INITIAL: f64 = 64.0;
/// Minimum window: enough to measure the delay of any path, and to probe a path that does not answer.
const MIN: f64 = 16.0;
/// Growth per round after probing, without a queue. The growth decreases towards the target.
const GROWTH: f64 = 1.0 / 16.0;
/// Window while the queue is drained, relative to the amount that the path itself holds.
const DRAIN: f64 = 0.75;
/// Number of rounds of draining: one until the smaller window has an effect, and one that measures the path without the queue.
const DRAIN_ROUNDS: u8 = 2;

impl Window {
    pub(crate) fn new(max: usize) -> Self {
        let max = max as f64;
        Self {
            max,
            messages: INITIAL.min(max),
            probing: true,
            base: ShortestLately::default(),
            round: Round::default(),
            draining: None,
            drained_at: None,
            late_until: 0,
        }
    }

    /// Creates a window that begins with the minimum and never doubles, for paths whose capacity may be small.
    pub(crate) fn careful(max: usize) -> Self {
        let window = Self::new(max);
        Self { messages: MIN.min(window.max), probing: false, ..window }
    }

    /// Returns whether one more message may be in flight.
    pub(crate) fn has_capacity(&self, in_flight: usize) -> bool {
        (in_flight as f64) < self.messages
    }

    /// Handles the acknowledgement of a message. `span` messages were in flight before; the next message to be sent has the number
    /// `next`.
    pub(crate) fn handle_ack(&mut self, now: Instant, number: i64, sample: Option<Duration>, span: usize, next: i64) {
        self.round.limited |= span as f64 >= self.messages * 0.75;
        if let Some(sample) = sample {
            self.base.update(now, sample);
            self.round.shortest = Some(self.round.shortest.map_or(sample, |shortest| shortest.min(sample)));
        }
        if number >= self.round.last {
            let round = std::mem::replace(&mut self.round, Round { last: next, ..Round::default() });
            self.adapt(now, &round);
        }
    }

    fn adapt(&mut self, now: Instant, round: &Round) {
        let (Some(shortest), Some(base)) = (round.shortest, self.base.get()) else { return };
        if let Some((before, rounds)) = self.draining {
            self.draining = (rounds > 1).then_some((before, rounds - 1));
            if self.draining.is_none() {
                self.messages = before;
            }
            return;
        }
        if now >= *self.drained_at.get_or_insert(now) + EPOCH {
            self.drained_at = Some(now);
            self.draining = Some((self.messages, DRAIN_ROUNDS));
            self.messages *= DRAIN * base.as_secs_f64() / (base + TARGET).as_secs_f64();
        } else if shortest > base + TARGET {
            self.probing = false;
            self.messages *= (base + TARGET).as_secs_f64() / shortest.as_secs_f64();
        } else if round.limited {
            let queue = shortest.saturating_sub(base).as_secs_f64() / TARGET.as_secs_f64();
            let step = if self.probing { self.messages } else { (self.messages * GROWTH).max(1.0) };
            self.messages += step * (1.0 - queue);
        }
        self.messages = self.messages.clamp(MIN.min(self.max), self.max);
    }

    /// Handles that the acknowledgement of `number` did not arrive in time; the next message to be sent has the number `next`. The
    /// cause delays all messages in flight, and each of them has its own timeout, so further timeouts do not halve the window
    /// again.
    pub(crate) fn handle_late(&mut self, number: i64, next: i64) {
        if number < self.late_until {
            return;
        }
        self.late_until = next;
        self.probing = false;
        self.draining = None;
        self.messages = (self.messages / 2.0).max(MIN.min(self.max));
    }
}

/// The shortest round-trip time of the last 10 to 20 seconds, so that a path that becomes longer is noticed too.
#[derive(Debug, Default)]
struct ShortestLately {
    this: Option<(Instant, Duration)>,
    last: Option<Duration>,
}

const EPOCH: Duration = Duration::from_secs(10);

impl ShortestLately {
    fn update(&mut self, now: Instant, sample: Duration) {
        self.this = Some(match self.this {
            Some((since, shortest)) if now < since + EPOCH => (since, shortest.min(sample)),
            over => {
                self.last = over.map(|(_, shortest)| shortest);
                (now, sample)
            }
        });
    }

    fn get(&self) -> Option<Duration> {
        let this = self.this.map(|(_, shortest)| shortest);
        this.into_iter().chain(self.last).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a path with a certain delay and rate and a queue in front of it, which always has as much data as the window
    /// allows. Returns messages per second, and the mean and the longest queueing delay in the steady state.
    fn run(delay: Duration, per_second: f64) -> (f64, Duration, Duration) {
        let mut window = Window::new(1000);
        let (mut now, mut sent, mut acked) = (Instant::now(), 0_i64, 0_i64);
        let start = now;
        let mut free_at = now;
        let mut flight = std::collections::VecDeque::new();
        let (mut delivered, mut sum, mut longest) = (0_u32, Duration::ZERO, Duration::ZERO);
        while now < start + Duration::from_secs(30) {
            while window.has_capacity(flight.len()) {
                free_at = free_at.max(now) + Duration::from_secs_f64(1.0 / per_second);
                flight.push_back((now, free_at + delay));
                sent += 1;
            }
            let (at, arrival) = flight.pop_front().unwrap();
            now = arrival;
            window.handle_ack(now, acked, Some(now - at), flight.len() + 1, sent);
            acked += 1;
            if now > start + Duration::from_secs(10) {
                let queue = (now - at).saturating_sub(delay);
                delivered += 1;
                sum += queue;
                longest = longest.max(queue);
            }
        }
        (f64::from(delivered) / 20.0, sum / delivered, longest)
    }

    #[test]
    fn a_path_is_filled_and_its_queue_stays_short() {
        for (delay, per_second) in [(2, 15_000.0), (10, 5000.0), (100, 900.0), (100, 5000.0), (200, 2000.0)] {
            let delay = Duration::from_millis(delay);
            let (reached, mean, longest) = run(delay, per_second);
            let possible = per_second.min(1000.0 / delay.as_secs_f64());
            assert!(reached > possible * 0.8, "{reached} of {possible} messages per second at {delay:?}");
            let queue =
                format!("{mean:?}, up to {longest:?} in the queue at {delay:?} and {per_second} messages per second");
            assert!(mean < TARGET * 2 && longest < TARGET * 5, "{queue}");
        }
    }

    #[test]
    fn what_is_late_halves_the_window_down_to_a_little() {
        let mut window = Window::new(1000);
        for number in 0..10 {
            window.handle_late(number, 10);
        }
        assert!(
            window.has_capacity(31) && !window.has_capacity(32),
            "timeouts of messages in flight at the same time count once"
        );
        for number in 10..20 {
            window.handle_late(number, number + 1);
        }
        assert!(window.has_capacity(15) && !window.has_capacity(16));
        let mut small = Window::new(4);
        small.handle_late(0, 1);
        assert!(small.has_capacity(3) && !small.has_capacity(4), "the window never exceeds the configured maximum");
    }
}
