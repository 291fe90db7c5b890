//! Invalid input and a faulty environment: each error is one line that states the problem and what to do, and has its exit code.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::common::{CREDENTIALS, Cli, FakeApi, LocalManager, TARGET, closed_port, echo_server, run};
use serde_json::json;

fn forward<'a>(spec: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["forward", "--target", TARGET, "-L", spec], more].concat()
}

/// Returns an environment with credentials, a region and this endpoint.
fn at(url: &str) -> Vec<(&str, &str)> {
    [&CREDENTIALS[..], &[("AWS_ENDPOINT_URL", url)]].concat()
}

#[test]
fn a_port_in_use_names_its_holder_and_starts_no_session() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("{}:80", holder.local_addr().unwrap().port());
    let manager = LocalManager::start();
    let ended = run(&forward(&spec, &["-L", "0:81"]), &manager.variables());
    ended.assert_one_line(3, &[&holder.local_addr().unwrap().to_string(), "already in use", "another port, or 0"]);
    #[cfg(target_os = "linux")]
    ended.assert_one_line(3, &[&format!("(process {})", std::process::id())]);
    assert!(manager.sessions("Active").is_empty() && manager.sessions("History").is_empty());
}

#[test]
fn the_last_of_several_ports_in_use_starts_no_session_either() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("{}:80", holder.local_addr().unwrap().port());
    let manager = LocalManager::start();
    run(&forward("0:81", &["-L", &spec]), &manager.variables()).assert_one_line(3, &["already in use"]);
    assert!(manager.sessions("Active").is_empty() && manager.sessions("History").is_empty());
}

#[test]
fn an_address_of_another_machine_cannot_be_bound() {
    run(&forward("192.0.2.1:0:db.internal:80", &["--region", "eu-central-1"]), &CREDENTIALS)
        .assert_one_line(3, &["192.0.2.1:0", "not one of this machine"]);
}

#[test]
fn an_unknown_target_is_named() {
    let manager = LocalManager::start();
    let args = ["forward", "--target", "i-00000000000000bad", "-L", "0:80"];
    run(&args, &manager.variables()).assert_one_line(5, &["i-00000000000000bad"]);
}

#[test]
fn no_credentials() {
    let api = FakeApi::start(|_, _| Some(("200 OK", "{}".into())));
    let variables = [("AWS_REGION", "eu-central-1"), ("AWS_ENDPOINT_URL", &api.url())];
    run(&forward("0:80", &[]), &variables).assert_one_line(4, &["credentials"]);
    assert!(api.requests().is_empty());
}

#[test]
fn no_region() {
    let [key, secret, _] = CREDENTIALS;
    run(&forward("0:80", &[]), &[key, secret]).assert_one_line(4, &["region", "--region"]);
}

#[test]
fn an_unknown_profile() {
    let ended = run(&forward("0:80", &["--profile", "nobody", "--region", "eu-central-1"]), &[]);
    ended.assert_one_line(4, &["nobody"]);
}

#[test]
fn an_unreachable_endpoint_is_named() {
    let url = format!("http://127.0.0.1:{}", closed_port());
    let ended = run(&forward("0:80", &["--connect-timeout", "5"]), &at(&url));
    ended.assert_one_line(5, &[url.trim_start_matches("http://")]);
}

#[test]
fn expired_credentials() {
    let body = json!({ "__type": "ExpiredTokenException", "message": "The security token is expired" }).to_string();
    let api = FakeApi::start(move |_, _| Some(("400 Bad Request", body.clone())));
    run(&forward("0:80", &[]), &at(&api.url())).assert_one_line(4, &["expired"]);
}

#[test]
fn access_denied() {
    let body = json!({ "__type": "AccessDeniedException", "Message": "not authorized to perform: ssm:StartSession" });
    let body = body.to_string();
    let api = FakeApi::start(move |_, _| Some(("400 Bad Request", body.clone())));
    run(&forward("0:80", &[]), &at(&api.url())).assert_one_line(5, &["ssm:StartSession"]);
}

#[test]
fn malformed_json_of_the_api() {
    let api = FakeApi::start(|_, _| Some(("200 OK", "{\"SessionId\": \"s-1\", ".into())));
    run(&forward("0:80", &["--connect-timeout", "10"]), &at(&api.url())).assert_one_line(5, &[]);
}

