//! Whether the relay is still there, as far as its client can see (RELAY-19).

/// The relay is gone if so many attempts in a row were refused while there was no pipe.
const REFUSALS: u32 = 3;

/// What the client concludes from how its attempts to open pipes end.
///
/// A refused connection to the relay's port does not prove much: the agent may have run out of something, or the relay may have
/// too many unfinished pipes. The relay that is given up would keep its connections until its patience ends (RELAY-14).
#[derive(Debug, Default)]
pub struct Presence {
    refused: u32,
}

impl Presence {
    /// A pipe was opened.
    pub fn opened(&mut self) {
        self.refused = 0;
    }

    /// An attempt was refused, while this number of other pipes lives. Returns whether the relay is gone.
    pub fn refused(&mut self, living: usize) -> bool {
        self.refused = if living > 0 { 0 } else { self.refused + 1 };
        self.refused >= REFUSALS
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Sessions with a pipe, or without one.
    struct Run {
        rng: Rng,
        presence: Presence,
        pipes: Vec<bool>,
        /// Attempts in a row that the network refused while no pipe lived.
        unlucky: u32,
    }

    impl Run {
        /// One session loses its pipe, or tries to open one. Returns whether the relay is taken to be gone.
        fn step(&mut self, is_running: bool) -> bool {
            let session = self.rng.usize(0..self.pipes.len());
            if std::mem::take(&mut self.pipes[session]) {
                return false;
            }
            let living = self.pipes.iter().filter(|lives| **lives).count();
            // A network that refuses one attempt after the other cannot be told from a relay that is gone.
            let is_unlucky = self.rng.bool() && (living > 0 || self.unlucky + 1 < REFUSALS);
            if is_running && !is_unlucky {
                self.pipes[session] = true;
                self.unlucky = 0;
                self.presence.opened();
                return false;
            }
            self.unlucky = if living > 0 { 0 } else { self.unlucky + 1 };
            self.presence.refused(living)
        }
    }

    #[test]
    fn a_relay_that_runs_is_never_given_up_and_one_that_ended_always_is() {
        for seed in 0..500 {
            let mut rng = Rng::with_seed(seed);
            let pipes = vec![false; rng.usize(1..=8)];
            let mut run = Run { rng, presence: Presence::default(), pipes, unlucky: 0 };
            for step in 0..run.rng.usize(0..300) {
                assert!(!run.step(true), "seed {seed}: it was given up in step {step}");
            }
            // It ends, and its pipes with it.
            run.pipes.fill(false);
            let noticed = (1..).find(|_| run.step(false)).unwrap();
            assert!(noticed <= REFUSALS, "seed {seed}: noticed after {noticed} attempts");
        }
    }
}
