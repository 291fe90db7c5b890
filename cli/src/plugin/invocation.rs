//! Parses the arguments by their positions. `docs/plugin.md` describes the interface.

use std::ffi::OsString;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::Value;
use ssm_forward::{SessionTicket, Url};

use crate::exit_code::{ExitCode, Failure};

/// The purpose of this run.
#[derive(Debug)]
pub(super) enum Invocation {
    /// No arguments: the caller checks whether the plugin is installed.
    Banner,
    /// `--version`.
    Version,
    /// Use a session that the caller started.
    Start(Box<Request>),
}

/// A session that the caller started, and the endpoint of its API.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ticket: SessionTicket,
    pub(super) region: String,
    pub(super) profile: Option<String>,
    /// The parts of StartSession's request that are still needed.
    pub(super) session_request: SessionRequest,
    /// The SSM endpoint, if it is not AWS's default.
    pub(super) endpoint: Option<String>,
}

/// Parts of StartSession's request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SessionRequest {
    /// The node, for the encryption context of a data key.
    pub(super) target: String,
    pub(super) document: Option<String>,
    /// The parameter `localUnixSocket`: the path to listen at.
    pub(super) local_unix_socket: Option<String>,
}

impl SessionRequest {
    /// If a session seems to have been used before: returns how long it may still turn out to be a shell without output. `None` for
    /// no limit.
    pub(super) fn patience_if_used(&self) -> Option<Duration> {
        const UNKNOWN: Duration = Duration::from_secs(10);
        let has_handshake = |name: &str| {
            ["AWS-StartPort", "AWS-StartSSH", "AWS-StartNonInteractive"].iter().any(|prefix| name.starts_with(prefix))
        };
        match &self.document {
            Some(name) => has_handshake(name).then_some(Duration::ZERO),
            None => self.target.is_empty().then_some(UNKNOWN),
        }
    }

    /// Whether a session without output at first may be normal. Without a handshake, a command on a terminal is recognized only by
    /// its first output.
    pub(super) fn may_be_silent(&self) -> bool {
        let sends_at_once = |name: &str| {
            let prefixes = ["AWS-StartPort", "AWS-StartSSH", "AWS-StartNonInteractive", "SSM-SessionManagerRunShell"];
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        };
        match &self.document {
            Some(name) => !sends_at_once(name),
            None => self.target.starts_with(ECS),
        }
    }
}

/// Prefix of variables that contain StartSession's answer.
pub(super) const RESPONSE_VARIABLE: &str = "AWS_SSM_START_SESSION_RESPONSE";
const OPERATION: &str = "StartSession";
/// Prefix of ECS targets. For them, the endpoint that callers pass is not that of SSM.
const ECS: &str = "ecs:";

impl Invocation {
    /// Parses the arguments, including the program's name; `variable` reads the environment.
    ///
    /// # Errors
    /// Returns an error of one line that names the wrong argument.
    pub(super) fn parse(args: &[OsString], variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let text = |at: usize| args.get(at).map(|arg| arg.to_string_lossy().into_owned());
        match args.len() {
            0 | 1 => return Ok(Self::Banner),
            2 if text(1).as_deref() == Some("--version") => return Ok(Self::Version),
            2 | 3 => {
                let operation = text(1).unwrap_or_default();
                return Err(usage(format!(
                    "unknown operation {operation}; use session-manager-plugin --version to check the version"
                )));
            }
            _ => {}
        }
        let operation = text(3).unwrap_or_default();
        if operation != OPERATION {
            return Err(usage(format!("invalid operation {operation:?} as third argument; expected {OPERATION}")));
        }
        let response = match text(1).unwrap_or_default() {
            name if name.starts_with(RESPONSE_VARIABLE) => variable(&name).ok_or_else(|| {
                usage(format!("the environment variable {name}, which should contain the session, is not set"))
            })?,
            json => json,
        };
        let given = |at| text(at).filter(|text| !text.is_empty());
        let session_request = session_request(given(5).as_deref())?;
        let endpoint = given(6).filter(|_| !session_request.target.starts_with(ECS));
        let region = given(2).ok_or_else(|| usage("the region, the second argument, is empty"))?;
        Ok(Self::Start(Box::new(Request {
            ticket: ticket(&response)?,
            region,
            profile: given(4),
            session_request,
            endpoint,
        })))
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Usage, "usage", message)
}

