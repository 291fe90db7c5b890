//! What programs inherit of signals.

use std::sync::Once;

use tokio::signal::unix::{SignalKind, signal};

/// Lets the programs that are started from here on have every signal, also those that this process was started to ignore: a
/// shell without job control starts `local &` with SIGINT and SIGQUIT ignored, `nohup` with SIGHUP.
///
/// What is ignored stays so in a program that is started; what is caught does not. So it is caught, and nothing done about it.
/// Where there is no `/proc` it is inherited.
pub(super) fn inherit_none() {
    static CAUGHT: Once = Once::new();
    CAUGHT.call_once(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for number in ignored(&status) {
            // A handler stays for good. The few signals that tokio refuses are not ignored by anybody.
            if let Err(error) = signal(SignalKind::from_raw(number)) {
                tracing::debug!(number, %error, "programs will inherit an ignored signal");
            }
        }
    });
}

/// The standard library takes care of it.
const SIGPIPE: i32 = 13;

/// The ordinary signals in a process's set of ignored ones.
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
