//! Detects that the path to the service fails in the sending direction only.

use std::time::Duration;

use ssm_proto::ChannelStats;
use tokio::time::Instant;

use super::Liveness;

/// Checks that sent data arrives, even if data is received: a path can fail in one direction only, or the service may have stopped
/// reading. Acknowledgements and pongs are the proof.
#[derive(Debug)]
pub(super) struct Upstream {
    proven: Instant,
    /// When a ping was sent for this check.
    asked: Option<Instant>,
    acknowledged: u64,
}

/// The state of the upstream direction.
pub(super) enum Proof {
    /// It works, or there is no data to check. Check again at this time.
    At(Instant),
    /// A ping must be sent.
    Ask,
    /// No data has arrived for this time.
    Dead(Duration),
}

impl Upstream {
    pub(super) fn new(now: Instant) -> Self {
        Self { proven: now, asked: None, acknowledged: 0 }
    }

    pub(super) fn prove(&mut self, now: Instant) {
        self.proven = now;
        self.asked = None;
    }

    /// Checks the direction. The pong may be queued behind data, so the timeout is longer than after silence.
    pub(super) fn watch(&mut self, now: Instant, stats: &ChannelStats, liveness: Liveness) -> Proof {
        let acknowledged = stats.messages_sent.saturating_sub(stats.in_flight as u64);
        if acknowledged != self.acknowledged || stats.in_flight == 0 {
            self.acknowledged = acknowledged;
            self.prove(now);
        }
        let ask_at = self.proven + liveness.ping_interval;
        let patience = liveness.ping_interval + liveness.pong_timeout;
        match self.asked {
            Some(at) if now >= at + patience => Proof::Dead(now.saturating_duration_since(self.proven)),
            Some(at) => Proof::At(at + patience),
            None if now >= ask_at => {
                self.asked = Some(now);
                Proof::Ask
            }
            None => Proof::At(ask_at),
        }
    }
}
