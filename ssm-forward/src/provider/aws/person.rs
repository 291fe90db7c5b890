//! Asks and informs the user while credentials are obtained.

use std::fmt::Debug;
use std::io;

/// The user at the terminal.
///
/// Some credentials need the user: a role needs the code of an MFA device, or a `credential_process` needs a security key to be
/// touched.
pub trait Person: Debug + Send + Sync {
    /// Whether questions are possible now: there is a terminal, and no other part of the program reads from it. In this case, a
    /// `credential_process` may use the terminal too.
    fn can_answer(&self) -> bool;

    /// Asks a question, and waits for one line of input. May block.
    ///
    /// # Errors
    /// Returns an error if there is no answer.
    fn ask(&self, question: &str) -> io::Result<String>;

    /// Shows a message that needs no answer: one line without a line end.
    fn tell(&self, text: &str);
}

/// An implementation without a user. Messages are logged.
#[derive(Debug)]
pub(super) struct LogOnly;

impl Person for LogOnly {
    fn can_answer(&self) -> bool {
        false
    }

    fn ask(&self, _question: &str) -> io::Result<String> {
        Err(io::Error::other("the user cannot be asked"))
    }

    fn tell(&self, text: &str) {
        tracing::warn!("{text}");
    }
}
