//! A connection that holds up the others of its session. They can't be moved; who waits is to know for whom.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::place::Place;
use crate::session::StalledEnd;

/// A session that stands still for so long is worth a word.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Whose connection a stream is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// Counts from 1 per forwarder.
    pub(crate) connection: u64,
    /// The program's address; `None` for a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
}

/// A connection that may hold up others, and whether that was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocking {
    pub(super) caller: Caller,
    pub(super) told: bool,
}

/// A connection that holds up others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocker {
    caller: Caller,
    end: StalledEnd,
    others: usize,
}

impl Place {
    /// The connection that holds up others, the first time it is asked for.
    pub(super) fn new_blocker(&mut self, now: Instant) -> Option<Blocker> {
        let session = self.session.as_ref().filter(|_| self.streams > 1)?;
        let stall = session.stall()?;
        if now.into_std().saturating_duration_since(stall.since) < TELL_AFTER {
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
                write!(f, "the destination of connection {connection}{from} takes no more data")?;
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
            "the destination of connection 1 takes no more data: another connection in the same session waits until it does, \
             or until connection 1 ends"
        );
    }
}
