//! Several sessions for one forward, and the events about them.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::common::{Cli, LocalManager, TARGET, connect, echo_server, eventually, free_port};

/// Starts a forward with JSON events. Returns its local address too.
fn forward(manager: &LocalManager, port: u16, more: &[&str]) -> (Cli, String) {
    let spec = format!("0:{port}");
    let args = [&["forward", "--target", TARGET, "-L", &spec, "-o", "json"], more].concat();
    let cli = Cli::start(&args, &manager.variables());
    let address = cli.event("ready")["address"].as_str().unwrap().to_owned();
    (cli, address)
}

fn echoes(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"still there?")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(answer == *b"still there?")
}

/// Starts a server that sends data without end. Returns its port.
fn source() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || while stream.write_all(&[7; 65_536]).is_ok() {});
        }
    });
    port
}

fn metrics(address: &str) -> String {
    let mut stream = connect(address);
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

#[test]
fn connections_are_spread_and_a_lost_session_takes_only_its_own_along() {
    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, echo_server(), &["--sessions", "3"]);
    eventually("three sessions", || manager.sessions("Active").len() == 3);
    let mut streams: Vec<_> = (0..3).map(|_| connect(&address)).collect();
    for stream in &mut streams {
        assert!(echoes(stream).unwrap());
    }
    let lost = manager.sessions("Active")[0].clone();
    manager.call("TerminateSession", &json!({ "SessionId": lost }));
    let event = cli.event("session_lost");
    assert_eq!((&event["session_id"], &event["connections"]), (&lost.into(), &1.into()));
    let outcomes: Vec<_> = streams.iter_mut().map(echoes).collect();
    let broken: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(broken.len(), 1, "{outcomes:?}");
    assert!(matches!(broken[0].kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{broken:?}");
    eventually("a replacement session", || manager.sessions("Active").len() == 3);
    assert!(echoes(&mut connect(&address)).unwrap());
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
    assert!(manager.sessions("Active").is_empty(), "all sessions are terminated");
}

#[test]
fn a_session_is_added_for_a_connection_that_would_have_to_share_and_that_is_told() {
    let manager = LocalManager::start_with(&["--profile", "real"]);
    let (cli, address) = forward(&manager, source(), &[]);
    let download = || {
        let mut stream = connect(&address);
        thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    };
    download();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(manager.sessions("Active").len(), 1, "one connection needs no second session");
    download();
    let added = cli.event("session_added");
    assert_eq!((&added["sessions"], &added["max"]), (&2.into(), &8.into()), "{added}");
    assert!(manager.sessions("Active").contains(&added["session_id"].as_str().unwrap().to_owned()));
}

#[cfg(target_os = "linux")]
#[test]
fn at_the_limit_of_open_files_connections_wait_and_are_served_at_once_when_others_end() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, echo_server(), &["--sessions", "1"]);
    let limit = Rlimit { current: Some(64), maximum: Some(64) };
    let pid = Pid::from_raw(i32::try_from(cli.pid).unwrap());
    prlimit(pid, Resource::Nofile, limit).unwrap();
    let many = || -> Vec<_> { (0..100).map(|_| connect(&address)).collect() };
    let mut streams = many();
    let warning = cli.event("warning");
    assert!(warning["text"].as_str().unwrap().contains("limit of 64 open files"), "{warning}");
    // These connections have open streams on the node, so their ends must be detected.
    for stream in &mut streams[..20] {
        assert!(echoes(stream).unwrap());
    }
    drop(streams);
    // The closed connections free their descriptors immediately, without the linger.
    let mut stream = connect(&address);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(echoes(&mut stream).unwrap());
    // At the limit, the session still has the descriptors that it needs to reconnect.
    let mut streams = many();
    manager.set_faults(&["bye,after=10ms"]);
    cli.event("reconnected");
    assert!(echoes(&mut streams[0]).unwrap());
    cli.signal("TERM");
    let ended = cli.end();
    assert!(!ended.stdout.iter().any(|line| line.contains("open files")), "the warning was repeated: {ended:?}");
}

#[test]
fn metrics_have_sessions_and_the_message_budget() {
    let manager = LocalManager::start();
    let at = format!("127.0.0.1:{}", free_port());
    let more = ["--sessions", "2", "--message-rate", "500", "--metrics", &at];
    let (_cli, address) = forward(&manager, echo_server(), &more);
    eventually("two sessions", || manager.sessions("Active").len() == 2);
    let mut stream = connect(&address);
    assert!(echoes(&mut stream).unwrap());
    eventually("the figures", || {
        let text = metrics(&at);
        let has = |line: &str| text.lines().any(|found| found.starts_with("ssm_forward_") && found.ends_with(line));
        has("} 1000") && text.contains("ssm_forward_message_budget{") && has("} 2") && has("} 12")
    });
}

#[test]
fn a_keep_alive_that_the_agent_does_not_know_is_a_warning() {
    for (version, warned) in [("3.0.196.0", true), ("3.3.987.0", false)] {
        let manager = LocalManager::start_with(&["--agent-version", version]);
        let (cli, _) = forward(&manager, echo_server(), &["--keep-alive"]);
        if warned {
            assert!(cli.event("warning")["text"].as_str().unwrap().contains(version));
        }
        cli.signal("TERM");
        let ended = cli.end();
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(!ended.stdout.iter().any(|line| line.contains("\"warning\"")), "{ended:?}");
    }
}

#[test]
fn larger_payloads_are_whole() {
    let manager = LocalManager::start();
    let (_cli, address) = forward(&manager, echo_server(), &["--payload-size", "65536"]);
    let mut stream = connect(&address);
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    thread::spawn(move || writer.write_all(&copy));
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).unwrap();
    assert!(received == sent);
}
