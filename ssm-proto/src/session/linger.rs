//! Half-closed streams (client side): measures how long the remote side has been silent, as far as this end can determine. MUX-9.
//!
//! ```text
//!  begin ──► data delivered, and the reader waits for more ──► silent for the limit ──► two probes ──► expired
//!                         ▲ data came, or nothing could be received │                        │
//!                         └─────────────────────────────────────────┴────────────────────────┘
//! ```
//!
//! Silence counts only while data of the remote side could be received. At the end, a probe proves this: a message whose
//! acknowledgement must travel all the way back from the agent. All data that the agent sent before that acknowledgement has then
//! arrived too. One probe is not enough: an agent that did not read for a while may have been blocked by a full window. It receives
//! the acknowledgements that it waited for together with the first probe, so that the data that it held back arrives before its
//! acknowledgement of the second probe.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::mux::StreamId;
use crate::{Timeout, TimeoutReason};

/// Interval at which the clock is checked while silence is counted, to detect that the process was stopped.
const TICK: Duration = Duration::from_secs(2);
/// If the time between two checks is longer than this, the process was stopped.
const STOPPED: Duration = Duration::from_secs(4);
/// Maximum time of a normal probe beyond two round trips. A probe that takes longer was sent over a stalled path, or was lost and
/// retransmitted. If the previous slow probe took about as long, the path itself is long instead.
const PROMPT: Duration = Duration::from_secs(1);
/// Time from the answer to the first probe to the second probe, in addition to four round trips.
const CONFIRM: Duration = Duration::from_secs(1);
/// Maximum time of a normal probe on any path.
const LONGEST_WAY: Duration = Duration::from_secs(10);

/// The half-closed streams of a session.
#[derive(Debug, Default)]
pub(super) struct Lingers {
    streams: BTreeMap<StreamId, Linger>,
    /// Streams with data that has not been sent yet.
    unsent: BTreeSet<StreamId>,
    /// Streams whose data is delivered once the message with this number is acknowledged.
    undelivered: BTreeSet<(i64, StreamId)>,
    /// Whether data of the remote side could not be received at the last check.
    deaf: bool,
    /// Silence before this time does not count.
    floor: Option<Instant>,
    looked_at: Option<Instant>,
    /// Lower bound of the times at which a stream reaches its limit.
    check_at: Option<Instant>,
    probe: Probe,
    /// Set between the answer to the first probe and the answer to the second one.
    proof: Option<Proof>,
    /// Duration of the last slow probe.
    last_slow: Duration,
}

#[derive(Debug)]
struct Linger {
    limit: Duration,
    /// The newest message that may carry the stream's data, until it is acknowledged.
    awaits: Option<i64>,
    delivered: bool,
    reader_waits: bool,
    /// The time since which `delivered` and `reader_waits` have both been true.
    since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Probe {
    #[default]
    None,
    Wanted,
    Sent {
        number: i64,
        at: Instant,
    },
}

#[derive(Clone, Copy, Debug)]
struct Proof {
    /// When the first probe was sent.
    asked: Instant,
    /// When to send the second probe.
    again_at: Instant,
}

/// The state of the data channel.
pub(super) struct Path<F> {
    /// Whether data that the remote side sends now would be received.
    pub(super) can_receive: bool,
    /// Smoothed round-trip time.
    pub(super) srtt: Option<Duration>,
    /// Returns whether the message with this number and all before it arrived.
    pub(super) arrived: F,
}

impl Lingers {
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Starts to watch a stream whose local end finished. `last` is the newest message that may carry its data; `None` if some data
    /// has not been sent yet.
    pub(super) fn begin(&mut self, now: Instant, id: StreamId, limit: Duration, last: Option<i64>, reader_waits: bool) {
        if self.streams.is_empty() {
            *self = Self { looked_at: Some(now), ..Self::default() };
        }
        self.streams.insert(id, Linger { limit, awaits: last, delivered: false, reader_waits, since: None });
        match last {
            Some(number) => drop(self.undelivered.insert((number, id))),
            None => drop(self.unsent.insert(id)),
        }
    }

    /// Stops watching a stream that has ended.
    pub(super) fn end(&mut self, id: StreamId) {
        if let Some(linger) = self.streams.remove(&id) {
            self.unsent.remove(&id);
            linger.awaits.map(|number| self.undelivered.remove(&(number, id)));
        }
    }

    /// Handles that data arrived. From now on the limit of the silence is `limit`.
    pub(super) fn data_arrived(&mut self, id: StreamId, limit: Duration) {
        if let Some(linger) = self.streams.get_mut(&id) {
            (linger.limit, linger.reader_waits, linger.since) = (limit, false, None);
        }
    }

