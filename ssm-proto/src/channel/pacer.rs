//! How many messages leave per second (DC-16).

use std::time::{Duration, Instant};

/// A message budget: one message per `interval` in the long run, `burst` at once after a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time that one message takes.
    pub interval: Duration,
    /// Messages that may leave at once; at least 1.
    pub burst: u32,
}

/// A token bucket, kept as the moment at which it would be full again (GCRA): no counting, no timer.
#[derive(Debug)]
pub(super) struct Pacer {
    pace: Pace,
    full_at: Option<Instant>,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, full_at: None }
    }

    /// The first moment at which a message may leave; it may be past. `None`: none left yet.
    pub(super) fn turn(&self) -> Option<Instant> {
        let depth = self.pace.interval * (self.pace.burst.max(1) - 1);
        self.full_at.and_then(|full| full.checked_sub(depth))
    }

    /// When the next message may leave; `None`: at once.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        self.turn().filter(|at| *at > now)
    }

    /// A message leaves.
    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |full| full.max(now)) + self.pace.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_per_interval() {
        let start = Instant::now();
        let interval = Duration::from_millis(10);
        let mut pacer = Pacer::new(Pace { interval, burst: 3 });
        for _ in 0..3 {
            assert_eq!(pacer.ready_at(start), None);
            pacer.take(start);
        }
        assert_eq!(pacer.ready_at(start), Some(start + interval));
        assert_eq!(pacer.ready_at(start + interval), None);
        pacer.take(start + interval);
        assert_eq!(pacer.ready_at(start + interval), Some(start + interval * 2));
        let later = start + Duration::from_secs(1);
        for _ in 0..3 {
            assert_eq!(pacer.ready_at(later), None);
            pacer.take(later);
        }
        assert_eq!(pacer.ready_at(later), Some(later + interval));
    }
}
