//! Data on the standard streams arrives byte for byte; otherwise the program reports an error.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::{Cli, LocalManager, PATIENCE, TARGET, eventually};

/// Returns random bytes, including all sequences that the agent's filter loses.
fn sample(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
    for at in (0..length.saturating_sub(6)).step_by(997) {
        bytes[at..at + 6].copy_from_slice(b"\xef\xbf\xbd\xef\xef\xbf");
    }
    bytes.truncate(length.saturating_sub(2));
    bytes.extend(b"\xef\xbf");
    bytes
}

fn command(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aws-ssm-forward"));
    command.args(args).envs(variables.iter().copied()).env("AWS_EC2_METADATA_DISABLED", "true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until the process has ended, with a timeout.
fn finish(child: Child) -> Output {
    let pid = child.id().to_string();
    let (sender, ended) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    ended.recv_timeout(PATIENCE * 2).unwrap_or_else(|_| {
        let _ = Command::new("kill").args(["-s", "KILL", &pid]).status();
        panic!("the process did not end")
    })
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> Output {
    finish(command(args, variables).spawn().unwrap())
}

fn run_with_input(args: &[&str], input: Vec<u8>) -> Output {
    let mut child = command(args, &[]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = thread::spawn(move || stdin.write_all(&input));
    let output = finish(child);
    let _ = writing.join().unwrap();
    output
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8]) {
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert!(found == expected, "{} of {} bytes, the first difference at {at:?}", found.len(), expected.len());
}

#[test]
fn a_commands_outputs_are_exact_through_the_agents_filter() {
    let manager = LocalManager::start_with(&["--profile", "real"]);
    let folder = tempfile::tempdir().unwrap();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let (expected_out, expected_err) = (sample(1_000_000), sample(10_000));
    std::fs::write(&out, &expected_out).unwrap();
    std::fs::write(&err, &expected_err).unwrap();
    let line = format!("cat {}; cat {} >&2; exit 3", out.display(), err.display());
    let output = run(&["exec", TARGET, "--", &line], &manager.variables());
    assert_eq!(output.status.code(), Some(3));
    assert_same(&output.stdout, &expected_out);
    assert_same(&output.stderr, &expected_err);
    let output = run(&["exec", TARGET, "--", "cat", out.to_str().unwrap()], &manager.variables());
    assert_eq!(output.status.code(), Some(0));
    assert_same(&output.stdout, &expected_out);
}

#[test]
fn input_and_outputs_of_exec_i_are_exact_through_the_agents_filter() {
    let manager = LocalManager::start_with(&["--profile", "real"]);
    let input = sample(300_000);
    let mut child = command(&["exec", TARGET, "-i", "--", "tee /dev/stderr; exit 4"], &manager.variables())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let output = finish(child);
    assert_eq!(
        output.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&output.stderr[..200.min(output.stderr.len())])
    );
    assert_same(&output.stdout, &input);
    assert_same(&output.stderr, &input);
}

#[test]
fn much_goes_both_ways_at_once_in_order() {
    let lines: String = (1..=300_000).map(|line| format!("{line}\n")).collect();
    let output = run_with_input(&["exec", "--local", "-i", "--", "cat"], lines.clone().into());
    assert_eq!(output.status.code(), Some(0));
    assert_same(&output.stdout, lines.as_bytes());
    let input = sample(10_000_000);
    let output = run_with_input(&["exec", "--local", "-i", "--", "cat"], input.clone());
    assert_eq!(output.status.code(), Some(0));
    assert_same(&output.stdout, &input);
}

#[test]
fn a_slow_reader_gets_the_tail() {
    for args in [&["exec", "--local", "-i", "--", "seq 100000"][..], &["exec", "--local", "--", "seq 100000"]] {
        let mut child = command(args, &[]).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (mut all, mut piece) = (Vec::new(), [0; 8192]);
        loop {
            let length = stdout.read(&mut piece).unwrap();
            if length == 0 {
                break;
            }
            all.extend_from_slice(&piece[..length]);
            thread::sleep(Duration::from_millis(5));
        }
        let expected: String = (1..=100_000).map(|line| format!("{line}\n")).collect();
        assert_same(&all, expected.as_bytes());
        assert_eq!(finish(child).status.code(), Some(0));
    }
}

/// Each output arrives when the command writes it. The command waits for the test before it continues.
#[test]
fn output_comes_as_it_is_made() {
    for args in [&["exec", "--local", "--"][..], &["exec", "--local", "-i", "--"]] {
        let folder = tempfile::tempdir().unwrap();
        let go = folder.path().join("go");
        let wait = format!("until [ -e {0} ]; do sleep 0.05; done; rm {0}", go.display());
        let line = format!("printf a; {wait}; printf b >&2; {wait}; printf 'c\\n'; {wait}");
        let mut child = command(&[args, &[&line]].concat(), &[]).spawn().unwrap();
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for expected in ["a", "b", "c\n"] {
            // Data of a single write may arrive in several pieces.
            let mut read = vec![0; expected.len()];
            if expected == "b" { stderr.read_exact(&mut read) } else { stdout.read_exact(&mut read) }.unwrap();
            assert_eq!(String::from_utf8_lossy(&read), expected, "{args:?}");
            eventually("the command continues", || !go.exists());
            File::create(&go).unwrap();
        }
        assert_eq!(finish(child).status.code(), Some(0));
    }
}

/// Runs the binary with `/dev/full` as its standard output, which behaves like a file on a full disk.
fn to_a_full_disk(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let full = File::options().write(true).open("/dev/full").unwrap();
    finish(command(args, variables).stdout(full).spawn().unwrap())
}

#[track_caller]
fn assert_told(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(74), "{errors}");
    let lines: Vec<_> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines, ["error: cannot write to standard output: No space left on device"], "{errors}");
}

