//! The command line: what is refused, how, and what help there is.

use crate::common::{TARGET, run};

#[test]
fn a_malformed_forward_is_one_line_with_the_syntax() {
    for (spec, what) in [
        ("80", "the remote port is missing"),
        ("8080:db:0", "can't be 0"),
        ("8080:db:http", "'http' is not a number"),
        ("70000:db:80", "above 65535"),
        ("db:80", "neither a local port nor an address"),
        ("[::1:80:db:80", "bracket is not closed"),
        ("unix:/run/x.sock", "the remote port is missing"),
        ("1:2:3:4:5", "too many parts"),
    ] {
        let ended = run(&["forward", "--target", TARGET, "-L", spec], &[]);
        ended.assert_one_line(2, &[what, spec, "[bind:]port:host:hostport"]);
        assert_eq!(ended.stderr.len(), 1, "{ended:#?}");
        assert!(ended.stdout.is_empty(), "{ended:#?}");
    }
}

#[test]
fn other_malformed_values_are_one_line() {
    for (args, what) in [
        (["--parameter", "portNumber"], "KEY=VALUE"),
        (["--connect-timeout", "0"], "1 to 86400"),
        (["--linger", "soon"], "whole number of seconds"),
    ] {
        let [option, value] = args;
        run(&["forward", "--local", "-L", "0:80", option, value], &[]).assert_one_line(2, &[option, value, what]);
    }
    run(&["demo", "--size", "1 parsec"], &[]).assert_one_line(2, &["--size", "100MiB"]);
}

#[test]
fn impossible_settings_are_refused_with_the_reason() {
    for (option, value, why) in [
        ("--sessions", "0", "at least one session is needed"),
        ("--sessions", "1000", "from 1 to 64"),
        ("--message-rate", "0", "nothing could be sent"),
        ("--payload-size", "0", ""),
        ("--hold", "0", "1 to 86400"),
    ] {
        run(&["forward", "--local", "-L", "0:80", option, value], &[]).assert_one_line(2, &[option, value, why]);
    }
}

#[test]
fn what_is_missing_or_contradicts_is_one_line() {
    for (args, what) in [
        (&["forward", "-L", "0:80"][..], "--target"),
        (&["forward", "--target", TARGET], "-L"),
        (&["forward", "--local", "--profile", "x", "-L", "0:80"], "--profile"),
        (&["forward", "--local", "-L", "0:80", "-q", "-v"], "--quiet"),
        (&["forward", "--local", "-L", "0:80", "-o", "xml"], "possible values: text, json"),
        (&["forwards"], "'forward'"),
        (&["exec"], "<TARGET>"),
        (&["plugin", "bogus"], "bogus"),
    ] {
        run(args, &[]).assert_one_line(2, &[what, "--help"]);
    }
}

#[test]
fn without_a_command_there_is_the_help() {
    let ended = run(&[], &[]);
    assert_eq!(ended.code, 2, "{ended:#?}");
    assert!(ended.stdout.is_empty() && ended.stderr.len() > 10, "{ended:#?}");
}

#[test]
fn help_version_and_completions_go_to_stdout() {
    for args in [&["--help"][..], &["--version"], &["forward", "--help"], &["completions", "bash"]] {
        let ended = run(args, &[]);
        assert_eq!(ended.code, 0, "{args:?}: {ended:#?}");
        assert!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{args:?}: {ended:#?}");
    }
}

#[test]
fn a_completion_script_whose_reader_goes_away_is_no_panic() {
    let script = format!("{} completions bash | head -n 1", env!("CARGO_BIN_EXE_aws-ssm-forward"));
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_command_is_told_in_one_line_and_has_help() {
    let listed = run(&["--help"], &[("COLUMNS", "200")]);
    for command in ["forward", "shell", "exec", "ssh-proxy", "plugin", "local", "demo", "completions"] {
        let about = listed.stdout.iter().find(|line| line.starts_with(&format!("  {command} "))).expect(command);
        let help = run(&[command, "--help"], &[]);
        assert!(about.ends_with(&help.stdout[0]), "{about} and {}", help.stdout[0]);
        assert!(help.stdout.iter().all(|line| line.chars().count() <= 100), "{help:#?}");
    }
}
