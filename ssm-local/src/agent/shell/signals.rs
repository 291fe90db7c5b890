//! The signal actions that started programs inherit.

use std::sync::Once;

use tokio::signal::unix::{SignalKind, signal};

/// Ensures that programs started from now on ignore no signal, even if this process was started with ignored signals. A shell
/// without job control starts `local &` with SIGINT and SIGQUIT ignored; `nohup` ignores SIGHUP.
///
/// An ignored signal stays ignored in a started program, but a caught one does not. So the ignored signals are caught by handlers
/// that do nothing. Without `/proc` the ignored signals are inherited.
pub(super) fn inherit_none() {
    static CAUGHT: Once = Once::new();
    CAUGHT.call_once(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for number in ignored(&status) {
            // A signal handler cannot be removed again. The few signals that tokio rejects are never ignored in practice.
            if let Err(error) = signal(SignalKind::from_raw(number)) {
                tracing::debug!(number, %error, "programs will inherit an ignored signal");
            }
        }
    });
}

/// SIGPIPE, which the standard library handles.
const SIGPIPE: i32 = 13;

/// Returns the standard signals in a process's set of ignored signals.
fn ignored(status: &str) -> impl Iterator<Item = i32> {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default();
    (1..32).filter(move |number| *number != SIGPIPE && set >> (number - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_read_bit_by_bit() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001007\nSigCgt:\t0000000000000000\n";
        assert_eq!(ignored(status).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(ignored("").count(), 0);
    }
}
