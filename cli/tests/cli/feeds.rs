//! `forward --relay`: downloads that also use command sessions (feeds).

use std::path::Path;
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::common::{Cli, LocalManager, TARGET, eventually, run};
use crate::relay::{answering_server, ask, forward, payload};

const DOCUMENT: &str = "AWS-StartNonInteractiveCommand";

/// Starts `local` with the pace of a real agent, which limits a download over one session.
fn slow_manager() -> LocalManager {
    LocalManager::start_with(&["--profile", "real"])
}

/// Starts a download that would take some seconds over one session. The thread returns whether the answer is complete and correct.
fn download(manager: &LocalManager, more: &[&str]) -> (Cli, JoinHandle<bool>) {
    let answer = payload(8_000_000);
    let (cli, address) =
        forward(manager, answering_server(answer.clone()), &[&["--sessions", "1", "-v"], more].concat());
    let asking = thread::spawn(move || ask(&address, b"").unwrap() == answer);
    (cli, asking)
}

/// Returns the ids of the command sessions in this state.
fn command_sessions(manager: &LocalManager, state: &str) -> Vec<String> {
    let answer = manager.call("DescribeSessions", &json!({ "State": state }));
    let sessions = answer["Sessions"].as_array().unwrap().iter();
    let ours = sessions.filter(|session| session["DocumentName"] == DOCUMENT);
    ours.map(|session| session["SessionId"].as_str().unwrap().to_owned()).collect()
}

/// Returns the processes on the node that copy data from the relay: their ids and arguments.
fn programs(manager: &LocalManager) -> Vec<(String, Vec<String>)> {
    let is_ours = |process: &Path| {
        std::fs::read_link(process.join("exe")).is_ok_and(|program| program.starts_with(manager.home()))
    };
    let processes = std::fs::read_dir("/proc").unwrap().map_while(Result::ok).map(|process| process.path());
    let ours = processes.filter(|process| is_ours(process)).filter_map(|process| {
        let line = std::fs::read_to_string(process.join("cmdline")).ok()?;
        let arguments: Vec<String> = line.split_terminator('\0').skip(1).map(str::to_owned).collect();
        Some((process.file_name()?.to_str()?.to_owned(), arguments))
    });
    ours.filter(|(_, arguments)| arguments.first().is_some_and(|first| first == "feed")).collect()
}

/// Returns the number of bytes that a process has written.
fn written(process: &str) -> u64 {
    let counters = std::fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
    let line = counters.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[test]
fn a_download_uses_a_command_session_and_does_not_notice_its_loss() {
    let manager = slow_manager();
    // An ephemeral relay's file is removed as soon as the relay runs.
    let (cli, asking) = download(&manager, &["--relay=ephemeral"]);
    eventually("a program that copies", || !programs(&manager).is_empty());
    let [(process, arguments)] = programs(&manager).try_into().unwrap();
    let [_, port, nonce] = arguments.as_slice() else { panic!("{arguments:?}") };
    assert!(port.parse::<u16>().is_ok() && nonce.len() == 32, "no secret among the arguments: {arguments:?}");
    eventually("the program copies data", || written(&process) > 300_000);
    let [session] = command_sessions(&manager, "Active").try_into().unwrap();
    manager.call("TerminateSession", &json!({ "SessionId": session }));
    assert!(asking.join().unwrap(), "every byte, once, in order");
    eventually("the program ends", || !programs(&manager).iter().any(|(other, _)| *other == process));
    cli.signal("TERM");
    let ended = cli.end();
    assert_eq!(ended.code, 0);
    let logged = |text: &str| ended.stderr.iter().any(|line| line.contains(text));
    assert!(logged("also gets a command session") && logged("is sent again"), "{:#?}", ended.stderr);
    let events = ended.stdout.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(!events.into_iter().any(|event| event["event"] == "warning"), "{:#?}", ended.stdout);
    assert_eq!(command_sessions(&manager, "Active"), Vec::<String>::new(), "no command session is left");
}

#[test]
fn a_download_with_a_command_session_is_exact_whatever_happens_to_its_messages() {
    let faults: [&[&str]; 4] = [
        &["drop,probability=0.01", "reorder,probability=0.05,by=5ms", "duplicate,nth=10"],
        &["corrupt,nth=100"],
        // Ends every session at its 5000th message. A command session is the first to reach it.
        &["end,nth=5000"],
        &["agent-away,after=3s,for=1s"],
    ];
    let runs = faults.map(|faults| {
        thread::spawn(move || {
            let manager = slow_manager();
            let (cli, asking) = download(&manager, &[]);
            manager.set_faults(faults);
            assert!(asking.join().unwrap(), "{faults:?}");
            let used = ["Active", "History"].map(|state| command_sessions(&manager, state)).concat();
            assert!(!used.is_empty(), "{faults:?}");
            cli.signal("TERM");
            assert_eq!(cli.end().code, 0, "{faults:?}");
        })
    });
    runs.into_iter().for_each(|run| run.join().unwrap());
}

#[test]
fn where_the_document_is_denied_one_line_says_so_and_the_download_goes_on() {
    let manager = slow_manager();
    let faults = ["api,operation=StartSession,answer=forbidden,times=1"];
    let (cli, asking) = download(&manager, &[]);
    // The tunnel has already started its only session, so the fault applies to the command session.
    manager.set_faults(&faults);
    let warning = cli.event("warning")["text"].as_str().unwrap().to_owned();
    assert!(warning.contains(DOCUMENT) && warning.contains("--relay-feeds=off"), "{warning}");
    assert!(asking.join().unwrap());
    cli.signal("TERM");
    let ended = cli.end();
    assert_eq!(ended.code, 0);
    assert!(!ended.stdout.iter().any(|line| line.contains(r#""warning""#)), "{:#?}", ended.stdout);
    let all = ["Active", "History"].map(|state| command_sessions(&manager, state)).concat();
    assert_eq!(all, Vec::<String>::new());
}

#[test]
fn the_programs_that_copy_are_no_relays_in_the_list() {
    let manager = slow_manager();
    let (_cli, asking) = download(&manager, &[]);
    eventually("a program that copies", || !programs(&manager).is_empty());
    let listed = run(&["relay", "status", TARGET], &manager.variables());
    assert_eq!((listed.code, listed.stdout.len()), (0, 2), "the relay's file and process: {listed:#?}");
    assert!(!programs(&manager).is_empty(), "the program ended too early");
    assert!(asking.join().unwrap());
}

#[test]
fn turned_off_a_download_uses_only_the_tunnels_sessions() {
    let manager = slow_manager();
    let (cli, asking) = download(&manager, &["--relay-feeds=off"]);
    assert!(asking.join().unwrap());
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
    let all = ["Active", "History"].map(|state| command_sessions(&manager, state)).concat();
    assert_eq!(all, Vec::<String>::new());
}
