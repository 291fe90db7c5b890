//! The parent process, and whether this process must end with it.
//!
//! The AWS CLI starts the plugin as a part of itself: if the CLI is killed, no other program ends the session. A launcher
//! that detaches the plugin (`setsid`, `nohup`, `&` in a script, a separate job, Node's `detached`, Python's
//! `start_new_session`) expects the plugin to continue when the launcher has ended.

use std::time::Duration;

use rustix::process::{Pid, Signal, getppid};

/// Interval at which the parent is checked.
const LOOK: Duration = Duration::from_secs(1);
/// The bits of SIGHUP and SIGINT in a signal mask.
const HANG_UP: u64 = 1;
const INTERRUPT: u64 = 1 << 1;

/// The parent process; `None` if it detached this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parent(Option<Pid>);

impl Parent {
    /// Determines the parent. Must be called before any signal handler is installed, because the signals that the parent made
    /// this process ignore show whether this process is detached.
    pub(crate) fn of_this_process() -> Self {
        Self(getppid().filter(|parent| !is_detached(*parent)))
    }

    /// Completes when the parent has ended. Never completes if this process is detached.
    pub(crate) async fn gone(self) {
        let Some(parent) = self.0 else { return std::future::pending().await };
        while getppid() == Some(parent) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether the parent made this process ignore `signal`; `nohup`, for example, makes it ignore SIGHUP, so that it outlives the
/// terminal. Must be called before any signal handler is installed. Returns `false` on systems other than Linux, where this
/// information is available only through `unsafe` code.
pub(crate) fn ignores(signal: Signal) -> bool {
    u32::try_from(signal.as_raw() - 1).is_ok_and(|bit| ignored("self") >> bit & 1 != 0)
}

/// Whether `parent` detached this process. A launcher that detaches a process puts it into another session or process group, or
/// makes it ignore the signals that end a group: `nohup` makes it ignore SIGHUP, and a shell's `&` without job control makes it
/// ignore SIGINT. Signals that the parent ignores too do not count, because they were only inherited: the AWS CLI ignores SIGINT
/// while the plugin runs, and may itself run under `nohup`.
fn is_detached(parent: Pid) -> bool {
    let of_parent = parent.as_raw_nonzero().to_string();
    let ignores_more = ignored("self") & !ignored(&of_parent) & (HANG_UP | INTERRUPT) != 0;
    ignores_more || group("self") != group(&of_parent)
}

/// Returns a process's group and session. They are read from `/proc`, because they are 0 if their leaders are not visible, as
/// under `docker exec`, and the calls of `rustix` cannot represent 0.
#[cfg(target_os = "linux")]
fn group(process: &str) -> Option<[String; 2]> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may contain any character. The fields after it are state, parent, group and session.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(2).map(str::to_owned);
    Some([fields.next()?, fields.next()?])
}

#[cfg(not(target_os = "linux"))]
fn group(process: &str) -> Option<[Pid; 2]> {
    let pid = process.parse().ok().and_then(Pid::from_raw);
    Some([rustix::process::getpgid(pid).ok()?, rustix::process::getsid(pid).ok()?])
}

/// Returns the mask of the signals that a process ignores, or 0 if the system does not report it.
fn ignored(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
