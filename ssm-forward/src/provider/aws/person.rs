//! Who can be asked, and told, while credentials are looked for.

use std::fmt::Debug;
use std::io;

/// The person in front of the terminal.
///
/// Some credentials need one: a role wants the code of an MFA device, a `credential_process` wants a key to be touched.
pub trait Person: Debug + Send + Sync {
    /// Whether questions make sense just now: there is a terminal, and nothing else reads from it. A `credential_process`
    /// may then use the terminal too.
    fn can_answer(&self) -> bool;

    /// Asks, and waits for one line. It may block.
    ///
    /// # Errors
    /// Nobody answers.
    fn ask(&self, question: &str) -> io::Result<String>;

    /// Tells something that need not be answered: one line without its end.
    fn tell(&self, text: &str);
}

/// Nobody is there: what would be told goes into the log.
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
