//! Detects from the client's side whether the relay has ended (RELAY-19).

use std::time::{Duration, Instant};

/// Number of rounds of refused attempts, while there is no pipe, after which the relay is considered to have ended.
const ROUNDS: u32 = 3;

/// Decides from the results of the attempts to open pipes whether the relay has ended.
///
/// A single refused connection to the relay's port does not prove that the relay has ended: the agent may be out of a resource, or
/// the relay may have too many unfinished pipes. If the client gave up a relay that still runs, that relay would keep its
/// connections until its grace time is over (RELAY-14).
///
/// Several sessions that are refused at the same moment prove no more than one refusal. Therefore rounds are counted: an attempt
/// belongs to a new round if it began after the refusal that began the last round was handled.
#[derive(Debug, Default)]
pub struct Presence {
    rounds: u32,
    /// When the refusal that began the last round was handled.
    since: Option<Instant>,
}

impl Presence {
    /// Delay after which a refusal is handled and the session's next attempt begins.
    pub const DELAY: Duration = Duration::from_millis(200);

    /// Handles that a pipe was opened.
    pub fn opened(&mut self) {
        *self = Self::default();
    }

    /// Handles that an attempt, which began at `began`, was refused. `living` is the number of other pipes. Returns whether the
    /// relay has ended.
    pub fn refused(&mut self, now: Instant, began: Instant, living: usize) -> bool {
        if living > 0 {
            *self = Self::default();
        } else if self.since.is_none_or(|since| began >= since) {
            self.rounds += 1;
            self.since = Some(now);
        }
        self.rounds >= ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fastrand::Rng;

    use super::*;

    /// Maximum time in milliseconds for an attempt to reach the relay and its result to return.
    const LATENCY: u64 = 500;

    enum Event {
        /// The attempt of this session, which began at that time, reaches the relay's port.
        Arrives(usize, Instant),
        Refused(usize, Instant),
        Opened,
    }

    /// Several sessions that try to open a pipe at the same time, in virtual time.
    struct Run {
        rng: Rng,
        now: Instant,
        events: BTreeMap<(Instant, usize), Event>,
        count: usize,
        presence: Presence,
        living: usize,
    }

    impl Run {
        fn new(seed: u64, now: Instant) -> Self {
            let mut rng = Rng::with_seed(seed);
            let sessions = rng.usize(1..=64);
            let (events, presence) = (BTreeMap::new(), Presence::default());
            let mut run = Self { rng, now, events, count: 0, presence, living: 0 };
            // The sessions are connected at the same time, or one after the other.
            let apart = run.rng.u64(0..20);
            for session in 0..sessions {
                run.now = now + Duration::from_millis(apart * session as u64);
                run.attempt(session);
            }
            run
        }

        fn at(&mut self, after: Duration, event: Event) {
            self.count += 1;
            self.events.insert((self.now + after, self.count), event);
        }

        fn latency(&mut self) -> Duration {
            Duration::from_millis(self.rng.u64(0..=LATENCY / 2))
        }

        fn attempt(&mut self, session: usize) {
            let latency = self.latency();
            self.at(latency, Event::Arrives(session, self.now));
        }

        /// Handles the next event. `refuses` returns whether the port refuses at that time. Returns whether the relay is considered
        /// to have ended.
        fn step(&mut self, refuses: impl Fn(Instant) -> bool) -> bool {
            let ((now, _), event) = self.events.pop_first().unwrap();
            self.now = now;
            match event {
                Event::Arrives(session, began) => {
                    let latency = self.latency();
                    match refuses(now) {
                        true => self.at(latency + Presence::DELAY, Event::Refused(session, began)),
                        false => self.at(latency, Event::Opened),
                    }
                }
                Event::Refused(session, began) => {
                    self.attempt(session);
                    return self.presence.refused(now, began, self.living);
                }
                Event::Opened => {
                    self.living += 1;
                    self.presence.opened();
                }
            }
            false
        }
    }

    #[test]
    fn a_port_that_refuses_for_a_moment_is_not_given_up_however_many_sessions_try_at_once() {
        for seed in 0..500 {
            let start = Instant::now();
            let mut run = Run::new(seed, start);
            let from = start + Duration::from_millis(run.rng.u64(0..300));
            let until = from + 2 * Presence::DELAY;
            let (mut refused, mut opened) = (0, false);
            while !run.events.is_empty() {
                refused += usize::from(matches!(run.events.first_key_value(), Some((_, Event::Refused(..)))));
                opened |= matches!(run.events.first_key_value(), Some((_, Event::Opened)));
                let is_gone = run.step(|now| (from..until).contains(&now));
                assert!(!is_gone, "seed {seed}: given up after {refused} refusals, {:?}", run.now - start);
            }
            assert!(opened, "seed {seed}");
        }
    }

    #[test]
    fn a_relay_that_has_ended_is_always_noticed() {
        for seed in 0..500 {
            let start = Instant::now();
            let mut run = Run::new(seed, start);
            let last = run.now;
            while !run.step(|_| true) {}
            let most = (Presence::DELAY + Duration::from_millis(LATENCY)) * ROUNDS;
            assert!(run.now <= last + most, "seed {seed}: noticed after {:?}", run.now - start);
            assert!(run.now >= start + Presence::DELAY * ROUNDS, "seed {seed}: after {:?}", run.now - start);
        }
    }

    #[test]
    fn refusals_while_another_pipe_lives_prove_nothing() {
        let now = Instant::now();
        let at = |number: u32| now + Presence::DELAY * number;
        let mut presence = Presence::default();
        assert!((0..10).all(|number| !presence.refused(at(number + 1), at(number), 1)));
        assert!(!presence.refused(at(11), at(10), 0) && !presence.refused(at(12), at(11), 0));
        assert!(presence.refused(at(13), at(12), 0));
    }
}
