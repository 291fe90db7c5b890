//! Operations on sessions.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::input::{Page, length, one_of, pattern, required};
use super::{Outcome, set, timestamp};
use crate::broker::{Broker, BrokerSession, SessionInfo, StartRequest};
use crate::document;

pub(super) const DOCUMENT_NAME: &str = r"^[a-zA-Z0-9_\-.:/]{3,128}$";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StartInput {
    target: Option<String>,
    document_name: Option<String>,
    reason: Option<String>,
    parameters: Option<BTreeMap<String, Vec<String>>>,
}

pub(super) fn start(broker: &Broker, input: StartInput) -> Outcome {
    let target = required("target", input.target.as_deref())?;
    length("target", target, 1..=400)?;
    if let Some(reason) = &input.reason {
        length("reason", reason, 1..=256)?;
    }
    let name = input.document_name.as_deref().unwrap_or(document::DEFAULT);
    pattern("documentName", name, DOCUMENT_NAME)?;
    let document = broker.documents().find(name).ok_or_else(|| ApiError::no_document(name))?.clone();
    let settings = document.settings(&input.parameters.unwrap_or_default())?;
    let target = broker.target(target).filter(|found| found.is_connected());
    let target = target.ok_or_else(|| ApiError::not_connected(input.target.as_deref().unwrap_or_default()))?;
    let request = StartRequest { target, document, settings, reason: input.reason };
    let (session, token) = broker.start(request)?;
    Ok(ticket(broker, &session, Some(token)))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SessionInput {
    session_id: Option<String>,
}

impl SessionInput {
    fn find(&self, broker: &Broker) -> Result<std::sync::Arc<BrokerSession>, ApiError> {
        let id = required("sessionId", self.session_id.as_deref())?;
        length("sessionId", id, 1..=96)?;
        broker.session(id).ok_or_else(|| ApiError::no_session(id))
    }
}

/// Answers ResumeSession. For an ended session the answer contains no token, which shows the client that the session has ended.
pub(super) fn resume(broker: &Broker, input: SessionInput) -> Outcome {
    let session = input.find(broker)?;
    let token = broker.issue_token(&session);
    Ok(ticket(broker, &session, token))
}

fn ticket(broker: &Broker, session: &BrokerSession, token: Option<String>) -> Value {
    match token {
        Some(token) => {
            json!({ "SessionId": session.id, "TokenValue": token, "StreamUrl": broker.stream_url(&session.id) })
        }
        None => json!({ "SessionId": session.id }),
    }
}

pub(super) fn terminate(broker: &Broker, input: SessionInput) -> Outcome {
    let session = input.find(broker)?;
    session.terminate();
    Ok(json!({ "SessionId": session.id }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DescribeInput {
    state: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
struct Filter {
    key: String,
    value: String,
}

pub(super) fn describe(broker: &Broker, input: DescribeInput) -> Outcome {
    let state = required("state", input.state.as_deref())?;
    one_of("state", state, &["Active", "History"])?;
    let page = Page::new("sessions", input.max_results, 1..=200, input.next_token.as_deref())?;
    let mut found: Vec<SessionInfo> = broker.sessions().iter().map(|session| session.info()).collect();
    found.retain(|session| session.is_active() == (state == "Active"));
    for filter in &input.filters {
        filter.apply(&mut found)?;
    }
    // The newest session is first, like in AWS.
    let (part, next) = page.cut(found.iter().rev());
    let sessions: Vec<Value> = part.into_iter().map(describe_one).collect();
    Ok(match next {
        Some(next) => json!({ "Sessions": sessions, "NextToken": next }),
        None => json!({ "Sessions": sessions }),
    })
}

impl Filter {
    fn apply(&self, sessions: &mut Vec<SessionInfo>) -> Result<(), ApiError> {
        let value = self.value.as_str();
        match self.key.as_str() {
            "InvokedAfter" => {
                let after = self.date()?;
                sessions.retain(|session| session.started >= after);
            }
            "InvokedBefore" => {
                let before = self.date()?;
                sessions.retain(|session| session.started <= before);
            }
            "Target" => sessions.retain(|session| session.target == value),
            "Owner" => sessions.retain(|session| session.owner == value),
            "Status" => sessions.retain(|session| session.state.name() == value),
            "SessionId" => sessions.retain(|session| session.id == value),
            "AccessType" => sessions.retain(|_| value == "Standard"),
            other => return Err(ApiError::filter_key(other)),
        }
        Ok(())
    }

    /// Parses a date such as `2018-08-29T00:00:00Z`.
    fn date(&self) -> Result<SystemTime, ApiError> {
        parse_date(&self.value)
            .ok_or_else(|| ApiError::constraint(&self.key, Some(&self.value), "be a date such as 2018-08-29T00:00:00Z"))
    }
}

fn parse_date(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text, Format::DateTime).ok()?.try_into().ok()
}

fn describe_one(session: &SessionInfo) -> Value {
    let mut description = json!({
        "SessionId": session.id,
        "Target": session.target,
        "Status": session.state.name(),
        "StartDate": timestamp(session.started),
        "DocumentName": session.document,
        "Owner": session.owner,
        "Details": session.details,
        "OutputUrl": {},
        "AccessType": "Standard",
    });
    if let Some(ended) = session.ended {
        set(&mut description, "EndDate", timestamp(ended));
    }
    if let Some(reason) = &session.reason {
        set(&mut description, "Reason", json!(reason));
    }
    description
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn dates_are_read() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(parse_date("1970-01-01T00:00:00Z"), at(0));
        assert_eq!(parse_date("2000-02-29T12:34:56Z"), at(951_827_696));
        assert_eq!(parse_date("2026-11-24T16:00:00Z"), at(1_795_536_000));
        for bad in ["", "2026-11-24", "2026-13-24T00:00:00Z", "2026-11-24T24:00:00Z", "x-y-zTa:b:cZ", "1-1T1Z"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
