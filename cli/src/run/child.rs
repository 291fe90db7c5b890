//! The command as a child: in this process's group, so that the terminal's keys reach it, and never longer alive than this
//! process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::sync::mpsc::Receiver;
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
    /// Starts the command. It has to be called on the main thread, with which the command ends. `continued` tells when this process
    /// goes on after a stop.
    ///
    /// # Errors
    /// The system starts no process.
    pub(crate) fn start(
        program: &Program,
        words: &[OsString],
        variables: &BTreeMap<String, OsString>,
        entry: &Entry,
        continued: Receiver<()>,
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
            let code = waiting.wait(pid, &continued).unwrap_or(ExitCode::Internal);
            let _ = tell.send(code);
        });
        Ok(Self { handle, ended })
    }

    /// For signals.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Completes with the exit code of the command; a signal counts as 128 and its number.
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

    /// Waits until the command has ended, and stops and continues together with it.
    fn wait(&self, pid: Pid, continued: &Receiver<()>) -> io::Result<ExitCode> {
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
                // Unless it goes on already, the same stop would be told again.
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
                self.stop_too(continued);
                continue;
            }
            // From here on the number may be given to another process.
            *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return wait(WaitIdOptions::EXITED).map(exit_code);
        }
    }

    /// At a terminal, the shell that started this process has to see that the job is stopped. When it goes on (`fg`), so does
    /// the command. Without a terminal nobody would let this process go on.
    fn stop_too(&self, continued: &Receiver<()>) {
        if has_terminal() {
            continued.try_iter().for_each(drop);
            suspend();
            // The system stops the threads of a process one after the other: this one may run for a moment longer, and must not
            // let the command go on already.
            let _ = continued.recv();
            self.send(Signal::CONT);
        }
    }
}

/// Stops this process until somebody lets it go on. May return before it is stopped.
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
