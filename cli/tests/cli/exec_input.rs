//! `exec -i`: the input, the outputs and the exit code of a command.

use std::io::Write;
use std::process::Stdio;

use crate::common::{Cli, Ended, LocalManager, TARGET};

fn exec(input: &[u8], command: &[&str]) -> Ended {
    let args = [&["exec", "--local", "-i", "--"], command].concat();
    let mut cli = Cli::start_with(&args, &[], |command| command.stdin(Stdio::piped()));
    let mut stdin = cli.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let ended = cli.end();
    let _ = writing.join().unwrap();
    ended
}

#[test]
fn a_command_gets_its_input_byte_for_byte_and_its_end() {
    // Every byte, including a terminal's control characters.
    let input: Vec<u8> = (0..=u8::MAX).cycle().take(1_000_000).collect();
    let ended = exec(&input, &["sha256sum"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let local = std::process::Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut local = local.unwrap();
    local.stdin.take().unwrap().write_all(&input).unwrap();
    let output = local.wait_with_output().unwrap();
    assert_eq!(ended.stdout.join("\n"), String::from_utf8(output.stdout).unwrap().trim_end());
}

#[test]
fn a_command_that_can_not_begin_is_told_by_its_shell() {
    let ended = exec(b"", &["echo \"unterminated"]);
    assert_eq!((ended.code, ended.stdout.len()), (2, 0), "{ended:?}");
    assert!(ended.stderr.join(" ").contains("ntermin"), "{ended:?}");
    let ended = exec(b"", &["no-such-program", "x"]);
    assert_eq!((ended.code, ended.stdout.len()), (127, 0), "{ended:?}");
}

#[test]
fn outputs_are_apart_and_the_exit_code_is_the_commands() {
    let ended = exec(b"one\ntwo\n", &["wc -l; echo oops >&2; exit 9"]);
    assert_eq!((ended.code, ended.stdout[0].trim(), ended.stderr.join("").as_str()), (9, "2", "oops"));
    let empty = exec(b"", &["cat"]);
    assert_eq!((empty.code, empty.stdout.len(), empty.stderr.len()), (0, 0, 0), "{empty:?}");
    let words = exec(b"a b\n", &["grep", "-c", "a b"]);
    assert_eq!((words.code, words.stdout), (0, vec!["1".to_owned()]));
    let ignored = exec(&[b'x'; 300_000], &["true"]);
    assert_eq!(ignored.code, 0, "{ignored:?}");
}

/// A command that does not read all of its input is not concerned.
#[test]
fn an_input_of_which_the_agent_processes_a_part_twice_is_an_error() {
    let manager = LocalManager::start();
    let exec = |fault: &str, command: &str| {
        manager.set_faults(&[fault]);
        let args = ["exec", TARGET, "-i", "--", command];
        let mut cli = Cli::start_with(&args, &manager.variables(), |command| command.stdin(Stdio::piped()));
        cli.stdin.take().unwrap().write_all(&[b'x'; 50_000]).unwrap();
        cli.end()
    };
    for nth in [20, 30, 45] {
        let ended = exec(&format!("process-twice,nth={nth},times=1"), "wc -c; exit 3");
        assert_eq!((ended.code, ended.stdout[0].trim()), (8, "50000"), "{nth}: {ended:?}");
        assert!(ended.stderr.join(" ").contains("wrong input"), "{nth}: {ended:?}");
    }
    assert_eq!(exec("process-twice,nth=20,times=1", "true").code, 0);
    assert_eq!(exec("duplicate,nth=10", "wc -c; exit 3").code, 3);
}
