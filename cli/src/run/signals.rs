//! Signal handling of `run`: signals end this process before the command runs, and are passed to the command afterwards.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock};

use nix::sys::signal::SigSet;
use rustix::process::{Signal, getpgrp};
use rustix::termios::tcgetpgrp;
use tokio::signal::unix::{SignalKind, signal};

use super::child::{self, Handle};
use crate::parent_process;
use crate::shutdown::{Shutdown, StopCause};

/// The signals that are passed to the command.
const PASSED: [Signal; 9] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::TSTP,
    // The terminal sends SIGTTIN to a background job that reads from it. Only the command reads from the terminal.
    Signal::TTIN,
    // The command must continue when this process does, whatever stopped it.
    Signal::CONT,
];

/// Passes signals to the command after it has started.
#[derive(Debug, Default)]
pub(crate) struct SignalPassing {
    child: Arc<OnceLock<Handle>>,
}

impl SignalPassing {
    /// Installs the signal handlers. Signals that were ignored when this process started stay ignored, also for the command.
    ///
    /// # Errors
    /// Returns an error if the signal handlers cannot be installed.
    pub(crate) fn install(shutdown: &Shutdown) -> io::Result<Self> {
        // A command that creates its own process group, such as a shell, makes this process a background process of the terminal.
        // SIGTTOU is blocked, so that writing to the terminal does not stop this process.
        SigSet::from_iter([nix::sys::signal::Signal::SIGTTOU]).thread_block()?;
        let this = Self::default();
        for number in PASSED.into_iter().filter(|&number| !parent_process::ignores(number)) {
            let mut signals = signal(SignalKind::from_raw(number.as_raw()))?;
            let (child, shutdown) = (this.child.clone(), shutdown.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    match child.get() {
                        Some(_) if comes_from_terminal(number) => {}
                        Some(child) => child.send(number),
                        None => handle_before_start(number, &shutdown),
                    }
                }
            });
        }
        Ok(this)
    }

    /// Makes the handlers pass signals to this command.
    pub(crate) fn pass_to(&self, child: Handle) {
        let _ = self.child.set(child);
    }
}

/// Handles a signal that arrives before the command has started.
fn handle_before_start(number: Signal, shutdown: &Shutdown) {
    let cause = match number {
        Signal::TERM => StopCause::Terminate,
        Signal::HUP => StopCause::HangUp,
        Signal::INT | Signal::QUIT => StopCause::Interrupt,
        Signal::TSTP => return child::suspend(),
        _ => return,
    };
    if shutdown.cause().is_some() {
        std::process::exit(cause.exit_code().number().into());
    }
    shutdown.stop(cause);
}

/// Whether the terminal has sent a signal. Then the command has received it too, because it is in the same process group.
fn comes_from_terminal(number: Signal) -> bool {
    let is_key = matches!(number, Signal::INT | Signal::QUIT | Signal::TSTP | Signal::TTIN);
    is_key && File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}
