//! Sockets that systemd has opened for this process (socket activation). Tunnels that listen on the same addresses use them.

use std::sync::LazyLock;

use listenfd::ListenFd;
use ssm_forward::{ListenAddr, OpenListener};

/// A socket from systemd, and the address on which it listens.
#[derive(Debug)]
struct Passed {
    address: ListenAddr,
    listener: OpenListener,
}

/// The sockets from systemd. They belong to the process, like standard input, so there is one list per process.
static PASSED: LazyLock<Vec<Passed>> = LazyLock::new(take);

fn take() -> Vec<Passed> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len()).filter_map(|index| passed(&mut sockets, index)).collect()
}

/// Returns the socket at `index`, or `None` if it is not a TCP or Unix listener.
fn passed(sockets: &mut ListenFd, index: usize) -> Option<Passed> {
    if let Ok(Some(listener)) = sockets.take_tcp_listener(index) {
        let address = ListenAddr::Tcp(listener.local_addr().ok()?);
        return Some(Passed { address, listener: OpenListener::Tcp(listener) });
    }
    let listener = sockets.take_unix_listener(index).ok()??;
    let address = ListenAddr::Unix(listener.local_addr().ok()?.as_pathname()?.to_owned());
    Some(Passed { address, listener: OpenListener::Unix(listener) })
}

/// Receives the sockets from systemd. Must be called before other threads are started, because it removes the variables that
/// announce the sockets from the environment. Otherwise a child process would use the sockets as its own.
pub(crate) fn prepare() {
    LazyLock::force(&PASSED);
}

/// Returns a duplicate of the socket that listens on `address`, if there is one. The socket itself stays open when the caller
/// closes the duplicate: new connections wait in its backlog until a caller requests it again.
pub(crate) fn listener(address: &ListenAddr) -> Option<OpenListener> {
    PASSED.iter().find(|passed| passed.address == *address)?.listener.try_clone().ok()
}

/// Returns the addresses on which the sockets listen.
pub(crate) fn addresses() -> impl Iterator<Item = &'static ListenAddr> {
    PASSED.iter().map(|passed| &passed.address)
}
