//! Statistics of a forwarder.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Session;
use crate::pump::Direction;
use serde::Serialize;
use tokio::sync::Notify;

/// Statistics of a forwarder. Clones show the same values.
#[derive(Clone, Debug, Default)]
pub struct ForwardStats {
    inner: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    open: AtomicU64,
    total: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    sessions: Mutex<Option<Source>>,
    /// Notified when a connection was opened or closed.
    changed: Notify,
}

/// Computes the totals over the sessions.
type Source = Box<dyn Fn() -> Totals + Send + Sync>;

/// Totals over sessions, past and present.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Number of sessions that are ready.
    pub(crate) sessions: u64,
    /// Number of ready sessions whose WebSocket is connected.
    connected: u64,
    /// Sum of their rate limits. `None` if one of them has no limit.
    budget: Option<u64>,
    messages_sent: u64,
    messages_received: u64,
    retransmissions: u64,
    reconnects: u64,
    /// Round-trip time of the latest session.
    srtt: Option<Duration>,
    /// Time since the oldest WebSocket was connected.
    oldest: Option<Duration>,
    /// Time since the oldest session was started.
    oldest_session: Option<Duration>,
}

impl Totals {
    /// Adds a session that is ready now.
    pub(crate) fn add_live(&mut self, session: &Session) {
        self.add(session);
        let budget = session.stats().channel.budget.map(u64::from);
        self.budget = match self.sessions {
            0 => budget,
            _ => self.budget.zip(budget).map(|(a, b)| a + b),
        };
        self.sessions += 1;
        self.connected += u64::from(session.is_connected());
        self.oldest = self.oldest.max(session.connected_for());
        self.oldest_session = self.oldest_session.max(Some(session.age()));
    }

    /// Adds a session that has ended. Also used for the counters of a session that is ready.
    pub(crate) fn add(&mut self, session: &Session) {
        let channel = session.stats().channel;
        self.messages_sent += channel.messages_sent;
        self.messages_received += channel.messages_received;
        self.retransmissions += channel.retransmissions;
        self.reconnects += session.reconnects();
        self.srtt = channel.srtt.or(self.srtt);
    }
}

/// Statistics at one time. All values are counted from the start unless stated otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Number of open connections.
    pub connections_open: u64,
    /// Number of accepted connections.
    pub connections_total: u64,
    /// Number of bytes from local programs to the remote end.
    pub bytes_up: u64,
    /// Number of bytes from the remote end to local programs.
    pub bytes_down: u64,
    /// Number of messages sent that have a sequence number, without acknowledgements and retransmissions.
    pub messages_sent: u64,
    /// Number of messages received that have a sequence number, without duplicates.
    pub messages_received: u64,
    /// Number of retransmissions.
    pub retransmissions: u64,
    /// Smoothed time from a message to its acknowledgement, in microseconds. 0 before the first acknowledgement.
    pub round_trip_us: u64,
    /// Number of WebSockets after the first one of each session.
    pub reconnects: u64,
    /// Number of sessions that are ready.
    pub sessions: u64,
    /// Number of ready sessions whose WebSocket is connected. The others are reconnecting.
    pub sessions_connected: u64,
    /// Time since the oldest of these WebSockets was connected, in seconds. 0 if there is none. AWS closes a WebSocket after about
    /// an hour.
    pub data_channel_age_s: u64,
    /// Time since the oldest of these sessions was started, in seconds. 0 if there is none.
    pub session_age_s: u64,
    /// Current rate limit of all sessions together, in messages per second. `None`: no limit.
    pub message_budget: Option<u64>,
}

impl ForwardStats {
    /// Returns the current values.
    pub fn snapshot(&self) -> StatsSnapshot {
        let source = self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = source.as_ref().map(|source| source()).unwrap_or_default();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let micros = totals.srtt.map_or(0, |srtt| srtt.as_micros());
        StatsSnapshot {
            connections_open: load(&self.inner.open),
            connections_total: load(&self.inner.total),
            bytes_up: load(&self.inner.up),
            bytes_down: load(&self.inner.down),
            messages_sent: totals.messages_sent,
            messages_received: totals.messages_received,
            retransmissions: totals.retransmissions,
            round_trip_us: u64::try_from(micros).unwrap_or(u64::MAX),
            reconnects: totals.reconnects,
            sessions: totals.sessions,
            sessions_connected: totals.connected,
            data_channel_age_s: totals.oldest.unwrap_or_default().as_secs(),
            session_age_s: totals.oldest_session.unwrap_or_default().as_secs(),
            message_budget: totals.budget,
        }
    }

    pub(crate) fn attach(&self, source: impl Fn() -> Totals + Send + Sync + 'static) {
        *self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(source));
    }

    /// Counts a new connection and returns its number, from 1.
    pub(crate) fn opened(&self) -> u64 {
        self.inner.open.fetch_add(1, Ordering::Relaxed);
        let number = self.inner.total.fetch_add(1, Ordering::Relaxed) + 1;
        self.inner.changed.notify_waiters();
        number
    }

    pub(crate) fn closed(&self) {
        self.inner.open.fetch_sub(1, Ordering::Relaxed);
        self.inner.changed.notify_waiters();
    }

    /// Completes when a connection was opened after this call, and then no connection has been open for `idle`.
    pub(crate) async fn unused_for(&self, idle: Duration) {
        let before = self.inner.total.load(Ordering::Relaxed);
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            // Enabled before the check, so that no change after the check is missed.
            changed.as_mut().enable();
            let was_used = self.inner.total.load(Ordering::Relaxed) > before;
            if was_used && self.inner.open.load(Ordering::Relaxed) == 0 {
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep(idle) => return,
                }
            } else {
                changed.await;
            }
        }
    }

    /// Returns the number of bytes from the remote end, over all connections.
    pub(crate) fn bytes_down(&self) -> u64 {
        self.inner.down.load(Ordering::Relaxed)
    }

    pub(crate) fn moved(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::Up => &self.inner.up,
            Direction::Down => &self.inner.down,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn unused_counts_from_the_last_connection_that_closed() {
        let stats = ForwardStats::default();
        let began = tokio::time::Instant::now();
        let unused = stats.unused_for(Duration::from_secs(10));
        let used = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stats.opened();
            tokio::time::sleep(Duration::from_secs(60)).await;
            stats.opened();
            stats.closed();
            stats.closed();
            tokio::time::sleep(Duration::from_secs(9)).await;
            stats.opened();
            tokio::time::sleep(Duration::from_secs(11)).await;
            stats.closed();
        };
        tokio::join!(unused, used);
        assert_eq!(began.elapsed(), Duration::from_secs(60 + 60 + 9 + 11 + 10));
    }
}
