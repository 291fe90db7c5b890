//! Round-trip time estimation and the retransmission timeout (DC-9).

use std::time::Duration;

/// Minimum margin of the retransmission timeout beyond the smoothed round-trip time.
const GRANULARITY: Duration = Duration::from_millis(10);

/// Smoothed round-trip time, its variation and the retransmission timeout, with the arithmetic that both peers use.
#[derive(Clone, Copy, Debug)]
pub struct RttEstimator {
    srtt: Duration,
    rttvar: Duration,
    sampled: bool,
}

impl RttEstimator {
    /// Creates an estimator whose first sample sets the estimate (RFC 6298, section 2.2).
    pub fn new(initial: Duration) -> Self {
        Self { srtt: initial, rttvar: initial / 2, sampled: false }
    }

    /// Creates an estimator that starts like the estimators of the official peers: `initial` counts as a sample without
    /// variation.
    pub fn seeded(initial: Duration) -> Self {
        Self { srtt: initial, rttvar: Duration::ZERO, sampled: true }
    }

    /// Adds a sample from a message that was sent exactly once.
    pub fn update(&mut self, sample: Duration) {
        if !self.sampled {
            *self = Self { srtt: sample, rttvar: sample / 2, sampled: true };
            return;
        }
        self.rttvar = (self.rttvar * 3 + self.srtt.abs_diff(sample)) / 4;
        self.srtt = (self.srtt * 7 + sample) / 8;
    }

    /// The smoothed round-trip time; `None` before the first sample.
    pub fn srtt(&self) -> Option<Duration> {
        self.sampled.then_some(self.srtt)
    }

    /// The smoothed round-trip time, or the initial value.
    pub fn srtt_or_initial(&self) -> Duration {
        self.srtt
    }

    /// The mean deviation of samples.
    pub fn rttvar(&self) -> Duration {
        self.rttvar
    }

    /// The timeout computed from the estimate, without limits.
    pub fn rto(&self) -> Duration {
        self.srtt + GRANULARITY.max(self.rttvar * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sample_replaces_the_guess() {
        let mut rtt = RttEstimator::new(Duration::from_millis(100));
        assert_eq!(rtt.srtt(), None);
        rtt.update(Duration::from_millis(2));
        assert_eq!(rtt.srtt(), Some(Duration::from_millis(2)));
        assert_eq!(rtt.rto(), Duration::from_millis(12));
    }
}
