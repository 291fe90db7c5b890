//! No secret appears in the output of any command, whatever fails, nor in places that other programs on this machine can read.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread;

use serde_json::{Value, json};

use crate::common::{Cli, Ended, FakeApi, LocalManager, TARGET, closed_port, connect, echo_server, eventually};
use crate::secrets::Wiretap;

/// A text that every secret of these tests contains.
const HUSH: &str = "hush-";
const KEY: &str = "hush-secret-access-key";
const SESSION_TOKEN: &str = "hush-session-token";

const FORWARD: &[&str] = &["forward", "-t", TARGET, "-L", "0:80", "-o", "json"];
const LS: &[&str] = &["ls"];
const TOKEN: &[&str] = &["token", "--user", "app", "rds:orders"];
const DOCTOR: &[&str] = &["doctor", TARGET];

/// The commands that call AWS. `-vvv` is inserted after the first word.
const COMMANDS: [&[&str]; 14] = [
    FORWARD,
    &["forward", "-t", TARGET, "-L", "0:80", "--relay"],
    &["exec", TARGET, "--", "true"],
    &["shell", TARGET],
    &["cp", "i-0123456789abcdef0:/etc/hostname", "."],
    &["ssh-proxy", TARGET],
    &["run", TARGET, "-L", "0:80", "--", "true"],
    LS,
    TOKEN,
    &["relay", "status", TARGET],
    &["relay", "remove", TARGET],
    &["ls", "rds"],
    &["policy", TARGET, "rds:orders"],
    DOCTOR,
];

fn keys<'a>(endpoint: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let keys = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", KEY),
        ("AWS_SESSION_TOKEN", SESSION_TOKEN),
        ("RUST_LOG", "trace"),
    ];
    [&keys, more].concat()
}

fn start(args: &[&str], variables: &[(&str, &str)]) -> Cli {
    let loud = [&args[..1], &["-vvv"], &args[1..]].concat();
    Cli::start_with(&loud, variables, |command| command.stdin(Stdio::null()))
}

#[track_caller]
fn assert_silent(ended: &Ended, what: &str) {
    let output = [ended.stdout.join("\n"), ended.stderr.join("\n")].concat();
    assert!(!output.is_empty(), "{what} prints nothing");
    assert!(!output.contains(HUSH), "{what}: {output}");
}

