//! The process that started this one, and whether this one must end with it.
//!
//! The AWS CLI starts the plugin as a part of itself: if the CLI is killed, nobody else ends the session. A launcher
//! that detaches the plugin (`setsid`, `nohup`, `&` in a script, a job of its own, Node's `detached`, Python's
//! `start_new_session`) wants it to continue when the launcher is gone.

use std::time::Duration;

use rustix::process::{Pid, Signal, getppid};

/// How often the parent is checked.
const LOOK: Duration = Duration::from_secs(1);
/// The bits of SIGHUP and SIGINT in a signal mask.
const HANG_UP: u64 = 1;
const INTERRUPT: u64 = 1 << 1;

/// The process that started this one; `None` if it detached this one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parent(Option<Pid>);

impl Parent {
    /// Determines the parent. It matters which signals it made this process ignore, so this must be called before any
    /// signal handler is installed.
    pub(crate) fn of_this_process() -> Self {
        Self(getppid().filter(|parent| !is_detached(*parent)))
    }

    /// Completes when it is gone. Never completes if this process is detached.
    pub(crate) async fn gone(self) {
        let Some(parent) = self.0 else { return std::future::pending().await };
        while getppid() == Some(parent) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a signal is ignored because whoever started this process wants that: SIGHUP, so that it outlives the terminal. It
/// comes before any signal handler. Only Linux tells without unsafe code.
pub(crate) fn ignores(signal: Signal) -> bool {
    u32::try_from(signal.as_raw() - 1).is_ok_and(|bit| ignored("self") >> bit & 1 != 0)
}

/// A launcher that detaches a process gives it a session or a process group of its own, or makes it ignore the signals
/// that end a group. `nohup` makes it ignore SIGHUP, a shell's `&` without job control SIGINT. Signals that the parent
/// ignores too were only inherited: the AWS CLI ignores SIGINT while the plugin runs, and may itself run under `nohup`.
fn is_detached(parent: Pid) -> bool {
    let of_parent = parent.as_raw_nonzero().to_string();
    let ignores_more = ignored("self") & !ignored(&of_parent) & (HANG_UP | INTERRUPT) != 0;
    ignores_more || group("self") != group(&of_parent)
}

/// A process's group and session. Both are 0 if their leaders are not visible, as under `docker exec`, which the calls
/// in `rustix` cannot represent.
#[cfg(target_os = "linux")]
fn group(process: &str) -> Option<[String; 2]> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name, which may contain anything: state, parent, group, session.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(2).map(str::to_owned);
    Some([fields.next()?, fields.next()?])
}

#[cfg(not(target_os = "linux"))]
fn group(process: &str) -> Option<[Pid; 2]> {
    let pid = process.parse().ok().and_then(Pid::from_raw);
    Some([rustix::process::getpgid(pid).ok()?, rustix::process::getsid(pid).ok()?])
}

/// The signals that a process ignores; none if the system does not tell.
fn ignored(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
