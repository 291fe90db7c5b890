//! The local terminal. It is raw while a remote terminal is shown on it, and restored in every case.

mod escape;
mod person;
mod screen;

pub(crate) use escape::{Escapes, HELP};
pub(crate) use person::{Asking, AtTerminal};
pub(crate) use screen::Screen;

use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use ssm_forward::TerminalSize;

/// The raw terminal and its previous settings. The panic hook needs it too and has no other access.
static BEFORE: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<(OwnedFd, Termios)>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The terminal is raw: every key goes to the far side, and nothing is translated. Dropping this restores the terminal.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal raw. Returns `None` if standard input is not a terminal.
    pub(crate) fn enter() -> Option<Self> {
        Self::enter_on(stdin().as_fd().try_clone_to_owned().ok()?)
    }

    fn enter_on(terminal: OwnedFd) -> Option<Self> {
        let cooked = tcgetattr(&terminal).ok()?;
        let mut raw = cooked.clone();
        raw.make_raw();
        let mut before = before();
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        *before = Some((terminal, cooked));
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, if it is raw or has a full-screen view.
pub(crate) fn restore() {
    screen::restore();
    if let Some((terminal, cooked)) = before().take() {
        // If the terminal is gone, there is nothing to restore.
        let _ = tcsetattr(terminal, OptionalActions::Flush, &cooked);
    }
}

/// Standard error, for whole lines. On a raw terminal each line still begins at the left.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        if before().is_none() {
            return stderr().write(lines);
        }
        stderr().write_all(String::from_utf8_lossy(lines).replace('\n', "\r\n").as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        stderr().flush()
    }
}

/// The size without a terminal: the same as the official client's, wide enough that no line of a log is wrapped.
const NO_TERMINAL: TerminalSize = TerminalSize { cols: 300, rows: 100 };

/// The terminal's size, from any of the standard streams that is one.
pub(crate) fn size() -> TerminalSize {
    let size = [tcgetwinsize(stdout()), tcgetwinsize(stdin()), tcgetwinsize(stderr())];
    let known = size.into_iter().flatten().find(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or(NO_TERMINAL, |size| TerminalSize { cols: size.ws_col.into(), rows: size.ws_row.into() })
}

/// Whether standard input is a keyboard.
pub(crate) fn has_keyboard() -> bool {
    stdin().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_anywhere_gives_the_terminal_back() {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        let modes = || tcgetattr(&pty).unwrap().local_modes;
        let cooked = modes();
        let raw = RawMode::enter_on(pts.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_ne!(modes(), cooked);
        let previous = std::panic::take_hook();
        crate::logging::tell_panics_in_one_line();
        // This is not the thread that owns the guard, so only the hook can do it.
        assert!(std::thread::spawn(|| panic!("on purpose")).join().is_err());
        std::panic::set_hook(previous);
        assert_eq!(modes(), cooked);
        drop(raw);
    }
}
