//! Connects to destinations. This uses threads, because the system's name resolution blocks.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use mio::Waker;
use ssm_proto::relay::{ConnectionId, Destination, Refusal, RefusalKind};

/// Timeout for one address of a destination.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum number of simultaneous attempts; the others wait.
const AT_ONCE: usize = 64;
/// Maximum number of addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The result of an attempt.
pub(crate) type Dialled = (ConnectionId, Result<TcpStream, Refusal>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Dialler {
    waker: Arc<Waker>,
    sender: Sender<Dialled>,
    results: Receiver<Dialled>,
    running: usize,
    waiting: VecDeque<(ConnectionId, Destination)>,
}

impl Dialler {
    pub(crate) fn new(waker: Waker) -> Self {
        let (sender, results) = channel();
        Self { waker: Arc::new(waker), sender, results, running: 0, waiting: VecDeque::new() }
    }

    pub(crate) fn dial(&mut self, id: ConnectionId, to: Destination) {
        self.waiting.push_back((id, to));
        self.begin();
    }

    /// Drops an attempt that has not begun, because its connection is not wanted any more. Returns whether there was one.
    pub(crate) fn forget(&mut self, id: ConnectionId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.waiting.len() < before
    }

    /// The next finished attempt.
    pub(crate) fn next_result(&mut self) -> Option<Dialled> {
        let result = self.results.try_recv().ok()?;
        self.running -= 1;
        self.begin();
        Some(result)
    }

    fn begin(&mut self) {
        while self.running < AT_ONCE
            && let Some((id, to)) = self.waiting.pop_front()
        {
            let (waker, sender) = (self.waker.clone(), self.sender.clone());
            let attempt = move || {
                let _ = sender.send((id, connect(&to)));
                let _ = waker.wake();
            };
            self.running += 1;
            if let Err(error) = thread::Builder::new().stack_size(256 << 10).spawn(attempt) {
                let _ = self.sender.send((id, Err(refusal(&error))));
                let _ = self.waker.wake();
            }
        }
    }
}

fn connect(to: &Destination) -> Result<TcpStream, Refusal> {
    let addresses: Vec<SocketAddr> = match (to.host.as_str(), to.port).to_socket_addrs() {
        Ok(addresses) => addresses.take(MAX_ADDRESSES).collect(),
        Err(error) => return Err(Refusal { kind: RefusalKind::UnknownHost, text: format!("{}: {error}", to.host) }),
    };
    let mut last = Refusal { kind: RefusalKind::UnknownHost, text: format!("{} has no address", to.host) };
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = refusal(&error),
        }
    }
    Err(last)
}

fn refusal(error: &io::Error) -> Refusal {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => RefusalKind::Refused,
        io::ErrorKind::TimedOut => RefusalKind::TimedOut,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => RefusalKind::Unreachable,
        _ => RefusalKind::Other,
    };
    Refusal { kind, text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(host: &str, port: u16) -> Refusal {
        connect(&Destination::new(host, port).unwrap()).unwrap_err()
    }

    #[test]
    fn an_attempt_that_has_not_begun_can_be_dropped() {
        let waker = Waker::new(mio::Poll::new().unwrap().registry(), mio::Token(0)).unwrap();
        let mut dialler = Dialler::new(waker);
        dialler.running = AT_ONCE;
        for id in [1, 2] {
            dialler.dial(ConnectionId(id), Destination::new("127.0.0.1", 1).unwrap());
        }
        assert!(dialler.forget(ConnectionId(1)) && !dialler.forget(ConnectionId(1)));
        let left: Vec<ConnectionId> = dialler.waiting.iter().map(|(id, _)| *id).collect();
        assert_eq!(left, [ConnectionId(2)]);
    }

    #[test]
    fn a_refusal_says_why() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(error("127.0.0.1", free).kind, RefusalKind::Refused);
        let unknown = error("no-such-host.invalid", 1);
        assert_eq!(unknown.kind, RefusalKind::UnknownHost);
        assert!(unknown.text.starts_with("no-such-host.invalid: "), "{unknown:?}");
    }
}
