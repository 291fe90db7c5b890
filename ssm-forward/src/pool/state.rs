//! The state that members and connections share: the existing sessions, and the choice of a session for a connection.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::blocker::{Blocker, Blocking, Caller};
use super::place::{Condition, Place};
use super::{GROWTH_PAUSE, PoolSize, STARTS_AT_ONCE};
use crate::stats::Totals;
use crate::{Session, SessionStream};

/// The shared state of the pool; see the module.
pub(super) struct SharedPool {
    pub(super) limits: Limits,
    state: Mutex<PoolState>,
    changed: Notify,
    wanted: Notify,
    demand_changed: Notify,
    closing: Notify,
}

/// Maximum number of sessions, and how long a connection waits for one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) size: PoolSize,
    /// How long a connection waits before it shares a busy session.
    pub(super) share_after: Duration,
    /// Maximum duration of the wait.
    pub(super) hold: Duration,
}

/// Identifies a member for the lifetime of the pool.
pub(super) type Number = u64;

#[derive(Default)]
pub(super) struct PoolState {
    next: Number,
    members: BTreeMap<Number, Place>,
    /// Number of connections that wait for a session.
    waiting: usize,
    /// Number of measurements so far.
    measurements: u64,
    /// When to start a further session again after an attempt that failed.
    growth_retry_at: Option<Instant>,
    /// Totals of sessions that have ended.
    past: Totals,
    closing: bool,
}

impl SharedPool {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
            demand_changed: Notify::new(),
            closing: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes at the next change of the sessions. Changes between this call and the first poll are included.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        let mut changed = Box::pin(self.changed.notified());
        changed.as_mut().enable();
        changed
    }

    /// Wakes the waiting connections because a session's WebSocket was connected or lost.
    pub(super) fn connectivity_changed(&self) {
        self.changed.notify_waiters();
    }

    /// Counts one connection as waiting for a session while the returned value exists.
    pub(super) fn demand(self: &Arc<Self>) -> Demand {
        self.lock().waiting += 1;
        self.wanted.notify_waiters();
        self.demand_changed.notify_one();
        Demand { shared: self.clone(), counts: true }
    }

    /// Completes when a connection waits for a session.
    pub(super) async fn wanted(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.lock().waiting > 0 {
                return;
            }
            wanted.await;
        }
    }

    /// Completes when a further connection waits for a session.
    pub(super) async fn demand_changed(&self) {
        self.demand_changed.notified().await;
    }

    /// Requests all members to terminate their sessions and to end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.closing.notify_waiters();
        self.changed.notify_waiters();
    }

    /// Completes when the members must end.
    pub(super) async fn closing(&self) {
        loop {
            let closing = self.closing.notified();
            if self.lock().closing {
                return;
            }
            closing.await;
        }
    }

    /// Chooses the session for a connection that has waited for `waited`. Its demand, if any, is removed in the same step.
    /// Otherwise, the connection would still count as waiting while it already makes a session busy, and another session would be
    /// started.
    ///
    /// # Errors
    /// Returns an error if the connection should continue to wait. The value is the condition of the best session so far.
    pub(super) fn choose(
        self: &Arc<Self>,
        waited: Duration,
        demand: &mut Option<Demand>,
    ) -> Result<(Arc<Session>, StreamLease), Option<Condition>> {
        let mut state = self.lock();
        let (number, condition) = state.best().ok_or(None)?;
        if state.should_wait(condition, waited, self.limits) {
            return Err(Some(condition));
        }
        let measurement = state.measurements;
        let place = state.members.get_mut(&number).ok_or(None)?;
        let session = place.session.clone().ok_or(None)?;
        place.streams += 1;
        place.recent[0] += 1;
        if let Some(mut met) = demand.take() {
            state.waiting -= 1;
            met.counts = false;
        }
        Ok((session.clone(), StreamLease { shared: self.clone(), number, session, measurement, stream: None }))
    }

    /// Whether another session must be started now.
    pub(super) fn needs_member(&self) -> bool {
        self.lock().needs_member(self.limits.size)
    }

    pub(super) fn join(&self) -> (Number, Arc<Notify>) {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let place = Place::new();
        let retire = place.retire.clone();
        state.members.insert(number, place);
        (number, retire)
    }

    /// Records that a member's session is ready. Returns the number of sessions.
    pub(super) fn ready(&self, number: Number, session: Arc<Session>) -> usize {
        let mut state = self.lock();
        if let Some(place) = state.members.get_mut(&number) {
            place.begin(session);
        }
        state.growth_retry_at = None;
        let sessions = state.members.values().filter(|place| place.session.is_some()).count();
        drop(state);
        self.changed.notify_waiters();
        sessions
    }

    /// Records that a member's session has ended. Returns whether the session had streams.
    pub(super) fn gone(&self, number: Number) -> bool {
        let mut state = self.lock();
        let in_use = state.members.get(&number).is_some_and(|place| place.streams > 0);
        let ended = state.members.get_mut(&number).and_then(Place::end);
        if let Some(session) = ended {
            state.past.add(&session);
        }
        in_use
    }

    pub(super) fn set_asleep(&self, number: Number, asleep: bool) {
        if let Some(place) = self.lock().members.get_mut(&number) {
            place.asleep = asleep;
        }
    }

    /// Removes a member if the other members suffice. Returns `false` if the member is needed, or if the number of sessions is
    /// fixed.
    pub(super) fn leave_if_spare(&self, number: Number) -> bool {
        let mut state = self.lock();
        let is_spare = matches!(self.limits.size, PoolSize::Auto { .. }) && state.members.len() > 1;
        if is_spare {
            state.members.remove(&number);
            drop(state);
            self.changed.notify_waiters();
        }
        is_spare
    }

    /// Records that a further session could not be started. Returns whether this is the first failure since a session became ready.
    pub(super) fn growth_failed(&self) -> bool {
        let again = Instant::now() + GROWTH_PAUSE;
        let is_first = self.lock().growth_retry_at.replace(again).is_none();
        self.changed.notify_waiters();
        is_first
    }

    pub(super) fn leave(&self, number: Number) {
        self.lock().members.remove(&number);
    }

    /// Measures how busy the sessions are. Waiting connections then choose again.
    pub(super) fn measure(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        state.measurements += 1;
        state.members.values_mut().for_each(|place| place.measure(now));
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.changed.notify_waiters();
        }
    }
}