/// Parses StartSession's answer. Its keys may have upper or lower case: ECS writes `sessionId`.
fn ticket(json: &str) -> Result<SessionTicket, Failure> {
    let value: Value = serde_json::from_str(json)
        .map_err(|error| usage(format!("the session, the first argument, is not JSON ({:?})", error.classify())))?;
    let members = value.as_object().ok_or_else(|| usage("the session, the first argument, is not a JSON object"))?;
    let found = |name: &str| {
        let member = members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        member.and_then(|(_, value)| value.as_str()).filter(|text| !text.is_empty())
    };
    let missing = |name: &str| usage(format!("the session, the first argument, has no {name}"));
    let needed = |name: &str| found(name).ok_or_else(|| missing(name));
    let (stream_url, token) = (needed("StreamUrl")?, needed("TokenValue")?);
    // Some callers, such as the AWS Toolkits, pass the token also as the id. The id is printed, and the token must never be.
    let session_id = found("SessionId").filter(|id| *id != token).map(str::to_owned);
    let session_id = session_id.or_else(|| session_of(stream_url).filter(|id| id != token));
    Ok(SessionTicket {
        session_id: session_id.ok_or_else(|| missing("SessionId"))?,
        stream_url: stream_url.to_owned(),
        token: token.into(),
        target: None,
    })
}

