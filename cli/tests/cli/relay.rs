//! `forward --relay`: the relay program on the node, which is here the machine of the local Session Manager.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use crate::common::{Cli, LocalManager, TARGET, closed_port, connect, echo_server, eventually, run};

/// Starts a forward with a relay. Returns its local address too. Asserts that no warning is reported before it is ready.
pub(crate) fn forward(manager: &LocalManager, port: u16, more: &[&str]) -> (Cli, String) {
    let (cli, address, warnings) = start(manager, port, &with_relay(more));
    assert!(warnings.is_empty(), "{warnings:#?}");
    (cli, address)
}

fn with_relay<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let is_given = more.iter().any(|option| option.starts_with("--relay="));
    more.iter().copied().chain((!is_given).then_some("--relay")).collect()
}

fn start(manager: &LocalManager, port: u16, more: &[&str]) -> (Cli, String, Vec<String>) {
    let spec = format!("0:127.0.0.1:{port}");
    let args = [&["forward", "--target", TARGET, "-L", &spec, "-o", "json"], more].concat();
    let cli = Cli::start(&args, &manager.variables());
    let mut warnings = Vec::new();
    loop {
        let event: Value = serde_json::from_str(&cli.line()).unwrap();
        match event["event"].as_str().unwrap() {
            "ready" => return (cli, event["address"].as_str().unwrap().to_owned(), warnings),
            "warning" => warnings.push(event["text"].as_str().unwrap_or_default().to_owned()),
            "error" => panic!("{event}"),
            _ => {}
        }
    }
}

/// Returns bytes of which only a part can be compressed.
pub(crate) fn payload(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length / 2).collect();
    let text = (0..).flat_map(|row| format!("INSERT INTO t VALUES ({row}, 'a name');\n").into_bytes());
    noise.iter().copied().chain(text).take(length).collect()
}

/// Starts a server that reads to the end of the input, and then sends `answer` and the input. Returns its port.
pub(crate) fn answering_server(answer: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || {
                let mut question = Vec::new();
                stream.read_to_end(&mut question).unwrap();
                let _ = stream.write_all(&answer).and_then(|()| stream.write_all(&question));
            });
        }
    });
    port
}

pub(crate) fn ask(address: &str, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(address);
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn programs(manager: &LocalManager) -> Vec<PathBuf> {
    let folder = manager.home().join(".cache/aws-ssm-forward");
    std::fs::read_dir(folder).map_or_else(|_| Vec::new(), |files| files.map(|file| file.unwrap().path()).collect())
}

/// Returns the ids of the processes that run this program.
fn running(program: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let is_it = |path: &PathBuf| std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program);
    let found = processes.map(|process| process.path()).filter(is_it);
    found.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn one_connection_is_carried_by_all_sessions_and_outlives_each_of_them() {
    let manager = LocalManager::start_with(&["--profile", "real"]);
    let (answer, question) = (payload(4_000_000), payload(500_000));
    let (cli, address) = forward(&manager, answering_server(answer.clone()), &["--sessions", "4"]);
    eventually("four sessions", || manager.sessions("Active").len() == 4);
    let asking = thread::spawn({
        let question = question.clone();
        move || ask(&address, &question).unwrap()
    });
    for session in manager.sessions("Active") {
        manager.call("TerminateSession", &json!({ "SessionId": session }));
        assert_eq!(cli.event("session_lost")["connections"], 0, "the other sessions carry the connection");
    }
    assert!(asking.join().unwrap() == [answer, question].concat(), "every byte, once, in order");
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
}

#[test]
fn the_program_stays_private_and_is_used_again_and_a_damaged_one_is_replaced() {
    let manager = LocalManager::start();
    let port = echo_server();
    let (first, _) = forward(&manager, port, &[]);
    let [program] = programs(&manager).try_into().unwrap();
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777;
    assert_eq!((mode(&program), mode(program.parent().unwrap())), (0o700, 0o700));
    let [process] = running(&program).try_into().unwrap();
    let arguments = std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
    assert_eq!(arguments.split('\0').skip(1).collect::<Vec<_>>(), ["serve", ""], "no secret among the arguments");
    first.signal("TERM");
    assert_eq!(first.end().code, 0);
    eventually("the relay ends with its tunnel", || running(&program).is_empty());

    let good = std::fs::read(&program).unwrap();
    let written = program.metadata().unwrap().modified().unwrap();
    drop(forward(&manager, port, &[]));
    assert_eq!(program.metadata().unwrap().modified().unwrap(), written, "the program was copied again");
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, &good[..good.len() / 2]).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    // Temporary files that a killed script has left. No process has this id.
    for name in [program.with_extension("999999999"), program.with_file_name("try.999999999")] {
        std::fs::write(name, "").unwrap();
    }
    let (_cli, address) = forward(&manager, port, &[]);
    assert!(std::fs::read(&program).unwrap() == good);
    assert_eq!(programs(&manager), [program]);
    let mut stream = connect(&address);
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn a_killed_relay_resets_its_connections_and_is_started_again() {
    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, echo_server(), &[]);
    let [program] = programs(&manager).try_into().unwrap();
    let mut stream = connect(&address);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    for process in running(&program) {
        assert!(std::process::Command::new("kill").args(["-KILL", &process]).status().unwrap().success());
    }
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let warning = cli.event("warning").to_string();
    assert!(warning.contains("is gone") && warning.contains("started again"), "{warning}");
    let mut stream = connect(&address);
    stream.write_all(b"again").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"again");
}

