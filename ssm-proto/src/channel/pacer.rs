//! The rate limit of messages (DC-16).

use std::time::{Duration, Instant};

/// A rate limit: one message per `interval` on average, and up to `burst` immediately after a period without messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Average interval between messages.
    pub interval: Duration,
    /// Number of messages that may be sent immediately one after the other; at least 1.
    pub burst: u32,
}

impl Pace {
    /// Creates a limit of this many messages per second, with a burst of a twentieth of a second.
    ///
    /// ```
    /// let pace = ssm_proto::Pace::per_second(900);
    /// assert_eq!((pace.interval.as_micros(), pace.burst), (1111, 45));
    /// ```
    pub fn per_second(messages: u32) -> Self {
        let messages = messages.max(1);
        Self { interval: Duration::from_secs(1) / messages, burst: (messages / 20).max(1) }
    }
}

/// When the service pauses or closes the channel, the rate is halved, down to a sixteenth (`SLOWEST`). The rate recovers by a tenth
/// each second.
const SLOWEST: f64 = 16.0;
const RECOVERY: f64 = 0.9;
const RECOVERY_STEP: Duration = Duration::from_secs(1);

/// A token bucket, stored as the time at which the bucket will be full again (GCRA). It needs neither a counter nor a timer.
#[derive(Debug)]
pub(super) struct Pacer {
    pace: Pace,
    full_at: Option<Instant>,
    /// Factor by which the interval is longer than configured; 1 in normal operation.
    slowness: f64,
    recovered_at: Option<Instant>,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, full_at: None, slowness: 1.0, recovered_at: None }
    }

    /// Returns the earliest time at which the next message may be sent, possibly in the past. `None`: no message was sent yet.
    pub(super) fn turn(&self) -> Option<Instant> {
        let depth = self.interval() * (self.pace.burst.max(1) - 1);
        self.full_at.and_then(|full| full.checked_sub(depth))
    }

    /// Returns when the next message may be sent; `None`: immediately.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        self.turn().filter(|at| *at > now)
    }

    /// Accounts for a message that is sent.
    pub(super) fn take(&mut self, now: Instant) {
        if let Some(at) = self.recovered_at.filter(|at| now >= *at + RECOVERY_STEP) {
            let steps = now.saturating_duration_since(at).as_secs_f64();
            self.slowness = (self.slowness * RECOVERY.powf(steps)).max(1.0);
            self.recovered_at = (self.slowness > 1.0).then_some(now);
        }
        self.full_at = Some(self.full_at.map_or(now, |full| full.max(now)) + self.interval());
    }

    /// Handles that the service paused or closed the channel. If messages were sent at the limit, the rate was too high.
    pub(super) fn slow_down(&mut self, now: Instant) {
        if self.full_at.is_some_and(|full| full > now) {
            self.slowness = (self.slowness * 2.0).min(SLOWEST);
            self.recovered_at = Some(now);
        }
    }

    /// The current limit in messages per second.
    pub(super) fn per_second(&self) -> u32 {
        let per_second = Duration::from_secs(1).as_nanos() / self.interval().as_nanos().max(1);
        u32::try_from(per_second).unwrap_or(u32::MAX)
    }

    fn interval(&self) -> Duration {
        self.pace.interval.mul_f64(self.slowness)
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

    /// Returns the number of messages in the second after `now`, if a sender uses the limit fully.
    fn per_second(pacer: &mut Pacer, mut now: Instant) -> usize {
        let end = now + Duration::from_secs(1);
        let mut sent = 0;
        while now < end {
            pacer.take(now);
            sent += 1;
            now = pacer.ready_at(now).unwrap_or(now);
        }
        sent
    }

    #[test]
    fn trouble_at_the_limit_halves_the_pace_and_time_heals_it() {
        let start = Instant::now();
        let mut pacer = Pacer::new(Pace { interval: Duration::from_millis(1), burst: 1 });
        assert_eq!(per_second(&mut pacer, start), 1000);
        assert_eq!(pacer.per_second(), 1000);
        pacer.slow_down(start + Duration::from_millis(999));
        assert_eq!(pacer.per_second(), 500);
        let after = per_second(&mut pacer, start + Duration::from_secs(1));
        assert!((450..=600).contains(&after), "{after}");
        assert!((990..=1000).contains(&per_second(&mut pacer, start + Duration::from_secs(30))));
        // A pause while the rate was below the limit has another reason.
        pacer.slow_down(start + Duration::from_secs(60));
        assert_eq!(per_second(&mut pacer, start + Duration::from_secs(60)), 1000);
    }
}
