//! `shell` on a terminal, as a user runs it, and without a terminal.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::{CREDENTIALS, Cli, FakeApi, LocalManager, TARGET, eventually};
use crate::terminal::Terminal;

fn shell() -> Terminal {
    let mut terminal = Terminal::start(&["shell", "--local"], &[]);
    terminal.expect_shell();
    terminal
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the remote shell compute a digest of the next `length` bytes.
fn digest_of_next(terminal: &mut Terminal, length: usize) {
    terminal.type_in(format!("stty raw -echo; echo re''ady; head -c {length} | sha256sum; stty sane\r"));
    terminal.expect("ready\n");
}

#[test]
fn a_command_is_answered_until_exit() {
    let mut terminal = shell();
    assert!(!terminal.is_as_it_was(), "the terminal is not in raw mode");
    terminal.type_in("echo a$((1 + 1))b\r");
    terminal.expect("a2b\r\n");
    terminal.type_in("exit 3\r");
    // Session Manager does not report the exit code of a shell.
    assert_eq!(terminal.end(), 0);
}

#[test]
fn the_keys_for_signals_work_on_the_far_side() {
    let mut terminal = shell();
    for (key, status) in [("\x03", "130"), ("\x1c", "131"), ("\x1a", "148")] {
        terminal.type_in("set -m; sh -c 'echo started; exec sleep 100'; echo status=$?\r");
        terminal.expect("started\r\n");
        terminal.type_in(key);
        if key == "\x03" {
            // An interrupted shell discards the rest of the line.
            terminal.type_in("\recho status=$?\r");
        }
        terminal.expect(&format!("status={status}\r\n"));
    }
    terminal.type_in("kill -9 %%; exit\r");
    terminal.signal("CONT");
    drop(terminal);
}

#[test]
fn ctrl_c_stops_a_flood_of_output() {
    let mut terminal = shell();
    terminal.type_in("yes\r");
    terminal.expect(&"y\r\n".repeat(10_000));
    terminal.type_in("\x03\r");
    terminal.type_in("echo a$((1 + 1))b\r");
    terminal.expect("a2b\r\n");
    terminal.type_in("yes\r");
    terminal.expect(&"y\r\n".repeat(10_000));
    terminal.signal("TERM");
    assert_eq!(terminal.end(), 143);
}

#[test]
fn every_byte_arrives_however_it_is_cut() {
    let mut terminal = shell();
    let text = "\x1b[200~ä\n€ 😀\r\x1b[201~".as_bytes();
    let all: Vec<u8> = text.iter().copied().chain(0..=255).collect();
    digest_of_next(&mut terminal, all.len());
    for byte in &all {
        terminal.type_in([*byte]);
    }
    terminal.expect(&hex(&all));
}

#[test]
fn a_paste_of_a_megabyte_arrives_whole_and_fast() {
    let mut terminal = shell();
    let paste: String = (0..1 << 14).map(|number| format!("{number:<63}\r")).collect();
    digest_of_next(&mut terminal, paste.len());
    let begin = Instant::now();
    terminal.type_in(&paste);
    terminal.expect(&hex(paste.as_bytes()));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn the_size_is_right_from_the_start_and_follows_the_window() {
    let mut terminal = shell();
    terminal.type_in("stty size\r");
    terminal.expect("33 101\r\n");
    // The new size must be reported although no key is typed.
    terminal.type_in("sh -c 'trap \"stty size\" WINCH; echo re\"\"ady; while :; do sleep 0.05; done'\r");
    terminal.expect("ready\r\n");
    terminal.resize(20, 77);
    terminal.expect("20 77\r\n");
}

#[test]
fn escapes_are_sshs() {
    let mut terminal = shell();
    terminal.type_in("cat\r");
    terminal.expect("cat\r\n");
    terminal.type_in("~?");
    terminal.expect("Supported escape sequences:");
    terminal.type_in("~~one\r");
    terminal.expect("~one\r\n~one\r\n");
    terminal.type_in("~-~.two\r");
    terminal.expect("~.two\r\n~.two\r\n");
    terminal.type_in("\x04exit\r");
    assert_eq!(terminal.end(), 0);
    let terminal = shell();
    terminal.type_in("~.");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn a_signal_gives_the_terminal_back_and_ends_the_session() {
    let manager = LocalManager::start();
    for (signal, code) in [("TERM", 143), ("HUP", 129)] {
        let mut terminal = Terminal::start(&["shell", TARGET], &manager.variables());
        terminal.expect_shell();
        terminal.signal(signal);
        assert_eq!(terminal.end(), code, "{signal}");
        assert!(manager.sessions("Active").is_empty(), "{signal}");
    }
}

#[test]
fn a_session_that_ends_gives_the_terminal_back_and_says_why() {
    let mut manager = LocalManager::start_restartable();
    let mut terminal = Terminal::start(&["shell", TARGET], &manager.variables());
    terminal.expect_shell();
    manager.call("TerminateSession", &json!({ "SessionId": manager.sessions("Active")[0] }));
    assert_eq!(terminal.end(), 0);
    let mut terminal = Terminal::start(&["shell", TARGET], &manager.variables());
    terminal.expect_shell();
    manager.restart();
    terminal.expect("error: ");
    assert_eq!(terminal.end(), 8);
}

#[test]
fn a_parent_that_is_killed_leaves_no_session_and_no_raw_terminal() {
    let manager = LocalManager::start();
    let program = env!("CARGO_BIN_EXE_aws-ssm-forward");
    let inner = format!("echo parent=$$.; {program} shell {TARGET}; true");
    let script = format!("sh -c '{inner}'; read line");
    let mut terminal = Terminal::start_program("sh", &["-c", &script], &manager.variables());
    terminal.expect("parent=");
    let parent = terminal.expect(".");
    terminal.expect_shell();
    assert!(std::process::Command::new("kill").args(["-s", "KILL", &parent]).status().unwrap().success());
    eventually("the terminal is restored", || terminal.is_as_it_was());
    eventually("the session has ended", || manager.sessions("Active").is_empty());
}

#[test]
fn ctrl_c_works_before_there_is_a_session() {
    let api = FakeApi::start(|_, _| None);
    let url = api.url();
    let variables = [&CREDENTIALS[..], &[("AWS_ENDPOINT_URL", &url)]].concat();
    let mut terminal = Terminal::start(&["shell", TARGET], &variables);
    terminal.expect("Starting a session");
    eventually("a request", || !api.requests().is_empty());
    terminal.type_in("\x03");
    assert_eq!(terminal.end(), 130);
}

#[test]
fn the_log_and_a_reconnect_stay_readable_on_a_raw_terminal() {
    let manager = LocalManager::start();
    let mut terminal = Terminal::start(&["shell", TARGET, "-vvv"], &manager.variables());
    terminal.expect_shell();
    manager.set_faults(&["close,after=100ms,times=1"]);
    terminal.expect("reconnect");
    terminal.type_in("echo a$((1 + 1))b\r");
    terminal.expect("a2b\r\n");
    let screen = terminal.screen();
    let bare = screen.iter().zip(screen.iter().skip(1)).any(|(before, byte)| *byte == b'\n' && *before != b'\r');
    assert!(!bare, "{}", String::from_utf8_lossy(&screen));
}

fn without_terminal(input: Stdio) -> Cli {
    Cli::start_with(&["shell", "--local"], &[], |command| command.stdin(input))
}

fn shown(lines: &[String]) -> String {
    lines.join("\n")
}

#[test]
fn stdin_eof_loses_no_output() {
    let mut cli = without_terminal(Stdio::piped());
    cli.stdin.take().unwrap().write_all(b"stty -echo; sleep 1; seq 100000; echo e''nd").unwrap();
    let ended = cli.end();
    assert_eq!(ended.code, 0, "{:?}", ended.stderr);
    let numbers: Vec<_> = ended.stdout.iter().filter_map(|line| line.trim_end().parse::<u32>().ok()).collect();
    assert_eq!((numbers.len(), numbers.last()), (100_000, Some(&100_000)));
    assert!(shown(&ended.stdout).contains("end"));
}

#[test]
fn no_input_at_all_ends_the_shell_in_order() {
    let ended = without_terminal(Stdio::null()).end();
    assert_eq!((ended.code, ended.stderr), (0, vec![]));
}

#[test]
fn no_terminal_size_does_not_end_it() {
    let mut cli = without_terminal(Stdio::piped());
    cli.stdin.take().unwrap().write_all(b"stty size\nexit\n").unwrap();
    let ended = cli.end();
    assert_eq!(ended.code, 0, "{:?}", ended.stderr);
    assert!(shown(&ended.stdout).contains("100 300"), "{:?}", ended.stdout);
    // A terminal without a size.
    let mut terminal = Terminal::start(&["shell", "--local"], &[]);
    terminal.expect_shell();
    terminal.resize(0, 0);
    terminal.type_in("echo a$((1 + 1))b\r");
    terminal.expect("a2b\r\n");
}

#[test]
fn piped_input_has_no_escapes_and_its_bytes_are_typed_as_they_are() {
    let mut cli = without_terminal(Stdio::piped());
    cli.stdin.take().unwrap().write_all(b"stty -echo; cat\n~.\n~?x\n\x04exit\n").unwrap();
    let ended = cli.end();
    assert_eq!(ended.code, 0, "{:?}", ended.stderr);
    assert!(shown(&ended.stdout).contains("~.\n~?x"), "{:?}", ended.stdout);
}
