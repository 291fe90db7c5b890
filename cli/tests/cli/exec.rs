//! `exec`: the outputs of a command, its exit code, and how it ends.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use ssm_local::{KmsFault, Local};

use crate::common::{Cli, Ended, LocalManager, TARGET, eventually, run};
use crate::terminal::Terminal;

fn exec(command: &[&str]) -> Ended {
    run(&[&["exec", "--local", "--"], command].concat(), &[])
}

/// Starts a command that first prints its process id.
fn start(command: &str, variables: &[(&str, &str)], target: &str) -> (Cli, String) {
    let line = format!("echo $$; {command}");
    let cli = Cli::start(&["exec", target, "--", &line], variables);
    let pid = cli.line();
    assert!(is_alive(&pid));
    (cli, pid)
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[test]
fn the_exit_code_is_the_commands() {
    for (command, code) in
        [("true", 0), ("exit 3", 3), ("no-such-program", 127), ("exit 255", 255), ("kill -9 $$", 255)]
    {
        let ended = exec(&[command]);
        assert_eq!(ended.code, code, "{command}: {ended:?}");
        assert!(ended.stdout.is_empty(), "{command}: {ended:?}");
    }
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let ended = exec(&["no-such-program", "x"]);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.join("\n").contains("no-such-program"), "{ended:?}");
}

#[test]
fn both_outputs_are_apart_and_complete() {
    let lines = |byte: &str| format!("head -c 10000000 /dev/zero | tr '\\0' {byte} | fold -w 1000");
    let ended = exec(&[&format!("({}) & ({}) >&2; wait", lines("o"), lines("e"))]);
    assert_eq!(ended.code, 0);
    for (output, byte) in [(&ended.stdout, "o"), (&ended.stderr, "e")] {
        let line = byte.repeat(1000);
        assert_eq!(output.len(), 10_000, "{byte}");
        assert!(output.iter().all(|found| *found == line), "{byte}");
    }
}

#[test]
fn words_arrive_as_they_are_and_a_line_is_the_shells() {
    let ended = exec(&["printf", "%s\\n", "a b", "it's", "\"q\"", "$HOME", "*", "", "ä€😀", "back\\slash"]);
    assert_eq!(ended.stdout, ["a b", "it's", "\"q\"", "$HOME", "*", "", "ä€😀", "back\\slash"], "{ended:?}");
    let ended = exec(&["printf '%s\\n' \"it's\" | tr a-z A-Z; echo $((1 + 1))"]);
    assert_eq!(ended.stdout, ["IT'S", "2"], "{ended:?}");
}

#[test]
fn a_terminal_on_the_far_side_can_ask() {
    for option in ["-t", "-it", "-ti"] {
        let command = ["exec", "--local", option, "--", "test -t 0 && stty size; read name; echo hello $name"];
        let mut terminal = Terminal::start(&command, &[]);
        terminal.expect("33 101\r\n");
        terminal.type_in("you\r");
        terminal.expect("hello you\r\n");
        assert_eq!(terminal.end(), 0);
    }
}

