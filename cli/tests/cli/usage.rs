//! The command line: rejected arguments, their error messages, and the help.

use crate::common::{CREDENTIALS, Cli, LocalManager, TARGET, echo_server, run};

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
        (["--connect-timeout", "0"], "from 1ms to 24h"),
        (["--connect-timeout", "-1"], "seconds (30), or with units (500ms, 30s, 1m30s)"),
        (["--linger", "soon"], "seconds (30), or with units (500ms, 30s, 1m30s)"),
        (["--payload-size", "10MB"], "from 64 B to 64.0 KiB"),
        (["--payload-size", "-1"], "bytes (1024), or with a unit (64KiB, 10MB)"),
        (["--message-rate", "-1"], "auto, unlimited or a number"),
        (["--sessions", "-1"], "auto or a number"),
        (["--metrics", "-1"], "[bind:]port"),
        (["--metrics", "localhost"], "[bind:]port"),
    ] {
        let [option, value] = args;
        run(&["forward", "--local", "-L", "0:80", option, value], &[]).assert_one_line(2, &[option, value, what]);
    }
    for (args, parts) in [
        (&["demo", "--size", "1 parsec"][..], &["--size", "10MB"][..]),
        (&["demo", "--port", "-1"], &["--port '-1'", "from 0 to 65535"]),
        (&["local", "--seed", "-1"], &["--seed '-1'", "from 0 to"]),
        (&["shell", TARGET, "--document-name", ""], &["--document-name"]),
        (&["shell", TARGET, "--allow-stream-host", "https://a.b/"], &["--allow-stream-host", "without https://"]),
        (&["ssh-proxy", TARGET, "-22"], &["PORT '-22'", "from 1 to 65535"]),
        (&["forward", TARGET, "-L", "-1:80"], &["-L '-1:80'", "neither a local port nor an address"]),
    ] {
        run(args, &[]).assert_one_line(2, parts);
    }
}

#[test]
fn durations_sizes_and_addresses_are_read_as_people_write_them() {
    let spec = format!("0:{}", echo_server());
    let options = ["--connect-timeout", "1m", "--hold", "500ms", "--linger", "1m30s", "--payload-size", "1KiB"];
    let args = [&["forward", "--local", "-L", &spec, "--metrics", "0", "-o", "json"][..], &options].concat();
    let cli = Cli::start(&args, &[]);
    cli.event("ready");
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
}

#[test]
fn a_target_that_is_none_is_refused_before_anything_is_asked() {
    for target in ["", "tag:Role", "asg:", "[::1]", "web ", "-5"] {
        for args in [
            &["forward", target, "-L", "0:80"][..],
            &["forward", "-L", "0:80", "--target", target],
            &["shell", target],
            &["exec", target, "--", "true"],
            &["ssh-proxy", target],
        ] {
            // There are no credentials and no region, so a later check would report another error.
            let ended = run(args, &[]);
            ended.assert_one_line(2, &[]);
            let line = &ended.stderr[0];
            assert!(
                line.contains("tag:Key=Value") || line.contains("the name after the colon") || target == "-5",
                "{line}"
            );
        }
    }
    run(&["shell", "tag:Role"], &[]).assert_one_line(2, &["TARGET 'tag:Role'", "Key=Value"]);
    run(&["shell", ""], &[]).assert_one_line(2, &["the target is empty"]);
}

#[test]
fn the_target_of_forward_is_an_argument_or_an_option() {
    let manager = LocalManager::start();
    let spec = format!("0:{}", echo_server());
    for args in [
        &["forward", TARGET, "-L", &spec][..],
        &["forward", "-L", &spec, TARGET],
        &["forward", "-t", TARGET, "-L", &spec],
        &["forward", "-L", &spec, "--target", TARGET],
    ] {
        let cli = Cli::start(&[args, &["-o", "json"]].concat(), &manager.variables());
        assert_eq!(cli.event("ready")["target"], TARGET);
        cli.signal("TERM");
        assert_eq!(cli.end().code, 0);
    }
    let both = ["forward", TARGET, "-t", TARGET, "-L", &spec];
    run(&both, &manager.variables()).assert_one_line(2, &["TARGET", "--target"]);
}

