//! The limit on the number of open file descriptors of this process.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static BEFORE: OnceLock<Option<u64>> = OnceLock::new();

/// Returns the limit with which this process was started, or `None` for no limit. Programs that this process starts get this
/// limit.
pub(crate) fn before() -> Option<u64> {
    BEFORE.get().copied().flatten()
}

/// Raises the limit, because each connection needs a descriptor. The usual soft limit is 1024, for the sake of programs that use
/// select(2); a program may raise it up to the hard limit.
pub(crate) fn raise() {
    // A higher limit has no benefit, and some programs close all possible descriptors one by one when they start.
    const ENOUGH: u64 = 65_536;
    /// The highest value that macOS accepts although it reports no hard limit.
    const MACOS: u64 = 10_240;
    let limit = getrlimit(Resource::Nofile);
    let _ = BEFORE.set(limit.current);
    for wanted in [ENOUGH, MACOS] {
        let wanted = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        if limit.current.is_none_or(|current| current >= wanted) {
            return;
        }
        if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).is_ok() {
            return;
        }
    }
}