/// Returns responses for every call of an API. Each response contains a secret in an unexpected place, or prevents the session from
/// starting.
fn failures() -> Vec<(&'static str, &'static str, String)> {
    let granted =
        |url: &str| json!({ "SessionId": "s-1", "TokenValue": "hush-stream-token", "StreamUrl": url }).to_string();
    let refused = |code: &str| json!({ "__type": code, "message": "No." }).to_string();
    vec![
        ("another host", "200 OK", granted("wss://evil.example/?X-Amz-Signature=hush-url")),
        ("nobody listens", "200 OK", granted(&format!("ws://127.0.0.1:{}/?X-Amz-Signature=hush-url", closed_port()))),
        ("a login in the URL", "200 OK", granted("wss://user:hush-login@127.0.0.1/?a")),
        ("no URL", "200 OK", granted("hush-url that is none")),
        ("cut off", "200 OK", r#"{"SessionId":"s-1","TokenValue":"hush-stream-token","#.into()),
        (
            "another type",
            "200 OK",
            r#"{"SessionId":"s-1","TokenValue":{"a":"hush-stream-token"},"StreamUrl":7}"#.into(),
        ),
        ("a list", "200 OK", r#"["hush-stream-token"]"#.into()),
        ("denied", "400 Bad Request", refused("AccessDeniedException")),
        ("expired", "400 Bad Request", refused("ExpiredTokenException")),
        ("a page", "403 Forbidden", "<html>hush-page</html>".into()),
        ("elsewhere", "302 Found", "hush-page".into()),
    ]
}

#[test]
fn no_failure_of_any_command_says_a_secret() {
    thread::scope(|scope| {
        for (what, status, body) in failures() {
            scope.spawn(move || {
                let answer = body.clone();
                let api = FakeApi::start(move |_, _| Some((status, answer.clone())));
                for args in COMMANDS {
                    let ended = start(args, &keys(&api.url(), &[])).end();
                    assert_silent(&ended, &format!("{what}: {args:?}"));
                }
                let ended = socks(&api);
                assert_silent(&ended, &format!("{what}: socks"));
                let ended = plugin(&api, &body);
                assert_silent(&ended, &format!("{what}: plugin"));
            });
        }
    });
}

fn request_for_a_port() -> Value {
    json!({
        "Target": TARGET,
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": ["1"] },
    })
}

/// Runs the plugin. It gets the response from its caller, and resumes the session with the same API.
fn plugin(api: &FakeApi, response: &str) -> Ended {
    let request = request_for_a_port();
    let (request, url) = (request.to_string(), api.url());
    Cli::start_as_plugin(&[response, "us-east-1", "StartSession", "", &request, &url], &keys(&url, &[])).end()
}

/// Runs a SOCKS proxy with one client. The proxy starts its session for this client.
fn socks(api: &FakeApi) -> Ended {
    let cli = start(&["socks", TARGET, "-D", "0"], &keys(&api.url(), &[]));
    let listening = cli.line();
    let address = listening.split(" on ").nth(1).and_then(|rest| rest.split(' ').next()).expect(&listening);
    let mut client = connect(address);
    client.write_all(b"CONNECT db.internal:80 HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 50"), "{}", String::from_utf8_lossy(&answer));
    cli.signal("TERM");
    cli.end()
}

#[test]
fn no_proxy_and_no_source_of_credentials_says_a_secret() {
    let (closed, api) = (closed_port(), FakeApi::start(|_, _| Some(("200 OK", "hush-page".into()))));
    let login = format!("http://user:hush-password@127.0.0.1:{closed}");
    let login_of_socks = format!("socks5h://user:hush-password@127.0.0.1:{closed}");
    let wrong_url = "http://user:hush-password@[".to_owned();
    for proxy in [login, login_of_socks, wrong_url] {
        for args in [FORWARD, LS, DOCTOR] {
            let ended = start(args, &keys("http://ssm.example", &[("HTTP_PROXY", &proxy)])).end();
            assert_ne!(ended.code, 0, "{args:?} succeeds");
            assert_silent(&ended, &format!("{proxy}: {args:?}"));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let path = config.to_str().unwrap();
    for text in [
        "[default]\ncredential_process = echo '{\"Version\":1,\"SecretAccessKey\":\"hush-key\"'\n",
        "[default]\ncredential_process = echo '{\"Version\":1,\"AccessKeyId\":7,\"SecretAccessKey\":\"hush-key\"}'\n",
        "[default]\ncredential_process = sh -c 'echo hush-key; exit 3'\n",
        "[default]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key hush-key\n",
        "[default]\naws_secret_access_key = hush-key\n",
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/x\nsource_profile = a\n[profile a]\naws_access_key_id = AKIA\n\
         aws_secret_access_key = hush-key\naws_session_token = hush-token\n",
    ] {
        std::fs::write(&config, text).unwrap();
        let variables =
            [("AWS_ENDPOINT_URL", api.url()), ("AWS_REGION", "us-east-1".into()), ("AWS_CONFIG_FILE", path.into())];
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for args in [FORWARD, TOKEN, DOCTOR] {
            let ended = start(args, &variables).end();
            assert_ne!(ended.code, 0, "{text}: {args:?} succeeds");
            assert_silent(&ended, &format!("{text}: {args:?}"));
        }
    }
}

#[test]
fn no_command_that_works_says_a_secret() {
    let manager = LocalManager::start_with(&["--insecure-credentials", "any"]);
    let tap = Wiretap::start(&manager);
    std::fs::write(manager.home().join("file"), "content").unwrap();
    let remote = format!("{TARGET}:{}", manager.home().join("file").display());
    let spec = format!("0:{}", echo_server());
    let commands: [&[&str]; 4] =
        [&["cp", &remote, "."], &["run", TARGET, "-L", &spec, "--", "true"], &["exec", TARGET, "--", "true"], DOCTOR];
    for args in commands {
        let ended = start(args, &keys(&tap.url, &[])).end();
        let tokens = tap.tokens();
        let output = [ended.stdout.join("\n"), ended.stderr.join("\n")].concat();
        assert!(!tokens.is_empty() && !tokens.iter().any(|token| output.contains(token)), "{args:?}: {output}");
        assert_silent(&ended, &format!("{args:?}"));
    }
}

/// Checks the output of `up` and of the commands that control it, the answers on the control socket, and the lines of the log.
#[test]
fn no_answer_of_up_says_a_secret() {
    let manager = LocalManager::start_with(&["--insecure-credentials", "any"]);
    let tap = Wiretap::start(&manager);
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let (file, runtime) = (folder.path().join("tunnels.toml"), folder.path().to_str().unwrap());
    let tunnels = format!(
        "[tunnels.works]\ntarget = \"{TARGET}\"\nremote = \"{}\"\nlocal = 0\n\
         [tunnels.later]\ntarget = \"{TARGET}\"\nremote = \"80\"\nlocal = 0\n\
         [tunnels.fails]\ntarget = \"{TARGET}\"\nremote = \"80\"\nlocal = 0\n\
         endpoint-url = \"http://user:hush-login@127.0.0.1:{}\"\n",
        echo_server(),
        closed_port()
    );
    std::fs::write(&file, tunnels).unwrap();
    let variables = keys(&tap.url, &[("XDG_RUNTIME_DIR", runtime)]);
    let config = ["--config", file.to_str().unwrap()];
    let up = start(&[&["up", "works", "fails", "--plain", "-o", "json"], &config[..]].concat(), &variables);
    let mut awaited = BTreeSet::from(["ready", "retrying"]);
    eventually("one tunnel works, and the other has failed", || {
        let event: Value = serde_json::from_str(&up.line()).unwrap();
        event["event"].as_str().is_some_and(|event| awaited.remove(event)) && awaited.is_empty()
    });
    let asked: [&[&str]; 5] =
        [&["status", "-o", "json"], &["status"], &["restart", "works"], &["reload"], &["logs", "works", "fails"]];
    let mut output = Vec::new();
    for args in asked {
        let ended = start(args, &variables).end();
        assert_silent(&ended, &format!("{args:?}"));
        output.extend(ended.stdout.into_iter().chain(ended.stderr));
    }
    // The background process has its own control socket. `logs` reads its log through this socket.
    let detached = start(&[&["up", "-d", "later"], &config[..]].concat(), &variables).end();
    assert_silent(&detached, "up -d");
    output.extend(detached.stdout.into_iter().chain(detached.stderr));
    output.extend(start(&["logs"], &variables).end().stdout);
    assert_silent(&start(&["down"], &variables).end(), "down");
    let ended = up.end();
    assert_silent(&ended, "up");
    output.extend(ended.stdout.into_iter().chain(ended.stderr));
    assert!(output.iter().any(|line| line.contains("fails") && line.contains("cannot reach")), "{output:?}");
    let (tokens, output) = (tap.tokens(), output.join("\n"));
    assert!(tokens.len() > 1 && output.contains("works"), "{output}");
    assert!(!output.contains(HUSH) && !tokens.iter().any(|token| output.contains(token)), "{output}");
}

/// Returns the arguments and the environment variables of a process, which every program of the same user can read.
#[cfg(target_os = "linux")]
fn seen_from_outside(pid: u32) -> String {
    ["cmdline", "environ"]
        .map(|file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

#[cfg(target_os = "linux")]
#[test]
fn other_programs_cannot_see_a_token_in_the_plugins_arguments_or_variables() {
    const VARIABLE: &str = "AWS_SSM_START_SESSION_RESPONSE_1";
    let manager = LocalManager::start_with(&["--insecure-credentials", "any"]);
    let request = request_for_a_port();
    for by_variable in [false, true] {
        let session = manager.call("StartSession", &request);
        let token = session["TokenValue"].as_str().unwrap();
        let (response, request, url) = (session.to_string(), request.to_string(), manager.endpoint());
        let first = if by_variable { VARIABLE } else { &response };
        let args = [first, "us-east-1", "StartSession", "", &request, &url];
        let given = [(VARIABLE, response.as_str())];
        let variables = if by_variable { &given[..] } else { &[] };
        let plugin =
            Cli::start_with(&args, variables, |command| command.arg0("session-manager-plugin").stdin(Stdio::null()));
        eventually("the plugin listens", || plugin.line().contains("Waiting for connections"));
        let seen = seen_from_outside(plugin.pid);
        assert!(seen.contains("StartSession") && !seen.contains(token), "{seen}");
        plugin.signal("INT");
    }
}

/// Returns the writable memory of a process.
#[cfg(target_os = "linux")]
fn memory_of(pid: u32) -> Vec<u8> {
    use std::io::{Seek, SeekFrom};

    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut file = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut memory = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut part = vec![0; usize::try_from(end - start).unwrap()];
        if file.seek(SeekFrom::Start(start)).is_ok() && file.read_exact(&mut part).is_ok() {
            memory.extend(part);
        }
    }
    memory
}

#[cfg(target_os = "linux")]
fn count(memory: &[u8], text: &str) -> usize {
    memory.windows(text.len()).filter(|part| *part == text.as_bytes()).count()
}

/// Counts the secrets that a core dump of an idle tunnel would contain. The session's token is no longer needed, but libraries may
/// have left copies in freed memory. The secret access key is still needed: it is in the environment and in the SDK.
#[cfg(target_os = "linux")]
#[test]
fn an_idle_tunnel_keeps_few_copies_of_its_secrets() {
    let manager = LocalManager::start_with(&["--insecure-credentials", "any"]);
    let tap = Wiretap::start(&manager);
    let spec = format!("0:{}", echo_server());
    let cli = Cli::start(&["forward", "-t", TARGET, "-L", &spec, "-o", "json"], &keys(&tap.url, &[]));
    let mut stream = connect(cli.event("ready")["address"].as_str().unwrap());
    stream.write_all(b"content").unwrap();
    drop(stream);
    cli.event("connection_closed");
    let memory = memory_of(cli.pid);
    assert!(count(&memory, "AKIAEXAMPLE") > 0, "the memory could not be read");
    for secret in tap.tokens().iter().map(String::as_str).chain([KEY]) {
        let copies = count(&memory, secret);
        assert!(copies <= 3, "{copies} copies of a secret");
    }
}