/// The pattern of AWS's document requires at least 3 characters (`{3,}`).
#[test]
fn a_host_that_the_document_refuses_is_refused_before_anything_is_asked() {
    for host in ["a", "db"] {
        let spec = format!("0:{host}:80");
        let ended = run(&["forward", TARGET, "-L", &spec], &[]);
        ended.assert_one_line(2, &[&spec, &format!("'{host}' is too short"), "full name"]);
        // A custom document may accept the host. Then the missing region is the error.
        run(&["forward", TARGET, "-L", &spec, "--document-name", "Mine"], &CREDENTIALS[..2])
            .assert_one_line(4, &["region"]);
    }
}

#[test]
fn what_was_meant_is_suggested() {
    for (args, parts) in [
        (&["froward"][..], &["'forward'"][..]),
        (&["completion"], &["'completions'"]),
        (&["ssh"], &["'ssh-proxy'"]),
        (&["forward", "--wait-redy"], &["'--wait-ready'"]),
        (&["plugin", "instal"], &["'install'"]),
        (&["forward", TARGET, "-D", "1080"], &["unexpected argument '-D' found; usage:"]),
        (&[TARGET], &["a command is missing", &format!("shell {TARGET}")]),
        (&["forward", TARGET, "8080:80"], &["-L is missing before '8080:80'"]),
    ] {
        run(args, &[]).assert_one_line(2, parts);
    }
}

#[test]
fn impossible_settings_are_refused_with_the_reason() {
    for (option, value, why) in [
        ("--sessions", "0", "at least one session is needed"),
        ("--sessions", "1000", "from 1 to 64"),
        ("--message-rate", "0", "nothing could be sent"),
        ("--payload-size", "0", "from 64 B"),
        ("--hold", "0", "from 1ms to 24h"),
    ] {
        run(&["forward", "--local", "-L", "0:80", option, value], &[]).assert_one_line(2, &[option, value, why]);
    }
}

#[test]
fn what_is_missing_or_contradicts_is_one_line() {
    for (args, what) in [
        (&["forward", "-L", "0:80"][..], "<TARGET>"),
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

/// The commands that `--help` lists.
const COMMANDS: [&str; 23] = [
    "forward",
    "up",
    "status",
    "run",
    "down",
    "logs",
    "restart",
    "reload",
    "socks",
    "config",
    "shell",
    "exec",
    "ls",
    "cp",
    "ssh-proxy",
    "relay",
    "token",
    "policy",
    "doctor",
    "plugin",
    "completions",
    "demo",
    "local",
];

#[test]
fn every_command_is_told_in_one_line_and_has_help() {
    let listed = run(&["--help"], &[("COLUMNS", "200")]);
    for command in COMMANDS {
        let about = listed.stdout.iter().find(|line| line.starts_with(&format!("  {command} "))).expect(command);
        let help = run(&[command, "--help"], &[]);
        assert!(about.ends_with(help.stdout[0].trim_end_matches('.')), "{about} and {}", help.stdout[0]);
        assert!(help.stdout.iter().all(|line| line.chars().count() <= 100), "{help:#?}");
    }
}

#[test]
fn the_short_help_fits_one_screen_and_the_long_one_has_everything() {
    for command in [""].into_iter().chain(COMMANDS) {
        let args: Vec<_> = [command].into_iter().filter(|command| !command.is_empty()).collect();
        let short = run(&[&args[..], &["-h"]].concat(), &[("COLUMNS", "80")]);
        assert!(short.stdout.len() <= 24, "{} lines: {short:#?}", short.stdout.len());
        assert!(short.stdout.iter().all(|line| line.chars().count() <= 80), "{short:#?}");
    }
    let help = |flag| run(&["forward", flag], &[]).stdout.join("\n");
    let (short, long) = (help("-h"), help("--help"));
    assert!(short.contains("\nExamples:\n") && !short.contains("--linger"), "{short}");
    for heading in ["Forwarding:", "Session:", "AWS:", "Output:", "Examples:"] {
        assert!(long.contains(&format!("\n{heading}\n")), "no {heading} in {long}");
    }
    for option in ["--target", "--linger", "--hold", "--parameter", "--message-rate", "--endpoint-url", "--metrics"] {
        assert!(long.contains(option), "no {option} in {long}");
    }
}
