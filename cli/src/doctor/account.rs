//! Checks of the account's settings for sessions: preferences and documents.

use ssm_forward::{Preferences, ProviderErrorKind};

use super::facts::Facts;
use super::finding::{Finding, Outcome, statement};
use crate::exit_code::ExitCode;
use crate::tunnels;

/// Idle timeouts up to this one, in minutes, cause a warning: a short break of the user already ends the session.
const SHORT_IDLE: u32 = 5;
/// Maximum durations up to this one, in minutes, cause a warning: a working day needs several sessions.
const SHORT_SESSION: u32 = 60;

/// Checks timeouts, encryption and other preferences.
pub(super) async fn preferences(facts: &mut Facts) -> Outcome {
    let aws = facts.ssm()?;
    let found = aws.preferences().await.map_err(|error| Finding::unreadable(&error, "ssm:GetDocument"))?;
    let saw = describe(&found);
    if let Some(key) = &found.kms_key
        && let Err(error) = aws.may_encrypt(key).await
    {
        let saw = format!("{saw}; {}", error.message);
        let kms = |action: &str| statement(action, key);
        return Err(match error.kind {
            ProviderErrorKind::AccessDenied | ProviderErrorKind::Invalid => Finding::failed(ExitCode::Channel, saw)
                .remedy(format!("add to your IAM policy: {}", kms("kms:GenerateDataKey")))
                .remedy(format!("add to the policy of the instance profile: {}", kms("kms:Decrypt"))),
            _ => Finding::unknown(saw),
        });
    }
    let mut remedies = Vec::new();
    if found.idle_minutes.is_some_and(|minutes| minutes <= SHORT_IDLE) {
        remedies.push("idle tunnels: aws-ssm-forward forward --keep-alive");
    }
    if found.max_minutes.is_some_and(|minutes| minutes <= SHORT_SESSION) {
        remedies.push(
            "a tunnel starts a new session when one ends, and resets its connections: raise the maximum duration in \
             Session Manager's preferences if that is too often",
        );
    }
    let finding = if remedies.is_empty() { Finding::fine(saw) } else { Finding::warning(saw) };
    Ok(remedies.into_iter().fold(finding, Finding::remedy))
}

fn describe(found: &Preferences) -> String {
    let idle = found.idle_minutes_or_default();
    let mut parts = vec![format!("sessions end after {idle} min without data")];
    parts.push(
        found
            .max_minutes
            .map_or_else(|| "no maximum duration".to_owned(), |minutes| format!("after {minutes} min in any case")),
    );
    parts.extend(found.kms_key.as_ref().map(|key| format!("encrypted with the KMS key {key}")));
    parts.extend(found.run_as.as_ref().map(|user| match user.as_str() {
        "" => "shells run as the user that your tag SSMSessionRunAs names".to_owned(),
        user => format!("shells run as {user}"),
    }));
    parts.extend(found.logged.then(|| "the output of shells is recorded".to_owned()));
    parts.join(", ")
}

/// Checks whether the session's document exists.
pub(super) async fn document(facts: &mut Facts) -> Outcome {
    facts.target()?;
    let aws = facts.ssm()?;
    let name = document_name(facts);
    match aws.document_parameters(name).await {
        Ok(_) => Ok(Finding::fine(format!("{name} exists"))),
        Err(error) if error.kind == ProviderErrorKind::AccessDenied => {
            Err(Finding::unreadable(&error, "ssm:DescribeDocument"))
        }
        Err(error) => Err(Finding::broken(error, "")),
    }
}

/// Returns the document of the trial session: the document of the forward, or one that connects to the node itself.
pub(super) fn document_name(facts: &Facts) -> &'static str {
    match facts.remote() {
        Ok(remote) => tunnels::document(&remote).0,
        Err(_) => "AWS-StartPortForwardingSession",
    }
}
