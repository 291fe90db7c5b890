//! A view that fills the terminal.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use ratatui::DefaultTerminal;

/// Whether a view fills the terminal. A signal and a panic need to know it and have no other access.
static IS_SHOWN: Mutex<bool> = Mutex::new(false);

fn is_shown() -> MutexGuard<'static, bool> {
    IS_SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the terminal may take to be restored: one that takes no output must not keep the process.
const PATIENCE: Duration = Duration::from_millis(300);

/// The terminal belongs to a full-screen view. Dropping this restores the terminal.
#[derive(Debug)]
pub(crate) struct Screen(pub(crate) DefaultTerminal);

impl Screen {
    /// Takes the terminal: it becomes raw and shows its alternate screen.
    ///
    /// # Errors
    /// The terminal cannot do that.
    pub(crate) fn enter() -> io::Result<Self> {
        *is_shown() = true;
        ratatui::try_init().map(Self).inspect_err(|_| restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, if a view fills it. Waits if another thread is just doing so: the process may end right after.
pub(super) fn restore() {
    let mut is_shown = is_shown();
    if std::mem::take(&mut *is_shown) {
        let (done, restored) = mpsc::channel();
        let thread = std::thread::Builder::new().spawn(move || {
            ratatui::restore();
            let _ = done.send(());
        });
        // No panic here: its hook restores the terminal too, and would wait for this.
        match thread {
            Ok(_) => drop(restored.recv_timeout(PATIENCE)),
            Err(_) => ratatui::restore(),
        }
    }
}
