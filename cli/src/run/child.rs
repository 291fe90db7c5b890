//! The command as a child process. It is in the process group of this process, so that the terminal's keys reach it. It ends when
//! this process ends.

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

/// A running command.
#[derive(Debug)]
pub(crate) struct Child {
    handle: Handle,
    ended: oneshot::Receiver<ExitCode>,
}

/// Handle that sends signals to the command while it runs. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// The process id; `None` after the command has ended, because the system may assign the id to another process.
    pid: Arc<Mutex<Option<Pid>>>,
}

impl Child {
    /// Starts the command. Must be called on the main thread, because the kernel ends the command when the thread that started it
    /// ends.
    ///
    /// # Errors
    /// Returns an error if the system cannot start the process.
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
        let (sender, ended) = oneshot::channel();
        let waiting = handle.clone();
        std::thread::spawn(move || {
            let code = waiting.wait(pid).unwrap_or(ExitCode::Internal);
            let _ = sender.send(code);
        });
        Ok(Self { handle, ended })
    }

    /// Returns a handle that sends signals to the command.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the command has ended, and returns its exit code. If a signal ended the command, the exit code is 128 plus the
    /// signal's number.
    pub(crate) async fn ended(&mut self) -> ExitCode {
        (&mut self.ended).await.unwrap_or(ExitCode::Internal)
    }
}

impl Handle {
    /// Sends a signal, if the command is still running.
    pub(crate) fn send(&self, signal: Signal) {
        if let Some(pid) = *self.pid.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until the command has ended. When a signal stops the command, this process stops too.
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
                // This call consumes the report of the stop; otherwise the next wait would return it again. There is no report if
                // the command has already continued.
                let report = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
                if report.is_ok_and(|report| report.is_some()) {
                    suspend_with_command();
                }
                continue;
            }
            // The next wait releases the process id, and another process may get it.
            *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return wait(WaitIdOptions::EXITED).map(exit_code);
        }
    }
}

/// Stops this process after the command was stopped, so that the shell that started this process sees a stopped job. The shell's
/// `fg` sends SIGCONT to this process, which passes it to the command. Does nothing without a terminal, because then no shell would
/// continue this process.
fn suspend_with_command() {
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
