//! Tokens, credentials and session data do not appear in any output, at any verbosity.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use crate::common::{Cli, Ended, LocalManager, TARGET, connect, echo_server};

const SECRET_KEY: &str = "hush-secret-access-key";
const SESSION_TOKEN: &str = "hush-session-token";
const CONTENT: &str = "hush-content";

/// A proxy between a command and the API that records the responses of the API.
pub(crate) struct Wiretap {
    pub(crate) url: String,
    answers: Arc<Mutex<Vec<u8>>>,
}

impl Wiretap {
    pub(crate) fn start(manager: &LocalManager) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let api = manager.endpoint().trim_start_matches("http://").to_owned();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let heard = answers.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (api, heard) = (connect(&api), heard.clone());
                let (from, to) = (stream.try_clone().unwrap(), api.try_clone().unwrap());
                thread::spawn(move || pass_on(from, to, &Mutex::default()));
                thread::spawn(move || pass_on(api, stream, &heard));
            }
        });
        Self { url, answers }
    }

    /// Returns the tokens that the API has issued.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let answers = self.answers.lock().unwrap();
        let text = String::from_utf8_lossy(&answers);
        text.split("\"TokenValue\":\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        heard.lock().unwrap().extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn assert_hidden(ended: &Ended, what: &str, tokens: &[String], in_stdout: &[&str]) {
    assert!(!tokens.is_empty() && tokens.iter().all(|token| token.len() > 8), "{what}: {tokens:?}");
    let (stdout, stderr) = (ended.stdout.join("\n"), ended.stderr.join("\n"));
    assert!(stderr.contains("DEBUG") || what == "plugin", "{what} logs nothing: {stderr}");
    for secret in tokens.iter().map(String::as_str).chain([SECRET_KEY, SESSION_TOKEN, CONTENT]) {
        assert!(!stderr.contains(secret), "{what}: {secret} in {stderr}");
        assert!(in_stdout.contains(&secret) || !stdout.contains(secret), "{what}: {secret} in {stdout}");
    }
}

#[test]
fn nothing_secret_is_printed_at_any_verbosity() {
    let manager = LocalManager::start_with(&["--insecure-credentials", "any"]);
    let tap = Wiretap::start(&manager);
    let variables = [
        ("AWS_ENDPOINT_URL", tap.url.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_SESSION_TOKEN", SESSION_TOKEN),
        ("RUST_LOG", "trace"),
    ];
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&["forward", "-t", TARGET, "-L", &spec, "-o", "json", "-vvv"], &variables);
    let mut stream = connect(cli.event("ready")["address"].as_str().unwrap());
    stream.write_all(CONTENT.as_bytes()).unwrap();
    stream.read_exact(&mut [0; CONTENT.len()]).unwrap();
    cli.signal("TERM");
    assert_hidden(&cli.end(), "forward", &tap.tokens(), &[]);

    let command = format!("echo {CONTENT}");
    let ended = Cli::start(&["exec", TARGET, "-vvv", "--", &command], &variables).end();
    assert_eq!(ended.stdout, [CONTENT]);
    assert_hidden(&ended, "exec", &tap.tokens(), &[CONTENT]);

    let mut shell = Cli::start_with(&["shell", TARGET, "-vvv"], &variables, |command| command.stdin(Stdio::piped()));
    shell.stdin.take().unwrap().write_all(command.as_bytes()).unwrap();
    assert_hidden(&shell.end(), "shell", &tap.tokens(), &[CONTENT]);
    assert_eq!(tap.tokens().len(), 3);

    let request = json!({ "Target": TARGET, "DocumentName": "AWS-StartNonInteractiveCommand", "Parameters": { "command": [command] } });
    let session = manager.call("StartSession", &request);
    let (response, request) = (session.to_string(), request.to_string());
    let args = [response.as_str(), "us-east-1", "StartSession", "", &request, &tap.url];
    let plugin =
        Cli::start_with(&args, &variables, |command| command.arg0("session-manager-plugin").stdin(Stdio::null()));
    let token = session["TokenValue"].as_str().unwrap().to_owned();
    assert_hidden(&plugin.end(), "plugin", &[token], &[CONTENT]);
}
