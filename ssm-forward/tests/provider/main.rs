//! [`AwsProvider`] with SSM APIs that answer correctly, or with every kind of error, and with faulty environments.
//!
//! AWS's configuration is the environment of the process. Therefore each case runs in a separate process: this binary again, with
//! [`child`] as its only test.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests assert in this way, and print"
)]

mod answers;
mod config;
mod document;
mod ecs;
mod kms;
mod proxies;
mod sdk;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ssm_forward::{AwsConfig, AwsProvider, EcsSpec, ProviderError, SessionProvider, StartRequest, TicketProvider};
use tempfile::TempDir;

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "made-up")];
const GRANTED: &str = r#"{"SessionId":"s-1","StreamUrl":"wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s-1","TokenValue":"t0ken"}"#;

/// Calls by a part of their text, with the status and the body of the answer. The first match is used.
type Answers = Vec<(&'static str, &'static str, String)>;

/// An API that returns the same answer to the same call, and records the requests.
struct Api {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Api {
    fn answering(status: &'static str, body: impl Into<String>) -> Self {
        Self::answering_each(vec![("", status, body.into())])
    }

    fn answering_each(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = answer(stream, &seen, &answers);
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, seen: &Mutex<Vec<String>>, answers: &Answers) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut asked = vec![0; length];
    reader.read_exact(&mut asked)?;
    let asked = format!("{head}\n{}", String::from_utf8_lossy(&asked));
    seen.lock().unwrap().push(asked.clone());
    let (_, status, body) = answers.iter().find(|(call, ..)| asked.contains(call)).unwrap();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    reader.get_mut().write_all(format!("{head}{body}").as_bytes())
}

/// A home directory with AWS's files, and an environment that contains nothing else.
struct Surroundings {
    home: TempDir,
    variables: Vec<(String, String)>,
}

impl Surroundings {
    fn new(variables: &[(&str, &str)]) -> Self {
        let home = TempDir::new().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let own = [("HOME", home.path().to_str().unwrap()), ("AWS_EC2_METADATA_DISABLED", "true")];
        let variables = own.iter().chain(variables).map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Self { home, variables }
    }

    /// Creates an environment with credentials and a region, so that only `url` can be wrong.
    fn at(url: &str) -> Self {
        Self::new(&KEYS).with("AWS_REGION", "eu-west-1").with("AWS_ENDPOINT_URL", url)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.home.path().join(".aws").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Makes the calls in a separate process. Returns one line for each call: `OK …`, or the kind and the text of the error.
    fn run(&self, calls: &str) -> Vec<String> {
        let text = self.output(calls);
        let lines: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("> ")).map(str::to_owned).collect();
        assert!(!lines.is_empty(), "{text}");
        lines
    }

    /// Returns the complete output of the process.
    fn output(&self, calls: &str) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "child", "--nocapture", "--test-threads=1"]);
        command.env_clear().envs(self.variables.iter().cloned()).env("TEST_CALLS", calls);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        for secret in ["made-up", kms::PLAINTEXT] {
            assert!(!text.contains(secret), "a secret was printed");
        }
        text
    }

    fn error(&self, calls: &str) -> String {
        let lines = self.run(calls);
        assert!(lines.len() == 1 && !lines[0].starts_with("OK"), "{lines:?}");
        lines[0].clone()
    }

    #[track_caller]
    fn assert_error(&self, calls: &str, parts: &[&str]) {
        let error = self.error(calls);
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
}

/// Runs in the separate process.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    if std::env::var_os("TEST_TRACE").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(calls()) {
        println!("\n> {:?} {error}", error.kind);
    }
}

