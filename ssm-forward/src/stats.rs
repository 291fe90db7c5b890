//! Live figures of a forwarder.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use ssm_proto::SessionStats;

use crate::pump::Direction;

/// Live figures of a forwarder; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct ForwardStats {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    open: AtomicU64,
    total: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    session: Mutex<Option<Source>>,
}

/// Gives the session's counters and its reconnects while there is one.
type Source = Box<dyn Fn() -> Option<(SessionStats, u64)> + Send + Sync>;

/// Figures of one moment, all since the start unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Connections open now.
    pub connections_open: u64,
    /// Connections that were ever accepted.
    pub connections_total: u64,
    /// Bytes from local programs to the remote end.
    pub bytes_up: u64,
    /// Bytes from the remote end to local programs.
    pub bytes_down: u64,
    /// Numbered messages sent, without acknowledgements and retransmissions.
    pub messages_sent: u64,
    /// Numbered messages received, without duplicates.
    pub messages_received: u64,
    /// Messages sent again.
    pub retransmissions: u64,
    /// Smoothed time from a message to its acknowledgement, in microseconds; 0 before the first.
    pub round_trip_us: u64,
    /// WebSockets opened after the first.
    pub reconnects: u64,
}

impl ForwardStats {
    /// Takes the figures as they are now.
    pub fn snapshot(&self) -> StatsSnapshot {
        let source = self.inner.session.lock().unwrap_or_else(PoisonError::into_inner);
        let (session, reconnects) = source.as_ref().and_then(|source| source()).unwrap_or_default();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let micros = session.channel.srtt.map_or(0, |srtt| srtt.as_micros());
        StatsSnapshot {
            connections_open: load(&self.inner.open),
            connections_total: load(&self.inner.total),
            bytes_up: load(&self.inner.up),
            bytes_down: load(&self.inner.down),
            messages_sent: session.channel.messages_sent,
            messages_received: session.channel.messages_received,
            retransmissions: session.channel.retransmissions,
            round_trip_us: u64::try_from(micros).unwrap_or(u64::MAX),
            reconnects,
        }
    }

    pub(crate) fn attach(&self, source: impl Fn() -> Option<(SessionStats, u64)> + Send + Sync + 'static) {
        *self.inner.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(source));
    }

    /// Gives the new connection's number, from 1.
    pub(crate) fn opened(&self) -> u64 {
        self.inner.open.fetch_add(1, Ordering::Relaxed);
        self.inner.total.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn closed(&self) {
        self.inner.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn moved(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::Up => &self.inner.up,
            Direction::Down => &self.inner.down,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}
