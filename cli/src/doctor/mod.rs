//! The `doctor` command: checks everything that sessions need, one step after the other, and prints how to repair what fails. It
//! changes nothing and shows no secret.

mod account;
mod configuration;
mod credentials;
mod facts;
mod finding;
mod network;
mod node;
mod report;
mod session;
mod vpc;

use std::time::Duration;

use ssm_forward::BoxFuture;
use tokio::time::timeout;

use crate::args::{DoctorArgs, OutputFormat, Verbosity};
use crate::console;
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;
use crate::writer;

use facts::Facts;
use finding::{Finding, Outcome, Status};

/// Time limit of each check. The slowest check waits for a `credential_process` or an MFA code, which may take 120 s.
const LIMIT: Duration = Duration::from_secs(150);

/// A check. `docs/doctor.md` has a row for each.
struct Check {
    /// The name in the output and in the documentation.
    name: &'static str,
    /// Why the check matters, in one sentence.
    why: &'static str,
    run: for<'a> fn(&'a mut Facts) -> BoxFuture<'a, Outcome>,
}

macro_rules! checks {
    ($($name:literal, $run:path, $why:literal;)*) => {
        &[$(Check { name: $name, why: $why, run: |facts| Box::pin($run(facts)) }),*]
    };
}

/// All checks, in the order of the steps of a session. A check uses the results of earlier checks; if they are missing, it is
/// skipped.
const CHECKS: &[Check] = checks! {
    "configuration", configuration::files, "A profile that cannot be read has no effect.";
    "region", configuration::region, "Nodes and databases are looked up in one region only.";
    "credentials", credentials::credentials, "Every call is signed with them.";
    "api", network::api, "Sessions are started at the endpoint of ssm.";
    "data-channel", network::data_channel, "The forwarded bytes go through the endpoint of ssmmessages.";
    "clock", credentials::clock, "AWS refuses signatures that are more than five minutes old or ahead.";
    "identity", credentials::identity, "Permissions depend on this identity.";
    "service", node::service, "The tunnel connects to its endpoint.";
    "target", node::target, "Sessions start only on a node whose agent is online.";
    "agent", node::agent, "Old agents cannot forward to other hosts, or carry one connection at a time.";
    "preferences", account::preferences, "The account's preferences end, encrypt and record sessions.";
    "document", account::document, "The document decides what a session does.";
    "vpc-endpoints", vpc::endpoints, "A node without internet access reaches Systems Manager through interface endpoints.";
    "security-groups", vpc::security_groups, "Traffic that no security group allows is dropped without an answer.";
    "session", session::start, "Every command starts a session first.";
    "port", session::port, "The connection is made by the node, not by this machine.";
    "greeting", session::greeting, "The greeting shows that the expected service answers.";
};

/// Runs all checks and prints their findings.
///
/// # Errors
/// Returns an error if the command line is wrong, or if the output cannot be written. A failed check is not an error: it determines
/// the exit code.
pub(crate) async fn run(args: &DoctorArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let mut facts = Facts::new(args)?;
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let findings = tokio::select! {
        findings = examine(&mut facts, |check, finding| {
            let is_printed = !verbosity.quiet || matches!(finding.status, Status::Failed(_));
            if args.output == OutputFormat::Text && is_printed {
                console::say(report::text(check, finding));
            }
        }) => findings,
        cause = shutdown.requested() => {
            facts.end_session().await;
            return Ok(cause.exit_code());
        }
    };
    facts.end_session().await;
    let code = verdict(&findings);
    match args.output {
        OutputFormat::Json => writer::print(&report::json(CHECKS, &findings, code))?,
        OutputFormat::Text if verbosity.quiet => {}
        OutputFormat::Text => console::say(report::summary(CHECKS, &findings)),
    }
    Ok(code)
}

async fn examine(facts: &mut Facts, report: impl Fn(&Check, &Finding)) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in CHECKS {
        let outcome = timeout(LIMIT, (check.run)(facts)).await;
        let late = || Finding::failed(ExitCode::Api, format!("no result within {} s", LIMIT.as_secs()));
        let finding = outcome.map_or_else(|_| late(), |outcome| outcome.unwrap_or_else(|finding| finding));
        report(check, &finding);
        findings.push(finding);
    }
    findings
}

/// Returns the exit code of the first failure. Without a failure, returns [`ExitCode::Doubtful`] if there is a warning or an
/// unknown result.
fn verdict(findings: &[Finding]) -> ExitCode {
    let failed = findings.iter().find_map(|finding| match finding.status {
        Status::Failed(code) => Some(code),
        _ => None,
    });
    let is_fine = |finding: &Finding| matches!(finding.status, Status::Fine | Status::Skipped);
    let otherwise = || if findings.iter().all(is_fine) { ExitCode::Ok } else { ExitCode::Doubtful };
    failed.unwrap_or_else(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_a_row_for_each_check() {
        let page = include_str!("../../../docs/doctor.md");
        let (_, table) = page.split_once("## Checks").unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let rows: Vec<_> = rows.map(|(name, rest)| (name, rest.split(" | ").next().unwrap())).collect();
        let checks: Vec<_> = CHECKS.iter().map(|check| (check.name, check.why)).collect();
        assert_eq!(rows, checks);
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_failure() {
        let fine = || Finding::fine("x");
        let failed = |code| Finding::failed(code, "x");
        assert_eq!(verdict(&[fine(), Finding::skipped("x")]), ExitCode::Ok);
        assert_eq!(verdict(&[fine(), Finding::unknown("x")]), ExitCode::Doubtful);
        assert_eq!(verdict(&[Finding::warning("x"), fine()]), ExitCode::Doubtful);
        assert_eq!(verdict(&[Finding::warning("x"), failed(ExitCode::Api), failed(ExitCode::Config)]), ExitCode::Api);
    }
}
