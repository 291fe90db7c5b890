//! The sessions to one destination: which of them takes a new connection, and when there are more, fewer or new ones.
//!
//! Each place in the pool is a [`member`], a task that keeps one session and starts a new one when it is gone. The pool only
//! counts and chooses ([`state`], [`place`]). Several sessions carry more than one, because the agent's pace is per session, and
//! a connection that blocks its session blocks no other.

mod blocker;
mod member;
mod place;
mod state;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tracing::Instrument as _;

use crate::session::{RetryPolicy, Session, SessionConfig, SessionStream, StreamError, settle};
use crate::stats::Totals;
use crate::{ForwardError, ForwardEvent, SessionProvider, StartRequest};
pub(crate) use blocker::Caller;
use member::Member;
use place::Condition;
pub(crate) use state::StreamLease;
use state::{Limits, Shared};

/// How many sessions there are, and what happens when one is gone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PoolConfig {
    /// How many sessions share the connections. Default: as many as are needed, up to 8.
    pub size: PoolSize,
    /// Start a new session when one is gone for good (terminated, timed out, its node rebooted). Default: true.
    pub restart: bool,
    /// How long a new connection waits for a session before it is reset. Default: 60 s.
    pub hold: Duration,
    /// How long a new connection waits for a session that is being started, where the others are busy, before it shares one of
    /// them. Default: 3 s, about twice what starting a session at AWS takes.
    pub share_after: Duration,
    /// [`PoolSize::Auto`]: a session beyond the first that had no connection for so long is terminated. Default: 60 s.
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

/// How many sessions share the connections of a forwarder.
///
/// A connection stays in the session in which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// So many, at least one.
    Fixed(usize),
    /// One at first, and another for a connection that would have to share: where the others are busy, have just begun, or are
    /// stuck behind a connection that takes nothing. It waits some seconds for that session. One connection alone never needs
    /// a second session, however much it moves.
    Auto {
        /// The most.
        max: usize,
    },
}

impl Default for PoolSize {
    fn default() -> Self {
        Self::Auto { max: 8 }
    }
}

/// How sessions are started.
pub(crate) struct Blueprint {
    /// The first session, if it is there already.
    pub(crate) first: Option<Arc<Session>>,
    pub(crate) provider: Arc<dyn SessionProvider>,
    pub(crate) request: StartRequest,
    pub(crate) session: SessionConfig,
    pub(crate) pool: PoolConfig,
    /// Starting one may take so long.
    pub(crate) connect_timeout: Duration,
    /// How long the first may wait for a target that is not connected.
    pub(crate) wait_connected: Duration,
    /// See that the remote port takes a connection before the first one counts as ready.
    pub(crate) wait_ready: bool,
    pub(crate) on_event: Arc<dyn Fn(ForwardEvent) + Send + Sync>,
}

/// How often the pool looks at how busy its sessions are.
const TICK: Duration = Duration::from_millis(500);
/// How long the one before may take to be over: who makes one connection after the other needs no second session.
const ENDING: Duration = Duration::from_millis(100);
/// Sessions that are started at the same time. The API throttles StartSession.
const STARTS_AT_ONCE: usize = 4;
/// How long after a session that could not be had the next is tried.
const GROWTH_PAUSE: Duration = Duration::from_secs(30);
/// The waits between attempts to start a session.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(30) };

/// The sessions to one destination.
pub(crate) struct Pool {
    blueprint: Arc<Blueprint>,
    shared: Arc<Shared>,
}

impl Pool {
    /// A pool without a session.
    pub(crate) fn new(blueprint: Blueprint) -> Self {
        let PoolConfig { size, hold, share_after, .. } = blueprint.pool;
        let limits = Limits { size, share_after: share_after.min(hold), hold };
        Self { blueprint: Arc::new(blueprint), shared: Arc::new(Shared::new(limits)) }
    }

    /// Starts the first session, calls `on_ready`, and keeps the sessions until `stop` completes or one of them can't go
    /// on. All are terminated when this returns. What goes wrong with the first is told, not tried again: somebody is
    /// waiting for it.
    ///
    /// # Errors
    /// Whatever ended it, except `stop`.
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
                // What was granted and is not ready yet is being terminated.
                settle().await;
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
        settle().await;
        outcome
    }

    async fn keep(&self, members: &mut JoinSet<Result<(), ForwardError>>) -> Result<(), ForwardError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while self.shared.lacks_a_member() {
                members.spawn(self.new_member().run().in_current_span());
            }
            tokio::select! {
                Some(ended) = members.join_next() => {
                    ended.map_err(|error| ForwardError::SessionEnded(format!("a session's task ended: {error}")))??;
                }
                () = self.shared.changed() => {}
                () = self.shared.hungry() => {}
                _ = ticks.tick() => self.look(),
            }
        }
    }

    /// What has to be looked at again and again.
    fn look(&self) {
        self.shared.measure();
        if let PoolSize::Auto { .. } = self.blueprint.pool.size {
            self.shared.lock().retire_one(self.blueprint.pool.retire_after);
        }
        let blockers = self.shared.lock().new_blockers();
        for blocker in blockers {
            (self.blueprint.on_event)(ForwardEvent::Warning { text: blocker.to_string() });
        }
    }

    /// A stream of the session that suits a new connection best; waits for one if there is none, or if a better one can be had.
    ///
    /// # Errors
    /// There was none for as long as the configuration says.
    pub(crate) async fn open_stream(&self, caller: Caller) -> Result<(SessionStream, StreamLease), StreamError> {
        let began = Instant::now();
        let Limits { share_after, hold, .. } = self.shared.limits;
        let mut demand = None;
        loop {
            let changed = self.shared.changed();
            let waited = began.elapsed();
            let (session, mut lease) = match self.shared.choose(waited) {
                Ok(chosen) => chosen,
                Err(_) if waited >= hold => {
                    let seconds = hold.as_secs();
                    return Err(StreamError::SessionEnded(format!("there was no session for {seconds} s")));
                }
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
            demand = None;
            match session.open_stream().await {
                // It ended at this very moment; its member starts another.
                Err(StreamError::SessionEnded(_)) if began.elapsed() < hold => drop(lease),
                outcome => {
                    let stream = outcome?;
                    lease.attach(&stream, caller);
                    return Ok((stream, lease));
                }
            }
        }
    }

    /// A source of the sums over all sessions, past and present.
    pub(crate) fn totals(&self) -> impl Fn() -> Totals + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.lock().totals()
    }

    fn new_member(&self) -> Member {
        Member::new(self.blueprint.clone(), self.shared.clone())
    }
}
