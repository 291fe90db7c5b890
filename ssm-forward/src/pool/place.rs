//! The state of a member, from which connections choose a session.

use std::collections::BTreeMap;
use std::sync::Arc;

use ssm_proto::{SessionMode, StreamId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::blocker::Blocking;
use crate::session::Session;

/// A session with a higher rate is busy. Unit: messages per second, in both directions. A real agent sends at most about 900.
const BUSY: f64 = 250.0;
/// A session with a higher rate is not limited by an agent's pace, so a second session would not help.
const UNLIMITED: f64 = 2500.0;

/// A member's state.
pub(super) struct Place {
    /// `None` while a session is being started, or while no session is needed.
    pub(super) session: Option<Arc<Session>>,
    /// Whether the member never had a session.
    pub(super) is_new: bool,
    pub(super) asleep: bool,
    pub(super) streams: usize,
    /// The connections of the streams, once they are open.
    pub(super) connections: BTreeMap<StreamId, Blocking>,
    pub(super) idle_since: Instant,
    /// Numbers of streams that began since the last measurement, and between the last two measurements. They may be busy, but have
    /// not been measured yet.
    pub(super) recent: [usize; 2],
    messages: u64,
    /// Recent rate of messages per second, in both directions.
    rate: f64,
    measured: Instant,
    /// Whether the member is to be removed and gets no more connections.
    pub(super) retiring: bool,
    pub(super) retire: Arc<Notify>,
}

/// The condition of a session for a new connection. Better conditions come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    /// Nothing would slow the connection down.
    Free,
    /// Other connections use up the agent's pace, or may soon do so.
    Busy,
    /// The connection would make no progress: another connection blocks the session, or the agent carries one connection at a time.
    Stuck,
}

impl Place {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            session: None,
            is_new: true,
            asleep: false,
            streams: 0,
            connections: BTreeMap::new(),
            idle_since: now,
            recent: [0; 2],
            messages: 0,
            rate: 0.0,
            measured: now,
            retiring: false,
            retire: Arc::default(),
        }
    }

    pub(super) fn begin(&mut self, session: Arc<Session>) {
        // The messages of the handshake do not count.
        (self.messages, self.rate, self.measured) = (messages(&session), 0.0, Instant::now());
        self.idle_since = self.measured;
        self.session = Some(session);
        (self.is_new, self.asleep) = (false, false);
    }

    /// Removes the session, which has ended.
    pub(super) fn end(&mut self) -> Option<Arc<Session>> {
        self.retiring = false;
        self.streams = 0;
        self.recent = [0; 2];
        self.connections.clear();
        self.session.take()
    }

    pub(super) fn takes_connections(&self) -> bool {
        !self.retiring && self.session.as_ref().is_some_and(|session| session.is_connected())
    }

    /// Whether the member may accept connections soon.
    pub(super) fn may_become_ready(&self) -> bool {
        !self.asleep && !self.retiring && !self.takes_connections()
    }

    /// Whether the member's first session is being started.
    pub(super) fn is_growing(&self) -> bool {
        self.is_new && self.session.is_none()
    }

    /// Whether a session is being started.
    pub(super) fn is_starting(&self) -> bool {
        self.session.is_none() && !self.asleep
    }

    pub(super) fn condition(&self) -> Condition {
        let Some(session) = &self.session else { return Condition::Stuck };
        let is_taken = self.streams > 0 && session.mode() != Some(SessionMode::Mux);
        if is_taken || session.stall().is_some() {
            Condition::Stuck
        } else if self.recent != [0; 2] || (BUSY..UNLIMITED).contains(&self.rate) {
            Condition::Busy
        } else {
            Condition::Free
        }
    }

    /// Returns the load that a new connection would have to share.
    pub(super) fn load(&self) -> f64 {
        let recent: usize = self.recent.iter().sum();
        self.rate / BUSY + recent as f64 + self.streams as f64 / 8.0
    }

    pub(super) fn measure(&mut self, now: Instant) {
        self.recent = [0, self.recent[0]];
        let Some(session) = &self.session else { return };
        let messages = messages(session);
        let seconds = now.saturating_duration_since(self.measured).as_secs_f64().max(1e-3);
        let rate = messages.saturating_sub(self.messages) as f64 / seconds;
        // A higher rate counts immediately, a lower one after about a second.
        self.rate = rate.max(f64::midpoint(self.rate, rate));
        (self.messages, self.measured) = (messages, now);
    }
}

fn messages(session: &Session) -> u64 {
    let channel = session.stats().channel;
    channel.messages_sent + channel.messages_received
}