impl PoolState {
    /// Returns the member whose session is best for a new connection. Sessions that are reconnecting are excluded, because they may
    /// turn out to be lost.
    fn best(&self) -> Option<(Number, Condition)> {
        let ready = self.members.iter().filter(|(_, place)| place.takes_connections());
        let rated = ready.map(|(number, place)| (place.condition(), place.load(), *number));
        let best = rated.min_by(|(a, x, _), (b, y, _)| a.cmp(b).then(x.total_cmp(y)));
        best.map(|(condition, _, number)| (number, condition))
    }

    /// Whether a connection that has waited for `waited` should continue to wait for a better session than one in this condition.
    fn should_wait(&self, best: Condition, waited: Duration, limits: Limits) -> bool {
        let grows = self.may_grow(limits.size) || self.members.values().any(Place::is_growing);
        match best {
            Condition::Free => false,
            Condition::Busy => waited < limits.share_after && grows,
            Condition::Stuck => waited < limits.hold && (grows || self.members.values().any(Place::may_become_ready)),
        }
    }

    fn may_grow(&self, size: PoolSize) -> bool {
        let is_pausing = self.growth_retry_at.is_some_and(|at| Instant::now() < at);
        matches!(size, PoolSize::Auto { max } if self.members.len() < max) && !is_pausing
    }

    fn needs_member(&self, size: PoolSize) -> bool {
        let count = |of: fn(&Place) -> bool| self.members.values().filter(|place| of(place)).count();
        if self.closing || count(Place::is_starting) >= STARTS_AT_ONCE {
            return false;
        }
        match size {
            PoolSize::Fixed(size) => self.members.len() < size.max(1),
            // If there is no session at all, the network or the node is unavailable, and more sessions would not help. If a session
            // is free, the waiting connections will use it.
            PoolSize::Auto { .. } => {
                self.may_grow(size)
                    && self.waiting > count(Place::is_growing)
                    && self.best().is_some_and(|(_, condition)| condition != Condition::Free)
            }
        }
    }