#[test]
fn an_answer_that_is_not_the_apis() {
    let api = FakeApi::start(|_, _| Some(("200 OK", "<html>captive portal</html>".into())));
    run(&forward("0:80", &["--connect-timeout", "10"]), &at(&api.url())).assert_one_line(5, &[]);
}

/// An API that grants the session s-1 and answers the upgrade of its data channel with `upgrade`.
fn granting(upgrade: Option<&'static str>) -> FakeApi {
    FakeApi::start(move |asked, address| match asked {
        "StartSession" => {
            let url = format!("ws://{address}/data-channel/s-1");
            let ticket = json!({ "SessionId": "s-1", "StreamUrl": url, "TokenValue": "top-secret-token" });
            Some(("200 OK", ticket.to_string()))
        }
        "TerminateSession" => Some(("200 OK", json!({ "SessionId": "s-1" }).to_string())),
        _ => upgrade.map(|status| (status, String::new())),
    })
}

fn assert_terminated(api: &FakeApi) {
    assert!(api.requests().contains(&"TerminateSession".to_owned()), "{:?}", api.requests());
}

#[test]
fn a_refused_upgrade_terminates_the_session_and_hides_the_token() {
    let api = granting(Some("403 Forbidden"));
    let ended = run(&forward("0:80", &["-vvv", "--connect-timeout", "5"]), &at(&api.url()));
    ended.assert_one_line(6, &["403"]);
    assert_terminated(&api);
    assert!(!format!("{ended:?}").contains("top-secret-token"), "the token was printed");
}

#[test]
fn an_upgrade_that_is_never_answered_is_bounded_and_terminates_the_session() {
    let api = granting(None);
    run(&forward("0:80", &["--connect-timeout", "1"]), &at(&api.url())).assert_one_line(6, &["1 s"]);
    assert_terminated(&api);
}

#[test]
fn a_signal_while_the_data_channel_opens_terminates_the_session() {
    let api = granting(None);
    let cli = Cli::start(&forward("0:80", &["--output", "json"]), &at(&api.url()));
    cli.event("session_started");
    cli.signal("INT");
    assert_eq!(cli.end().code, 130);
    assert_terminated(&api);
}

#[test]
fn a_data_channel_elsewhere_does_not_get_the_token() {
    let api = FakeApi::start(|asked, _| match asked {
        "StartSession" => {
            let url = "wss://collector.example/data-channel/s-1";
            let ticket = json!({ "SessionId": "s-1", "StreamUrl": url, "TokenValue": "top-secret-token" });
            Some(("200 OK", ticket.to_string()))
        }
        _ => Some(("200 OK", json!({ "SessionId": "s-1" }).to_string())),
    });
    let ended = run(&forward("0:80", &[]), &at(&api.url()));
    ended.assert_one_line(6, &["collector.example", "--allow-stream-host"]);
    assert_terminated(&api);
}

#[test]
fn an_api_that_never_answers_is_bounded() {
    let api = FakeApi::start(|_, _| None);
    run(&forward("0:80", &["--connect-timeout", "1"]), &at(&api.url())).assert_one_line(6, &[]);
}

#[test]
fn a_signal_before_ready_has_its_own_exit_code() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let api = FakeApi::start(|_, _| None);
        let cli = Cli::start(&forward("0:80", &["--output", "json"]), &at(&api.url()));
        cli.event("starting");
        cli.signal(signal);
        assert_eq!(cli.end().code, code, "{signal}");
    }
}

#[test]
fn wait_ready_finds_a_port_that_nobody_serves() {
    let spec = format!("0:{}", closed_port());
    run(&["forward", "--local", "--wait-ready", "-L", &spec], &[]).assert_one_line(7, &[]);
    // This version of the agent does not multiplex.
    let manager = LocalManager::start_with(&["--agent-version", "3.0.196.0"]);
    let ended = run(&forward(&spec, &["--wait-ready"]), &manager.variables());
    assert!(ended.stdout.is_empty(), "it must not report that it is ready: {ended:?}");
    ended.assert_one_line(7, &["the remote port does not answer"]);
}

#[test]
fn an_agent_too_old_for_another_host_is_one_line() {
    let host = "db.internal=127.0.0.1";
    let manager = LocalManager::start_with(&["--agent-version", "3.1.1080.0", "--host", host]);
    let spec = format!("0:db.internal:{}", echo_server());
    let ended = run(&forward(&spec, &[]), &manager.variables());
    assert!(ended.stdout.is_empty(), "it must not report that it is ready: {ended:?}");
    ended.assert_one_line(6, &["3.1.1080.0", "db.internal", "update it to 3.1.1188.0"]);
}

