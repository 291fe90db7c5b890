//! The binary under the name session-manager-plugin: the behaviour on which the AWS CLI and other callers rely, and the defects of
//! the official client that it must not have.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Cli, Ended, LocalManager, TARGET, closed_port, connect, echo_server};

/// Starts a session. Returns the response as JSON, which a caller passes to the plugin.
fn session(manager: &LocalManager, document: &str, parameters: &[(&str, String)]) -> Value {
    let parameters: serde_json::Map<_, _> =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), json!([value]))).collect();
    let request = json!({ "Target": TARGET, "DocumentName": document, "Parameters": parameters });
    manager.call("StartSession", &request)
}

fn port_session(manager: &LocalManager, port: u16) -> Value {
    session(manager, "AWS-StartPortForwardingSession", &[("portNumber", port.to_string())])
}

fn ssh_session(manager: &LocalManager, port: u16) -> Value {
    session(manager, "AWS-StartSSHSession", &[("portNumber", port.to_string())])
}

/// Returns the arguments that the AWS CLI passes.
fn arguments(session: &Value, endpoint: &str) -> Vec<String> {
    let request = json!({ "Target": TARGET, "DocumentName": "x", "Parameters": {} });
    [&session.to_string(), "us-east-1", "StartSession", "", &request.to_string(), endpoint].map(str::to_owned).into()
}

fn start(manager: &LocalManager, session: &Value) -> Cli {
    start_with(manager, session, Stdio::null())
}

fn start_with(manager: &LocalManager, session: &Value, stdin: Stdio) -> Cli {
    use std::os::unix::process::CommandExt;
    let args = arguments(session, &manager.endpoint());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Cli::start_with(&args, &manager.variables(), |command| command.arg0("session-manager-plugin").stdin(stdin))
}

/// Waits for the line with the port. Returns the local address.
fn port_of(cli: &Cli, session: &Value) -> String {
    let id = session["SessionId"].as_str().unwrap();
    loop {
        let line = cli.line();
        if let Some(rest) = line.strip_prefix("Port ") {
            let (port, rest) = rest.split_once(' ').unwrap();
            assert_eq!(rest, format!("opened for sessionId {id}."));
            return format!("127.0.0.1:{port}");
        }
    }
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    Cli::start_as_plugin(args, variables).end()
}

#[test]
fn the_banner_and_the_version_are_what_callers_expect() {
    let banner = run(&[], &[]);
    assert_eq!(banner.code, 0);
    let text = "The Session Manager plugin was installed successfully. Use the AWS CLI to start a session.";
    assert_eq!(banner.stdout, ["", text, ""]);
    let version = run(&["--version"], &[]);
    assert_eq!((version.code, version.stdout.len()), (0, 1));
    let numbers: Vec<u32> = version.stdout[0].split('.').map(|number| number.parse().unwrap()).collect();
    assert!(numbers >= vec![1, 2, 764, 0], "{numbers:?}");
}

#[test]
fn malformed_arguments_are_one_line_and_an_honest_exit_code() {
    let whole = r#"{"SessionId":"s","StreamUrl":"ws://127.0.0.1:1/","TokenValue":"hush-hush"}"#;
    for (args, what) in [
        (vec!["help"], "unknown operation help"),
        (vec!["{", "r", "StartSession"], "not JSON"),
        (vec![whole, "r", "EndSession"], "invalid operation"),
        (vec![whole, "", "StartSession"], "region"),
        (vec![whole, "r", "StartSession", "", "{"], "not JSON"),
        (vec!["AWS_SSM_START_SESSION_RESPONSE", "r", "StartSession"], "is not set"),
    ] {
        let ended = run(&args, &[]);
        ended.assert_one_line(2, &[what]);
        assert!(!format!("{ended:?}").contains("hush"), "{ended:?}");
    }
}

/// The session is already started, and the plugin needs only its token. Therefore a missing profile is not an error; here the run
/// fails only because of the data channel.
#[test]
fn a_profile_that_is_gone_is_one_warning() {
    let session = r#"{"SessionId":"s","StreamUrl":"ws://127.0.0.1:1/","TokenValue":"hush-hush"}"#;
    let ended = run(&[session, "us-east-1", "StartSession", "no-such-profile"], &[]);
    assert_eq!(ended.code, 6, "{ended:?}");
    let warnings: Vec<_> = ended.stderr.iter().filter(|line| line.starts_with("warning: ")).collect();
    assert!(matches!(warnings[..], [warning] if warning.contains("no AWS profile \"no-such-profile\"")), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.contains("cannot reach 127.0.0.1:1")), "{ended:?}");
    assert!(!format!("{ended:?}").contains("hush"), "{ended:?}");
}

