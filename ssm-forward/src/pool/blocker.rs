//! Finds a connection that blocks the other connections of its session. These cannot be moved to another session, so the warning
//! names the connection that they wait for.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::place::Place;
use crate::session::StalledEnd;

/// A session without progress for this time causes a warning.
const WARN_AFTER: Duration = Duration::from_secs(5);

/// The connection that a stream belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The connection's number, from 1 for each forwarder.
    pub(crate) connection: u64,
    /// The program's address. `None` for a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
}

/// A connection that may block others, and whether that was reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocking {
    pub(super) caller: Caller,
    pub(super) told: bool,
}

/// A connection that blocks others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocker {
    caller: Caller,
    end: StalledEnd,
    others: usize,
}

impl Place {
    /// Returns the connection that blocks others, if it was not reported before.
    pub(super) fn new_blocker(&mut self, now: Instant) -> Option<Blocker> {
        let session = self.session.as_ref().filter(|_| self.streams > 1)?;
        let stall = session.stall()?;
        if now.into_std().saturating_duration_since(stall.since) < WARN_AFTER {
            return None;
        }
        let blocking = self.connections.get_mut(&session.culprit(stall)?).filter(|blocking| !blocking.told)?;
        blocking.told = true;
        Some(Blocker { caller: blocking.caller, end: stall.end, others: self.streams - 1 })
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Caller { connection, peer } = self.caller;
        let from = peer.map_or_else(String::new, |peer| format!(" (from {peer})"));
        match self.end {
            StalledEnd::Reader => {
                write!(f, "the local program of connection {connection}{from} reads too slowly or not at all")?;
            }
            StalledEnd::Destination => {
                write!(f, "the destination of connection {connection}{from} accepts no more data")?;
            }
        }
        match self.others {
            1 => f.write_str(": another connection in the same session waits until it does, or until connection ")?,
            others => {
                write!(f, ": {others} other connections in the same session wait until it does, or until connection ")?
            }
        }
        write!(f, "{connection} ends")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_who_holds_up_whom() {
        let caller = Caller { connection: 3, peer: Some("127.0.0.1:50000".parse().unwrap()) };
        assert_eq!(
            Blocker { caller, end: StalledEnd::Reader, others: 4 }.to_string(),
            "the local program of connection 3 (from 127.0.0.1:50000) reads too slowly or not at all: 4 other connections in \
             the same session wait until it does, or until connection 3 ends"
        );
        let caller = Caller { connection: 1, peer: None };
        assert_eq!(
            Blocker { caller, end: StalledEnd::Destination, others: 1 }.to_string(),
            "the destination of connection 1 accepts no more data: another connection in the same session waits until it does, \
             or until connection 1 ends"
        );
    }
}
