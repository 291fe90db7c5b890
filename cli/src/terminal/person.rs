//! Prompts and messages for the user while credentials are obtained, such as the prompt for the code of an MFA device.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};
use ssm_forward::Person;

use super::{Stderr, before, restore};

/// The user at the terminal of this process. Prompts are possible until a session uses the terminal.
#[derive(Debug)]
pub(crate) struct AtTerminal {
    /// Whether only prompts are shown.
    quiet: bool,
    /// Whether a session or another program uses the terminal.
    taken: AtomicBool,
}

impl AtTerminal {
    /// Creates a user who can be asked. With `quiet`, only prompts are shown.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, taken: AtomicBool::new(false) }
    }

    /// Creates a user who is shown messages but no prompts, because another program uses the terminal.
    pub(crate) fn only_told() -> Self {
        Self { quiet: false, taken: AtomicBool::new(true) }
    }

    /// Allows no more prompts, because a session uses the terminal or standard input from now on.
    pub(crate) fn set_taken(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }
}

impl Person for AtTerminal {
    /// Returns `false` in the background too, because the system stops a background process that reads from the terminal.
    fn can_answer(&self) -> bool {
        let in_foreground = || tcgetpgrp(terminal().ok()?).ok().map(|group| group == getpgrp());
        !self.taken.load(Ordering::Relaxed) && before().is_none() && in_foreground() == Some(true)
    }

    /// Prompts without echo: typed characters are not shown.
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

/// Restores the terminal when it is dropped, because a prompt may be cancelled while it is open.
pub(crate) struct Asking;

impl Drop for Asking {
    fn drop(&mut self) {
        restore();
    }
}
