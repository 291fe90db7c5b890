//! Sockets that systemd has opened for this process (socket activation): tunnels that listen on the same addresses take them over.

use std::sync::LazyLock;

use listenfd::ListenFd;
use ssm_forward::{ListenAddr, OpenListener};

/// A socket, and where it listens.
#[derive(Debug)]
struct Passed {
    address: ListenAddr,
    listener: OpenListener,
}

/// They are the process's, like standard input.
static PASSED: LazyLock<Vec<Passed>> = LazyLock::new(take);

fn take() -> Vec<Passed> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len()).filter_map(|index| passed(&mut sockets, index)).collect()
}

/// Sockets of other kinds are of no use here.
fn passed(sockets: &mut ListenFd, index: usize) -> Option<Passed> {
    if let Ok(Some(listener)) = sockets.take_tcp_listener(index) {
        let address = ListenAddr::Tcp(listener.local_addr().ok()?);
        return Some(Passed { address, listener: OpenListener::Tcp(listener) });
    }
    let listener = sockets.take_unix_listener(index).ok()??;
    let address = ListenAddr::Unix(listener.local_addr().ok()?.as_pathname()?.to_owned());
    Some(Passed { address, listener: OpenListener::Unix(listener) })
}

/// Takes them. It has to be called before there are other threads: it changes the environment, so that no child takes them for its
/// own.
pub(crate) fn prepare() {
    LazyLock::force(&PASSED);
}

/// The socket that listens on an address, if there is one. It stays open when the caller closes it: connections wait until somebody
/// takes it again.
pub(crate) fn listener(address: &ListenAddr) -> Option<OpenListener> {
    PASSED.iter().find(|passed| passed.address == *address)?.listener.try_clone().ok()
}

/// Where the sockets listen.
pub(crate) fn addresses() -> impl Iterator<Item = &'static ListenAddr> {
    PASSED.iter().map(|passed| &passed.address)
}
