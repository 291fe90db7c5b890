//! Shells and commands on a terminal.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use ssm_local::{Local, Profile, SessionState};
use tokio::time::timeout;

use crate::client::{Client, INTERACTIVE, PATIENCE, SHELL, assert_ended, builder, terminate};

async fn local() -> Local {
    builder().start().await.unwrap()
}

#[tokio::test]
async fn a_shell_answers_until_it_exits() {
    let local = local().await;
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    shell.type_in("echo a$((1 + 1))b; test -t 0 && echo $TERM\n");
    shell.expect("a2b\r\nxterm-256color\r\n").await;
    shell.type_in("pwd\nexit 3\n");
    shell.expect(&format!("{}\r\n", std::env::home_dir().unwrap().display())).await;
    assert_eq!(shell.end().await, "");
    // Like the official agent, the local agent does not report a shell's exit code.
    assert_eq!(shell.exit_code, None);
    assert_ended(&local, SessionState::Terminated, "").await;
}

#[tokio::test]
async fn a_terminal_has_the_client_s_size_from_the_start_and_when_it_changes() {
    let local = local().await;
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    shell.resize(123, 45);
    shell.type_in("stty size\n");
    shell.expect("45 123\r\n").await;
    shell.resize(100, 30);
    shell.type_in("stty size\n");
    shell.expect("30 100\r\n").await;
    // Sizes and input keep their common order: the size was sent first.
    shell.resize(1, 2);
    shell.type_in("exit\n");
    shell.end().await;
}

#[tokio::test]
async fn a_terminal_without_a_size_has_a_usual_one() {
    let local = local().await;
    let (_, mut command) = Client::start(&local, INTERACTIVE, json!({ "command": ["stty size"] })).await;
    command.expect("24 80\r\n").await;
    command.end().await;
}

#[tokio::test]
async fn the_keys_for_signals_reach_the_foreground_job() {
    let local = local().await;
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    for (key, status) in [("\x03", 130), ("\x1c", 131)] {
        shell.type_in("sh -c 'echo started; exec sleep 100'\n");
        // In the echo of the command line, other text follows the word `started`.
        shell.expect("started\r\n").await;
        shell.type_in(format!("{key}echo status=$?\n"));
        shell.expect(&format!("status={status}\r\n")).await;
    }
}

#[tokio::test]
async fn a_paste_of_a_megabyte_arrives_whole() {
    let local = local().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("paste");
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    // A terminal accepts no line longer than 4095 bytes. The echo is turned off, so that only the input is tested.
    let text: String = (0..16_384).map(|number| format!("{number:<62}|\n")).collect();
    assert_eq!(text.len(), 1 << 20);
    shell.type_in(format!("stty -echo; echo re''ady; cat > {}; echo wr''itten\n", path.display()));
    shell.expect("ready\r\n").await;
    shell.type_in(&text);
    shell.type_in("\x04");
    shell.expect("written\r\n").await;
    assert!(std::fs::read_to_string(&path).unwrap() == text);
}

#[tokio::test]
async fn a_flood_of_output_arrives_whole_before_the_end() {
    let local = local().await;
    let (_, mut command) = Client::start(&local, INTERACTIVE, json!({ "command": ["seq 200000"] })).await;
    assert_eq!(command.end().await, "");
    let expected: String = (1..=200_000).map(|number| format!("{number}\r\n")).collect();
    assert!(command.stdout == expected.as_bytes(), "{} of {} bytes", command.stdout.len(), expected.len());
}

#[tokio::test]
async fn no_message_cuts_a_character() {
    let local = local().await;
    // The pieces end inside a character. At the end, bytes that are not text arrive too.
    let command =
        r"stty -opost; printf '\342'; sleep 0.1; printf '\202\254|\360\237'; sleep 0.1; printf '\230\200\377'";
    let (_, mut client) = Client::start(&local, INTERACTIVE, json!({ "command": [command] })).await;
    client.end().await;
    assert_eq!(client.stdout, ["€|😀".as_bytes(), b"\xff"].concat());
    let cut = client.chunks.iter().any(|chunk| !chunk.contains(&0xff) && std::str::from_utf8(chunk).is_err());
    assert!(!cut, "{:?}", client.chunks);
}

