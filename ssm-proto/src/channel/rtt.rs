//! Round-trip estimation and the retransmission time-out (DC-9).

use std::time::Duration;

/// Never retransmit faster than this beyond the smoothed round trip.
const GRANULARITY: Duration = Duration::from_millis(10);

/// Smoothed round trip, its variation and the retransmission time-out, in the arithmetic that both peers use.
#[derive(Clone, Copy, Debug)]
pub struct RttEstimator {
    srtt: Duration,
    rttvar: Duration,
    sampled: bool,
}

impl RttEstimator {
    /// No sample yet: the first one sets the estimate (RFC 6298, section 2.2).
    pub fn new(initial: Duration) -> Self {
        Self { srtt: initial, rttvar: initial / 2, sampled: false }
    }

    /// As both official peers begin: `initial` counts as if it had been measured, without variation.
    pub fn seeded(initial: Duration) -> Self {
        Self { srtt: initial, rttvar: Duration::ZERO, sampled: true }
    }

    /// Takes a sample from a message that was sent exactly once.
    pub fn update(&mut self, sample: Duration) {
        if !self.sampled {
            *self = Self { srtt: sample, rttvar: sample / 2, sampled: true };
            return;
        }
        self.rttvar = (self.rttvar * 3 + self.srtt.abs_diff(sample)) / 4;
        self.srtt = (self.srtt * 7 + sample) / 8;
    }

    /// The smoothed round trip; `None` before the first sample.
    pub fn srtt(&self) -> Option<Duration> {
        self.sampled.then_some(self.srtt)
    }

    /// The smoothed round trip, or the initial guess.
    pub fn srtt_or_initial(&self) -> Duration {
        self.srtt
    }

    /// The mean deviation of samples.
    pub fn rttvar(&self) -> Duration {
        self.rttvar
    }

    /// The time-out that follows from the estimate, without bounds.
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