async fn calls() -> Result<(), ProviderError> {
    let variable = |name: &str| std::env::var(name).ok();
    let config = AwsConfig {
        profile: variable("TEST_PROFILE"),
        region: variable("TEST_REGION"),
        endpoint_url: variable("TEST_URL"),
        ca_bundle: None,
        credentials: None,
        person: config::person(),
    };
    let provider = AwsProvider::new(config).await?;
    let request = StartRequest {
        target: "i-0123456789abcdef0".into(),
        document: Some("AWS-StartPortForwardingSession".into()),
        parameters: [("portNumber".to_owned(), vec!["80".to_owned()])].into(),
        reason: Some("test".into()),
        ..StartRequest::default()
    };
    for call in variable("TEST_CALLS").unwrap().split(',') {
        let result = match call {
            "start" => provider
                .start(&request)
                .await
                .map(|ticket| format!("{ticket:?}, {} bytes", ticket.token.expose().len()))?,
            "offer" => {
                let ticket = provider.start(&document::offering(&request)).await?;
                format!("{ticket:?}")
            }
            start if let Some(target) = start.strip_prefix("start ") => {
                let request = StartRequest { target: target.into(), ..request.clone() };
                provider.start(&request).await?.target.unwrap_or_default()
            }
            "resume" => provider.resume("s-1").await.map(|ticket| format!("{ticket:?}"))?,
            "terminate" => provider.terminate("s-1").await.map(|()| "terminated".to_owned())?,
            "rotate" => {
                let files = std::path::Path::new(&variable("HOME").unwrap()).join(".aws");
                std::fs::rename(files.join("rotated"), files.join("credentials")).unwrap();
                "rotated".into()
            }
            "key" => provider.data_key("alias/k", &kms::context()).await.map(|key| kms::shown(&key))?,
            spec if spec.starts_with("ecs:") => {
                let found = provider.resolve_ecs(&spec.parse::<EcsSpec>()?).await?;
                format!("{} {} {}", found.target, found.task, found.container)
            }
            url => {
                let headers = provider.sign_upgrade(&url.parse().unwrap()).await?;
                let names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
                format!("signed with {}", names.join(" "))
            }
        };
        println!("\n> OK {result}");
    }
    Ok(())
}

