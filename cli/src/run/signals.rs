//! Signals: before the command runs they end this process; then they are passed to the command.

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

/// What is passed to the command.
const PASSED: [Signal; 9] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::TSTP,
    // The terminal sends it to a job in the background. Only the command reads from the terminal.
    Signal::TTIN,
    // Whatever stopped the command, it continues when this process does.
    Signal::CONT,
];

/// Passes signals to the command once it runs.
#[derive(Debug, Default)]
pub(crate) struct SignalPassing {
    child: Arc<OnceLock<Handle>>,
}

impl SignalPassing {
    /// Handles the signals of this process. Those that it ignored when it started stay ignored, also for the command.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub(crate) fn install(shutdown: &Shutdown) -> io::Result<Self> {
        // A command with a process group of its own, such as a shell, may own the terminal. Writing to it then must not stop
        // this process.
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
                        None => before_the_command(number, &shutdown),
                    }
                }
            });
        }
        Ok(this)
    }

    /// From here on, signals are passed to this command.
    pub(crate) fn pass_to(&self, child: Handle) {
        let _ = self.child.set(child);
    }
}

fn before_the_command(number: Signal, shutdown: &Shutdown) {
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

/// Whether a signal comes from a key: then the terminal has also sent it to the command, which is in the same group.
fn comes_from_terminal(number: Signal) -> bool {
    let is_key = matches!(number, Signal::INT | Signal::QUIT | Signal::TSTP | Signal::TTIN);
    is_key && File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}
