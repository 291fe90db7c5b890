//! Shells and commands under the name session-manager-plugin: the texts and exit codes on which callers rely.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::{Cli, LocalManager, TARGET};

const SHELL: &str = "SSM-SessionManagerRunShell";
const INTERACTIVE: &str = "AWS-StartInteractiveCommand";
const NON_INTERACTIVE: &str = "AWS-StartNonInteractiveCommand";

/// Starts a session and the plugin for it, as the AWS CLI does. Returns the session's id too.
fn start(manager: &LocalManager, document: &str, parameters: Value, more: &[(&str, &str)]) -> (Cli, String) {
    let request = json!({ "Target": TARGET, "DocumentName": document, "Parameters": parameters });
    let session = manager.call("StartSession", &request);
    let id = session["SessionId"].as_str().unwrap().to_owned();
    let (session, request, url) = (session.to_string(), request.to_string(), manager.endpoint());
    let args = [session.as_str(), "us-east-1", "StartSession", "", &request, &url];
    let variables = [&manager.variables(), more].concat();
    let cli =
        Cli::start_with(&args, &variables, |command| command.arg0("session-manager-plugin").stdin(Stdio::piped()));
    (cli, id)
}

/// Returns the texts that are printed before and after the remote output.
fn frame(id: &str) -> (String, String) {
    (format!("\nStarting session with SessionId: {id}\n"), format!("\n\nExiting session with sessionId: {id}.\n"))
}

#[test]
fn a_shell_says_exactly_what_callers_look_for() {
    let manager = LocalManager::start();
    for code in [0, 3] {
        let (mut cli, id) = start(&manager, SHELL, json!({}), &[("AWS_SSM_FORWARD_EXIT_CODE", "remote")]);
        cli.stdin.take().unwrap().write_all(format!("echo a$((1 + 1))b; exit {code}\n").as_bytes()).unwrap();
        let ended = cli.end();
        let text = ended.stdout.join("\n");
        let (begin, end) = frame(&id);
        assert!(text.starts_with(&begin) && text.ends_with(&end) && text.contains("a2b"), "{text:?}");
        // Session Manager does not report the exit code of a shell.
        assert!(ended.code == 0 && ended.stderr.is_empty() && !text.contains("EXIT_CODE"), "{ended:?}");
    }
}

#[test]
fn a_command_on_a_terminal_is_framed_by_the_same_texts() {
    let manager = LocalManager::start();
    let (mut cli, id) = start(&manager, INTERACTIVE, json!({ "command": ["echo name; read name; echo $name"] }), &[]);
    cli.stdin.take().unwrap().write_all(b"you\n").unwrap();
    let ended = cli.end();
    let (begin, end) = frame(&id);
    let text = ended.stdout.join("\n");
    assert!(text.starts_with(&format!("{begin}name\n")) && text.ends_with(&end) && ended.code == 0, "{ended:?}");
}

#[test]
fn the_exit_code_of_a_command_is_printed_and_taken_over_on_demand() {
    let manager = LocalManager::start();
    let separate = json!({ "command": ["sh -c 'echo out; echo err >&2; exit 3'"], "separateOutputStream": ["true"] });
    for (variables, code) in [(&[][..], 0), (&[("AWS_SSM_FORWARD_EXIT_CODE", "remote")], 3)] {
        let (cli, id) = start(&manager, NON_INTERACTIVE, separate.clone(), variables);
        let ended = cli.end();
        let (begin, end) = frame(&id);
        assert_eq!(ended.stdout.join("\n"), format!("{begin}out\nEXIT_CODE: 3{end}"));
        assert_eq!((ended.code, ended.stderr), (code, vec!["err".to_owned()]));
    }
    // Without separate outputs, the agent reports no exit code.
    let merged = json!({ "command": ["sh -c 'echo out; echo err >&2; exit 3'"] });
    let (cli, id) = start(&manager, NON_INTERACTIVE, merged, &[("AWS_SSM_FORWARD_EXIT_CODE", "remote")]);
    let ended = cli.end();
    let (begin, end) = frame(&id);
    assert_eq!((ended.stdout.join("\n"), ended.code), (format!("{begin}out\nerr\n{end}"), 0));
}

#[test]
fn a_signal_ends_a_shell_and_its_session() {
    let manager = LocalManager::start();
    for (variables, code) in [(&[][..], 0), (&[("AWS_SSM_FORWARD_EXIT_CODE", "remote")], 143)] {
        let (mut cli, _) = start(&manager, SHELL, json!({}), variables);
        cli.stdin.as_mut().unwrap().write_all(b"echo ready$((1 + 1))\n").unwrap();
        while !cli.line().starts_with("ready2") {}
        cli.signal("TERM");
        assert_eq!(cli.end().code, code);
        assert!(manager.sessions("Active").is_empty());
    }
}

#[test]
fn a_caller_of_old_passes_three_arguments() {
    let manager = LocalManager::start();
    let session = manager.call("StartSession", &json!({ "Target": TARGET })).to_string();
    let mut cli = Cli::start_with(&[&session, "us-east-1", "StartSession"], &manager.variables(), |command| {
        command.arg0("session-manager-plugin").stdin(Stdio::piped())
    });
    cli.stdin.take().unwrap().write_all(b"echo a$((1 + 1))b\nexit\n").unwrap();
    let ended = cli.end();
    assert!(ended.code == 0 && ended.stdout.iter().any(|line| line.contains("a2b")), "{ended:?}");
}

/// Runs the plugin and returns the request with which it opens the data channel. The request gets no response.
fn upgrade(query: &str, variables: &[(&str, &str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/v1/data-channel/s-1{query}", listener.local_addr().unwrap());
    let session = json!({ "SessionId": "s-1", "TokenValue": "token", "StreamUrl": url }).to_string();
    let variables = [&crate::common::CREDENTIALS[..], variables].concat();
    let _cli = Cli::start_as_plugin(&[&session, "us-east-1", "StartSession"], &variables);
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

#[test]
fn the_data_channel_is_signed_unless_the_caller_has_signed_it_or_wants_no_credentials() {
    assert!(upgrade("?role=publish_subscribe", &[]).contains("\r\nauthorization: aws4-hmac-sha256 "));
    let presigned = upgrade("?role=publish_subscribe&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=abc", &[]);
    assert!(!presigned.contains("authorization") && presigned.contains("x-amz-signature=abc "), "{presigned}");
    let skipped = upgrade("?role=publish_subscribe", &[("SSM_PLUGIN_SKIP_CLIENT_CONFIGURE", "true")]);
    assert!(!skipped.contains("authorization") && !skipped.contains("x-amz-"), "{skipped}");
}