/// Returns the session id in a data channel's URL: the last segment of the path.
fn session_of(stream_url: &str) -> Option<String> {
    let url = Url::parse(stream_url).ok()?;
    let last = url.path_segments()?.rfind(|segment| !segment.is_empty())?;
    let decoded = percent_decode_str(last).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// Parses StartSession's request. Older callers pass none.
fn session_request(json: Option<&str>) -> Result<SessionRequest, Failure> {
    let Some(json) = json else { return Ok(SessionRequest::default()) };
    let value: Value = serde_json::from_str(json)
        .map_err(|error| usage(format!("the request, the fifth argument, is not JSON ({:?})", error.classify())))?;
    let target = match value.get("Target") {
        Some(Value::String(target)) => target.clone(),
        None => String::new(),
        Some(_) => return Err(usage("Target in the request, the fifth argument, is not a string")),
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let document = text(value.get("DocumentName"));
    let local_unix_socket = text(value.pointer("/Parameters/localUnixSocket/0"));
    Ok(SessionRequest { target, document, local_unix_socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str =
        r#"{"sessionId":"s-1","tokenValue":"secret","streamUrl":"wss://h/","ResponseMetadata":{"x":1}}"#;

    fn parse(args: &[&str]) -> Result<Invocation, Failure> {
        let args: Vec<OsString> = ["session-manager-plugin"].iter().chain(args).map(Into::into).collect();
        Invocation::parse(&args, |name| (name == "AWS_SSM_START_SESSION_RESPONSE_7").then(|| SESSION.to_owned()))
    }

    fn request(args: &[&str]) -> Request {
        match parse(args).unwrap() {
            Invocation::Start(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_number_of_arguments_means_something() {
        assert!(matches!(parse(&[]).unwrap(), Invocation::Banner));
        assert!(matches!(parse(&["--version"]).unwrap(), Invocation::Version));
        assert!(parse(&["x"]).unwrap_err().message.contains("unknown operation x"));
        assert!(parse(&[SESSION, "eu-west-1", "StopSession"]).unwrap_err().message.contains("StopSession"));
        let legacy = request(&[SESSION, "eu-west-1", "StartSession"]);
        assert_eq!((legacy.ticket.session_id.as_str(), legacy.region.as_str()), ("s-1", "eu-west-1"));
        assert_eq!((legacy.profile, legacy.endpoint, legacy.session_request), (None, None, SessionRequest::default()));
        let whole =
            [SESSION, "r", "StartSession", "p", r#"{"Target":"i-1","Reason":"x"}"#, "https://ssm.example", "more"];
        let full = request(&whole);
        assert_eq!((full.profile.as_deref(), full.endpoint.as_deref()), (Some("p"), Some("https://ssm.example")));
        assert_eq!((full.session_request.target.as_str(), full.session_request.local_unix_socket), ("i-1", None));
        let unix = session_request(Some(
            r#"{"Target":"i-1","Parameters":{"localUnixSocket":["/run/s"],"portNumber":["80"]}}"#,
        ));
        assert_eq!(unix.unwrap().local_unix_socket.as_deref(), Some("/run/s"));
    }

    #[test]
    fn the_session_may_be_in_the_environment_under_any_name_with_the_prefix() {
        let request = request(&["AWS_SSM_START_SESSION_RESPONSE_7", "r", "StartSession"]);
        assert_eq!(request.ticket.token.expose(), "secret");
        let missing = parse(&["AWS_SSM_START_SESSION_RESPONSE", "r", "StartSession"]).unwrap_err();
        assert!(missing.message.contains("is not set"), "{missing}");
    }

    #[test]
    fn an_id_that_is_missing_or_the_token_is_taken_from_the_stream_url() {
        for (id, segment, read) in [
            ("", "u-0a1", "u-0a1"),
            ("T", "u-0a1?role=publish_subscribe", "u-0a1"),
            ("T", "Tia%40b.example-0a1/", "Tia@b.example-0a1"),
            ("given", "u-0a1", "given"),
        ] {
            let session =
                format!(r#"{{"streamUrl":"wss://h/v1/data-channel/{segment}","tokenValue":"T","sessionId":"{id}"}}"#);
            let ticket = request(&[&session, "r", "StartSession"]).ticket;
            assert_eq!((ticket.session_id.as_str(), ticket.token.expose().as_str()), (read, "T"));
        }
        let ticket = request(&[r#"{"streamUrl":"wss://h/s-1","tokenValue":"T"}"#, "r", "StartSession"]).ticket;
        assert_eq!(ticket.session_id, "s-1");
    }

    #[test]
    fn only_commands_on_a_terminal_may_say_nothing_at_first() {
        let silent = |json| session_request(Some(json)).unwrap().may_be_silent();
        assert!(silent(r#"{"Target":"i-1","DocumentName":"AWS-StartInteractiveCommand"}"#));
        assert!(silent(r#"{"Target":"i-1","DocumentName":"My-Document"}"#) && silent(r#"{"Target":"ecs:c_t_r"}"#));
        assert!(!silent(r#"{"Target":"i-1"}"#));
        assert!(!silent(r#"{"Target":"i-1","DocumentName":"AWS-StartPortForwardingSessionToRemoteHost"}"#));
    }

    #[test]
    fn only_shells_may_seem_to_be_used_and_begin_all_the_same() {
        let patience =
            |json| session_request(Some(json)).unwrap().patience_if_used().map(|patience| patience.as_secs());
        assert_eq!(
            patience(r#"{"Target":"i-1","DocumentName":"AWS-StartPortForwardingSessionToRemoteHost"}"#),
            Some(0)
        );
        assert_eq!(patience(r#"{"Target":"i-1","DocumentName":"AWS-StartSSHSession"}"#), Some(0));
        assert_eq!(patience(r#"{"Target":"i-1"}"#), None);
        assert_eq!(patience(r#"{"Target":"i-1","DocumentName":"My-Document"}"#), None);
        assert_eq!(SessionRequest::default().patience_if_used(), Some(Duration::from_secs(10)));
    }

    #[test]
    fn the_endpoint_of_another_service_is_ignored() {
        let args = [SESSION, "r", "StartSession", "", r#"{"Target":"ecs:c_t_r"}"#, "https://ecs.example"];
        assert_eq!(request(&args).endpoint, None);
    }

    #[test]
    fn what_is_malformed_is_named_without_its_content() {
        for (session, what) in [
            ("{", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"SessionId":"s","TokenValue":"hush"}"#, "has no StreamUrl"),
            (r#"{"SessionId":"s","StreamUrl":"u"}"#, "has no TokenValue"),
            (r#"{"SessionId":"","TokenValue":"hush","StreamUrl":"u"}"#, "has no SessionId"),
            (r#"{"SessionId":"hush","TokenValue":"hush","StreamUrl":"wss://h/hush"}"#, "has no SessionId"),
            (r#"{"SessionId":"hush","TokenValue":"hush","StreamUrl":"wss://h/"}"#, "has no SessionId"),
        ] {
            let failure = parse(&[session, "r", "StartSession"]).unwrap_err();
            assert!(failure.message.contains(what) && !failure.message.contains("hush"), "{failure}");
        }
        for (request, what) in [("{", "not JSON"), (r#"{"Target":7}"#, "is not a string")] {
            assert!(parse(&[SESSION, "r", "StartSession", "", request]).unwrap_err().message.contains(what));
        }
    }

    #[test]
    fn debugging_a_request_does_not_say_its_token() {
        let session = r#"{"SessionId":"s-1","TokenValue":"t0ken-t0ken","StreamUrl":"wss://h/s-1"}"#;
        let text = format!("{:?}", request(&[session, "r", "StartSession"]));
        assert!(text.contains("s-1") && !text.contains("t0ken"), "{text}");
    }

    const WORDS: &[&str] = &[
        "{",
        "}",
        "\"",
        ":",
        ",",
        "[",
        "]",
        "null",
        "0",
        "\"SessionId\":\"s-1\"",
        "\"TokenValue\":\"t0ken-t0ken\"",
        "\"StreamUrl\":\"wss://h/s\"",
        "\"Target\":\"i-1\"",
        "\"Parameters\":{",
        "\"localUnixSocket\":[\"/s\"]",
        "StartSession",
        "eu-west-1",
        "\\u0000",
        "%2F",
    ];

    proptest::proptest! {
        #[test]
        fn any_arguments_are_a_request_or_one_line_says_why_not(
            args in proptest::collection::vec(crate::random_text::of_words(WORDS), 0..8),
            well_called in proptest::prelude::any::<bool>(),
        ) {
            let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
            if well_called && let Some(operation) = args.get_mut(2) {
                *operation = "StartSession";
            }
            parse_any(&args);
        }
    }

    #[test]
    fn the_corpus_is_requests_or_one_line_says_why_not() {
        let session = r#"{"SessionId":"s-1","TokenValue":"t0ken-t0ken","StreamUrl":"wss://h/s"}"#;
        let request =
            r#"{"Target":"i-1","DocumentName":"d","Parameters":{"portNumber":["80"],"localPortNumber":["0"]}}"#;
        let unix = r#"{"Target":"ecs:a_b_c","Parameters":{"localConnectionType":["unix"],"localUnixSocket":["/s"]}}"#;
        let with = |more: &[&str]| [&[session, "eu-west-1", "StartSession"], more].concat().join("\n").into_bytes();
        let seeds = [
            with(&["profile", request, "https://ssm.example"]),
            with(&["", unix]),
            with(&["", "{}", "http://[::1]:1"]),
            b"--version".to_vec(),
            b"AWS_SSM_START_SESSION_RESPONSE\neu-west-1\nStartSession\n".to_vec(),
        ];
        let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
        crate::replay::corpus("plugin_arguments", &seeds, 5000, |input| {
            // One argument per line.
            let text = String::from_utf8_lossy(input).into_owned();
            parse_any(&text.lines().collect::<Vec<_>>())
        });
    }

    /// Parses any arguments. The result is a request or an error that does not contain the token.
    fn parse_any(args: &[&str]) -> String {
        match parse(args) {
            Ok(Invocation::Start(request)) => {
                assert_ne!(&request.ticket.session_id, request.ticket.token.expose());
                format!("start {} {}", request.endpoint.is_some(), request.profile.is_some())
            }
            Ok(other) => format!("{other:?}"),
            Err(failure) => {
                assert_eq!(failure.code, ExitCode::Usage);
                // An operation is quoted; a session is not.
                assert!(
                    args.len() < 3 || args[2] != "StartSession" || !failure.message.contains("t0ken"),
                    "{}",
                    failure.message
                );
                failure.message
            }
        }
    }
}
