//! The faults in force, shared by all code that applies faults.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::sync::Notify;

use super::schedule::Schedule;
use super::{Actor, ApiAnswer, Effect, Fault, Faults, SessionFaults};

/// The faults in force and their progress.
#[derive(Debug)]
pub(crate) struct Armed {
    state: Mutex<ArmedState>,
    changed: Notify,
}

#[derive(Debug)]
struct ArmedState {
    faults: Faults,
    /// All faults except the faults of sessions, which each session applies itself.
    running: Vec<Running>,
    rng: Rng,
    /// Number of sessions that got faults. Each session has its own random seed.
    sessions: u64,
}

#[derive(Debug)]
struct Running {
    fault: Fault,
    schedule: Schedule,
}

/// The faults of a connection to a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) delay: Duration,
    pub(crate) fails: bool,
    /// Whether the destination reads nothing.
    pub(crate) deaf: bool,
}

impl Armed {
    pub(crate) fn new(faults: Faults, now: Instant) -> Self {
        Self { state: Mutex::new(ArmedState::new(faults, now)), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, ArmedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Replaces all faults. The times of the new faults start now.
    pub(crate) fn set(&self, faults: Faults, now: Instant) {
        *self.lock() = ArmedState::new(faults, now);
        self.changed.notify_one();
    }

    /// Waits until [`Armed::set`] is called.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the faults of a new session; `None` if there are none.
    pub(crate) fn of_session(&self, now: Instant) -> Option<Box<SessionFaults>> {
        let mut state = self.lock();
        if !state.faults.iter().any(|fault| fault.effect.is_of_session()) {
            return None;
        }
        // The seeds of successive sessions differ in many bits, so that their random numbers are unrelated.
        let seed = state.faults.seed ^ state.sessions.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state.sessions += 1;
        Some(Box::new(SessionFaults::new(state.faults.iter(), seed, now)))
    }

    /// Returns the API's response to this call, if a fault replaces it.
    pub(crate) fn api(&self, now: Instant, called: &str) -> Option<ApiAnswer> {
        let hit = self.lock().hit(now, |effect| match effect {
            Effect::Api { operation: Some(operation), .. } => operation == called,
            Effect::Api { operation: None, answer } => answer.fits(called),
            _ => false,
        });
        hit.into_iter().find_map(|effect| match effect {
            Effect::Api { answer, .. } => Some(answer),
            _ => None,
        })
    }

    /// Returns the agent's version for a session that starts, if a fault replaces it.
    pub(crate) fn agent_version(&self, now: Instant) -> Option<String> {
        let hit = self.lock().hit(now, |effect| matches!(effect, Effect::AgentVersion { .. }));
        hit.into_iter().find_map(|effect| match effect {
            Effect::AgentVersion { version } => Some(version),
            _ => None,
        })
    }

    /// Returns the faults of the next connection to a destination.
    pub(crate) fn dial(&self, now: Instant) -> Dial {
        let mut dial = Dial::default();
        let concerned =
            |effect: &Effect| matches!(effect, Effect::SlowDial { .. } | Effect::FailDial | Effect::DeafDestination);
        for effect in self.lock().hit(now, concerned) {
            match effect {
                Effect::SlowDial { by } => dial.delay += by,
                Effect::FailDial => dial.fails = true,
                _ => dial.deaf = true,
            }
        }
        dial
    }

    /// Returns the faults of the nodes that are due, and the time of the next one.
    pub(crate) fn due(&self, now: Instant) -> (Vec<Fault>, Option<Instant>) {
        let mut state = self.lock();
        let (mut due, mut next) = (Vec::new(), None);
        for running in state.running.iter_mut().filter(|running| running.fault.effect.actor() == Actor::Nodes) {
            if running.schedule.strikes(now) {
                due.push(running.fault.clone());
            }
            next = next.into_iter().chain(running.schedule.next_strike()).min();
        }
        (due, next)
    }
}

impl ArmedState {
    fn new(faults: Faults, now: Instant) -> Self {
        let mut running = Vec::new();
        for fault in faults.iter().filter(|fault| !fault.effect.is_of_session()) {
            let schedule = match fault.effect.actor() {
                Actor::Nodes => Schedule::of_event(fault.when, now),
                _ => Schedule::new(fault.when, now),
            };
            running.push(Running { fault: fault.clone(), schedule });
        }
        let rng = Rng::with_seed(faults.seed);
        Self { faults, running, rng, sessions: 0 }
    }

    /// Returns the effects that `concerned` selects and that act on this call.
    fn hit(&mut self, now: Instant, concerned: impl Fn(&Effect) -> bool) -> Vec<Effect> {
        let mut hit = Vec::new();
        for running in self.running.iter_mut().filter(|running| concerned(&running.fault.effect)) {
            if running.schedule.hits(now, &mut self.rng) {
                hit.push(running.fault.effect.clone());
            }
        }
        hit
    }
}

impl ApiAnswer {
    /// Returns whether an operation can have this response.
    fn fits(self, operation: &str) -> bool {
        match self {
            Self::NoToken | Self::ExpiredToken | Self::NewUrl => {
                matches!(operation, "StartSession" | "ResumeSession")
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn armed(specs: &[&str], now: Instant) -> Armed {
        Armed::new(specs.iter().fold(Faults::new(), |faults, spec| faults.with(spec.parse().unwrap())), now)
    }

    #[test]
    fn calls_are_answered_for_a_time_or_a_number() {
        let now = Instant::now();
        let two = armed(&["expired-credentials,times=2"], now);
        assert_eq!(two.api(now, "GetDocument"), Some(ApiAnswer::ExpiredCredentials));
        assert_eq!(two.api(now, "StartSession"), Some(ApiAnswer::ExpiredCredentials));
        assert_eq!(two.api(now, "StartSession"), None);
        let timed = armed(&["api,answer=throttled,operation=ResumeSession,for=1s"], now);
        assert_eq!(timed.api(now, "StartSession"), None);
        assert_eq!(timed.api(now, "ResumeSession"), Some(ApiAnswer::Throttled));
        assert_eq!(timed.api(now + SECOND, "ResumeSession"), None);
        let token = armed(&["api,answer=no-token"], now);
        assert_eq!(token.api(now, "GetDocument"), None);
        assert_eq!(token.api(now, "StartSession"), Some(ApiAnswer::NoToken));
    }

    #[test]
    fn dials_add_up() {
        let now = Instant::now();
        let armed =
            armed(&["slow-dial,by=1s", "slow-dial,by=2s,nth=2", "fail-dial,nth=3", "deaf-destination,times=1"], now);
        let seconds = |seconds| Dial { delay: SECOND * seconds, ..Dial::default() };
        assert_eq!(armed.dial(now), Dial { deaf: true, ..seconds(1) });
        assert_eq!(armed.dial(now), seconds(3));
        assert_eq!(armed.dial(now), Dial { fails: true, ..seconds(1) });
    }

    #[test]
    fn nodes_have_their_time() {
        let now = Instant::now();
        let armed = armed(&["restart-agent,every=10s", "reboot,after=15s,for=1s"], now);
        assert_eq!(armed.due(now), (vec![], Some(now + SECOND * 10)));
        let (due, next) = armed.due(now + SECOND * 10);
        assert!(matches!(&due[..], [Fault { effect: Effect::RestartAgent { .. }, .. }]));
        assert_eq!(next, Some(now + SECOND * 15));
        assert!(matches!(&armed.due(now + SECOND * 15).0[..], [Fault { effect: Effect::Reboot { .. }, .. }]));
    }

    #[test]
    fn sessions_without_faults_of_their_own_have_none() {
        let now = Instant::now();
        assert!(armed(&["reboot", "slow-dial,by=1s", "api,answer=error"], now).of_session(now).is_none());
        assert!(armed(&["drop"], now).of_session(now).is_some());
    }
}
