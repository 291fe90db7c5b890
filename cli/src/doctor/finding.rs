//! The findings of checks.

use ssm_forward::{ProviderError, ProviderErrorKind};

use crate::exit_code::{ExitCode, Failure};

/// The finding of a check; an error is the finding of a check that ended early. Both are reported in the same way.
pub(super) type Outcome = Result<Finding, Finding>;

/// The finding of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) status: Status,
    /// What the check found, in one line.
    pub(super) saw: String,
    /// What to do: sentences, commands or policy statements, ready to paste.
    pub(super) remedies: Vec<String>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Fine,
    /// It works, but perhaps not as the user expects.
    Warning,
    /// It cannot work. The exit code is that of a command that fails for this reason.
    Failed(ExitCode),
    /// The check was not possible, for example without a permission.
    Unknown,
    /// There was nothing to check.
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

    /// The finding for a failed call that sessions need.
    pub(super) fn broken(error: ProviderError, permission: &str) -> Self {
        let remedy = remedy(&error, permission);
        let failure = Failure::from(error);
        Self::failed(failure.code, failure.message).remedies(remedy)
    }

    /// The finding for a failed call that only this command needs.
    pub(super) fn unreadable(error: &ProviderError, permission: &str) -> Self {
        Self::unknown(error.message.clone()).remedies(remedy(error, permission))
    }

    /// Adds a remedy.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedies.push(remedy.into());
        self
    }

    pub(super) fn remedies(mut self, remedies: impl IntoIterator<Item = String>) -> Self {
        self.remedies.extend(remedies);
        self
    }
}

/// Returns the statement that allows the denied call.
fn remedy(error: &ProviderError, permission: &str) -> Option<String> {
    (error.kind == ProviderErrorKind::AccessDenied && !permission.is_empty())
        .then(|| format!("add to the IAM policy: {}", statement(permission, "*")))
}

/// Returns a statement of an IAM policy.
pub(super) fn statement(action: &str, resource: &str) -> String {
    format!(r#"{{"Effect": "Allow", "Action": "{action}", "Resource": "{resource}"}}"#)
}