#[test]
fn a_port_session_says_exactly_what_callers_wait_for() {
    let manager = LocalManager::start();
    let session = port_session(&manager, echo_server());
    let id = session["SessionId"].as_str().unwrap();
    let cli = start(&manager, &session);
    assert_eq!([cli.line(), cli.line()], [String::new(), format!("Starting session with SessionId: {id}")]);
    let address = port_of(&cli, &session);
    assert_eq!(cli.line(), "Waiting for connections...");
    let mut stream = connect(&address);
    stream.write_all(b"hello").unwrap();
    assert_eq!([cli.line(), cli.line()], [String::new(), format!("Connection accepted for session [{id}]")]);
    stream.read_exact(&mut [0; 5]).unwrap();
    cli.signal("INT");
    let ended = cli.end();
    assert_eq!(ended.code, 0);
    let last = ["Terminate signal received, exiting.", "", "", &format!("Exiting session with sessionId: {id}."), ""];
    assert_eq!(ended.stdout, last);
    assert!(manager.sessions("Active").is_empty());
}

#[test]
fn where_there_is_one_session_who_waits_is_told_for_whom() {
    let manager = LocalManager::start();
    let session = port_session(&manager, echo_server());
    let cli = start(&manager, &session);
    let address = port_of(&cli, &session);
    let mut stuck = connect(&address);
    let peer = stuck.local_addr().unwrap();
    let _other = connect(&address);
    // The client does not read the echoed data.
    stuck.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    while stuck.write_all(&[7; 65_536]).is_ok() {}
    let warning = cli.error_line();
    assert!(
        warning.starts_with(&format!("warning: the local program of connection 1 (from {peer}) reads ")),
        "{warning}"
    );
}

#[test]
fn the_session_may_come_in_any_variable_with_the_prefix_and_in_the_spelling_of_ecs() {
    let manager = LocalManager::start();
    let session = port_session(&manager, echo_server());
    let lower = json!({
        "sessionId": session["SessionId"], "tokenValue": session["TokenValue"], "streamUrl": session["StreamUrl"],
    });
    let text = lower.to_string();
    let mut variables = manager.variables();
    variables.push(("AWS_SSM_START_SESSION_RESPONSE_42", &text));
    let ecs = r#"{"Target":"ecs:cluster_task_runtime"}"#;
    let args = ["AWS_SSM_START_SESSION_RESPONSE_42", "us-east-1", "StartSession", "", ecs, "http://127.0.0.1:1"];
    let cli = Cli::start_as_plugin(&args, &variables);
    let address = port_of(&cli, &session);
    let mut stream = connect(&address);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
    assert!(manager.sessions("Active").is_empty(), "the endpoint of ECS was used as the endpoint of SSM");
}

#[test]
#[cfg(target_os = "linux")]
fn the_token_is_in_no_argument_and_no_variable_that_others_can_read() {
    let manager = LocalManager::start();
    // The largest is near the length limit of an argument. Other members of the response can have any size.
    for padding in [0, 20 << 10, 100 << 10] {
        let mut session = port_session(&manager, echo_server());
        session["ResponseMetadata"] = "x".repeat(padding).into();
        assert_token_is_hidden(&manager, &session);
    }
}

#[cfg(target_os = "linux")]
fn assert_token_is_hidden(manager: &LocalManager, session: &Value) {
    let token = session["TokenValue"].as_str().unwrap();
    let text = session.to_string();
    let mut variables = manager.variables();
    variables.push(("AWS_SSM_START_SESSION_RESPONSE", &text));
    for first in [text.as_str(), "AWS_SSM_START_SESSION_RESPONSE"] {
        let cli = Cli::start_as_plugin(&[first, "us-east-1", "StartSession"], &variables);
        while !cli.line().starts_with("Starting session") {}
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{}/{file}", cli.pid)).unwrap();
            // If the session is passed in an argument, the plugin does not change the variable.
            let other = first == text && file == "environ";
            assert!(other || !String::from_utf8_lossy(&bytes).contains(token), "{file}");
        }
    }
}

