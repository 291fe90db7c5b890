//! Limits how often events happen that a peer can cause at any rate.

use std::time::Duration;

use tokio::time::Instant;

use super::RetryPolicy;

/// Limits a report to once a second, and counts the events that were not reported.
#[derive(Debug, Default)]
pub(super) struct ReportLimit {
    reported: Option<Instant>,
    suppressed: u64,
}

/// Minimum interval between reports of [`ReportLimit`].
const REPORT_EVERY: Duration = Duration::from_secs(1);

impl ReportLimit {
    /// Counts `times` more events. If an event is to be reported now, returns how many other events were not reported since the last
    /// report, including events of this call.
    pub(super) fn record(&mut self, now: Instant, times: u64) -> Option<u64> {
        self.suppressed += times;
        if self.suppressed == 0 || self.reported.is_some_and(|at| now < at + REPORT_EVERY) {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.suppressed) - 1)
    }
}

/// The delays before attempts to reconnect a WebSocket. Only a WebSocket that lasted resets the delay. Otherwise, a service that
/// sends one message and then closes would be contacted without any delay.
#[derive(Debug)]
pub(super) struct Backoff {
    policy: RetryPolicy,
    attempts: u32,
}

/// A WebSocket that lasted this long resets the delay.
const STABLE: Duration = Duration::from_secs(5);
/// A WebSocket that transferred data resets the delay after this shorter time. So a service that closes every few seconds is
/// contacted again without a delay, but not more often than once in this time.
const USEFUL: Duration = Duration::from_secs(1);
/// After a WebSocket that transferred data but was too short-lived, the delay is at most the one of this attempt: 800 ms.
const MAX_ATTEMPT_AFTER_DATA: u32 = 4;

impl Backoff {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self { policy, attempts: 0 }
    }

    /// Records that a WebSocket was lost after `lived`. `moved` is whether it transferred data.
    pub(super) fn lost(&mut self, lived: Duration, moved: bool) {
        if lived >= STABLE || moved && lived >= USEFUL {
            self.attempts = 0;
        } else if moved {
            self.attempts = self.attempts.min(MAX_ATTEMPT_AFTER_DATA);
        }
    }

    /// Returns the delay before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        self.policy.delay(self.attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_causes_is_told_once_a_second_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut limit = ReportLimit::default();
        assert_eq!(limit.record(start, 0), None);
        assert_eq!(limit.record(start, 3), Some(2));
        let told: Vec<_> =
            (1..=2500).filter_map(|millis| limit.record(start + Duration::from_millis(millis), 10)).collect();
        assert_eq!(told, [9999, 9999]);
        assert_eq!(limit.record(start + Duration::from_secs(9), 0), Some(4999));
        assert_eq!(limit.record(start + Duration::from_secs(19), 0), None);
    }

    #[test]
    fn only_what_lasted_makes_the_next_outage_begin_without_a_wait() {
        let mut backoff = Backoff::new(RetryPolicy::default());
        assert_eq!(backoff.next(), Duration::ZERO);
        let mut waited = Duration::ZERO;
        for _ in 0..20 {
            backoff.lost(Duration::from_millis(1), true);
            waited += backoff.next();
        }
        assert!((6..=17).contains(&waited.as_secs()), "20 short lives in {waited:?}");
        for _ in 0..20 {
            backoff.lost(Duration::from_millis(1), false);
            waited = backoff.next();
        }
        assert!(waited >= Duration::from_secs(10), "{waited:?}");
        backoff.lost(USEFUL, false);
        assert!(backoff.next() >= Duration::from_secs(10), "it moved nothing");
        backoff.lost(USEFUL, true);
        assert_eq!(backoff.next(), Duration::ZERO);
        assert!(backoff.next() > Duration::ZERO);
        backoff.lost(STABLE, false);
        assert_eq!(backoff.next(), Duration::ZERO);
    }
}
