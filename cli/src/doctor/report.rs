//! Output of findings: lines of text, or one JSON object.

use serde_json::{Value, json};

use super::Check;
use super::finding::{Finding, Status};
use crate::exit_code::ExitCode;
use crate::untrusted;

impl Status {
    /// Returns the name in the output.
    fn name(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Warning => "warning",
            Self::Failed(_) => "failed",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
        }
    }
}

/// Returns the lines of one check. Unless all is well, they include the check's reason and the remedies.
pub(super) fn text(check: &Check, finding: &Finding) -> String {
    let label = match finding.status {
        Status::Failed(_) => "FAILED",
        status => status.name(),
    };
    let mut text = format!("{label:8} {:16} {}\n", check.name, untrusted::line(&finding.saw));
    if !matches!(finding.status, Status::Fine | Status::Skipped) {
        text.push_str(&format!("         why: {}\n", check.why));
        for remedy in &finding.remedies {
            text.push_str(&format!("         do:  {}\n", untrusted::line(remedy)));
        }
    }
    text
}

/// Returns the last line.
pub(super) fn summary(checks: &[Check], findings: &[Finding]) -> String {
    let count = |wanted: &str| findings.iter().filter(|finding| finding.status.name() == wanted).count();
    let counted = ["failed", "warning", "unknown", "skipped", "ok"].map(|name| (name, count(name)));
    let parts: Vec<_> =
        counted.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}")).collect();
    let pairs = || checks.iter().zip(findings);
    let first = pairs().find(|(_, finding)| matches!(finding.status, Status::Failed(_)));
    let advice = first.map(|(check, _)| format!("; begin with {:?}", check.name)).unwrap_or_default();
    format!("\n{}{advice}\n", parts.join(", "))
}

/// Returns all checks in one JSON object.
pub(super) fn json(checks: &[Check], findings: &[Finding], code: ExitCode) -> String {
    let one = |(check, finding): (&Check, &Finding)| {
        json!({
            "check": check.name,
            "status": finding.status.name(),
            "saw": finding.saw,
            "why": check.why,
            "remedies": finding.remedies,
        })
    };
    let list: Vec<Value> = checks.iter().zip(findings).map(one).collect();
    format!("{:#}\n", json!({ "exit_code": code.number(), "checks": list }))
}