#[tokio::test]
async fn a_command_on_a_terminal_is_a_shell_s_business() {
    let local = local().await;
    let (_, mut unknown) = Client::start(&local, INTERACTIVE, json!({ "command": ["/no/such/program"] })).await;
    unknown.expect("not found\r\n").await;
    assert_eq!(unknown.end().await, "");
    let command = "echo ready; read line; echo got=$line; test -t 1 && echo terminal";
    let (_, mut asked) = Client::start(&local, INTERACTIVE, json!({ "command": [command] })).await;
    asked.expect("ready\r\n").await;
    asked.type_in("abc\n");
    asked.expect("got=abc\r\nterminal\r\n").await;
    asked.end().await;
}

#[tokio::test]
async fn a_shell_profile_is_typed_first() {
    let document = json!({
        "schemaVersion": "1.0", "description": "", "sessionType": "Standard_Stream",
        "inputs": { "shellProfile": { "linux": "PROFILE=yes" } },
    });
    let local = builder().document("Own-Shell", document.to_string()).start().await.unwrap();
    let (_, mut shell) = Client::start(&local, "Own-Shell", json!({})).await;
    shell.type_in("echo profile=$PROFILE\n");
    shell.expect("profile=yes\r\n").await;
}

#[tokio::test]
async fn a_shell_that_can_t_be_started_fails_the_session() {
    let local = Local::builder().shell("/no/such/shell").start().await.unwrap();
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    assert!(shell.end().await.starts_with("Unable to start command: Failed to start pty: "));
    assert_eq!(local.sessions()[0].state, SessionState::Failed);
}

/// Returns the process ids that a shell prints: its own id, and the ids of the processes of a job that ignores SIGHUP.
async fn processes(shell: &mut Client<'_>) -> Vec<String> {
    shell.type_in("trap '' HUP; (trap '' HUP; sleep 1000) & echo pi''ds $$ $! en''d; sleep 1001\n");
    shell.expect("pids ").await;
    shell.run_until("pids", |shell| shell.stdout.windows(3).any(|window| window == b"end")).await;
    let text = String::from_utf8(std::mem::take(&mut shell.stdout)).unwrap();
    text.split_whitespace().take_while(|word| *word != "end").map(str::to_owned).collect()
}

async fn gone(pids: &[String]) -> bool {
    let wait = async {
        // A zombie counts as ended. Its parent, which is not this process, has not collected it yet.
        let lives = |pid: &String| {
            let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status")).unwrap_or_default();
            !status.is_empty() && !status.contains("State:\tZ")
        };
        while pids.iter().any(lives) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.is_ok()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_terminated_session_takes_its_processes_along() {
    let local = local().await;
    let (ticket, mut shell) =
        Client::start(&local, INTERACTIVE, json!({ "command": ["trap '' HUP; echo pid $$ end; sleep 1000; :"] })).await;
    shell.expect("pid ").await;
    shell.run_until("pid", |shell| shell.stdout.windows(3).any(|window| window == b"end")).await;
    let pid = String::from_utf8_lossy(&shell.stdout).split(' ').next().unwrap().to_owned();
    assert!(Path::new("/proc").join(&pid).exists());
    terminate(&local, &ticket).await;
    assert_eq!(shell.end().await, "");
    assert!(gone(&[pid]).await);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn nothing_outlives_the_local_session_manager() {
    let local = local().await;
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    let pids = processes(&mut shell).await;
    assert_eq!(pids.len(), 2);
    drop(shell);
    drop(local);
    assert!(gone(&pids).await, "{pids:?}");
}

#[tokio::test]
async fn the_real_agent_begins_a_second_late_and_sends_small_messages() {
    let local = builder().profile(Profile::Real).start().await.unwrap();
    let began = Instant::now();
    let (_, mut command) = Client::start(&local, INTERACTIVE, json!({ "command": ["seq 1000"] })).await;
    command.run_until("output", |client| !client.stdout.is_empty()).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    command.end().await;
    assert!(command.chunks.iter().all(|chunk| chunk.len() <= 1024));
    let expected: String = (1..=1000).map(|number| format!("{number}\r\n")).collect();
    assert!(command.stdout == expected.as_bytes());
}