#[test]
fn what_the_far_side_says_does_not_reach_the_terminal_as_it_is() {
    let text = "one\u{1b}]0;title\u{7}\u{9b}2J\nPort 1 opened\u{202e}";
    let manager = LocalManager::start_with(&["--fault", &format!("end,after=500ms,status=failed,text={text}")]);
    let session = port_session(&manager, echo_server());
    let ended = start(&manager, &session).end();
    let told = ended.stdout.join("\n");
    assert!(told.contains("one\\u{1b}]0;title\\u{7}\\u{9b}2J\n  Port 1 opened\\u{202e}"), "{told:?}");
    let spec = format!("0:{}", echo_server());
    let ended = Cli::start(&["forward", "-t", TARGET, "-L", &spec, "--no-restart"], &manager.variables()).end();
    let told = [ended.stdout, ended.stderr].concat().join("\n");
    assert!(told.contains("one\\u{1b}]0;title\\u{7}\\u{9b}2J") && told.contains("opened\\u{202e}"), "{told:?}");
    for hidden in ['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}'] {
        assert!(!told.contains(hidden), "{told:?}");
    }
}

#[test]
fn a_port_in_use_fails_at_once() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = LocalManager::start();
    let taken = holder.local_addr().unwrap().port().to_string();
    let parameters = [("portNumber", echo_server().to_string()), ("localPortNumber", taken.clone())];
    let session = session(&manager, "AWS-StartPortForwardingSession", &parameters);
    let ended = start(&manager, &session).end();
    ended.assert_one_line(3, &[&taken, "already in use"]);
    let text = ended.stdout.join("\n");
    assert!(text.contains("Cannot perform start session: cannot listen on"), "{text}");
    assert!(manager.sessions("Active").is_empty(), "the session is left behind");
}

#[test]
fn sigterm_ends_the_session() {
    let manager = LocalManager::start();
    for signal in ["TERM", "HUP"] {
        let session = port_session(&manager, echo_server());
        let cli = start(&manager, &session);
        port_of(&cli, &session);
        cli.signal(signal);
        assert_eq!(cli.end().code, 0, "{signal}");
        assert!(manager.sessions("Active").is_empty(), "{signal}");
    }
}

#[test]
fn exit_codes_tell_the_truth() {
    let manager = LocalManager::start();
    // The service closes the session. For callers, this is a normal end.
    let session = port_session(&manager, echo_server());
    let cli = start(&manager, &session);
    port_of(&cli, &session);
    manager.call("TerminateSession", &json!({ "SessionId": session["SessionId"] }));
    let ended = cli.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line.starts_with("Exiting session with sessionId: ")), "{ended:?}");
    // This token does not open the data channel.
    let mut wrong = port_session(&manager, echo_server());
    wrong["TokenValue"] = "wrong".into();
    wrong["SessionId"] = "gone".into();
    assert_ne!(start(&manager, &wrong).end().code, 0);
    // No server listens on this port.
    let mut nowhere = port_session(&manager, echo_server());
    nowhere["StreamUrl"] = format!("ws://127.0.0.1:{}/", closed_port()).into();
    start(&manager, &nowhere).end().assert_one_line(6, &["cannot reach"]);
    // The token must not be sent to this host.
    let mut elsewhere = port_session(&manager, echo_server());
    elsewhere["StreamUrl"] = "wss://ssmmessages.example.com/v1/data-channel/x".into();
    start(&manager, &elsewhere)
        .end()
        .assert_one_line(6, &["ssmmessages.example.com", "not an AWS Session Manager endpoint"]);
}

#[test]
fn a_lone_newline_in_a_tunnel_arrives_as_a_newline() {
    let manager = LocalManager::start();
    let session = ssh_session(&manager, echo_server());
    let mut cli = start_with(&manager, &session, Stdio::piped());
    // The official client changes a newline into a carriage return.
    cli.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    cli.stdin.as_mut().unwrap().flush().unwrap();
    assert_eq!([cli.line(), cli.line().split(':').next().unwrap().to_owned()], ["", "Starting session with SessionId"]);
    assert_eq!(cli.line(), "");
    cli.signal("TERM");
}

