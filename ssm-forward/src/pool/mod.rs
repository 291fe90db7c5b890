//! The sessions to one destination: chooses the session for a new connection, and adds, removes and replaces sessions.
//!
//! Each pool member ([`member`]) is a task that keeps one session and starts a new one when the session is lost. The pool itself
//! only counts and chooses ([`state`], [`place`]). Several sessions carry more data than one, because the agent's pace limits each
//! session, and a connection that blocks its session does not block the others.

mod blocker;
mod member;
mod place;
mod state;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::Instrument as _;

use crate::session::{RetryPolicy, Session, SessionConfig, SessionStream};
use crate::stats::Totals;
use crate::{CloseReason, ForwardError, ForwardEvent, SessionProvider, StartRequest, StreamError};
pub(crate) use blocker::Caller;
use member::Member;
use place::Condition;
pub(crate) use state::{Demand, StreamLease};
use state::{Limits, SharedPool};

/// The number of sessions, and the behaviour when one is lost.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Number of sessions that share the connections. Default: as many as are needed, up to 8.
    pub size: PoolSize,
    /// Whether to start a new session when one is permanently lost (terminated, timed out, its node rebooted).
    /// [`Forwarder::run`](crate::Forwarder::run) documents which errors end the attempts. Default: true.
    pub restart: bool,
    /// How long a new connection waits for a session before it is reset. Default: 60 s.
    pub hold: Duration,
    /// How long a new connection waits for a session that is being started while the others are busy. After that, the connection
    /// shares one of them. Default: 3 s, about twice the time to start a session in AWS.
    pub share_after: Duration,
    /// [`PoolSize::Auto`]: an additional session that had no connection for this time is terminated. Default: 60 s.
    pub retire_after: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            size: PoolSize::default(),
            restart: true,
            hold: Duration::from_secs(60),
            share_after: Duration::from_secs(3),
            retire_after: Duration::from_secs(60),
        }
    }
}

/// The number of sessions that share the connections of a forwarder.
///
/// A connection stays in the session in which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// This number of sessions, at least one.
    Fixed(usize),
    /// One session at first, and another one whenever a new connection would have to share: if the other sessions are busy, have
    /// just received a connection, or are blocked by a connection that accepts no data. The connection waits some seconds for the
    /// new session. A single connection never needs a second session, however much data it transfers. A test that counts sessions
    /// needs [`PoolSize::Fixed`]: two connections in quick succession can start a second session.
    Auto {
        /// Maximum number of sessions.
        max: usize,
    },
}

impl Default for PoolSize {
    fn default() -> Self {
        Self::Auto { max: 8 }
    }
}

/// The settings with which a pool starts its sessions.
pub(crate) struct Blueprint {
    /// The first session, if it exists already.
    pub(crate) first: Option<Arc<Session>>,
    pub(crate) provider: Arc<dyn SessionProvider>,
    pub(crate) request: StartRequest,
    /// The settings of each session. `start_timeout` includes the check of the remote port, if it is enabled.
    pub(crate) session: SessionConfig,
    pub(crate) pool: PoolConfig,
    /// How long the start of the first session is repeated while the target is not connected.
    pub(crate) wait_connected: Duration,
    /// Whether to check that the remote port accepts a connection before the first session counts as ready.
    pub(crate) wait_ready: bool,
    /// Whether each session has one stream, which is a pipe to a relay. Then its loss cuts off no connection, and the owner calls
    /// [`Pool::use_all`] to set whether there are connections.
    pub(crate) carries_pipes: bool,
    pub(crate) on_event: Arc<dyn Fn(ForwardEvent) + Send + Sync>,
}

/// Interval at which the pool measures how busy its sessions are.
const TICK: Duration = Duration::from_millis(500);
/// How long to wait for the end of the previous connection, because a program that opens one connection after the other does not
/// need a second session.
const ENDING: Duration = Duration::from_millis(100);
/// Maximum number of sessions that are started at the same time, because the API throttles StartSession.
const STARTS_AT_ONCE: usize = 4;
/// Delay of the next attempt after an additional session could not be started.
const GROWTH_PAUSE: Duration = Duration::from_secs(30);
/// Delays between attempts to start a session.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(30) };

/// The sessions to one destination.
pub(crate) struct Pool {
    blueprint: Arc<Blueprint>,
    shared: Arc<SharedPool>,
}

impl Pool {
    /// Creates a pool without a session.
    pub(crate) fn new(blueprint: Blueprint) -> Self {
        let PoolConfig { size, hold, share_after, .. } = blueprint.pool;
        let limits = Limits { size, share_after: share_after.min(hold), hold };
        Self { blueprint: Arc::new(blueprint), shared: Arc::new(SharedPool::new(limits)) }
    }