#[test]
fn a_pipe_that_the_agent_cannot_connect_is_tried_again_and_no_connection_notices() {
    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, echo_server(), &["--sessions", "2"]);
    eventually("two sessions", || manager.sessions("Active").len() == 2);
    let mut stream = connect(&address);
    let mut echo = || {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    echo().unwrap();
    // The fault affects the agent's connections to the relay, not the relay's connections to the destination.
    manager.set_faults(&["fail-dial,times=2"]);
    for session in manager.sessions("Active") {
        manager.call("TerminateSession", &json!({ "SessionId": session }));
        eventually("another session", || {
            echo().unwrap();
            let active = manager.sessions("Active");
            active.len() == 2 && !active.contains(&session)
        });
    }
    for _ in 0..2 {
        assert_eq!(cli.event("session_lost")["connections"], 0);
    }
    echo().unwrap();
}

#[test]
fn the_nodes_own_error_is_told() {
    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, closed_port(), &[]);
    assert_eq!(connect(&address).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let closed = cli.event("connection_closed").to_string();
    assert!(closed.contains("Connection refused"), "{closed}");
}

#[test]
fn a_reset_by_the_destination_is_a_reset() {
    let manager = LocalManager::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (cli, address) = forward(&manager, listener.local_addr().unwrap().port(), &[]);
    let mut stream = connect(&address);
    stream.write_all(b"x").unwrap();
    let mut served: TcpStream = listener.accept().unwrap().0;
    // After this read, the relay is connected to the destination.
    served.read_exact(&mut [0]).unwrap();
    socket2::SockRef::from(&served).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(served);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let closed = cli.event("connection_closed").to_string();
    assert!(closed.contains("reset the connection"), "{closed}");
}

#[test]
fn a_program_that_writes_on_after_the_destination_has_closed_sees_a_reset() {
    let manager = LocalManager::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (cli, address) = forward(&manager, listener.local_addr().unwrap().port(), &[]);
    let mut stream = connect(&address);
    listener.accept().unwrap().0.write_all(b"answer").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    eventually("a write of the program fails", || stream.write_all(b"more").is_err());
    let closed = cli.event("connection_closed").to_string();
    assert!(closed.contains("reset the connection"), "{closed}");
}

