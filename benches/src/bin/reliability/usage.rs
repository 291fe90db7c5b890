//! A process's use of resources, from Linux's `/proc`.

use std::path::Path;
use std::time::Duration;

use crate::tunnel::SetupError;

/// Ticks per second of the times in `/proc/PID/stat`; the same on every Linux system.
const TICKS: u64 = 100;

/// A process's use of resources at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    /// Maximum resident memory so far, in bytes.
    pub(crate) peak: u64,
    /// CPU time since the process began.
    pub(crate) cpu: Duration,
    /// Number of open descriptors.
    pub(crate) descriptors: usize,
}

impl Usage {
    /// # Errors
    /// Returns an error if the process has ended, or if the system is not Linux.
    pub(crate) fn of(process: u32) -> Result<Self, SetupError> {
        let folder = Path::new("/proc").join(process.to_string());
        let status = std::fs::read_to_string(folder.join("status"))?;
        let kilobytes = |name: &str| -> Result<u64, SetupError> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("a line of status is missing")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
        };
        let stat = std::fs::read_to_string(folder.join("stat"))?;
        // The name, in parentheses, may contain spaces. After it, the 12th and 13th fields are the times.
        let (_, fields) = stat.rsplit_once(')').ok_or("no fields in stat")?;
        let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = times.sum::<Result<u64, _>>()?;
        Ok(Self {
            memory: kilobytes("VmRSS:")?,
            peak: kilobytes("VmHWM:")?,
            cpu: Duration::from_millis(ticks * 1000 / TICKS),
            descriptors: std::fs::read_dir(folder.join("fd"))?.count(),
        })
    }
}

/// Number of connections that found the queue of a listener full, since the machine's network started. Returns 0 if the system
/// does not report it.
pub(crate) fn queue_overflows() -> u64 {
    let counters = std::fs::read_to_string("/proc/net/netstat").unwrap_or_default();
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find_map(|(name, value)| (name == "ListenOverflows").then(|| value.parse().ok())?).unwrap_or(0)
}

/// Converts bytes to MiB, for tables.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_counts_overflows_of_queues() {
        let overflows = queue_overflows();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let _waiting: Vec<_> =
            (0..4).map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))).collect();
        assert!(queue_overflows() > overflows);
    }

    #[test]
    fn this_process_uses_what_it_took() {
        let before = Usage::of(std::process::id()).unwrap();
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = Usage::of(std::process::id()).unwrap();
        assert!(after.memory >= before.memory + (60 << 20), "{before:?} {after:?} {}", memory.len());
        assert!(after.peak >= after.memory && after.descriptors > 2 && after.cpu >= before.cpu, "{after:?}");
    }
}