    /// Retires a member that had no connections for `idle`, unless the next connection would then have to share. The only member is
    /// never retired.
    pub(super) fn retire_one(&mut self, idle: Duration) {
        let now = Instant::now();
        let is_idle = |place: &Place| {
            let since = now.saturating_duration_since(place.idle_since);
            place.session.is_some() && !place.retiring && place.streams == 0 && since >= idle
        };
        let candidate = self.members.iter().rev().find(|(_, place)| is_idle(place)).map(|(number, _)| *number);
        let Some(candidate) = candidate else { return };
        let others = self.members.iter().filter(|(number, _)| **number != candidate);
        let is_missed =
            !others.into_iter().any(|(_, place)| place.takes_connections() && place.condition() == Condition::Free);
        if let Some(place) = self.members.get_mut(&candidate).filter(|_| !is_missed) {
            place.retiring = true;
            place.retire.notify_one();
        }
    }

    pub(super) fn is_retiring(&self, number: Number) -> bool {
        self.members.get(&number).is_some_and(|place| place.retiring)
    }

    /// Returns the connections that block others and were not reported yet.
    pub(super) fn new_blockers(&mut self) -> Vec<Blocker> {
        let now = Instant::now();
        self.members.values_mut().filter_map(|place| place.new_blocker(now)).collect()
    }

    pub(super) fn connected(&self) -> Vec<Arc<Session>> {
        let ready = self.members.values().filter(|place| place.takes_connections());
        ready.filter_map(|place| place.session.clone()).collect()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.best().is_some_and(|(_, condition)| condition != Condition::Free)
    }

    pub(super) fn use_all(&mut self, used: bool) {
        let streams = usize::from(used);
        let others = |place: &&mut Place| place.session.is_some() && place.streams != streams;
        for place in self.members.values_mut().filter(others) {
            (place.streams, place.idle_since) = (streams, Instant::now());
        }
    }

    /// Whether there is a session.
    pub(super) fn serves(&self) -> bool {
        self.members.values().any(|place| place.session.is_some())
    }

    pub(super) fn session(&self, number: Number) -> Option<Arc<Session>> {
        self.members.get(&number)?.session.clone()
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.past;
        for session in self.members.values().filter_map(|place| place.session.as_ref()) {
            totals.add_live(session);
        }
        totals
    }
}

/// A waiting connection; see [`SharedPool::demand`].
pub(crate) struct Demand {
    shared: Arc<SharedPool>,
    /// Whether the connection still counts as waiting.
    counts: bool,
}

impl Drop for Demand {
    fn drop(&mut self) {
        if self.counts {
            self.shared.lock().waiting -= 1;
        }
        // This connection may have used the free session, so other waiting connections may need a new one.
        self.shared.demand_changed.notify_one();
    }
}

/// A connection's share of a session. The connection counts until this value is dropped.
pub(crate) struct StreamLease {
    shared: Arc<SharedPool>,
    number: Number,
    session: Arc<Session>,
    /// The number of measurements when the connection began.
    measurement: u64,
    stream: Option<ssm_proto::StreamId>,
}

impl StreamLease {
    /// Records the open stream of this caller.
    pub(super) fn attach(&mut self, stream: &SessionStream, caller: Caller) {
        if let Some(place) = self.shared.lock().members.get_mut(&self.number) {
            place.connections.insert(stream.id(), Blocking { caller, told: false });
            self.stream = Some(stream.id());
        }
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        // The streams of an ended session were removed from the count when it ended. The order of the two events does not matter.
        if self.session.close_reason().is_some() {
            return;
        }
        let mut state = self.shared.lock();
        let age = usize::try_from(state.measurements - self.measurement).unwrap_or(usize::MAX);
        if let Some(place) = state.members.get_mut(&self.number) {
            place.streams = place.streams.saturating_sub(1);
            place.idle_since = Instant::now();
            if let Some(recent) = place.recent.get_mut(age) {
                *recent = recent.saturating_sub(1);
            }
            if let Some(stream) = self.stream {
                place.connections.remove(&stream);
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}
