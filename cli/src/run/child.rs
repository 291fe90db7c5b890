//! The command as a child process: in the group of this process, so that the terminal's keys reach it. It does not outlive
//! this process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, kill_process, waitid};
use tokio::sync::oneshot;

use super::enter::{self, Entry};
use super::program::Program;
use crate::exit_code::{ExitCode, Failure};

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Child {
    handle: Handle,
    ended: oneshot::Receiver<ExitCode>,
}

/// Sends signals to the command while it lives. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// `None` once it has ended: its number may be another process's then.
    pid: Arc<Mutex<Option<Pid>>>,
}

impl Child {
    /// Starts the command. Call it on the main thread: the kernel ends the command when the thread that started it ends.
    ///
    /// # Errors
    /// The system cannot start the process.
    pub(crate) fn start(
        program: &Program,
        words: &[OsString],
        variables: &BTreeMap<String, OsString>,
        entry: &Entry,
    ) -> Result<Self, Failure> {
        let child = enter::command(program, entry).map_err(Failure::internal)?.args(words).envs(variables).spawn();
        let child = child.map_err(|error| {
            let text = format!("cannot start {}: {error}", program.path.display());
            Failure::new(ExitCode::CommandNotExecutable, "command_not_executable", text)
        })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::internal("a process without an id"))?;
        let handle = Handle { pid: Arc::new(Mutex::new(Some(pid))) };
        let (tell, ended) = oneshot::channel();
        let waiting = handle.clone();
        std::thread::spawn(move || {
            let code = waiting.wait(pid).unwrap_or(ExitCode::Internal);
            let _ = tell.send(code);
        });
        Ok(Self { handle, ended })
    }

    /// For sending signals.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Completes with the exit code of the command. If a signal ended it, that is 128 plus the signal's number.
    pub(crate) async fn ended(&mut self) -> ExitCode {
        (&mut self.ended).await.unwrap_or(ExitCode::Internal)
    }
}

impl Handle {
    /// Sends a signal, if the command still lives.
    pub(crate) fn send(&self, signal: Signal) {
        if let Some(pid) = *self.pid.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until the command has ended. When the command stops, this process stops too.
    fn wait(&self, pid: Pid) -> io::Result<ExitCode> {
        let wait = |options| loop {
            match waitid(WaitId::Pid(pid), options) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => break Err(error.into()),
                Ok(status) => break status.map_or_else(|| Err(io::ErrorKind::WouldBlock.into()), Ok),
            }
        };
        loop {
            let status: WaitIdStatus = wait(WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT)?;
            if status.stopped() {
                // This takes the report of the stop, which would come again. There is none if the command continues already.
                let report = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
                if report.is_ok_and(|report| report.is_some()) {
                    stop_too();
                }
                continue;
            }
            // From here on, another process may get the number.
            *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return wait(WaitIdOptions::EXITED).map(exit_code);
        }
    }
}

/// At a terminal, the shell that started this process has to see that the job is stopped. Its `fg` sends SIGCONT to this process,
/// which passes it to the command. Without a terminal, nobody would continue this process.
fn stop_too() {
    if has_terminal() {
        suspend();
    }
}

/// Stops this process until it gets SIGCONT. May return before the process is stopped.
pub(super) fn suspend() {
    let _ = kill_process(getpid(), Signal::STOP);
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

fn exit_code(status: WaitIdStatus) -> ExitCode {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitCode::Remote(code.into()),
        (None, Some(signal)) => ExitCode::Remote(i64::from(signal) + 128),
        (None, None) => ExitCode::Internal,
    }
}