#[test]
fn the_end_of_standard_input_loses_no_output() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let manager = LocalManager::start();
    let session = ssh_session(&manager, port);
    let mut cli = start_with(&manager, &session, Stdio::piped());
    let (mut server, _) = listener.accept().unwrap();
    cli.stdin.take().unwrap().write_all(b"question\n").unwrap();
    let mut question = [0; 9];
    server.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question\n");
    let answer: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    let writer = thread::spawn(move || {
        server.write_all(answer.as_bytes()).unwrap();
        server.shutdown(Shutdown::Both).unwrap();
    });
    let ended = cli.end();
    writer.join().unwrap();
    assert_eq!(ended.code, 0, "{:?}", ended.stderr);
    let lines: Vec<_> = ended.stdout.iter().filter(|line| line.starts_with("line ")).collect();
    assert_eq!((lines.len(), lines.last().unwrap().as_str()), (20_000, "line 19999"));
}

#[test]
fn an_ssh_server_that_does_not_answer_is_told() {
    let manager = LocalManager::start();
    let port = closed_port();
    let session = ssh_session(&manager, port);
    let ended = start_with(&manager, &session, Stdio::piped()).end();
    ended.assert_one_line(8, &["Unable to connect to specified port", &port.to_string()]);
}

#[test]
fn a_node_that_takes_nothing_is_told_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = LocalManager::start();
    let session = ssh_session(&manager, listener.local_addr().unwrap().port());
    let mut cli = start_with(&manager, &session, Stdio::piped());
    let _server = listener.accept().unwrap();
    manager.set_faults(&["agent-deaf"]);
    cli.stdin.as_mut().unwrap().write_all(b"SSH-2.0-x\r\n").unwrap();
    let line = cli.error_line();
    assert!(line.contains("does a server listen on that port"), "{line}");
    cli.signal("TERM");
    let ended = cli.end();
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn half_close_gets_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = LocalManager::start();
    let session = port_session(&manager, listener.local_addr().unwrap().port());
    let cli = start(&manager, &session);
    let mut client = connect(&port_of(&cli, &session));
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut question = [0; 8];
    server.read_exact(&mut question).unwrap();
    server.write_all(&vec![7; 1 << 20]).unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(answer == vec![7; 1 << 20], "{} bytes", answer.len());
}

#[test]
fn installing_replaces_and_uninstalling_puts_back() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("session-manager-plugin");
    std::fs::write(&place, "the official one").unwrap();
    let path = dir.path().to_str().unwrap();
    let installed = Cli::start(&["plugin", "install", "--dir", path], &[]).end();
    assert_eq!(installed.code, 0, "{installed:?}");
    assert!(installed.stdout[0].contains("the previous file is now"), "{installed:?}");
    let version = std::process::Command::new(&place).arg("--version").output().unwrap();
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("1.2."));
    assert!(Cli::start(&["plugin", "install", "--dir", path], &[]).end().stdout[0].contains("already"));
    assert_eq!(Cli::start(&["plugin", "uninstall", "--dir", path], &[]).end().code, 0);
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "the official one");
    Cli::start(&["plugin", "uninstall", "--dir", path], &[]).end().assert_one_line(4, &["nothing was changed"]);
    Cli::start(&["plugin", "install", "--dir", "/no/such/folder"], &[]).end().assert_one_line(4, &["--dir"]);
}

#[test]
fn what_was_replaced_survives_other_builds() {
    let dir = tempfile::tempdir().unwrap();
    let (place, path) = (dir.path().join("session-manager-plugin"), dir.path().to_str().unwrap());
    std::fs::write(&place, "the official one").unwrap();
    let plugin = |args: &[&str]| {
        let ended = Cli::start(&[&["plugin"], args, &["--dir", path]].concat(), &[]).end();
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout[0].clone()
    };
    plugin(&["install", "--copy"]);
    let (copy, own) = (place.metadata().unwrap(), Path::new(env!("CARGO_BIN_EXE_aws-ssm-forward")).metadata().unwrap());
    assert_eq!((copy.len(), copy.mode()), (own.len(), own.mode()));
    // Another build: first a copy, then a link to a file that no longer exists, as after a rebuild.
    let mut other = std::fs::read(&place).unwrap();
    other.extend_from_slice(b"other");
    std::fs::write(&place, other).unwrap();
    assert!(plugin(&["install"]).contains("another build"));
    std::fs::remove_file(&place).unwrap();
    std::os::unix::fs::symlink("/no/such/folder/aws-ssm-forward", &place).unwrap();
    assert!(plugin(&["install"]).contains("another build"));
    assert!(plugin(&["uninstall"]).contains("the previous file is restored"));
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "the official one");
    assert_eq!(dir.path().read_dir().unwrap().count(), 1, "other files are left in the folder");
}

