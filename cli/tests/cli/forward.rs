//! Port forwarding: connections to the local port reach the destination, and the session ends with the command.

use std::io::{Read, Write};

use crate::common::{Cli, LocalManager, PATIENCE, TARGET, closed_port, connect, echo_server};
use serde_json::Value;

/// Sends `bytes`, and asserts that the same bytes come back.
fn assert_echo(stream: &mut (impl Read + Write), bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == bytes, "the received bytes differ from the sent bytes");
}

fn pattern(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(length).collect()
}

#[test]
fn local_moves_bytes_and_tells_events() {
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&["forward", "--local", "--wait-ready", "-L", &spec, "--output", "json"], &[]);
    let starting = cli.event("starting");
    assert_eq!((&starting["spec"], &starting["target"]), (&spec.as_str().into(), &TARGET.into()));
    let session = cli.event("session_started")["session_id"].clone();
    let ready = cli.event("ready");
    assert_eq!((&ready["session_id"], &ready["forward"]), (&session, &0.into()));
    assert_ne!(ready["port"], 0);
    assert_eq!(ready["address"], format!("127.0.0.1:{}", ready["port"]));
    let mut stream = connect(ready["address"].as_str().unwrap());
    let opened = cli.event("connection_opened");
    assert_eq!(opened["peer"], stream.local_addr().unwrap().to_string());
    let bytes = pattern(300_000);
    assert_echo(&mut stream, &bytes);
    drop(stream);
    let closed = cli.event("connection_closed");
    assert_eq!(
        (&closed["connection"], &closed["bytes_up"], &closed["bytes_down"]),
        (&opened["connection"], &300_000.into(), &300_000.into())
    );
    cli.signal("TERM");
    cli.event("closed");
    assert_eq!(cli.end().code, 0);
}

#[test]
fn several_forwards_have_a_session_each() {
    let manager = LocalManager::start();
    let (first, second) = (format!("0:{}", echo_server()), format!("0:localhost:{}", echo_server()));
    let args = ["forward", "-t", TARGET, "-L", &first, "-L", &second, "-o", "json"];
    let cli = Cli::start(&args, &manager.variables());
    let mut ready = [cli.event("ready"), cli.event("ready")];
    ready.sort_by_key(|event| event["forward"].as_u64());
    assert_eq!(ready[1]["forward"], 1);
    let mut sessions = manager.sessions("Active");
    let mut reported: Vec<_> = ready.iter().map(|event| event["session_id"].as_str().unwrap().to_owned()).collect();
    sessions.sort();
    reported.sort();
    assert_eq!(sessions, reported);
    for event in &ready {
        assert_echo(&mut connect(event["address"].as_str().unwrap()), b"hello");
    }
    cli.signal("INT");
    assert_eq!(cli.end().code, 0);
    assert!(manager.sessions("Active").is_empty());
}

#[test]
fn every_signal_terminates_the_session() {
    let manager = LocalManager::start();
    let spec = format!("0:{}", echo_server());
    for signal in ["INT", "TERM", "HUP"] {
        let cli = Cli::start(&["forward", "-t", TARGET, "-L", &spec, "-o", "json"], &manager.variables());
        let ready = cli.event("ready");
        let mut open = connect(ready["address"].as_str().unwrap());
        assert_echo(&mut open, b"still open");
        assert_eq!(manager.sessions("Active"), [ready["session_id"].as_str().unwrap()], "{signal}");
        cli.signal(signal);
        let ended = cli.end();
        assert_eq!(ended.code, 0, "{signal}: {ended:#?}");
        assert!(manager.sessions("Active").is_empty(), "{signal}");
    }
    assert_eq!(manager.sessions("History").len(), 3);
}