#[test]
fn a_full_disk_is_told() {
    let manager = LocalManager::start();
    let variables = manager.variables();
    assert_told(&to_a_full_disk(&["exec", TARGET, "--", "seq 1000000"], &variables));
    assert_told(&to_a_full_disk(&["exec", TARGET, "--", "echo one"], &variables));
    assert_told(&to_a_full_disk(&["exec", TARGET, "-i", "--", "seq 1000000"], &variables));
    assert_told(&to_a_full_disk(&["exec", TARGET, "-t", "--", "seq 1000000"], &variables));
    assert_told(&to_a_full_disk(&["shell", TARGET], &variables));
    let port = greeting_server().to_string();
    assert_told(&to_a_full_disk(&["ssh-proxy", TARGET, &port], &variables));
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let plugin = |args: &[&str]| {
        finish(command(args, &variables).arg0("session-manager-plugin").stdout(full()).spawn().unwrap())
    };
    assert_told(&plugin(&["--version"]));
    assert_told(&plugin(&[]));
}

#[test]
fn a_reader_that_is_gone_ends_it_quietly_as_cat() {
    let manager = LocalManager::start();
    let variables = manager.variables();
    let port = greeting_server().to_string();
    for args in [
        &["exec", TARGET, "--", "yes"][..],
        &["exec", TARGET, "-i", "--", "yes"],
        &["exec", TARGET, "-t", "--", "yes"],
        &["ssh-proxy", TARGET, &port],
    ] {
        let mut child = command(args, &variables).spawn().unwrap();
        let mut first = [0; 1];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = finish(child);
        assert_eq!(output.status.code(), Some(141), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
    eventually("the sessions have ended", || manager.sessions("Active").is_empty());
}

/// Starts a server that sends data to every client without end. Returns its port.
fn greeting_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || while stream.write_all(&[b'x'; 65_536]).is_ok() {});
        }
    });
    port
}

#[test]
fn ctrl_c_twice_always_ends_it() {
    let manager = LocalManager::start();
    for line in ["trap '' INT; echo ready; sleep 100", "sleep 100 & echo ready", "trap '' INT; echo ready; yes >&2"] {
        let cli = Cli::start(&["exec", TARGET, "--", line], &manager.variables());
        assert_eq!(cli.line(), "ready", "{line}");
        cli.signal("INT");
        // The process must receive the signals separately.
        thread::sleep(Duration::from_millis(200));
        cli.signal("INT");
        assert_eq!(cli.end().code, 130, "{line}");
    }
    eventually("the sessions have ended", || manager.sessions("Active").is_empty());
}

#[test]
fn ctrl_c_twice_ends_it_where_nobody_reads() {
    let child = command(&["exec", "--local", "--", "trap '' INT; yes"], &[]).spawn().unwrap();
    let full = child.stdout.as_ref().unwrap();
    eventually("the pipe is full", || rustix::io::ioctl_fionread(full).is_ok_and(|waiting| waiting >= 60_000));
    let pid = child.id().to_string();
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
        thread::sleep(Duration::from_millis(200));
    }
    let mut child = child;
    let mut status = None;
    eventually("the end of the process", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(130));
}
