//! `--wait-connected` with nodes that are still booting.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use crate::common::{Cli, LocalManager, TARGET, connect, echo_server, run};

/// Starts a Session Manager whose node connects only after 3 s.
fn booting() -> LocalManager {
    LocalManager::start_with(&["--fault", "reboot,for=3s"])
}

#[test]
fn a_forward_waits_for_a_node_that_boots() {
    let manager = booting();
    let spec = format!("0:{}", echo_server());
    let args = ["forward", "--target", TARGET, "-L", &spec, "--wait-connected", "60", "-o", "json"];
    let cli = Cli::start(&args, &manager.variables());
    let waiting = cli.event("awaiting_target");
    assert_eq!(waiting["up_to_ms"], 60_000);
    assert!(waiting["cause"].as_str().unwrap().contains("TargetNotConnected"), "{waiting}");
    let mut stream = connect(cli.event("ready")["address"].as_str().unwrap());
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
}

#[test]
fn exec_and_ssh_proxy_wait_too_and_say_for_what() {
    let manager = booting();
    let is_wait = |line: &str| line.starts_with(&format!("Waiting up to 60 s for {TARGET} to connect: "));
    let exec = Cli::start(&["exec", TARGET, "--wait-connected", "60", "--", "echo", "here"], &manager.variables());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let args = ["ssh-proxy", TARGET, &port, "--wait-connected", "60"];
    let ssh = Cli::start_with(&args, &manager.variables(), |command| command.stdin(Stdio::piped()));
    let line = ssh.error_line();
    assert!(is_wait(&line), "{line}");
    server.accept().unwrap().0.write_all(b"SSH-2.0-test\n").unwrap();
    assert_eq!(ssh.line(), "SSH-2.0-test");
    let ended = exec.end();
    assert_eq!((ended.code, ended.stdout), (0, vec!["here".to_owned()]));
    assert!(ended.stderr.len() == 1 && is_wait(&ended.stderr[0]), "{:?}", ended.stderr);
    let quiet = booting();
    let ended = run(&["exec", TARGET, "-q", "--wait-connected", "60", "--", "echo", "here"], &quiet.variables());
    assert_eq!((ended.code, ended.stderr), (0, Vec::new()));
}

#[test]
fn the_wait_is_bounded_and_can_be_stopped() {
    let manager = LocalManager::start_with(&["--fault", "reboot,for=10m"]);
    let args = ["exec", TARGET, "--wait-connected", "2", "--", "true"];
    run(&args, &manager.variables()).assert_one_line(5, &["TargetNotConnected", "waited 2 s"]);
    let at_once = run(&["exec", TARGET, "--", "true"], &manager.variables());
    at_once.assert_one_line(5, &["TargetNotConnected"]);
    assert!(!at_once.stderr[0].contains("waited"), "{at_once:?}");
    let cli = Cli::start(&["shell", TARGET, "--wait-connected", "600"], &manager.variables());
    cli.error_line();
    cli.signal("TERM");
    assert_eq!(cli.end().code, 143);
}