#[test]
fn stopped_while_it_opens_it_terminates_the_session_once() {
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let manager = LocalManager::start();
        let mut session = port_session(&manager, echo_server());
        // This server accepts the connection and never responds to the upgrade.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        session["StreamUrl"] = format!("ws://{}/", silent.local_addr().unwrap()).into();
        let cli = start(&manager, &session);
        let (_held, _) = silent.accept().unwrap();
        cli.signal(signal);
        assert_eq!(cli.end().code, code, "{signal}");
        assert!(manager.sessions("Active").is_empty(), "{signal} leaves the session behind");
    }
}

#[test]
fn a_session_that_was_used_before_is_told_in_seconds() {
    let manager = LocalManager::start();
    for request in [json!({ "Target": TARGET, "DocumentName": "AWS-StartPortForwardingSession" }), json!({})] {
        let session = port_session(&manager, echo_server());
        let first = start(&manager, &session);
        port_of(&first, &session);
        first.signal("KILL");
        let resumed = manager.call("ResumeSession", &json!({ "SessionId": session["SessionId"] })).to_string();
        let (request, endpoint) = (request.to_string(), manager.endpoint());
        let args = [&resumed, "us-east-1", "StartSession", "", &request, &endpoint];
        let ended = Cli::start_as_plugin(&args, &manager.variables()).end();
        ended.assert_one_line(6, &["was used by another client before", "start a new one"]);
        assert!(ended.stdout.iter().any(|line| line.starts_with("Cannot perform start session: ")), "{ended:?}");
        assert!(!manager.sessions("Active").contains(&session["SessionId"].as_str().unwrap().to_owned()));
    }
}

#[test]
fn the_token_in_the_place_of_the_id_is_never_printed() {
    let manager = LocalManager::start();
    let session = port_session(&manager, echo_server());
    let token = session["TokenValue"].as_str().unwrap();
    let passed = json!({ "streamUrl": session["StreamUrl"], "tokenValue": token, "sessionId": token }).to_string();
    let args = [&passed, "us-east-1", "StartSession"];
    let cli = Cli::start_as_plugin(&args, &manager.variables());
    let mut output = vec![cli.line(), cli.line()];
    assert_eq!(output[1], format!("Starting session with SessionId: {}", session["SessionId"].as_str().unwrap()));
    port_of(&cli, &session);
    cli.signal("TERM");
    let ended = cli.end();
    output.extend([ended.stdout, ended.stderr].concat());
    assert!(!output.iter().any(|line| line.contains(token)), "the token was printed");
    assert!(manager.sessions("Active").is_empty(), "the session is left behind");
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_is_found_under_the_name_that_was_started() {
    use std::os::unix::fs::symlink;
    let manager = LocalManager::start();
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("session-manager-plugin");
    symlink(env!("CARGO_BIN_EXE_aws-ssm-forward"), &link).unwrap();
    for program in [link.to_str().unwrap(), "session-manager-plugin"] {
        let session = port_session(&manager, echo_server());
        let args = arguments(&session, &manager.endpoint());
        let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
        let mut variables = manager.variables();
        variables.push(("PATH", &path));
        let args: Vec<&str> =
            ["-c", "exec \"$0\" \"$@\"", program].into_iter().chain(args.iter().map(String::as_str)).collect();
        let cli = Cli::start_program("sh", &args, &variables);
        port_of(&cli, &session);
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", cli.pid)).unwrap();
        // The kernel keeps only 15 characters of the name.
        assert_eq!(read("comm").trim_end(), "session-manager");
        assert!(read("cmdline").split('\0').next().unwrap().ends_with("session-manager-plugin"));
        cli.signal("TERM");
        assert_eq!(cli.end().code, 0);
    }
}