#[test]
fn while_it_cannot_be_started_again_the_tunnel_waits_and_does_not_begin_anew() {
    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, echo_server(), &[]);
    let [program] = programs(&manager).try_into().unwrap();
    manager.set_faults(&["api,operation=StartSession,answer=forbidden,times=1"]);
    for process in running(&program) {
        assert!(std::process::Command::new("kill").args(["-KILL", &process]).status().unwrap().success());
    }
    let gone = cli.event("warning").to_string();
    assert!(gone.contains("is gone"), "{gone}");
    let mut texts = Vec::new();
    let mut stream = connect(&address);
    stream.write_all(b"x").unwrap();
    loop {
        let event: Value = serde_json::from_str(&cli.line()).unwrap();
        match event["event"].as_str().unwrap() {
            "warning" => texts.push(event["text"].as_str().unwrap().to_owned()),
            "connection_opened" => break,
            "ready" | "error" | "closed" => panic!("{event}"),
            _ => {}
        }
    }
    let [failed] = texts.try_into().unwrap();
    assert!(failed.contains("cannot be started again") && failed.contains("every 5 s"), "{failed}");
    stream.read_exact(&mut [0]).unwrap();
    assert_eq!(running(&program).len(), 1, "the relay carries the connection");
}

#[test]
fn a_session_that_ends_without_a_connection_is_not_replaced_before_the_next_one() {
    let manager = LocalManager::start();
    let (cli, address) = forward(&manager, echo_server(), &[]);
    let [session] = manager.sessions("Active").try_into().unwrap();
    manager.call("TerminateSession", &json!({ "SessionId": session }));
    assert_eq!(cli.event("session_lost")["connections"], 0);
    let mut stream = connect(&address);
    stream.write_all(b"x").unwrap();
    let next: Value = serde_json::from_str(&cli.line()).unwrap();
    assert_eq!(next["event"], "connection_opened");
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_copy_that_is_cut_off_leaves_nothing() {
    let manager = LocalManager::start();
    manager.set_faults(&["rate,bytes=20000,direction=up"]);
    let spec = format!("0:127.0.0.1:{}", closed_port());
    let _cli = Cli::start(&["forward", "--target", TARGET, "-L", &spec, "--relay=ephemeral"], &manager.variables());
    eventually("a part of the program is copied", || !programs(&manager).is_empty());
    // It is not copied again.
    manager.set_faults(&["rate,bytes=20000,direction=up", "api,operation=StartSession,answer=forbidden"]);
    for session in manager.sessions("Active") {
        manager.call("TerminateSession", &json!({ "SessionId": session }));
    }
    eventually("the part is removed", || programs(&manager).is_empty());
}

#[test]
fn where_it_may_not_be_started_the_tunnel_works_without_it() {
    let manager = LocalManager::start();
    manager.set_faults(&["api,operation=StartSession,answer=forbidden,times=1"]);
    let (_cli, address, warnings) = start(&manager, echo_server(), &["--relay"]);
    let [warning] = warnings.try_into().unwrap();
    assert!(warning.contains("no relay on ") && warning.contains("AWS-StartInteractiveCommand"), "{warning}");
    let mut stream = connect(&address);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn an_ephemeral_one_leaves_nothing_and_others_can_be_listed_and_removed() {
    let manager = LocalManager::start();
    let port = echo_server();
    let (cli, _, warnings) = start(&manager, port, &["--relay=ephemeral"]);
    assert!(warnings.is_empty(), "{warnings:#?}");
    assert_eq!(programs(&manager), Vec::<PathBuf>::new());
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);

    let (_cli, _) = forward(&manager, port, &[]);
    let [program] = programs(&manager).try_into().unwrap();
    let status = run(&["relay", "status", TARGET], &manager.variables());
    assert_eq!(status.code, 0, "{status:#?}");
    let name = program.to_str().unwrap();
    let lines = status.stdout.iter().filter(|line| line.contains(name));
    assert_eq!(lines.count(), 2, "the relay's file and process: {status:#?}");
    assert_eq!(status.stdout.len(), 2, "relays in other folders do not belong to this node: {status:#?}");
    let unknown = run(&["relay", "status", "nosuch"], &manager.variables());
    unknown.assert_one_line(5, &[r#"no managed node is named "nosuch" in "#]);
    assert_eq!(run(&["relay", "remove", TARGET], &manager.variables()).code, 0);
    eventually("the relay and its file are removed", || programs(&manager).is_empty() && running(&program).is_empty());
}
