//! The plugin and its parent process: the plugin ends with the AWS CLI, and continues after a launcher that detached it.

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Cli, LocalManager, TARGET, connect, echo_server, eventually};

/// Programs that start their arguments as a detached process, and run until they are killed.
const DETACHING: [&[&str]; 6] = [
    &["sh", "-c", r#"setsid "$0" "$@" & wait"#],
    &["sh", "-c", r#"nohup "$0" "$@" & wait"#],
    &["sh", "-c", r#""$0" "$@" & wait"#],
    &["bash", "-c", r#"set -m; "$0" "$@" & wait"#],
    &[
        "python3",
        "-c",
        "import signal, subprocess, sys
subprocess.Popen(sys.argv[1:], start_new_session=True)
signal.pause()",
    ],
    &[
        "node",
        "-e",
        "const [program, ...args] = process.argv.slice(1)
         require('child_process').spawn(program, args, { detached: true, stdio: 'inherit' }).unref()
         setInterval(() => {}, 1000)",
    ],
];

/// Programs that start their arguments as a detached process, and end immediately.
const LEAVING: [&[&str]; 3] = [
    &["sh", "-c", r#"("$0" "$@" &)"#],
    &["bash", "-c", r#"setsid nohup "$0" "$@" & disown"#],
    &[
        "python3",
        "-c",
        "import os, sys
os.fork() and os._exit(0)
os.setsid()
os.execv(sys.argv[1], sys.argv[1:])",
    ],
];

/// A folder with the binary under the plugin's name.
struct Plugin {
    directory: TempDir,
}

impl Plugin {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plugin = Self { directory };
        symlink(env!("CARGO_BIN_EXE_aws-ssm-forward"), plugin.path()).unwrap();
        plugin
    }

    fn path(&self) -> String {
        self.directory.path().join("session-manager-plugin").to_str().unwrap().to_owned()
    }

    /// Makes `launcher` start the plugin with a new port session.
    fn started_by(&self, launcher: &[&str], manager: &LocalManager) -> Launched {
        let parameters = json!({ "portNumber": [echo_server().to_string()] });
        let request =
            json!({ "Target": TARGET, "DocumentName": "AWS-StartPortForwardingSession", "Parameters": parameters });
        let session = manager.call("StartSession", &request);
        let (path, json, endpoint) = (self.path(), session.to_string(), manager.endpoint());
        let plugin = [&path, json.as_str(), "us-east-1", "StartSession", "", "{}", &endpoint];
        let args = [&launcher[1..], &plugin].concat();
        let cli = Cli::start_program(launcher[0], &args, &manager.variables());
        Launched { address: address(&cli), session, cli }
    }
}

/// A plugin that is ready, and the process that started it.
struct Launched {
    session: Value,
    address: String,
    cli: Cli,
}

impl Launched {
    fn is_active(&self, manager: &LocalManager) -> bool {
        manager.sessions("Active").iter().any(|id| *id == self.session["SessionId"])
    }
}

fn address(cli: &Cli) -> String {
    loop {
        if let Some(rest) = cli.line().strip_prefix("Port ") {
            return format!("127.0.0.1:{}", rest.split(' ').next().unwrap());
        }
    }
}

fn is_installed(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program} >/dev/null")]).status().unwrap().success()
}

/// Kills `caller`, and asserts that the plugin ends. The caller has started the plugin without detaching it.
fn assert_ends_with_its_caller(caller: &[&str], plugin: &Plugin, manager: &LocalManager) {
    let launched = plugin.started_by(caller, manager);
    launched.cli.signal("KILL");
    eventually(&format!("the session of {caller:?} has ended"), || !launched.is_active(manager));
}

#[test]
fn a_launcher_that_detaches_and_exits_leaves_the_tunnel() {
    let (manager, plugin) = (LocalManager::start(), Plugin::new());
    let start = |launcher: &'static [&str]| (launcher, plugin.started_by(launcher, &manager));
    let installed = |launcher: &&&[&str]| is_installed(launcher[0]);
    let mut launched: Vec<_> = DETACHING.iter().filter(installed).map(|launcher| start(launcher)).collect();
    launched.iter().for_each(|(_, launched)| launched.cli.signal("KILL"));
    launched.extend(LEAVING.iter().filter(installed).map(|launcher| start(launcher)));
    // Plugins check their parents at intervals. When a plugin has ended with its caller, the detached plugins have had time for a
    // check too. This is done twice, because the checks of different processes are not synchronized.
    for _ in 0..2 {
        assert_ends_with_its_caller(&["sh", "-c", r#""$0" "$@"; true"#], &plugin, &manager);
    }
    for (launcher, launched) in launched {
        assert!(launched.is_active(&manager), "ended with {launcher:?}");
        let mut stream = connect(&launched.address);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        // This also ends the plugin.
        manager.call("TerminateSession", &json!({ "SessionId": launched.session["SessionId"] }));
    }
}

#[test]
fn a_caller_that_is_killed_takes_the_session_along() {
    let (manager, plugin) = (LocalManager::start(), Plugin::new());
    // The AWS CLI ignores SIGINT while the plugin runs. It may itself run in the background.
    const AS_THE_AWS_CLI: &str = "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); \
                                  subprocess.call(sys.argv[1:])";
    assert_ends_with_its_caller(&["sh", "-c", r#"trap "" INT HUP; "$0" "$@"; true"#], &plugin, &manager);
    if is_installed("python3") {
        assert_ends_with_its_caller(&["python3", "-c", AS_THE_AWS_CLI], &plugin, &manager);
        assert_ends_with_its_caller(&["nohup", "python3", "-c", AS_THE_AWS_CLI], &plugin, &manager);
        assert_ends_with_its_caller(&["setsid", "python3", "-c", AS_THE_AWS_CLI], &plugin, &manager);
    }
}