#[test]
fn text_is_one_line_on_stdout_and_quiet_is_none() {
    let port = echo_server();
    let spec = format!("0:localhost:{port}");
    let cli = Cli::start(&["forward", "--local", "-L", &spec], &[]);
    let line = cli.line();
    assert!(line.starts_with("Forwarding 127.0.0.1:"), "{line}");
    assert!(line.contains(&format!(" -> localhost:{port} through {TARGET} (session ")), "{line}");
    cli.signal("TERM");
    let ended = cli.end();
    assert_eq!((ended.code, ended.stdout.len()), (0, 0), "{ended:#?}");

    let home = tempfile::tempdir().unwrap();
    let spec = format!("unix:{}:{port}", home.path().join("s").display());
    let cli = Cli::start(&["forward", "--local", "-q", "-L", &spec, "-L", "0:1"], &[]);
    wait_for(&home.path().join("s"));
    cli.signal("INT");
    let ended = cli.end();
    assert!(ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended:#?}");
}

/// Waits until a path exists.
fn wait_for(path: &std::path::Path) {
    let began = std::time::Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < PATIENCE, "{} does not appear", path.display());
        std::thread::yield_now();
    }
}

#[test]
#[cfg(unix)]
fn a_unix_socket_is_a_local_end_too() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("db.sock");
    let spec = format!("unix:{}:{}", path.display(), echo_server());
    let cli = Cli::start(&["forward", "--local", "-L", &spec, "-o", "json"], &[]);
    let ready = cli.event("ready");
    assert_eq!((&ready["address"], &ready["port"]), (&path.to_str().unwrap().into(), &Value::Null));
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_echo(&mut stream, b"through a file");
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
    assert!(!path.exists(), "the socket's file is left behind");
}

#[test]
fn a_bind_to_every_address_warns() {
    let spec = format!("*:0:localhost:{}", echo_server());
    let cli = Cli::start(&["forward", "--local", "-L", &spec, "-o", "json"], &[]);
    let warning = cli.event("warning");
    assert!(warning["text"].as_str().unwrap().contains("other machines"), "{warning}");
    assert_eq!(cli.event("ready")["host"], "0.0.0.0");
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
}

/// Runs `forward` with one connection, and returns the lines on stderr.
fn log_of(verbosity: &str) -> Vec<String> {
    let manager = LocalManager::start();
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&["forward", TARGET, "-L", &spec, "-o", "json", verbosity], &manager.variables());
    let ready = cli.event("ready");
    assert_echo(&mut connect(ready["address"].as_str().unwrap()), b"hello");
    cli.event("connection_closed");
    cli.signal("TERM");
    let ended = cli.end();
    assert_eq!(ended.code, 0, "{ended:#?}");
    ended.stderr
}

#[test]
fn each_v_tells_more() {
    let has = |log: &[String], text: &str| log.iter().any(|line| line.contains(text));
    let [one, two, three] = ["-v", "-vv", "-vvv"].map(log_of);
    let endpoint = "endpoint=\"http://127.0.0.1:";
    for text in [
        "profile=\"default\"",
        "credentials=",
        "region=\"us-east-1\"",
        endpoint,
        "agent_version=",
        "connection opened",
        "connection closed",
        "connecting to=",
    ] {
        assert!(has(&one, text), "no {text:?} in {one:#?}");
    }
    assert!(!has(&one, "stream opened") && has(&two, "stream opened"), "{two:#?}");
    assert!(!has(&two, "message sent") && has(&three, "message sent"), "{three:#?}");
    assert!(one.len() < two.len() && two.len() < three.len());
}

#[test]
fn lines_of_several_forwards_say_which() {
    let (first, second) = (format!("0:{}", closed_port()), format!("0:localhost:{}", closed_port()));
    let cli = Cli::start(&["forward", "--local", "-L", &first, "-L", &second, "-v"], &[]);
    let ready = [cli.line(), cli.line()];
    let line = ready.iter().find(|line| line.contains("localhost:")).unwrap();
    let address = line.split_whitespace().nth(1).unwrap();
    let _ = connect(address).read_to_end(&mut Vec::new());
    let warning = format!("warning: -L {second}: connection 1 to localhost:");
    let mut log = Vec::new();
    while !log.last().is_some_and(|line: &String| line.starts_with(&warning)) {
        log.push(cli.error_line());
    }
    cli.signal("TERM");
    log.extend(cli.end().stderr);
    let spans = [&first, &second].map(|spec| format!("forward{{L=\"{spec}\"}}"));
    let mut of_library = log.iter().filter(|line| line.contains(" ssm_forward::")).peekable();
    assert!(of_library.peek().is_some(), "{log:#?}");
    for line in of_library {
        assert!(spans.iter().any(|span| line.contains(span)), "{line}");
    }
}