#[test]
fn a_granted_session_is_a_ticket_whose_token_is_not_printed() {
    let api = Api::answering("200 OK", GRANTED);
    let lines = Surroundings::at(&api.url).run("start");
    assert!(lines[0].contains("s-1") && lines[0].contains("5 bytes") && !lines[0].contains("t0ken"), "{lines:?}");
    let [request] = &api.requests()[..] else { panic!("{:?}", api.requests()) };
    let request = request.to_ascii_lowercase();
    for part in
        ["amazonssm.startsession", r#""portnumber":["80"]"#, r#""target":"i-0123456789abcdef0""#, "/eu-west-1/ssm/"]
    {
        assert!(request.contains(part), "{part} is not in {request}");
    }
}

#[test]
fn each_refusal_of_the_api_has_its_kind_and_says_what_to_do() {
    for (status, code, text, parts) in [
        (
            "400 Bad Request",
            "TargetNotConnected",
            "i-0 is not connected.",
            &["NotConnected", "i-0 is not", "agent runs"][..],
        ),
        ("400 Bad Request", "ExpiredTokenException", "expired", &["ExpiredCredentials", "set new AWS_ACCESS_KEY_ID"]),
        ("400 Bad Request", "UnrecognizedClientException", "invalid", &["Credentials", "clock"]),
        (
            "400 Bad Request",
            "AccessDeniedException",
            "No.",
            &["AccessDenied", "need the permission", "ssm:StartSession"],
        ),
        ("400 Bad Request", "ThrottlingException", "Rate exceeded", &["Throttled", "try again later"]),
        ("400 Bad Request", "InvalidDocument", "no such document", &["Invalid", "no such document"]),
        ("400 Bad Request", "ValidationException", "two\nlines", &["Invalid", "two lines"]),
        ("500 Internal Server Error", "InternalServerError", "oops", &["Service", "oops", "try again later"]),
    ] {
        let api = Api::answering(status, format!(r#"{{"__type":"{code}","message":{text:?}}}"#));
        Surroundings::at(&api.url).assert_error("start", &[parts, &["StartSession", code]].concat());
    }
}

#[test]
fn an_answer_that_is_none_is_told_apart_from_a_refusal() {
    for (status, body, parts) in [
        ("200 OK", r#"{"SessionId": "s-1", "#, &["malformed", "StartSession"][..]),
        ("200 OK", "<html>captive portal</html>", &["malformed", "StartSession"]),
        ("200 OK", r#"{"SessionId": 7}"#, &["malformed", "StartSession"]),
        ("200 OK", "{}", &["without SessionId"]),
        ("200 OK", r#"{"SessionId":"s-1","StreamUrl":"wss://x/","TokenValue":""}"#, &["without TokenValue"]),
        ("404 Not Found", "<html>nothing here</html>", &["HTTP 404"]),
        ("503 Service Unavailable", "<html>busy</html>", &["HTTP 503", "try again later"]),
    ] {
        let api = Api::answering(status, body);
        Surroundings::at(&api.url).assert_error("start", &[&["Service", &api.url], parts].concat());
    }
}

#[test]
fn an_answer_for_another_session_is_not_taken() {
    let api = Api::answering("200 OK", r#"{"SessionId":"s-2","TokenValue":"n3w","StreamUrl":"wss://localhost/s-2"}"#);
    Surroundings::at(&api.url).assert_error("resume", &["Service", "s-1", "another session: s-2"]);
}

#[test]
fn resuming_needs_a_token_but_no_new_url() {
    let api = Api::answering("200 OK", r#"{"SessionId":"s-1","TokenValue":"n3w"}"#);
    let lines = Surroundings::at(&api.url).run("resume");
    assert!(lines[0].contains(r#"stream_url: """#), "{lines:?}");
    let api = Api::answering("200 OK", r#"{"SessionId":"s-1"}"#);
    Surroundings::at(&api.url).assert_error("resume", &["SessionGone", "s-1", "over"]);
    let api = Api::answering(
        "400 Bad Request",
        r#"{"__type":"DoesNotExistException","Message":"Session s-1 does not exist"}"#,
    );
    Surroundings::at(&api.url).assert_error("resume", &["SessionGone", "does not exist"]);
    Surroundings::at(&api.url).assert_error("terminate", &["SessionGone"]);
}

#[test]
fn an_endpoint_that_does_not_listen_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    Surroundings::at(&url).assert_error("start", &["Unreachable", &url, "refused"]);
}

#[test]
fn the_service_own_endpoint_variable_counts() {
    let api = Api::answering("200 OK", GRANTED);
    let surroundings = Surroundings::at("http://127.0.0.1:1").with("AWS_ENDPOINT_URL_SSM", &api.url);
    assert!(surroundings.run("start")[0].starts_with("OK"));
    let explicit = Surroundings::at("http://127.0.0.1:1").with("TEST_URL", &api.url);
    assert!(explicit.run("start")[0].starts_with("OK"));
    Surroundings::at("http://127.0.0.1:1")
        .with("TEST_URL", "ftp://x")
        .assert_error("start", &["Configuration", "http://"]);
    Surroundings::at("http://127.0.0.1:1")
        .with("TEST_URL", "x")
        .assert_error("start", &["Configuration", "--endpoint-url"]);
}

#[test]
fn this_machine_is_not_behind_the_proxy() {
    let api = Api::answering("200 OK", GRANTED);
    let surroundings = Surroundings::at(&api.url).with("HTTP_PROXY", "http://127.0.0.1:1");
    assert!(surroundings.run("start")[0].starts_with("OK"));
}

#[test]
fn other_machines_are_behind_the_proxy() {
    let proxy = Api::answering("200 OK", GRANTED);
    let surroundings = Surroundings::at("http://ssm.example").with("HTTP_PROXY", &proxy.url);
    assert!(surroundings.run("start")[0].starts_with("OK"));
    assert!(proxy.requests()[0].starts_with("POST http://ssm.example/"), "{:?}", proxy.requests());
}

#[test]
fn without_a_region_or_with_a_wrong_one() {
    Surroundings::new(&KEYS).assert_error("start", &["Region", "--region", "AWS_REGION", "profile"]);
    Surroundings::new(&KEYS)
        .with("TEST_REGION", "US East")
        .assert_error("start", &["Region", "US East", "eu-central-1"]);
}

#[test]
fn without_credentials() {
    let api = Api::answering("200 OK", GRANTED);
    let surroundings = Surroundings::new(&[("AWS_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", &api.url)]);
    surroundings.assert_error("start", &["Credentials no AWS credentials", "--profile", "AWS_ACCESS_KEY_ID"]);
    let empty = surroundings.file("config", "[profile empty]\nregion = eu-west-1\n").with("TEST_PROFILE", "empty");
    empty.assert_error("start", &["Credentials no AWS credentials in the profile \"empty\""]);
    assert!(api.requests().is_empty());
}

#[test]
fn a_profile_that_is_not_there() {
    let nothing = || Surroundings::new(&[("AWS_REGION", "eu-west-1")]);
    nothing()
        .with("TEST_PROFILE", "work")
        .assert_error("start", &["Credentials", "\"work\"", "aws configure --profile work"]);
    let config = "[profile home]\nregion = eu-west-1\n[profile other]\n";
    nothing().file("config", config).with("TEST_PROFILE", "work").assert_error("start", &["\"work\"", "home, other"]);
    nothing().file("config", config).with("AWS_PROFILE", "work").assert_error("start", &["\"work\"", "home, other"]);
}

#[test]
fn malformed_files_are_named() {
    let malformed = Surroundings::new(&[("AWS_REGION", "eu-west-1")]).file("config", "[default\nregion = x\n");
    malformed.assert_error("start", &["Credentials", "config", "line 1"]);
}

#[test]
fn credentials_that_cannot_be_had_say_why() {
    let profile = |text: &str| {
        let text = format!("[profile work]\nregion = eu-west-1\n{text}\n");
        Surroundings::new(&[]).file("config", &text).with("TEST_PROFILE", "work")
    };
    profile("credential_process = /nonexistent/tool").assert_error("start", &["Credentials", "process"]);
    profile("role_arn = arn:aws:iam::123456789012:role/x\nsource_profile = lost")
        .assert_error("start", &["Credentials", "lost"]);
    profile("aws_access_key_id = AKID").assert_error("start", &["Credentials", "aws_secret_access_key is missing"]);
    profile("login_session = arn:aws:iam::123456789012:user/x")
        .assert_error("start", &["Credentials", "aws login", "export"]);
    profile(SSO).assert_error("start", &["Credentials", "log in again: aws sso login --profile work"]);
}

const SSO: &str = "sso_start_url = https://sso.example/start
sso_region = eu-west-1
sso_account_id = 123456789012
sso_role_name = reader
";

#[test]
fn expired_credentials_say_how_to_renew_them() {
    let api = Api::answering("400 Bad Request", r#"{"__type":"ExpiredTokenException","message":"expired"}"#);
    let surroundings = || Surroundings::new(&[("AWS_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", &api.url)]);
    let keys = "[work]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = made-up\n";
    let profile = surroundings().file("credentials", keys).with("TEST_PROFILE", "work");
    profile.assert_error(
        "start",
        &["ExpiredCredentials", "put new credentials into the profile \"work\"", "credentials and try again"],
    );
    let process = r#"credential_process = echo '{"Version":1,"AccessKeyId":"AKIDSSO","SecretAccessKey":"made-up"}'"#;
    let issued = surroundings().file("config", &format!("[default]\n{process}\n"));
    issued.assert_error("start", &["ExpiredCredentials", "ExpiredToken", "get new credentials"]);
    // The name of the file is the SHA-1 of the start URL.
    let login = r#"{"accessToken":"made-up","expiresAt":"2020-01-01T00:00:00Z","region":"eu-west-1"}"#;
    let over = surroundings()
        .file("config", &format!("[default]\n{SSO}"))
        .file("sso/cache/98df91031e87f97bfc088c045be6442dc5d70b2a.json", login);
    over.assert_error("start", &["ExpiredCredentials", "log in again: aws sso login"]);
}

#[test]
fn an_explicit_profile_goes_before_keys_in_the_environment() {
    let api = Api::answering("200 OK", GRANTED);
    let files = "[work]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = made-up\n";
    let explicit = Surroundings::at(&api.url).file("credentials", files).with("TEST_PROFILE", "work");
    assert!(explicit.run("start")[0].starts_with("OK"));
    assert!(api.requests()[0].contains("Credential=AKIDPROFILE/"), "{:?}", api.requests());
    let inherited = Surroundings::at(&api.url).file("credentials", files).with("AWS_PROFILE", "work");
    assert!(inherited.run("start")[0].starts_with("OK"));
    assert!(api.requests()[1].contains("Credential=AKIDEXAMPLE/"), "{:?}", api.requests());
}

#[test]
fn credentials_are_read_anew_for_each_resume() {
    let api = Api::answering("200 OK", GRANTED);
    let keys = |key: &str| format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = made-up\n");
    let surroundings = Surroundings::new(&[("AWS_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", &api.url)])
        .file("credentials", &keys("AKIDOLD"))
        .file("rotated", &keys("AKIDNEW"));
    assert_eq!(surroundings.run("start,rotate,resume,terminate").len(), 4);
    let keys: Vec<bool> = api.requests().iter().map(|request| request.contains("Credential=AKIDNEW/")).collect();
    assert_eq!(keys, [false, true, true]);
}

#[test]
fn the_upgrade_is_signed_if_it_can_be() {
    let url = "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s-1?role=publish_subscribe";
    let presigned = format!("{url}&X-Amz-Signature=0123");
    let lines =
        Surroundings::at("http://127.0.0.1:1").with("AWS_SESSION_TOKEN", "x").run(&format!("{url},{presigned}"));
    let names: Vec<&str> = lines[0].split_whitespace().collect();
    for name in ["authorization", "x-amz-date", "x-amz-security-token"] {
        assert!(names.contains(&name), "{lines:?}");
    }
    assert_eq!(lines[1], "OK signed with ");
    let nobody = Surroundings::new(&[("AWS_REGION", "eu-west-1")]);
    let lines = nobody.run(url);
    assert!(lines[0].contains("no AWS credentials") && lines[1] == "OK signed with ", "{lines:?}");
    let stuck = nobody.file("config", "[default]\ncredential_process = sleep 60\n");
    assert_eq!(stuck.run(url), ["OK signed with "]);
}

#[test]
fn a_ca_bundle_that_cannot_be_read_is_an_error_not_a_panic() {
    let surroundings = Surroundings::at("http://127.0.0.1:1")
        .file("empty.pem", "")
        .file("bad.pem", concat!("-----BEGIN CERTIFICATE-----\n", "AAAA\n", "-----END CERTIFICATE-----\n"));
    let files = surroundings.home.path().join(".aws");
    for name in ["missing.pem", "empty.pem", "bad.pem"] {
        let path = files.join(name);
        let error = Surroundings::at("http://127.0.0.1:1").with("AWS_CA_BUNDLE", path.to_str().unwrap()).error("start");
        assert!(error.starts_with("Configuration AWS_CA_BUNDLE: ") && error.contains(name), "{error}");
    }
}

#[test]
fn a_system_that_trusts_nobody_can_still_talk_to_this_machine() {
    let api = Api::answering("200 OK", GRANTED);
    let surroundings =
        Surroundings::at(&api.url).with("SSL_CERT_FILE", "/nonexistent").with("SSL_CERT_DIR", "/nonexistent");
    assert!(surroundings.run("start")[0].starts_with("OK"));
}

#[tokio::test]
async fn a_ticket_is_handed_out_once() {
    let ticket = || ssm_forward::SessionTicket {
        session_id: "s-1".into(),
        stream_url: "wss://x/".into(),
        token: "t0ken".into(),
        target: None,
    };
    let alone = TicketProvider::new(ticket(), None);
    assert_eq!(alone.start(&StartRequest::default()).await.unwrap(), ticket());
    let again = alone.start(&StartRequest::default()).await.unwrap_err();
    assert!(again.to_string().contains("start a new one"), "{again}");
    for call in [alone.resume("s-1").await.map(drop), alone.terminate("s-1").await] {
        let error = call.unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains("access to the SSM API"), "{error}");
    }
    assert!(alone.sign_upgrade(&"wss://x/".parse().unwrap()).await.unwrap().is_empty());
    let inner = Arc::new(TicketProvider::new(ticket(), None));
    let with_api = TicketProvider::new(ticket(), Some(inner));
    assert!(with_api.resume("s-1").await.unwrap_err().to_string().contains("ResumeSession"));
}
