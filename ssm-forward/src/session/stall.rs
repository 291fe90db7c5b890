//! Whether a session stands still for all its streams because of one of them.
//!
//! smux version 1 has no credits: what one stream's reader does not take holds up what comes behind it, and an agent whose
//! destination reads no more takes nothing more of the session.

use std::time::{Duration, Instant};

use ssm_proto::{Session, StreamId};

/// A slow reader fills its store again and again. With shorter pauses than this it is one congestion.
const CALM: Duration = Duration::from_secs(3);
/// An agent that works acknowledges within a fraction of this, on top of the path's round trips.
const SILENCE: Duration = Duration::from_secs(1);
/// Round trips that an acknowledgement may take longer.
const ROUND_TRIPS: u32 = 4;

/// A session that stands still, or crawls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) end: StalledEnd,
    pub(crate) since: Instant,
}

/// Which end takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StalledEnd {
    /// A reader at this end: the receive stores are full.
    Reader,
    /// The agent, most likely because a destination takes no more: nothing is acknowledged.
    Destination,
}

/// When the receive stores were full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Congestion(Option<Period>);

#[derive(Clone, Copy, Debug)]
struct Period {
    since: Instant,
    last: Instant,
}

impl Congestion {
    /// They are full now.
    pub(super) fn note(&mut self, now: Instant) {
        let since = self.current(now).map_or(now, |period| period.since);
        self.0 = Some(Period { since, last: now });
    }

    fn current(&self, now: Instant) -> Option<Period> {
        self.0.filter(|period| now.saturating_duration_since(period.last) < CALM)
    }
}

impl Stall {
    pub(super) fn of(protocol: &Session, congestion: &mut Congestion, now: Instant) -> Option<Self> {
        if protocol.is_congested() {
            congestion.note(now);
        }
        // While nothing is read, acknowledgements are not seen either.
        if let Some(period) = congestion.current(now) {
            return Some(Self { end: StalledEnd::Reader, since: period.since });
        }
        let channel = protocol.stats().channel;
        let since = channel.unacknowledged_since?;
        let patience = SILENCE + channel.srtt.unwrap_or_default() * ROUND_TRIPS;
        (now.saturating_duration_since(since) >= patience).then_some(Self { end: StalledEnd::Destination, since })
    }

    /// The stream that is to blame, as far as can be told from this end.
    pub(super) fn culprit(self, protocol: &Session) -> Option<StreamId> {
        match self.end {
            StalledEnd::Reader => protocol.slowest_reader(),
            StalledEnd::Destination => protocol.slowest_destination(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_a_slow_reader_belong_to_one_congestion_and_a_longer_one_ends_it() {
        let began = Instant::now();
        let mut congestion = Congestion::default();
        assert!(congestion.current(began).is_none());
        for seconds in [0, 2, 4] {
            congestion.note(began + Duration::from_secs(seconds));
        }
        let since = |congestion: &Congestion, at| congestion.current(began + at).map(|period| period.since);
        assert_eq!(since(&congestion, Duration::from_secs(6)), Some(began));
        assert_eq!(since(&congestion, Duration::from_secs(7)), None);
        congestion.note(began + Duration::from_secs(8));
        assert_eq!(since(&congestion, Duration::from_secs(8)), Some(began + Duration::from_secs(8)));
    }
}
