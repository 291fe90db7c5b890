//! Checks of the credentials, their identity, and the clock, whose time signatures contain.

use std::time::{Duration, SystemTime};

use ssm_forward::{ProviderError, ProviderErrorKind};

use super::facts::Facts;
use super::finding::{Finding, Outcome};
use crate::exit_code::ExitCode;

/// Remaining lifetime of credentials below which a warning is printed.
const SOON: Duration = Duration::from_secs(15 * 60);
/// Clock skew from which AWS refuses signatures.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);
/// Clock skew from which a warning is printed. A synchronized clock is far more accurate.
const ODD_SKEW: Duration = Duration::from_secs(60);

/// Checks whether there are credentials, and when they expire.
pub(super) async fn credentials(facts: &mut Facts) -> Outcome {
    let aws = facts.aws()?;
    aws.authenticate().await.map_err(|error| Finding::broken(error, ""))?;
    facts.signed_in = true;
    let source = aws.origin().await.credentials;
    let Some(end) = aws.credentials_end().await else { return Ok(Finding::fine(source)) };
    let left = end.duration_since(SystemTime::now()).unwrap_or_default();
    let saw = format!("{source}; they expire in {}", minutes(left));
    match left < SOON {
        true => Ok(Finding::warning(saw).remedy(aws.credentials_remedy())),
        false => Ok(Finding::fine(saw)),
    }
}

/// Checks the difference between this machine's clock and AWS's.
pub(super) async fn clock(facts: &mut Facts) -> Outcome {
    let aws = facts.aws()?;
    if !facts.reachable {
        return Err(Finding::skipped("needs \"api\""));
    }
    let theirs = aws.api_time().await.map_err(|error| Finding::unreadable(&error, ""))?;
    let finding = compare(SystemTime::now(), theirs);
    if finding.status == super::Status::Failed(ExitCode::Config) {
        facts.signed_in = false;
    }
    Ok(finding)
}

/// Compares the clocks. The tolerance covers that `Date` headers have no fractions of a second, and the duration of the request.
fn compare(ours: SystemTime, theirs: SystemTime) -> Finding {
    let (skew, word) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let saw = format!("this machine's clock is {} s {word}", skew.as_secs());
    let command =
        if cfg!(target_os = "macos") { "sudo sntp -sS time.apple.com" } else { "sudo timedatectl set-ntp true" };
    match skew {
        skew if skew >= MAX_SKEW => Finding::failed(ExitCode::Config, saw).remedy(command),
        skew if skew >= ODD_SKEW => Finding::warning(saw).remedy(command),
        _ => Finding::fine("this machine's clock agrees with AWS's"),
    }
}

/// Checks the identity of the caller with STS.
pub(super) async fn identity(facts: &mut Facts) -> Outcome {
    let aws = facts.signed_in()?;
    match aws.caller().await {
        Ok(caller) => Ok(Finding::fine(format!("{} in the account {}", caller.arn, caller.account))),
        Err(error) if is_about_credentials(&error) => {
            facts.signed_in = false;
            Err(Finding::broken(error, "").remedy(aws.credentials_remedy()))
        }
        // Not a failure: sessions do not need STS, and a private network may have no endpoint of it.
        Err(error) => Err(Finding::unreadable(&error, "")),
    }
}

fn is_about_credentials(error: &ProviderError) -> bool {
    matches!(error.kind, ProviderErrorKind::Credentials | ProviderErrorKind::ExpiredCredentials)
}

fn minutes(left: Duration) -> String {
    match left.as_secs() / 60 {
        minutes @ ..120 => format!("{minutes} min"),
        minutes => format!("{} h", minutes / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_clock_is_judged_by_what_aws_takes() {
        let theirs = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (offset, status, word) in [
            (3, Status::Fine, "agrees"),
            (90, Status::Warning, "90 s ahead"),
            (3600, Status::Failed(ExitCode::Config), "3600 s ahead"),
        ] {
            let ahead = compare(theirs + Duration::from_secs(offset), theirs);
            assert_eq!(ahead.status, status);
            assert!(ahead.saw.contains(word), "{}", ahead.saw);
            let behind = compare(theirs - Duration::from_secs(offset), theirs);
            assert_eq!(behind.status, status);
        }
    }
}
