//! Commands without a terminal.

use std::time::Duration;

use serde_json::{Value, json};
use ssm_local::{Local, SessionState};

use crate::client::{Client, NON_INTERACTIVE, assert_ended, builder, terminate};

const SEPARATE: &str = "Own-Separate";

/// Returns a document like AWS's, but with separate outputs.
fn separate(properties: Value) -> String {
    let mut system = json!({ "commands": "{{ command }}", "separateOutputStream": "true" });
    system.as_object_mut().unwrap().extend(properties.as_object().unwrap().clone());
    let parameter = json!({ "type": "String", "description": "" });
    json!({
        "schemaVersion": "1.0", "description": "", "sessionType": "NonInteractiveCommands",
        "parameters": { "command": parameter },
        "properties": { "linux": system, "macos": system },
    })
    .to_string()
}

async fn local() -> Local {
    builder().document(SEPARATE, separate(json!({}))).start().await.unwrap()
}

const BOTH: &str = "sh -c 'test -t 0 || echo out; echo err >&2; cat; echo end; exit 7'";

#[tokio::test]
async fn outputs_come_as_one_in_order_when_the_command_ended() {
    let local = local().await;
    let (_, mut client) = Client::start(&local, NON_INTERACTIVE, json!({ "command": [BOTH] })).await;
    assert_eq!(client.end().await, "");
    assert_eq!(client.chunks.concat(), b"out\nerr\nend\n");
    assert_eq!((client.chunks.len(), client.stderr.len(), client.exit_code), (1, 0, None));
    assert_ended(&local, SessionState::Terminated, "").await;
}

#[tokio::test]
async fn outputs_come_apart_with_the_exit_code_if_the_document_says_so() {
    let local = local().await;
    let (_, mut client) = Client::start(&local, SEPARATE, json!({ "command": [BOTH] })).await;
    assert_eq!(client.end().await, "");
    assert_eq!((&*client.stdout, &*client.stderr, client.exit_code), (&b"out\nend\n"[..], &b"err\n"[..], Some(7)));
    assert_ended(&local, SessionState::Terminated, "").await;
}

#[tokio::test]
async fn aws_s_document_takes_it_as_a_parameter() {
    let local = builder().start().await.unwrap();
    let parameters = json!({
        "command": [BOTH], "separateOutputStream": ["true"], "stdoutSeparatorPrefix": ["1:"], "stderrSeparatorPrefix": ["2:"],
    });
    let (_, mut client) = Client::start(&local, NON_INTERACTIVE, parameters).await;
    assert_eq!(client.end().await, "");
    assert!(client.stdout.starts_with(b"1:out\n") && client.stderr == b"2:err\n", "{:?}", client.chunks);
    assert_eq!(client.exit_code, Some(7));
}

#[tokio::test]
async fn a_flood_of_both_outputs_arrives_whole() {
    let local = local().await;
    let command = "sh -c 'seq 100000 & seq 100000 >&2; wait'";
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    let (_, mut client) = Client::start(&local, SEPARATE, json!({ "command": [command] })).await;
    client.end().await;
    assert!(client.stdout == expected.as_bytes() && client.stderr == expected.as_bytes());
    assert_eq!(client.exit_code, Some(0));
    let (_, mut client) = Client::start(&local, NON_INTERACTIVE, json!({ "command": ["seq 100000"] })).await;
    client.end().await;
    assert!(client.stdout == expected.as_bytes());
}