    /// Starts the first session, calls `on_ready`, and keeps the sessions until `stop` completes or one of them cannot continue.
    /// All sessions are terminated when this returns. If the first session cannot be started, the error is returned immediately,
    /// because the user waits for it.
    ///
    /// # Errors
    /// Returns the error that ended the pool. `stop` is not an error.
    pub(crate) async fn run(
        &self,
        on_ready: impl FnOnce(&Session),
        stop: impl Future<Output = ()>,
    ) -> Result<(), ForwardError> {
        let mut members = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        let first = self.new_member();
        let started = tokio::select! {
            started = first.start_first() => started.map_err(Some),
            () = &mut stop => Err(None),
        };
        match started {
            Ok(session) => on_ready(&session),
            Err(failure) => {
                // Waits for the termination of sessions that were granted but are not ready yet.
                self.blueprint.session.terminations.finished().await;
                return failure.map_or(Ok(()), Err);
            }
        }
        members.spawn(first.run().in_current_span());
        let outcome = tokio::select! {
            outcome = self.keep(&mut members) => outcome,
            () = stop => Ok(()),
        };
        self.shared.close();
        while members.join_next().await.is_some() {}
        self.blueprint.session.terminations.finished().await;
        outcome
    }

    async fn keep(&self, members: &mut JoinSet<Result<(), ForwardError>>) -> Result<(), ForwardError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while self.shared.needs_member() {
                members.spawn(self.new_member().run().in_current_span());
            }
            tokio::select! {
                Some(ended) = members.join_next() => {
                    ended.map_err(|_| ForwardError::SessionEnded(CloseReason::Panicked))??;
                }
                () = self.shared.changed() => {}
                () = self.shared.demand_changed() => {}
                _ = ticks.tick() => self.check(),
            }
        }
    }

    /// Runs the periodic checks.
    fn check(&self) {
        self.shared.measure();
        if let PoolSize::Auto { .. } = self.blueprint.pool.size {
            self.shared.lock().retire_one(self.blueprint.pool.retire_after);
        }
        let blockers = self.shared.lock().new_blockers();
        for blocker in blockers {
            (self.blueprint.on_event)(ForwardEvent::Warning { text: blocker.to_string() });
        }
    }

    /// Opens a stream in the session that is best for a new connection. Waits if there is no session, or if a better one can be
    /// expected.
    ///
    /// # Errors
    /// Returns an error if no session was available within the time that the configuration allows.
    pub(crate) async fn open_stream(&self, caller: Caller) -> Result<(SessionStream, StreamLease), StreamError> {
        let began = Instant::now();
        let Limits { share_after, hold, .. } = self.shared.limits;
        let mut demand = None;
        loop {
            let changed = self.shared.changed();
            let waited = began.elapsed();
            let (session, mut lease) = match self.shared.choose(waited, &mut demand) {
                Ok(chosen) => chosen,
                Err(_) if waited >= hold => return Err(StreamError::NoSession(hold)),
                Err(best) => {
                    let until = match best {
                        Some(Condition::Busy) if waited < ENDING => ENDING,
                        _ => {
                            demand.get_or_insert_with(|| self.shared.demand());
                            if waited < share_after { share_after } else { hold }
                        }
                    };
                    let _ = timeout_at(began + until, changed).await;
                    continue;
                }
            };
            match session.open_stream().await {
                // The session ended at this moment. Its member starts another one.
                Err(StreamError::SessionEnded(_)) if began.elapsed() < hold => drop(lease),
                outcome => {
                    let stream = outcome?;
                    lease.attach(&stream, caller);
                    return Ok((stream, lease));
                }
            }
        }
    }

    /// Returns the sessions that accept connections now.
    pub(crate) fn connected(&self) -> Vec<Arc<Session>> {
        self.shared.lock().connected()
    }

    /// Completes at the next change of the sessions. Changes between this call and the first poll are included.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.shared.changed()
    }

    /// Requests one more session while the returned value exists.
    pub(crate) fn demand(&self) -> Demand {
        self.shared.demand()
    }

    /// Whether there are sessions, and none of them is free.
    pub(crate) fn is_busy(&self) -> bool {
        self.shared.lock().is_busy()
    }

    /// Sets whether each session counts as used, for owners that do not open streams through the pool.
    pub(crate) fn use_all(&self, used: bool) {
        self.shared.lock().use_all(used);
    }

    /// Returns a function that computes the totals over all sessions, past and present.
    pub(crate) fn totals(&self) -> impl Fn() -> Totals + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.lock().totals()
    }

    fn new_member(&self) -> Member {
        Member::new(self.blueprint.clone(), self.shared.clone())
    }
}
