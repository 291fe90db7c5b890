//! The local terminal: raw while a remote one is shown on it, and given back on every way out.

mod escape;

pub(crate) use escape::{Escapes, HELP};

use std::io::{IsTerminal, stderr, stdin, stdout};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use ssm_forward::TerminalSize;

/// How the terminal was before it became raw; also for the panic hook, which has nothing else to hold on to.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw: every key goes to the far side, nothing is translated. Dropping it gives the terminal back.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal raw; `None` if standard input is none.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, if it is raw.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Where the terminal is gone there is nothing to give back.
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &before);
    }
}

/// Without a terminal: what the official client says, wide enough that no line of a log is folded.
const NO_TERMINAL: TerminalSize = TerminalSize { cols: 300, rows: 100 };

/// The terminal's size, from whichever of the standard streams is one.
pub(crate) fn size() -> TerminalSize {
    let size = [tcgetwinsize(stdout()), tcgetwinsize(stdin()), tcgetwinsize(stderr())];
    let known = size.into_iter().flatten().find(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or(NO_TERMINAL, |size| TerminalSize { cols: size.ws_col.into(), rows: size.ws_row.into() })
}

/// Whether a person types.
pub(crate) fn has_keyboard() -> bool {
    stdin().is_terminal()
}
