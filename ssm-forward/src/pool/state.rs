//! What the members and the connections share: which sessions there are and how busy they are.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Session;
use crate::stats::Totals;

/// See the module.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Notify,
    wanted: Notify,
    closing: Notify,
}

/// Identifies a member for as long as the pool lives.
pub(super) type Number = u64;

#[derive(Default)]
pub(super) struct State {
    next: Number,
    members: BTreeMap<Number, Place>,
    /// Connections that wait for a session.
    waiting: usize,
    /// Of sessions that are over.
    past: Totals,
    closing: bool,
}

/// One member's place.
struct Place {
    /// `None` while a session is being started, or while nobody needs one.
    session: Option<Arc<Session>>,
    asleep: bool,
    streams: usize,
    idle_since: Instant,
    /// Streams that were placed since the last look: they will be busy, but are not yet.
    placed: usize,
    messages: u64,
    /// Messages per second, both ways, lately.
    rate: f64,
    measured: Instant,
    /// It is to go: nothing is placed in it any more.
    retiring: bool,
    retire: Arc<Notify>,
}

/// A session from which so many messages per second come and go is busy. A real agent sends at most some 900.
const BUSY: f64 = 250.0;
/// One that carries more is not held back by an agent's pace: a second one would bring nothing.
const UNLIMITED: f64 = 2500.0;

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes at the next change of the sessions. What changes after this call counts, not only after the first poll.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        let mut changed = Box::pin(self.changed.notified());
        changed.as_mut().enable();
        changed
    }

    /// A session's WebSocket is back, or gone.
    pub(super) fn connectivity_changed(&self) {
        self.changed.notify_waiters();
    }

    /// Says, while it lives, that a connection wants a session.
    pub(super) fn demand(self: &Arc<Self>) -> Demand {
        self.lock().waiting += 1;
        self.wanted.notify_waiters();
        Demand(self.clone())
    }

    /// Completes when a connection wants a session.
    pub(super) async fn wanted(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.lock().waiting > 0 {
                return;
            }
            wanted.await;
        }
    }

    /// Asks all members to terminate their sessions and to end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.closing.notify_waiters();
        self.changed.notify_waiters();
    }

    /// Completes when the members are to end.
    pub(super) async fn closing(&self) {
        loop {
            let closing = self.closing.notified();
            if self.lock().closing {
                return;
            }
            closing.await;
        }
    }

    /// The session for the next connection.
    pub(super) fn choose(self: &Arc<Self>) -> Option<(Arc<Session>, StreamLease)> {
        let mut state = self.lock();
        // One that reconnects may turn out to be gone: a new connection waits for what comes of it.
        let ready = state.members.iter_mut().filter(|(_, place)| place.takes_connections());
        let (number, place) = ready.min_by(|(_, a), (_, b)| a.load().total_cmp(&b.load()))?;
        place.streams += 1;
        place.placed += 1;
        let (number, session) = (*number, place.session.clone()?);
        Some((session.clone(), StreamLease { shared: self.clone(), number, session }))
    }

    pub(super) fn join(&self) -> (Number, Arc<Notify>) {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let now = Instant::now();
        let place = Place {
            session: None,
            asleep: false,
            streams: 0,
            idle_since: now,
            placed: 0,
            messages: 0,
            rate: 0.0,
            measured: now,
            retiring: false,
            retire: Arc::default(),
        };
        let retire = place.retire.clone();
        state.members.insert(number, place);
        (number, retire)
    }

    /// A member's session is ready.
    pub(super) fn ready(&self, number: Number, session: Arc<Session>) {
        let mut state = self.lock();
        if let Some(place) = state.members.get_mut(&number) {
            // The handshake's messages are no load.
            (place.messages, place.rate, place.measured) = (messages(&session), 0.0, Instant::now());
            place.idle_since = place.measured;
            place.session = Some(session);
            place.asleep = false;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// A member's session is gone; gives how many connections it had.
    pub(super) fn gone(&self, number: Number) -> usize {
        let mut state = self.lock();
        let Some(place) = state.members.get_mut(&number) else { return 0 };
        let (session, streams) = (place.session.take(), std::mem::take(&mut place.streams));
        place.retiring = false;
        if let Some(session) = session {
            state.past.add(&session);
        }
        streams
    }

    pub(super) fn sleeps(&self, number: Number, asleep: bool) {
        if let Some(place) = self.lock().members.get_mut(&number) {
            place.asleep = asleep;
        }
    }

    pub(super) fn leave(&self, number: Number) {
        self.lock().members.remove(&number);
    }
}

impl Place {
    /// What a new connection would have to share.
    fn load(&self) -> f64 {
        self.rate / BUSY + self.placed as f64 + self.streams as f64 / 8.0
    }

    fn takes_connections(&self) -> bool {
        !self.retiring && self.session.as_ref().is_some_and(|session| session.is_connected())
    }

    fn is_busy(&self) -> bool {
        self.session.is_some() && (BUSY..UNLIMITED).contains(&self.rate)
    }

    fn measure(&mut self, now: Instant) {
        let Some(session) = &self.session else { return };
        let messages = messages(session);
        let seconds = now.saturating_duration_since(self.measured).as_secs_f64().max(1e-3);
        let rate = messages.saturating_sub(self.messages) as f64 / seconds;
        // The mean of the last second or so.
        self.rate = (self.rate + rate) / 2.0;
        (self.messages, self.measured, self.placed) = (messages, now, 0);
    }
}

fn messages(session: &Session) -> u64 {
    let channel = session.stats().channel;
    channel.messages_sent + channel.messages_received
}

impl State {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_starting(&self) -> bool {
        self.members.values().any(|place| place.session.is_none() && !place.asleep)
    }

    pub(super) fn all_are_busy(&self) -> bool {
        self.members.values().all(Place::is_busy)
    }

    pub(super) fn measure(&mut self, now: Instant) {
        self.members.values_mut().for_each(|place| place.measure(now));
    }

    /// Asks a member that has had no connection for `idle` to go, unless another one would be started at once. The only one
    /// stays.
    pub(super) fn retire_one(&mut self, idle: Duration) {
        let now = Instant::now();
        let is_idle = |place: &Place| {
            let since = now.saturating_duration_since(place.idle_since);
            place.session.is_some() && !place.retiring && place.streams == 0 && since >= idle
        };
        let candidate = self.members.iter().rev().find(|(_, place)| is_idle(place)).map(|(number, _)| *number);
        let Some(candidate) = candidate else { return };
        let all_others_are_busy =
            self.members.iter().filter(|(number, _)| **number != candidate).all(|(_, place)| place.is_busy());
        if let Some(place) = self.members.get_mut(&candidate).filter(|_| !all_others_are_busy) {
            place.retiring = true;
            place.retire.notify_one();
        }
    }

    pub(super) fn is_retiring(&self, number: Number) -> bool {
        self.members.get(&number).is_some_and(|place| place.retiring)
    }

    /// Whether any session is there.
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

/// See [`Shared::demand`].
pub(super) struct Demand(Arc<Shared>);

impl Drop for Demand {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

/// A connection's place in a session; counts until it is dropped.
pub(crate) struct StreamLease {
    shared: Arc<Shared>,
    number: Number,
    session: Arc<Session>,
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        // What a session took with it was counted at its end, whichever of the two comes first.
        if self.session.close_reason().is_some() {
            return;
        }
        if let Some(place) = self.shared.lock().members.get_mut(&self.number) {
            place.streams = place.streams.saturating_sub(1);
            place.idle_since = Instant::now();
        }
    }
}
