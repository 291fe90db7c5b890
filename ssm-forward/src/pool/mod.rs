//! The sessions to one destination: which of them takes a new connection, and when there are more, fewer or new ones.
//!
//! Each place in the pool is a [`member`], a task that keeps one session and starts a new one when it is gone. The pool only
//! counts and chooses. One session is the ordinary case; several carry more, because the agent's pace is per session.

mod member;
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
use member::Member;
use state::Shared;
pub(crate) use state::StreamLease;

/// How many sessions there are, and what happens when one is gone.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PoolConfig {
    /// How many sessions share the connections. Default: one.
    pub size: PoolSize,
    /// Start a new session when one is gone for good (terminated, timed out, its node rebooted). Default: true.
    pub restart: bool,
    /// How long a new connection waits for a session before it is reset. Default: 60 s.
    pub hold: Duration,
    /// [`PoolSize::Auto`]: a session beyond the first that had no connection for so long is terminated. Default: 60 s.
    pub retire_after: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            size: PoolSize::Fixed(1),
            restart: true,
            hold: Duration::from_secs(60),
            retire_after: Duration::from_secs(60),
        }
    }
}

/// How many sessions share the connections of a forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// So many, at least one.
    Fixed(usize),
    /// One at first; another each time all are busy, up to so many.
    Auto {
        /// The most.
        max: usize,
    },
}

impl PoolSize {
    fn at_first(self) -> usize {
        match self {
            Self::Fixed(size) => size.max(1),
            Self::Auto { .. } => 1,
        }
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
    /// See that the remote port takes a connection before the first one counts as ready.
    pub(crate) wait_ready: bool,
    pub(crate) on_event: Arc<dyn Fn(ForwardEvent) + Send + Sync>,
}

/// How often the pool looks at how busy its sessions are.
const TICK: Duration = Duration::from_millis(500);
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
        Self { blueprint: Arc::new(blueprint), shared: Arc::new(Shared::default()) }
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
            if self.wants_more() {
                members.spawn(self.new_member().run().in_current_span());
            }
            tokio::select! {
                Some(ended) = members.join_next() => {
                    ended.map_err(|error| ForwardError::SessionEnded(format!("a session's task ended: {error}")))??;
                }
                () = self.shared.changed() => {}
                _ = ticks.tick() => {
                    self.shared.lock().measure(Instant::now());
                    self.retire();
                }
            }
        }
    }

    /// A stream of the least busy session; waits for one if there is none.
    ///
    /// # Errors
    /// There was none for as long as the configuration says.
    pub(crate) async fn open_stream(&self) -> Result<(SessionStream, StreamLease), StreamError> {
        let deadline = Instant::now() + self.blueprint.pool.hold;
        let _demand = self.shared.demand();
        loop {
            let changed = self.shared.changed();
            let Some((session, lease)) = self.shared.choose() else {
                if timeout_at(deadline, changed).await.is_err() {
                    let seconds = self.blueprint.pool.hold.as_secs();
                    return Err(StreamError::SessionEnded(format!("there was no session for {seconds} s")));
                }
                continue;
            };
            match session.open_stream().await {
                // It ended at this very moment; its member starts another.
                Err(StreamError::SessionEnded(_)) if Instant::now() < deadline => drop(lease),
                outcome => return outcome.map(|stream| (stream, lease)),
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

    fn wants_more(&self) -> bool {
        let state = self.shared.lock();
        // One at a time: the API throttles StartSession, and what the last one brought is to be seen first.
        if state.is_starting() {
            return false;
        }
        match self.blueprint.pool.size {
            PoolSize::Fixed(_) => state.len() < self.blueprint.pool.size.at_first(),
            PoolSize::Auto { max } => state.len() < max && state.all_are_busy(),
        }
    }

    fn retire(&self) {
        if let PoolSize::Auto { .. } = self.blueprint.pool.size {
            self.shared.lock().retire_one(self.blueprint.pool.retire_after);
        }
    }
}
