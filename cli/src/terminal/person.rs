//! The person at the terminal, for credentials: enters the code of an MFA device, and is told what is waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};
use ssm_forward::Person;

use super::{Stderr, before, restore};

/// The person at the terminal of this process, who can be asked until a session uses the terminal.
#[derive(Debug)]
pub(crate) struct AtTerminal {
    quiet: bool,
    taken: AtomicBool,
}

impl AtTerminal {
    /// `quiet`: only questions are shown.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, taken: AtomicBool::new(false) }
    }

    /// Messages are shown, but nothing is asked, because the terminal belongs to another program.
    pub(crate) fn only_told() -> Self {
        Self { quiet: false, taken: AtomicBool::new(true) }
    }

    /// From now on a session uses the terminal, or standard input.
    pub(crate) fn is_taken(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }
}

impl Person for AtTerminal {
    /// A process in the background would be stopped by its question.
    fn can_answer(&self) -> bool {
        let in_foreground = || tcgetpgrp(terminal().ok()?).ok().map(|group| group == getpgrp());
        !self.taken.load(Ordering::Relaxed) && before().is_none() && in_foreground() == Some(true)
    }

    /// Typed characters are not shown.
    fn ask(&self, question: &str) -> io::Result<String> {
        let mut terminal = terminal()?;
        write!(terminal, "{question}").and_then(|()| terminal.flush())?;
        let shown = tcgetattr(&terminal)?;
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        *before() = Some((terminal.try_clone()?.into(), shown));
        tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
        let mut answer = String::new();
        let read = BufReader::new(&terminal).read_line(&mut answer);
        restore();
        let _ = writeln!(terminal);
        read.map(|_| answer)
    }

    fn tell(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(Stderr, "{text}");
        }
    }
}

fn terminal() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty")
}

/// Restores the terminal when it is dropped: a question may be abandoned while it is open.
pub(crate) struct Asking;

impl Drop for Asking {
    fn drop(&mut self) {
        restore();
    }
}