#[test]
fn a_command_on_a_terminal_need_not_speak_first() {
    let mut terminal = Terminal::start(&["exec", "--local", "-t", "--", "read name; exit"], &[]);
    terminal.expect("\x1b[K");
    terminal.type_in("you\r");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn piped_input_reaches_a_terminal_on_the_far_side() {
    let mut cli = Cli::start_with(&["exec", "--local", "-t", "--", "stty -echo; wc -c"], &[], |command| {
        command.stdin(Stdio::piped())
    });
    cli.stdin.take().unwrap().write_all(b"four\nand no line's end").unwrap();
    let ended = cli.end();
    assert_eq!((ended.code, ended.stdout.last().map(|line| line.trim())), (0, Some("23")), "{ended:?}");
}

#[test]
fn ctrl_c_is_the_commands() {
    let manager = LocalManager::start();
    let (cli, pid) = start("trap 'exit 42' INT; while :; do sleep 0.1; done", &manager.variables(), TARGET);
    cli.signal("INT");
    assert_eq!(cli.end().code, 42);
    assert!(!is_alive(&pid));
}

#[test]
fn ctrl_c_ends_it_where_the_command_is_out_of_reach() {
    let mut manager = LocalManager::start();
    let (cli, _) = start("exec sleep 20", &manager.variables(), TARGET);
    manager.kill();
    assert!(cli.error_line().starts_with("reconnecting: "));
    cli.signal("INT");
    assert_eq!(cli.end().code, 130);
}

#[test]
fn sigterm_ends_the_session_and_leaves_no_process() {
    let manager = LocalManager::start();
    for (signal, code) in [("TERM", 143), ("HUP", 129)] {
        let (cli, pid) = start("exec sleep 1000", &manager.variables(), TARGET);
        cli.signal(signal);
        assert_eq!(cli.end().code, code, "{signal}");
        assert!(manager.sessions("Active").is_empty(), "{signal}");
        eventually("the command has ended", || !is_alive(&pid));
    }
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let manager = LocalManager::start();
    let variables: Vec<_> = manager.variables();
    let program = env!("CARGO_BIN_EXE_aws-ssm-forward");
    let script = format!("{program} exec {TARGET} -- 'echo $$; exec yes' | head -n 1");
    let output = std::process::Command::new("sh").args(["-c", &script]).envs(variables).output().unwrap();
    let pid = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&output.stderr));
    eventually("the command has ended", || !is_alive(pid.trim()));
    eventually("the session has ended", || manager.sessions("Active").is_empty());
}

