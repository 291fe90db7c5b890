//! A view that fills the terminal.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use ratatui::DefaultTerminal;

/// Whether a view fills the terminal. A signal and a panic need to know it and have no other access.
static IS_SHOWN: AtomicBool = AtomicBool::new(false);

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
        IS_SHOWN.store(true, Ordering::SeqCst);
        ratatui::try_init().map(Self).inspect_err(|_| restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, if a view fills it.
pub(super) fn restore() {
    if IS_SHOWN.swap(false, Ordering::SeqCst) {
        let (done, restored) = mpsc::channel();
        std::thread::spawn(move || {
            ratatui::restore();
            let _ = done.send(());
        });
        let _ = restored.recv_timeout(PATIENCE);
    }
}