#[test]
fn a_session_that_stays_behind_is_told() {
    let manager = LocalManager::start();
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&forward(&spec, &["-o", "json"]), &manager.variables());
    cli.event("ready");
    manager.set_faults(&["api,operation=TerminateSession,answer=forbidden"]);
    cli.signal("TERM");
    let ended = cli.end();
    assert!(ended.stderr.iter().any(|line| line.contains("the session could not be terminated")), "{ended:?}");
}

#[test]
fn without_restart_a_session_that_somebody_terminates_is_the_end() {
    let manager = LocalManager::start();
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&forward(&spec, &["--no-restart", "--output", "json"]), &manager.variables());
    let session = cli.event("ready")["session_id"].clone();
    manager.call("TerminateSession", &json!({ "SessionId": session }));
    let error = cli.event("error");
    assert_eq!((&error["kind"], &error["exit_code"]), (&"session_ended".into(), &8.into()));
    cli.end().assert_one_line(8, &[]);
}

#[test]
fn a_host_that_the_node_does_not_know_is_named() {
    let manager = LocalManager::start();
    let ended = run(&forward("0:nowhere.internal:80", &["--output", "json"]), &manager.variables());
    ended.assert_one_line(8, &["nowhere.internal", "no such host"]);
    assert!(manager.sessions("Active").is_empty());
}

#[test]
fn what_the_configuration_has_wrong_is_no_fault_of_the_api() {
    for url in ["nonsense", "ftp://x", "127.0.0.1:4566", ""] {
        let more = ["--region", "eu-central-1", "--endpoint-url", url];
        run(&forward("0:80", &more), &CREDENTIALS).assert_one_line(2, &["--endpoint-url", url]);
    }
    for target in ["ecs:a/b/c/d", "ecs:web", "ecs:prod//app"] {
        let ended = run(&["forward", "--target", target, "-L", "0:80"], &CREDENTIALS);
        ended.assert_one_line(2, &[target]);
    }
    let bundle = tempfile::NamedTempFile::new().unwrap();
    for path in [bundle.path().to_str().unwrap(), "/no/such/bundle.pem"] {
        let variables = [&CREDENTIALS[..], &[("AWS_CA_BUNDLE", path)]].concat();
        run(&forward("0:80", &[]), &variables).assert_one_line(4, &["AWS_CA_BUNDLE", path]);
    }
}

#[test]
fn what_the_api_says_does_not_reach_the_terminal_as_it_is() {
    let api = FakeApi::start(|_, _| {
        let body = json!({ "__type": "ValidationException", "message": "no\u{1b}[2J\u{202e}\nerror: fake\u{9b}" });
        Some(("400 Bad Request", body.to_string()))
    });
    let spelled = "no\\u{1b}[2J\\u{202e} error: fake\\u{9b}";
    for args in [
        &["exec", TARGET, "--", "true"][..],
        &["shell", TARGET],
        &["ssh-proxy", TARGET],
        &["forward", "-t", TARGET, "-L", "0:80"],
        &["forward", "-t", TARGET, "-L", "0:80", "-o", "json"],
    ] {
        let ended = run(args, &at(&api.url()));
        ended.assert_one_line(5, &[spelled]);
        let told = format!("{}{}", ended.stdout.concat(), ended.stderr.concat());
        assert!(!told.contains(|character: char| character.is_control() || character == '\u{202e}'), "{told:?}");
    }
}

#[test]
fn an_answer_without_an_end_is_given_up() {
    // The server sends data without end, far more than a valid response contains.
    for head in ["content-length: 1073741824", "transfer-encoding: chunked"] {
        let url = endless(head);
        let variables = at(&url);
        let ended = run(&["exec", TARGET, "--", "true"], &variables);
        ended.assert_one_line(5, &["StartSession", "longer than 16 MiB"]);
    }
}

/// Starts an API whose responses have no end. Returns its URL.
fn endless(head: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 16 << 10]);
                let mut chunk = format!("{:x}\r\n", 64 << 10).into_bytes();
                if !head.contains("chunked") {
                    chunk.clear();
                }
                chunk.extend([b' '; 64 << 10]);
                chunk.extend_from_slice(if chunk[0] == b' ' { b"" } else { b"\r\n" });
                let mut written = stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes());
                while written.is_ok() {
                    written = stream.write_all(&chunk);
                }
            });
        }
    });
    url
}
