//! Detects that a WebSocket is lost: by silence, by sent data without an acknowledgement, and by changes of the network path.

use std::net::SocketAddr;

use ssm_proto::ChannelStats;
use tokio::time::Instant;

use super::Liveness;
use super::path_watch::PathWatch;
use super::upstream::{Proof, Upstream};
use crate::transport::TransportError;

/// The liveness of a WebSocket: when it was last known to work.
#[derive(Debug)]
pub(super) struct Pulse {
    liveness: Liveness,
    heard: Instant,
    /// When the last ping was sent, if nothing has been received since.
    pinged: Option<Instant>,
    upstream: Upstream,
    path_watch: PathWatch,
}

/// The action that is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Whether a ping must be sent now.
    pub(super) ping: bool,
    /// When to check next.
    pub(super) next_check: Instant,
}

impl Pulse {
    /// Returns the state of a WebSocket that was just connected between these addresses.
    pub(super) fn new(now: Instant, path: Option<(SocketAddr, SocketAddr)>, liveness: Liveness) -> Self {
        let path_watch = PathWatch::new(now.into_std(), path);
        Self { liveness, heard: now, pinged: None, upstream: Upstream::new(now), path_watch }
    }

    /// Records that something was received.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    /// Records that a pong was received, or that it cannot be received because nothing is read.
    pub(super) fn proved(&mut self, now: Instant) {
        self.heard(now);
        self.upstream.prove(now);
    }

    /// Checks the WebSocket by what was received until now.
    ///
    /// # Errors
    /// [`TransportError::Silent`] if the WebSocket is lost.
    pub(super) fn check(&mut self, now: Instant, stats: &ChannelStats) -> Result<Due, TransportError> {
        let pong_timeout = self.liveness.pong_timeout;
        let mut ping = self.suspects_path(now);
        if let Some(at) = self.pinged
            && now >= at + pong_timeout
        {
            return Err(TransportError::silent(now.saturating_duration_since(self.heard)));
        }
        ping |= self.pinged.is_none() && now >= self.heard + self.liveness.ping_interval;
        let upstream = match self.upstream.watch(now, stats, self.liveness) {
            Proof::At(at) => Some(at),
            Proof::Ask => {
                ping = true;
                None
            }
            Proof::Dead(silence) => return Err(TransportError::silent(silence)),
        };
        if ping {
            self.pinged = Some(now);
        }
        let heard = self.pinged.map_or(self.heard + self.liveness.ping_interval, |at| at + pong_timeout);
        let path = Instant::from_std(self.path_watch.next_check());
        let next_check = [Some(heard), Some(path), upstream].into_iter().flatten().min().unwrap_or(heard);
        Ok(Due { ping, next_check })
    }

    /// Whether the network path may have failed since the last check.
    fn suspects_path(&mut self, now: Instant) -> bool {
        if now.into_std() < self.path_watch.next_check() {
            return false;
        }
        let Some(change) = self.path_watch.check(now.into_std()).filter(|_| self.pinged.is_none()) else {
            return false;
        };
        tracing::info!(change, "checking whether the service still responds");
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const STEP: Duration = Duration::from_secs(1);

    /// Checks every second. Returns the seconds at which a ping was sent, and the second at which the WebSocket counted as lost.
    fn life(hears: impl Fn(u64, &mut Pulse, Instant), stats: &ChannelStats) -> (Vec<u64>, Option<u64>) {
        let began = Instant::now();
        let mut pulse = Pulse::new(began, None, Liveness::default());
        let mut pings = Vec::new();
        for second in 1..200 {
            let now = began + STEP * u32::try_from(second).unwrap_or_default();
            hears(second, &mut pulse, now);
            match pulse.check(now, stats) {
                Ok(Due { ping, next_check }) => {
                    assert!(next_check > now);
                    pings.extend(ping.then_some(second));
                }
                Err(_) => return (pings, Some(second)),
            }
        }
        (pings, None)
    }

    #[test]
    fn silence_is_asked_about_once_and_then_is_death() {
        let idle = ChannelStats::default();
        assert_eq!(life(|_, _, _| {}, &idle), (vec![30], Some(40)));
        let answered = |second, pulse: &mut Pulse, now| {
            if second % 31 == 0 {
                pulse.proved(now);
            }
        };
        assert_eq!(life(answered, &idle), (vec![30, 61, 92, 123, 154, 185], None));
    }

    #[test]
    fn what_is_received_does_not_prove_that_sent_data_arrives() {
        let mut stuck = ChannelStats::default();
        (stuck.messages_sent, stuck.in_flight) = (9, 9);
        let heard = |_, pulse: &mut Pulse, now| pulse.heard(now);
        assert_eq!(life(heard, &stuck), (vec![30], Some(70)));
        let proved = |_, pulse: &mut Pulse, now| pulse.proved(now);
        assert_eq!(life(proved, &stuck), (vec![], None));
    }
}