#[test]
fn a_reader_that_takes_nothing_keeps_no_signal_waiting() {
    let program = env!("CARGO_BIN_EXE_aws-ssm-forward");
    let mut child = std::process::Command::new(program)
        .args(["exec", "--local", "--", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let full = child.stdout.take().unwrap();
    eventually("the pipe is full", || rustix::io::ioctl_fionread(&full).is_ok_and(|waiting| waiting >= 60_000));
    assert!(
        std::process::Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success()
    );
    let mut status = None;
    eventually("the end of the process", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(143));
    drop(full);
}

#[test]
fn what_goes_wrong_first_is_one_line() {
    let manager = LocalManager::start();
    let unknown = ["exec", "i-00000000000000bad", "--", "true"];
    run(&unknown, &manager.variables()).assert_one_line(5, &["i-00000000000000bad"]);
    let parameter = ["exec", TARGET, "--parameter", "colour=blue", "--", "true"];
    run(&parameter, &manager.variables()).assert_one_line(5, &["colour"]);
    let nobody = [("AWS_REGION", "eu-central-1")];
    run(&["exec", TARGET, "--", "true"], &nobody).assert_one_line(4, &["credentials", "aws configure"]);
    run(&["exec", TARGET, "--", "true"], &[]).assert_one_line(4, &["region", "--region"]);
    for args in [&["exec", TARGET, "ls"][..], &["exec", "--local"], &["exec", "--", "ls"], &["shell"]] {
        run(args, &[]).assert_one_line(2, &["usage: aws-ssm-forward"]);
    }
}

#[test]
fn a_container_of_ecs_is_a_target() {
    let task = "prod/web/0123456789abcdef0123456789abcdef/app";
    let manager = LocalManager::start_with(&["--ecs-task", task]);
    for target in ["ecs:prod/web", "ecs:prod/web/app"] {
        let args = ["exec", target, "--", "echo a$((1 + 1))b; exit 4"];
        let ended = run(&args, &manager.variables());
        assert_eq!((ended.code, ended.stdout), (4, vec!["a2b".to_owned()]), "{target}: {:?}", ended.stderr);
    }
    let manager = LocalManager::start_with(&["--ecs-task", task, "--ecs-task", &task.replace("/app", "/side")]);
    let args = ["exec", "ecs:prod/web/side", "--", "exit 6"];
    assert_eq!(run(&args, &manager.variables()).code, 6, "the second container of the same task");
    run(&["exec", "ecs:prod/web", "--", "true"], &manager.variables()).assert_one_line(5, &["app", "side"]);
    let ended = run(&["exec", "ecs:prod/nothing", "--", "true"], &manager.variables());
    ended.assert_one_line(5, &["nothing"]);
}

#[test]
fn commands_and_shells_are_encrypted_with_kms() {
    let manager = LocalManager::start_with(&["--kms-key", "alias/lab"]);
    let ended = run(&["exec", TARGET, "--", "echo a$((1 + 1))b; exit 4"], &manager.variables());
    assert_eq!((ended.code, ended.stdout), (4, vec!["a2b".to_owned()]), "{:?}", ended.stderr);
    assert!(ended.stderr.join("\n").contains("encrypted using AWS KMS"), "{:?}", ended.stderr);
    let mut terminal = Terminal::start(&["shell", TARGET], &manager.variables());
    terminal.expect_shell();
    terminal.type_in("exit\r");
    assert_eq!(terminal.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_fit_is_one_line() {
    for fault in [KmsFault::WrongKey, KmsFault::TamperedCiphertext, KmsFault::WrongDataKey] {
        let local = Local::builder().encrypt_with("alias/lab").kms_fault(fault).start().await.unwrap();
        let variables = local.environment();
        let ended = tokio::task::spawn_blocking(move || {
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            run(&["exec", TARGET, "--", "echo secret"], &variables)
        });
        let ended = ended.await.unwrap();
        assert!(ended.stdout.is_empty(), "{fault:?}: {ended:?}");
        assert_ne!(ended.code, 0, "{fault:?}: {ended:?}");
        ended.assert_one_line(ended.code, &[]);
        local.shutdown().await;
    }
}

#[test]
fn data_survives_a_reconnect() {
    let manager = LocalManager::start();
    manager.set_faults(&["close,every=300ms,times=5", "rate,bytes=2000000"]);
    let ended = run(&["exec", TARGET, "--", "seq 400000; exit 3"], &manager.variables());
    let expected: Vec<String> = (1..=400_000).map(|number| number.to_string()).collect();
    assert!(ended.stdout == expected, "{} lines; {:?}", ended.stdout.len(), ended.stderr);
    assert_eq!(ended.code, 3);
}

#[test]
fn duplicates_are_re_acked_and_a_malformed_message_does_not_kill_the_reader() {
    let manager = LocalManager::start();
    for fault in
        ["duplicate,nth=3", "bad-digest,nth=50", "bad-header,nth=50", "corrupt,nth=50", "drop-acks,probability=0.2"]
    {
        manager.set_faults(&[fault]);
        let ended = run(&["exec", TARGET, "--", "seq 200000; exit 3"], &manager.variables());
        assert_eq!((ended.code, ended.stdout.len()), (3, 200_000), "{fault}: {:?}", ended.stderr);
        assert_eq!(ended.stdout.last().map(String::as_str), Some("200000"), "{fault}");
    }
}

/// Starts `exec --local` with ignored signals, as `nohup` does, and a shell without job control for a background process.
#[cfg(target_os = "linux")]
#[test]
fn a_command_ignores_no_signal_that_the_session_manager_was_started_to_ignore() {
    let script = "trap '' HUP INT QUIT USR1; exec \"$0\" exec --local -- 'grep SigIgn /proc/self/status'";
    let home = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("timeout")
        .args(["30", "sh", "-c", script, env!("CARGO_BIN_EXE_aws-ssm-forward")])
        .env("HOME", home.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let ignored = u64::from_str_radix(stdout.trim().strip_prefix("SigIgn:\t").unwrap(), 16).unwrap();
    // The higher signals are used by the C library.
    assert_eq!(ignored & 0x7fff_ffff, 0, "{output:?}");
}
