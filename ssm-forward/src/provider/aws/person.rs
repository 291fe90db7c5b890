//! The person who can be asked, and informed, while credentials are obtained.

use std::fmt::Debug;
use std::io;

/// The person at the terminal.
///
/// Some credentials need one: a role needs the code of an MFA device, a `credential_process` needs a key to be touched.
pub trait Person: Debug + Send + Sync {
    /// Whether questions are possible now: there is a terminal, and nothing else reads from it. A `credential_process`
    /// may then use the terminal too.
    fn can_answer(&self) -> bool;

    /// Asks, and waits for one line. It may block.
    ///
    /// # Errors
    /// Nobody answers.
    fn ask(&self, question: &str) -> io::Result<String>;

    /// Shows something that needs no answer: one line without a line end.
    fn tell(&self, text: &str);
}

/// Nobody is there; messages go to the log.
#[derive(Debug)]
pub(super) struct Nobody;

impl Person for Nobody {
    fn can_answer(&self) -> bool {
        false
    }

    fn ask(&self, _question: &str) -> io::Result<String> {
        Err(io::Error::other("nobody can be asked"))
    }

    fn tell(&self, text: &str) {
        tracing::warn!("{text}");
    }
}
