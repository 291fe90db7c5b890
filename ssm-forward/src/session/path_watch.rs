//! Detects events after which a WebSocket may be lost although it has not been silent for long: the machine slept, this process was
//! stopped, or the network changed.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

/// Interval of the checks. A check is cheap: two clocks and, for a socket to another machine, one query of the routing table.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// Minimum difference between the wall clock and the monotonic clock that counts as sleep. The monotonic clock stops while a
/// machine sleeps, the wall clock does not. Smaller differences are clock corrections.
const SLEPT: Duration = Duration::from_secs(5);

/// The results of the last check.
#[derive(Debug)]
pub(super) struct PathWatch {
    seen: Instant,
    wall: SystemTime,
    /// The local address that is used to reach the peer (`None` if there is no route), and the peer. `None` for a loopback
    /// connection.
    path: Option<(Option<IpAddr>, SocketAddr)>,
}

impl PathWatch {
    /// Returns the state at the start of a connection between these addresses.
    pub(super) fn new(now: Instant, path: Option<(SocketAddr, SocketAddr)>) -> Self {
        let path = path.filter(|(ours, _)| !ours.ip().is_loopback()).map(|(ours, peer)| (Some(ours.ip()), peer));
        Self { seen: now, wall: SystemTime::now(), path }
    }

    /// Returns when to check next.
    pub(super) fn next_check(&self) -> Instant {
        self.seen + CHECK_INTERVAL
    }

    /// Returns what changed since the last check, as text.
    pub(super) fn check(&mut self, now: Instant) -> Option<&'static str> {
        self.check_at(now, SystemTime::now(), source_address)
    }

    fn check_at(
        &mut self,
        now: Instant,
        wall: SystemTime,
        route: impl Fn(SocketAddr) -> Option<IpAddr>,
    ) -> Option<&'static str> {
        let lived = now.saturating_duration_since(self.seen);
        let passed = wall.duration_since(self.wall).unwrap_or_default();
        (self.seen, self.wall) = (now, wall);
        if passed > lived + SLEPT {
            return Some("this machine slept");
        }
        // The driver checks in time unless the process was stopped or a virtual machine was paused.
        if lived > CHECK_INTERVAL + SLEPT {
            return Some("this process was stopped");
        }
        let (source, peer) = self.path.as_mut()?;
        let before = std::mem::replace(source, route(*peer));
        (*source != before).then_some("the network changed")
    }
}

/// Returns the local address that would be used to reach `peer` now. Connecting a datagram socket sends no packet.
fn source_address(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_shows_in_the_clocks_and_a_new_network_in_the_route() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let (ours, peer): (SocketAddr, SocketAddr) =
            ("192.0.2.1:5".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
        let mut path_watch = PathWatch { seen: now, wall, path: Some((Some(ours.ip()), peer)) };
        let at_home = |_| Some(ours.ip());
        let later = now + CHECK_INTERVAL;
        assert_eq!(path_watch.check_at(later, wall + CHECK_INTERVAL, at_home), None);
        assert_eq!(
            path_watch.check_at(later + CHECK_INTERVAL, wall + CHECK_INTERVAL * 600, at_home),
            Some("this machine slept")
        );
        assert_eq!(path_watch.check_at(later + CHECK_INTERVAL * 2, wall + CHECK_INTERVAL * 601, at_home), None);
        let offline = path_watch.check_at(later + CHECK_INTERVAL * 3, wall + CHECK_INTERVAL * 602, |_| None);
        assert_eq!(offline, Some("the network changed"));
        assert_eq!(
            path_watch.check_at(later + CHECK_INTERVAL * 4, wall + CHECK_INTERVAL * 603, |_| None),
            None,
            "it did so once"
        );
        let back = path_watch.check_at(later + CHECK_INTERVAL * 5, wall + CHECK_INTERVAL * 604, at_home);
        assert_eq!(back, Some("the network changed"));
        let stopped = path_watch.check_at(later + CHECK_INTERVAL * 9, wall + CHECK_INTERVAL * 608, at_home);
        assert_eq!(stopped, Some("this process was stopped"));
        let (later, wall) = (later + CHECK_INTERVAL * 6, wall + CHECK_INTERVAL * 6);
        // If the clock is set back, this does not mean that the machine slept.
        assert_eq!(path_watch.check_at(later + CHECK_INTERVAL * 4, wall, at_home), None);
    }

    #[test]
    fn this_machine_talks_to_itself_from_its_own_address() {
        let peer: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(source_address(peer), Some(peer.ip()));
        let path_watch = PathWatch::new(Instant::now(), Some((peer, peer)));
        assert_eq!(path_watch.path, None, "loopback never changes");
    }
}
