//! The local terminal. It is in raw mode while it shows a remote terminal, and is always restored afterwards, even after a panic.

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

/// The terminal in raw mode and its previous settings. It is static because the panic hook needs it too.
static BEFORE: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<(OwnedFd, Termios)>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the terminal in raw mode: every key is sent to the node, and no character is translated. Dropping this value restores
/// the terminal.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Sets raw mode. Returns `None` if standard input is not a terminal.
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

/// Restores the terminal, if it is in raw mode or shows a full-screen view.
pub(crate) fn restore() {
    screen::restore();
    if let Some((terminal, cooked)) = before().take() {
        // An error means that the terminal was closed, so it needs no restoring.
        let _ = tcsetattr(terminal, OptionalActions::Flush, &cooked);
    }
}

/// Standard error, for whole lines. In raw mode, a carriage return is added to each line end.
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

/// The size that is reported without a terminal. It is the same as the official client's, and wide enough that lines of a log are
/// usually not wrapped.
const NO_TERMINAL: TerminalSize = TerminalSize { cols: 300, rows: 100 };

/// Returns the terminal's size, from the first standard stream that is a terminal.
pub(crate) fn size() -> TerminalSize {
    let size = [tcgetwinsize(stdout()), tcgetwinsize(stdin()), tcgetwinsize(stderr())];
    let known = size.into_iter().flatten().find(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or(NO_TERMINAL, |size| TerminalSize { cols: size.ws_col.into(), rows: size.ws_row.into() })
}

/// Whether standard input is a terminal.
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
        crate::logging::install_panic_hook();
        // The panicking thread does not own the guard, so only the hook can restore the terminal.
        assert!(std::thread::spawn(|| panic!("on purpose")).join().is_err());
        std::panic::set_hook(previous);
        assert_eq!(modes(), cooked);
        drop(raw);
    }
}