    /// Handles that the reader has read all data and waits for more. Returns whether silence counts from now on.
    pub(super) fn reader_waits(&mut self, now: Instant, id: StreamId) -> bool {
        let Some(linger) = self.streams.get_mut(&id).filter(|linger| !linger.reader_waits) else { return false };
        linger.reader_waits = true;
        self.start(now, id)
    }

    /// Handles that a message was sent.
    pub(super) fn sent(&mut self, number: i64, has_unsent: impl Fn(StreamId) -> bool) {
        if self.unsent.is_empty() {
            return;
        }
        for id in self.unsent.extract_if(.., |id| !has_unsent(*id)) {
            self.undelivered.insert((number, id));
            self.streams.entry(id).and_modify(|linger| linger.awaits = Some(number));
        }
    }

    pub(super) fn wants_probe(&self) -> bool {
        matches!(self.probe, Probe::Wanted)
    }

    pub(super) fn probe_sent(&mut self, at: Instant, number: i64) {
        self.probe = Probe::Sent { number, at };
    }

    /// Checks the clock and the state of the data channel. Returns the streams whose remote side was silent for too long.
    pub(super) fn look(&mut self, now: Instant, path: Path<impl Fn(i64) -> bool>) -> Vec<StreamId> {
        while let Some((_, id)) = self.undelivered.first().copied().filter(|(number, _)| (path.arrived)(*number)) {
            self.undelivered.pop_first();
            if let Some(linger) = self.streams.get_mut(&id) {
                (linger.awaits, linger.delivered) = (None, true);
                self.start(now, id);
            }
        }
        let was_stopped = self.looked_at.is_some_and(|at| now.saturating_duration_since(at) > STOPPED);
        if was_stopped || (self.deaf && path.can_receive) {
            self.restart(now);
        }
        (self.looked_at, self.deaf) = (Some(now), !path.can_receive);
        if self.deaf {
            return Vec::new();
        }
        match self.probe {
            Probe::Sent { number, at } if (path.arrived)(number) => {
                self.probe = Probe::None;
                let took = now.saturating_duration_since(at);
                let usual = (PROMPT + path.srtt.unwrap_or_default() * 2).max(self.last_slow * 3 / 2);
                if took > usual.min(LONGEST_WAY) {
                    self.last_slow = took;
                    self.restart(now);
                } else if let Some(first) = self.proof.take() {
                    return self.expire(first.asked);
                } else {
                    let again_at = now + CONFIRM + path.srtt.unwrap_or_default() * 4;
                    self.proof = Some(Proof { asked: at, again_at });
                }
            }
            Probe::None if self.proof.is_some_and(|proof| now >= proof.again_at) => self.probe = Probe::Wanted,
            Probe::None if self.proof.is_none() && self.check_at.is_some_and(|at| now >= at) => {
                self.check_at = self.streams.values().filter_map(|linger| self.due(linger)).min();
                if self.check_at.is_some_and(|at| now >= at) {
                    self.probe = Probe::Wanted;
                }
            }
            _ => {}
        }
        Vec::new()
    }

    /// Returns when to call [`Lingers::look`] next.
    pub(super) fn poll_timeout(&self) -> Option<Timeout> {
        let check = self.check_at.filter(|_| !self.is_empty())?;
        let tick = self.looked_at.map_or(check, |at| at + TICK);
        let counts = !self.deaf && matches!(self.probe, Probe::None);
        let next = self.proof.map_or(check, |proof| proof.again_at);
        let at = if counts { next.min(tick) } else { tick };
        Some(Timeout { at, reason: TimeoutReason::Linger })
    }

    fn start(&mut self, now: Instant, id: StreamId) -> bool {
        let Some(linger) = self.streams.get_mut(&id).filter(|linger| linger.delivered && linger.reader_waits) else {
            return false;
        };
        linger.since = Some(now);
        let due = now + linger.limit;
        self.check_at = Some(self.check_at.map_or(due, |check| check.min(due)));
        true
    }

    /// Restarts the silence of all streams, because data of the remote side may not have been received until now.
    fn restart(&mut self, now: Instant) {
        self.floor = Some(now);
        (self.probe, self.proof) = (Probe::None, None);
    }

    fn due(&self, linger: &Linger) -> Option<Instant> {
        let since = linger.since?;
        Some(self.floor.map_or(since, |floor| since.max(floor)) + linger.limit)
    }

