//! How many files this process may open.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static BEFORE: OnceLock<Option<u64>> = OnceLock::new();

/// The limit with which this process was started: programs that it starts get that. `None` is no limit.
pub(crate) fn before() -> Option<u64> {
    BEFORE.get().copied().flatten()
}

/// Many systems let a program open 1024 files unless it asks for more, which it may: that limit is for programs that use
/// select(2). Each connection is one file.
pub(crate) fn raise() {
    // More brings nothing, and programs that are started from here may close them one by one.
    const ENOUGH: u64 = 65_536;
    /// What macOS takes where it says that there is no limit.
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
