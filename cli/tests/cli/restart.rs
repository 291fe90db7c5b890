//! A session that has ended permanently is replaced. The listener stays the same.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::common::{Cli, LocalManager, TARGET, connect, echo_server};

fn start(manager: &LocalManager) -> (Cli, Value) {
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&["forward", "-t", TARGET, "-L", &spec, "-o", "json"], &manager.variables());
    let ready = cli.event("ready");
    (cli, ready)
}

fn open(ready: &Value) -> TcpStream {
    connect(ready["address"].as_str().unwrap())
}

fn assert_echo(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

fn end(cli: Cli, manager: &LocalManager) {
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
    assert!(manager.sessions("Active").is_empty());
}

#[test]
fn an_unused_session_is_replaced_when_the_next_connection_comes() {
    let manager = LocalManager::start();
    let (cli, ready) = start(&manager);
    // Data is transferred first, so that the end of the session does not count as a refused connection.
    assert_echo(&mut open(&ready));
    cli.event("connection_closed");
    manager.call("TerminateSession", &json!({ "SessionId": ready["session_id"] }));
    let lost = cli.event("session_lost");
    assert_eq!((&lost["session_id"], &lost["connections"]), (&ready["session_id"], &0.into()));
    assert!(manager.sessions("Active").is_empty(), "no session is needed without a connection");
    assert_echo(&mut open(&ready));
    let restarted = cli.event("restarted");
    assert_ne!(restarted["session_id"], ready["session_id"]);
    assert_eq!(manager.sessions("Active"), [restarted["session_id"].as_str().unwrap()]);
    end(cli, &manager);
}

#[test]
fn a_live_connection_of_a_lost_session_is_reset_and_the_next_one_works() {
    let manager = LocalManager::start();
    let (cli, ready) = start(&manager);
    let mut live = open(&ready);
    assert_echo(&mut live);
    manager.call("TerminateSession", &json!({ "SessionId": ready["session_id"] }));
    let end_of_it = live.read(&mut [0; 1]).unwrap_err();
    assert_eq!(end_of_it.kind(), ErrorKind::ConnectionReset, "{end_of_it}");
    assert_eq!(cli.event("session_lost")["connections"], 1);
    cli.event("restarted");
    assert_echo(&mut open(&ready));
    end(cli, &manager);
}

#[test]
fn a_stop_resets_what_is_open() {
    let manager = LocalManager::start();
    let (cli, ready) = start(&manager);
    let mut live = open(&ready);
    assert_echo(&mut live);
    cli.signal("KILL");
    let end_of_it = live.read(&mut [0; 1]).unwrap_err();
    assert_eq!(end_of_it.kind(), ErrorKind::ConnectionReset, "{end_of_it}");
}

#[test]
fn a_session_manager_that_comes_back_is_found_again() {
    let mut manager = LocalManager::start_restartable();
    let (cli, ready) = start(&manager);
    assert_echo(&mut open(&ready));
    manager.restart();
    // This connection waits until a new session is ready.
    assert_echo(&mut open(&ready));
    end(cli, &manager);
}
