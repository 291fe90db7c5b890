//! Measured processes: output, resource use and termination.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::Result;

/// Timeout for a process to become ready or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time after SIGTERM after which a process is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A child process that has reported that it is ready. It is killed on drop.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: u32,
    /// Time from exec until the process was ready.
    pub(super) ready: Duration,
}

impl Process {
    /// Starts a command and waits until `find` accepts a line of its standard output.
    pub(super) async fn start<T>(mut command: Command, mut find: impl FnMut(&str) -> Option<T>) -> Result<(Self, T)> {
        let name = command.as_std().get_program().display().to_string();
        let errors = tempfile::tempfile()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors.try_clone()?).kill_on_drop(true);
        let began = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let pid = child.id().ok_or("it has no process id")?;
        let stdout = child.stdout.take().ok_or("it has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let found = timeout(PATIENCE, async {
            while let Some(line) = lines.next_line().await? {
                if let Some(found) = find(&line) {
                    return Ok::<T, crate::Error>(found);
                }
            }
            Err(format!("{name} ended before it was ready: {}", last_line(errors)).into())
        });
        let found = found.await.unwrap_or_else(|_| Err(format!("{name} is not ready within {PATIENCE:?}").into()))?;
        let ready = began.elapsed();
        // Later output is read and discarded, so that the pipe does not fill up.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok((Self { child, pid, ready }, found))
    }

    /// CPU time so far.
    pub(super) fn cpu(&self) -> Option<Duration> {
        cpu_of_process(self.pid)
    }

    /// Resident memory in bytes.
    pub(super) fn resident(&self) -> Option<u64> {
        self.status("VmRSS:")
    }

    /// The part of the resident memory that is not file-backed, in bytes.
    pub(super) fn anonymous(&self) -> Option<u64> {
        self.status("RssAnon:")
    }

    fn status(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok().map(|kilobytes: u64| kilobytes << 10)
    }

    /// Sends SIGTERM, and kills the process if it does not end.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(GRACE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn last_line(mut errors: std::fs::File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut text = String::new();
    let _ = errors.rewind().and_then(|()| errors.read_to_string(&mut text));
    text.lines().last().unwrap_or("it printed nothing").to_owned()
}

/// Waits until SIGTERM arrives or standard input ends. A measured process awaits this, so that it does not outlive its
/// parent.
pub(super) async fn until_terminated() -> Result<()> {
    let (mut terminate, mut stdin) = (signal(SignalKind::terminate())?, tokio::io::stdin());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = stdin.read_u8() => {}
    }
    Ok(())
}

/// Returns the CPU time of a process from its kernel clock, which has nanosecond resolution. The ticks of `/proc` are
/// too coarse for a client that sleeps most of the time.
#[cfg(target_os = "linux")]
fn cpu_of_process(pid: u32) -> Option<Duration> {
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?)).ok()?;
    nix::time::clock_gettime(clock).ok().map(Duration::from)
}

#[cfg(not(target_os = "linux"))]
fn cpu_of_process(_pid: u32) -> Option<Duration> {
    None
}
