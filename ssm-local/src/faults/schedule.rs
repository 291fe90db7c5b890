//! The schedule of a fault as a value.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{When, later};

/// The progress of a [`When`].
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    when: When,
    /// The start of the first period.
    first: Instant,
    /// Number of messages, calls and other items that arrived during a period.
    seen: u64,
    /// Number of times that the fault has acted.
    acted: u64,
    /// The number of the next period whose start was not reported yet.
    next: u64,
}

impl Schedule {
    /// Creates a schedule whose times count from `start`.
    pub(super) fn new(when: When, start: Instant) -> Self {
        let first = later(start, when.after.or(when.every).unwrap_or_default());
        Self { when, first, seen: 0, acted: 0, next: 0 }
    }

    /// Creates the schedule of an event. The duration of an event does not limit when the event can begin.
    pub(super) fn of_event(when: When, start: Instant) -> Self {
        Self::new(When { lasts: None, ..when }, start)
    }

    /// Returns whether messages cause the event, instead of the time.
    pub(super) fn is_by_message(&self) -> bool {
        self.when.nth.is_some() || self.when.probability < 1.0
    }

    /// Records a message, a call or another item. Returns whether the fault acts on it.
    pub(super) fn hits(&mut self, now: Instant, rng: &mut Rng) -> bool {
        if self.is_used_up() || !self.is_open(now) {
            return false;
        }
        self.seen += 1;
        let hit = self.when.nth.is_none_or(|nth| self.seen.is_multiple_of(nth.max(1)))
            && (self.when.probability >= 1.0 || rng.f64() < self.when.probability);
        self.acted += u64::from(hit);
        hit
    }

    /// Handles that the time has advanced. Returns whether the event happens.
    pub(super) fn strikes(&mut self, now: Instant) -> bool {
        if self.next_strike().is_none_or(|at| now < at) {
            return false;
        }
        let (opening, _) = self.opening(now).unwrap_or_default();
        self.next = opening + 1;
        self.acted += 1;
        true
    }

    /// Returns when [`Schedule::strikes`] can return `true` next.
    pub(super) fn next_strike(&self) -> Option<Instant> {
        if self.is_used_up() || self.is_by_message() {
            return None;
        }
        match (self.next, self.when.every) {
            (0, _) => Some(self.first),
            (_, None) => None,
            (next, Some(every)) => {
                let nanoseconds = every.as_nanos().checked_mul(next.into())?;
                self.first.checked_add(Duration::from_nanos(u64::try_from(nanoseconds).ok()?))
            }
        }
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.when.times.is_some_and(|times| self.acted >= times)
    }

    fn is_open(&self, now: Instant) -> bool {
        self.opening(now).is_some_and(|(_, since)| self.when.lasts.is_none_or(|lasts| since < lasts))
    }

    /// Returns the current period's number, and the time since its start.
    fn opening(&self, now: Instant) -> Option<(u64, Duration)> {
        let since = now.checked_duration_since(self.first)?;
        let Some(every) = self.when.every.filter(|every| !every.is_zero()) else { return Some((0, since)) };
        let (since, every) = (since.as_nanos(), every.as_nanos());
        let nanoseconds = u64::try_from(since % every).ok()?;
        Some((u64::try_from(since / every).ok()?, Duration::from_nanos(nanoseconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns the seconds, out of the first 20, in which the fault acts.
    fn hit(when: When) -> Vec<u32> {
        let start = Instant::now();
        let (mut schedule, mut rng) = (Schedule::new(when, start), Rng::with_seed(1));
        (0..20).filter(|second| schedule.hits(start + SECOND * *second, &mut rng)).collect()
    }

    fn struck(when: When) -> Vec<u32> {
        let start = Instant::now();
        let mut schedule = Schedule::of_event(when, start);
        (0..20).filter(|second| schedule.strikes(start + SECOND * *second)).collect()
    }

    #[test]
    fn openings_begin_last_and_return() {
        let base = When { after: Some(SECOND * 3), ..When::default() };
        assert_eq!(hit(base), (3..20).collect::<Vec<_>>());
        assert_eq!(hit(When { lasts: Some(SECOND * 2), ..base }), [3, 4]);
        assert_eq!(hit(When { lasts: Some(SECOND * 2), every: Some(SECOND * 6), ..base }), [3, 4, 9, 10, 15, 16]);
        assert_eq!(hit(When { nth: Some(7), ..base }), [9, 16]);
        assert_eq!(hit(When { times: Some(2), ..base }), [3, 4]);
        assert_eq!(hit(When { every: Some(SECOND * 8), lasts: Some(SECOND), ..When::default() }), [8, 16]);
    }

    #[test]
    fn events_happen_at_each_start() {
        assert_eq!(struck(When::default()), [0]);
        let after = When { after: Some(SECOND * 3), ..When::default() };
        assert_eq!(struck(after), [3]);
        assert_eq!(struck(When { every: Some(SECOND * 6), ..after }), [3, 9, 15]);
        assert_eq!(struck(When { every: Some(SECOND * 6), times: Some(2), ..after }), [3, 9]);
        assert_eq!(struck(When { every: Some(SECOND * 9), ..When::default() }), [9, 18]);
        assert_eq!(struck(When { nth: Some(1), ..after }), [0; 0]);
    }

    #[test]
    fn a_clock_that_jumps_tells_of_the_last_start_only() {
        let start = Instant::now();
        let mut schedule = Schedule::of_event(When { every: Some(SECOND), ..When::default() }, start);
        assert!(schedule.strikes(start + SECOND * 5));
        assert!(!schedule.strikes(start + SECOND * 5));
        assert_eq!(schedule.next_strike(), Some(start + SECOND * 6));
    }

    #[test]
    fn probability_follows_from_the_seed() {
        let when = When { probability: 0.5, ..When::default() };
        let seen = hit(when);
        assert_eq!(seen, hit(when));
        assert!((5..15).contains(&seen.len()), "{seen:?}");
    }
}