#[tokio::test]
async fn prefixes_mark_the_pieces_of_each_output() {
    let prefixes = json!({ "stdOutSeparatorPrefix": "OUT:", "stdErrSeparatorPrefix": "ERR:" });
    let bad = json!({ "stdOutSeparatorPrefix": "no spaces" });
    let local =
        builder().document(SEPARATE, separate(prefixes)).document("Own-Bad", separate(bad)).start().await.unwrap();
    let command = "sh -c 'echo a; echo b >&2; sleep 0.2; echo c; sleep 0.2; printf d; sleep 0.2; printf e'";
    let (_, mut client) = Client::start(&local, SEPARATE, json!({ "command": [command] })).await;
    client.end().await;
    assert_eq!((&*client.stdout, &*client.stderr), (&b"OUT:a\nOUT:c\nOUT:de"[..], &b"ERR:b\n"[..]));
    let (_, mut client) = Client::start(&local, "Own-Bad", json!({ "command": ["true"] })).await;
    assert_eq!(client.end().await, "invalid stdoutSeparatorPrefix no spaces");
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_the_session_in_the_official_agent_s_words() {
    let local = local().await;
    let (_, mut client) = Client::start(&local, SEPARATE, json!({ "command": ["/no/such/binary"] })).await;
    assert_eq!(client.end().await, "");
    assert_eq!(client.stderr, b"fork/exec /no/such/binary: no such file or directory");
    assert_eq!(client.exit_code, Some(1));
    assert_ended(&local, SessionState::Failed, "").await;
    let (_, mut client) = Client::start(&local, NON_INTERACTIVE, json!({ "command": ["no-such-binary -x"] })).await;
    client.end().await;
    assert_eq!(client.stderr, b"exec: \"no-such-binary\": executable file not found in $PATH");
    assert_eq!(client.exit_code, None);
}

#[tokio::test]
async fn the_keys_for_signals_are_the_only_input() {
    let local = local().await;
    let trap = "echo started; trap \"echo interrupted; exit 4\" INT; trap \"echo quit; exit 5\" QUIT; \
                while :; do sleep 0.05; done";
    for (keys, output, code) in [("abc\nd\x03", "interrupted", 4), ("\x1a\x1c", "quit", 5)] {
        let command = format!("sh -c '{trap}'");
        let (_, mut client) = Client::start(&local, SEPARATE, json!({ "command": [command] })).await;
        client.expect("started\n").await;
        client.type_in(keys);
        client.end().await;
        assert_eq!((&*client.stdout, client.exit_code), (format!("{output}\n").as_bytes(), Some(code)));
    }
    let (_, mut client) =
        Client::start(&local, SEPARATE, json!({ "command": ["sh -c 'echo x; exec sleep 100'"] })).await;
    client.expect("x\n").await;
    client.type_in("\x03");
    client.end().await;
    assert_eq!(client.exit_code, Some(-1), "a program that was killed by a signal has no exit code");
}

#[tokio::test]
async fn a_command_left_in_the_background_keeps_nobody_waiting() {
    let local = local().await;
    let command = "sh -c 'sleep 5 & echo done'";
    let began = std::time::Instant::now();
    let (_, mut client) = Client::start(&local, NON_INTERACTIVE, json!({ "command": [command] })).await;
    client.end().await;
    assert_eq!(client.stdout, b"done\n");
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_terminated_command_takes_its_group_along() {
    let local = local().await;
    let directory = tempfile::tempdir().unwrap();
    let (mark, path) = (directory.path().join("alive"), directory.path().display());
    // The command creates a file repeatedly and ignores SIGHUP, and its child does the same.
    let script = format!("trap \"\" HUP; cd {path}; echo ready; (while :; do : > alive; sleep 0.02; done) & wait");
    let (ticket, mut client) =
        Client::start(&local, SEPARATE, json!({ "command": [format!("sh -c '{script}'")] })).await;
    client.expect("ready\n").await;
    terminate(&local, &ticket).await;
    client.end().await;
    let silent = async {
        loop {
            let _ = std::fs::remove_file(&mark);
            tokio::time::sleep(Duration::from_millis(300)).await;
            if !mark.exists() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), silent).await.expect("the command stops creating the file");
}

#[tokio::test]
async fn a_document_that_is_none_is_told_at_the_start() {
    let error = Local::builder().document("x", "{}").start().await.unwrap_err();
    assert!(error.to_string().starts_with("the document x is not a session document: "), "{error}");
}
