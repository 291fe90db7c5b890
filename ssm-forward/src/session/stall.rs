//! Detects that one stream blocks all streams of a session.
//!
//! Version 1 of smux has no flow control per stream. Data that one stream's reader does not read blocks the data behind it. An
//! agent whose destination does not read accepts no more data of the session.

use std::time::{Duration, Instant};

use ssm_proto::{Session, StreamId};

/// Pauses shorter than this belong to the same congestion, because a slow reader fills its buffer repeatedly.
const CALM: Duration = Duration::from_secs(3);
/// A working agent acknowledges within a fraction of this time, in addition to the path's round-trip time.
const SILENCE: Duration = Duration::from_secs(1);
/// Number of additional round trips that an acknowledgement may take.
const ROUND_TRIPS: u32 = 4;

/// A session that makes little or no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) end: StalledEnd,
    pub(crate) since: Instant,
}

/// The end that accepts no more data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StalledEnd {
    /// A reader at this end: the receive buffers are full.
    Reader,
    /// The agent, most likely because a destination accepts no more data: nothing is acknowledged.
    Destination,
}

/// When the receive buffers were full.
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
        // While nothing is read, acknowledgements are not received either.
        if let Some(period) = congestion.current(now) {
            return Some(Self { end: StalledEnd::Reader, since: period.since });
        }
        let channel = protocol.stats().channel;
        let since = channel.unacknowledged_since?;
        let patience = SILENCE + channel.srtt.unwrap_or_default() * ROUND_TRIPS;
        (now.saturating_duration_since(since) >= patience).then_some(Self { end: StalledEnd::Destination, since })
    }

    /// The stream that causes the stall, as far as this end can determine it.
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