    /// Removes and returns the streams that had reached their limit when the first probe was sent and are still silent.
    fn expire(&mut self, probed_at: Instant) -> Vec<StreamId> {
        let over = |linger| self.due(linger).is_some_and(|due| due <= probed_at);
        let expired: Vec<_> = self.streams.iter().filter(|(_, linger)| over(linger)).map(|(id, _)| *id).collect();
        for id in &expired {
            self.end(*id);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const ID: StreamId = StreamId(3);

    /// One half-closed stream whose data was delivered and whose reader waits, in virtual time.
    struct Clock {
        lingers: Lingers,
        start: Instant,
        arrived: i64,
    }

    impl Clock {
        fn new() -> Self {
            let (start, mut lingers) = (Instant::now(), Lingers::default());
            lingers.begin(start, ID, LIMIT, Some(7), true);
            let mut clock = Self { lingers, start, arrived: 7 };
            assert!(clock.look(0, true).is_empty());
            clock
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn look(&mut self, second: u64, can_receive: bool) -> Vec<StreamId> {
            let arrived = self.arrived;
            let path = Path { can_receive, srtt: None, arrived: |number| number <= arrived };
            self.lingers.look(self.at(second), path)
        }

        /// Checks every other second and answers a probe immediately. Returns the second at which the stream expired.
        fn run(&mut self, from: u64, to: u64) -> Option<u64> {
            (from..to).step_by(2).find(|second| {
                assert!(self.look(*second, true).is_empty(), "expired without a proof");
                if !self.lingers.wants_probe() {
                    return false;
                }
                self.arrived += 1;
                self.lingers.probe_sent(self.at(*second), self.arrived);
                !self.look(*second, true).is_empty()
            })
        }
    }

    #[test]
    fn a_silence_that_could_be_heard_ends_the_stream() {
        let mut clock = Clock::new();
        assert_eq!(clock.run(2, 100), Some(32));
        assert!(clock.lingers.is_empty());
        assert_eq!(clock.lingers.poll_timeout(), None);
    }

    #[test]
    fn what_could_not_be_heard_does_not_count() {
        let mut clock = Clock::new();
        assert_eq!(clock.run(2, 20), None);
        assert!(clock.look(20, false).is_empty() && clock.look(22, false).is_empty());
        assert_eq!(clock.run(24, 100), Some(56));
    }

    #[test]
    fn a_process_that_stood_still_heard_nothing() {
        let mut clock = Clock::new();
        assert_eq!(clock.run(2, 20), None);
        assert_eq!(clock.run(80, 200), Some(112));
    }

    #[test]
    fn unread_data_and_a_busy_reader_stop_the_clock() {
        let mut clock = Clock::new();
        clock.lingers.data_arrived(ID, LIMIT);
        assert_eq!(clock.run(2, 90), None);
        assert_eq!(clock.lingers.poll_timeout(), None);
        clock.lingers.reader_waits(clock.at(90), ID);
        clock.lingers.reader_waits(clock.at(100), ID);
        assert_eq!(clock.run(90, 200), Some(122));
    }

    #[test]
    fn the_clock_starts_when_what_was_written_has_arrived() {
        let (start, mut lingers) = (Instant::now(), Lingers::default());
        lingers.begin(start, ID, LIMIT, None, true);
        let mut clock = Clock { lingers, start, arrived: 7 };
        assert_eq!(clock.run(0, 50), None, "data is still unsent");
        clock.lingers.sent(8, |_| true);
        clock.lingers.sent(9, |_| false);
        clock.arrived = 8;
        assert_eq!(clock.run(50, 90), None, "the data is still in transit");
        clock.arrived = 9;
        assert_eq!(clock.run(90, 200), Some(122));
    }

    #[test]
    fn a_probe_that_takes_long_met_a_stalled_path_and_the_silence_begins_anew() {
        let mut clock = Clock::new();
        for second in (2..=30).step_by(2) {
            assert!(clock.look(second, true).is_empty());
        }
        assert!(clock.lingers.wants_probe());
        clock.lingers.probe_sent(clock.at(30), 8);
        for second in (32..60).step_by(2) {
            assert!(clock.look(second, true).is_empty(), "no proof yet");
        }
        clock.arrived = 8;
        assert!(clock.look(60, true).is_empty());
        assert_eq!(clock.run(62, 200), Some(92));
    }

    #[test]
    fn what_comes_between_the_two_probes_saves_the_stream() {
        let mut clock = Clock::new();
        for second in (2..=30).step_by(2) {
            clock.look(second, true);
        }
        clock.lingers.probe_sent(clock.at(30), 8);
        clock.arrived = 8;
        assert!(clock.look(30, true).is_empty(), "one probe proves only that the path works now");
        clock.lingers.data_arrived(ID, LIMIT);
        clock.lingers.reader_waits(clock.at(31), ID);
        assert_eq!(clock.run(32, 200), Some(64));
    }

    #[test]
    fn what_comes_before_the_proof_saves_the_stream() {
        let mut clock = Clock::new();
        for second in (2..=30).step_by(2) {
            clock.look(second, true);
        }
        clock.lingers.probe_sent(clock.at(30), 8);
        clock.lingers.data_arrived(ID, LIMIT);
        clock.arrived = 8;
        assert!(clock.look(30, true).is_empty());
        clock.lingers.end(ID);
        assert!(clock.lingers.is_empty());
    }
}
