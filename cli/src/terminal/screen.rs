//! A full-screen view on the terminal.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use ratatui::DefaultTerminal;

/// Whether a view fills the terminal. It is static because the signal handling and the panic hook need it too.
static IS_SHOWN: Mutex<bool> = Mutex::new(false);

fn is_shown() -> MutexGuard<'static, bool> {
    IS_SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Timeout for restoring the terminal. A terminal that accepts no output must not keep the process running.
const PATIENCE: Duration = Duration::from_millis(300);

/// A full-screen view of the terminal. Dropping this value restores the terminal.
#[derive(Debug)]
pub(crate) struct Screen(pub(crate) DefaultTerminal);

impl Screen {
    /// Sets raw mode and switches to the terminal's alternate screen.
    ///
    /// # Errors
    /// Returns an error if the terminal does not support this.
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

/// Restores the terminal, if a view fills it. If another thread is restoring it, waits until that is done, because the process may
/// exit right after this call.
pub(super) fn restore() {
    let mut is_shown = is_shown();
    if std::mem::take(&mut *is_shown) {
        let (done, restored) = mpsc::channel();
        let thread = std::thread::Builder::new().spawn(move || {
            ratatui::restore();
            let _ = done.send(());
        });
        // This must not panic: the panic hook calls this function too, and would deadlock.
        match thread {
            Ok(_) => drop(restored.recv_timeout(PATIENCE)),
            Err(_) => ratatui::restore(),
        }
    }
}
