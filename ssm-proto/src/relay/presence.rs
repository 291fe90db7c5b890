//! Whether the relay is still there, as far as its client can see (RELAY-19).

use std::time::{Duration, Instant};

/// The relay is gone after so many rounds of refused attempts while there was no pipe.
const ROUNDS: u32 = 3;

/// What the client concludes from how its attempts to open pipes end.
///
/// A refused connection to the relay's port does not prove much: the agent may have run out of something, or the relay may have
/// too many unfinished pipes. The relay that is given up would keep its connections until its patience ends (RELAY-14).
///
/// Several sessions that are refused in the same moment prove no more than one. Therefore rounds are counted: an attempt belongs
/// to a new round if it began after the refusal that began the last round was handled.
#[derive(Debug, Default)]
pub struct Presence {
    rounds: u32,
    /// When the refusal that began the last round was handled.
    since: Option<Instant>,
}

impl Presence {
    /// A refusal is handled, and the session's next attempt begins, after this delay.
    pub const DELAY: Duration = Duration::from_millis(200);

    /// A pipe was opened.
    pub fn opened(&mut self) {
        *self = Self::default();
    }

    /// Handles that an attempt, which began at `began`, was refused. `living` is the number of other pipes. Returns whether the
    /// relay is gone.
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

    /// Longest time that an attempt takes to reach the relay, and its outcome to come back.
    const LATENCY: u64 = 500;

    enum Event {
        /// The attempt of this session, which began at that time, reaches the relay's port.
        Arrives(usize, Instant),
        Refused(usize, Instant),
        Opened,
    }

    /// Sessions that try at once to open a pipe, in virtual time.
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
            // They are connected at the same time, or one after the other.
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

        /// The next event. `refuses`: whether the port refuses now. Returns whether the relay is taken to be gone.
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
