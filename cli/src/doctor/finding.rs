//! What a check found.

use ssm_forward::{ProviderError, ProviderErrorKind};

use crate::exit_code::{ExitCode, Failure};

/// What a check found, or, as the error, why it ended early. Both are told in the same way.
pub(super) type Outcome = Result<Finding, Finding>;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) status: Status,
    /// In one line.
    pub(super) saw: String,
    /// What to do: sentences, commands or policy statements, ready to paste.
    pub(super) remedies: Vec<String>,
}

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Fine,
    /// It works, but perhaps not as the person expects.
    Warning,
    /// It cannot work. The exit code is that of a command that meets it.
    Failed(ExitCode),
    /// It may not be looked at.
    Unknown,
    /// There was nothing to look at.
    Skipped,
}

impl Finding {
    fn new(status: Status, saw: impl Into<String>) -> Self {
        Self { status, saw: saw.into(), remedies: Vec::new() }
    }

    pub(super) fn fine(saw: impl Into<String>) -> Self {
        Self::new(Status::Fine, saw)
    }

    pub(super) fn warning(saw: impl Into<String>) -> Self {
        Self::new(Status::Warning, saw)
    }

    pub(super) fn failed(code: ExitCode, saw: impl Into<String>) -> Self {
        Self::new(Status::Failed(code), saw)
    }

    pub(super) fn unknown(saw: impl Into<String>) -> Self {
        Self::new(Status::Unknown, saw)
    }

    pub(super) fn skipped(why: impl Into<String>) -> Self {
        Self::new(Status::Skipped, why)
    }

    /// A call that sessions need failed.
    pub(super) fn broken(error: ProviderError, permission: &str) -> Self {
        let remedy = remedy(&error, permission);
        let failure = Failure::from(error);
        Self::failed(failure.code, failure.message).remedies(remedy)
    }

    /// A call failed that only this command needs.
    pub(super) fn unreadable(error: &ProviderError, permission: &str) -> Self {
        Self::unknown(error.message.clone()).remedies(remedy(error, permission))
    }

    /// Adds what to do.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedies.push(remedy.into());
        self
    }

    pub(super) fn remedies(mut self, remedies: impl IntoIterator<Item = String>) -> Self {
        self.remedies.extend(remedies);
        self
    }
}

/// The statement that allows the call that was denied.
fn remedy(error: &ProviderError, permission: &str) -> Option<String> {
    (error.kind == ProviderErrorKind::AccessDenied && !permission.is_empty())
        .then(|| format!("add to the IAM policy: {}", statement(permission, "*")))
}

/// A statement of an IAM policy.
pub(super) fn statement(action: &str, resource: &str) -> String {
    format!(r#"{{"Effect": "Allow", "Action": "{action}", "Resource": "{resource}"}}"#)
}
