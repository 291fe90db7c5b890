//! The limit of open files. Connections leave some descriptors free for the sessions, which need them to reconnect.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::time::{Duration, Instant};

/// Number of descriptors reserved for sessions, unless `1 / RESERVED_PART` of the limit is smaller.
const RESERVE: u64 = 32;
const RESERVED_PART: u64 = 4;
/// A shortage is reported again if there was none for this time.
const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Returns the limit of open files of this process. `None`: no limit.
fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Whether only the reserve is left. The number of a new descriptor shows this, because a new descriptor gets the lowest free
/// number.
pub(crate) fn is_in_reserve(descriptor: &impl AsRawFd) -> bool {
    let number = u64::try_from(descriptor.as_raw_fd()).unwrap_or_default();
    limit().is_some_and(|limit| is_beyond(number, limit))
}

/// Whether only the reserve is left. Checks the number of a new copy of this descriptor.
pub(crate) fn are_scarce(any: &impl AsFd) -> bool {
    any.as_fd().try_clone_to_owned().map_or(true, |copy| is_in_reserve(&copy))
}

/// Whether this error means that no descriptor is free.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Reports once per shortage that connections wait for descriptors.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    last: Option<Instant>,
}

impl Shortage {
    /// Records that no descriptor is free for another connection. Returns a warning if the shortage is new.
    pub(crate) fn warning(&mut self, connections: u64) -> Option<String> {
        let now = Instant::now();
        let is_new = self.last.replace(now).is_none_or(|last| now >= last + REPORT_AGAIN_AFTER);
        is_new.then(|| {
            let limit = limit().map_or_else(String::new, |limit| format!(" of {limit}"));
            format!(
                "the limit{limit} open files is reached with {connections} connections: new ones wait until others end \
                 (ulimit -n, or LimitNOFILE in systemd, raises it)"
            )
        })
    }
}

fn is_beyond(number: u64, limit: u64) -> bool {
    number >= limit - RESERVE.min(limit / RESERVED_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_small_part() {
        assert!(!is_beyond(991, 1024) && is_beyond(992, 1024));
        assert!(!is_beyond(47, 64) && is_beyond(48, 64));
        assert!(!is_beyond(2, 3) && is_beyond(3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lack_is_told_once_until_it_was_over_for_a_minute() {
        let mut shortage = Shortage::default();
        assert!(shortage.warning(200).is_some_and(|text| text.contains("200 connections")));
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(30)).await;
            assert_eq!(shortage.warning(200), None);
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(shortage.warning(200).is_some());
    }

    #[test]
    fn a_lack_of_descriptors_is_told_from_other_failures() {
        assert!(is_out_of_descriptors(&Errno::MFILE.into()) && is_out_of_descriptors(&Errno::NFILE.into()));
        assert!(!is_out_of_descriptors(&Errno::CONNABORTED.into()));
        assert!(!is_out_of_descriptors(&io::Error::other("no code")));
    }
}
