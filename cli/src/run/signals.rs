//! Signals: before the command runs they end this process, then they are the command's.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};

use nix::sys::signal::SigSet;
use rustix::process::{Signal, getpgrp};
use rustix::termios::tcgetpgrp;
use tokio::signal::unix::{SignalKind, signal};

use super::child::{self, Handle};
use crate::parent;
use crate::shutdown::{Shutdown, StopCause};

/// What is passed to the command.
const PASSED: [Signal; 8] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::TSTP,
    // From the terminal, to a job in the background. Only the command reads from it.
    Signal::TTIN,
];

/// Passes signals to the command once it is there.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    child: Arc<OnceLock<Handle>>,
}

impl Relay {
    /// Takes the signals of this process. What the caller had it ignore stays ignored, for the command too. Also returns a channel
    /// that tells when this process, which was stopped, goes on.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub(crate) fn install(shutdown: &Shutdown) -> io::Result<(Self, Receiver<()>)> {
        // A command with a process group of its own, such as a shell, may have the terminal: to tell something then must not
        // stop this process.
        SigSet::from_iter([nix::sys::signal::Signal::SIGTTOU]).thread_block()?;
        let this = Self::default();
        for number in PASSED.into_iter().filter(|&number| !parent::ignores(number)) {
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
        let mut signals = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let (tell, continued) = channel();
        tokio::spawn(async move { while signals.recv().await.is_some() && tell.send(()).is_ok() {} });
        Ok((this, continued))
    }

    /// From here on signals are for this command.
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

/// Whether a signal is a key's: the terminal sent it to the command too, which is in the same group.
fn comes_from_terminal(number: Signal) -> bool {
    let is_key = matches!(number, Signal::INT | Signal::QUIT | Signal::TSTP | Signal::TTIN);
    is_key && File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
}
