//! The embedded agent answers the official client's recorded messages as the official agent did.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use ssm_local::{LocalTarget, Profile};
use ssm_proto::{Acknowledge, AgentMessage, ChannelClosed, MessageType, PayloadType};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::client::{INTERACTIVE, NON_INTERACTIVE, PATIENCE, SHELL, TARGET, builder, open, start};

/// The agent's output. Adjacent pieces of one kind are joined, because a terminal may split them at any position.
#[derive(Debug, Default)]
struct Output {
    pieces: Vec<(PayloadType, Vec<u8>)>,
    next: i64,
    acknowledged: BTreeMap<i64, Bytes>,
    /// The number of the first message that arrived too late for an answer, because the session had ended.
    late: Option<i64>,
    closed: Option<String>,
}

impl Output {
    fn add(&mut self, message: &AgentMessage) {
        match message.message_type() {
            MessageType::Acknowledge => {
                let number = Acknowledge::decode(message.payload()).unwrap().sequence_number;
                self.acknowledged.insert(number, Bytes::copy_from_slice(message.payload()));
            }
            MessageType::ChannelClosed => self.closed = Some(ChannelClosed::decode(message.payload()).output),
            MessageType::OutputStreamData if message.sequence_number() == self.next => {
                self.next += 1;
                match self.pieces.last_mut() {
                    Some((kind, piece)) if *kind == message.payload_type() => piece.extend(message.payload()),
                    _ => self.pieces.push((message.payload_type(), message.payload().to_vec())),
                }
            }
            _ => {}
        }
    }

    fn awaits(&self, number: i64) -> bool {
        !self.acknowledged.contains_key(&number) && self.closed.is_none()
    }

    fn bytes(&self) -> usize {
        self.pieces.iter().filter(|(kind, _)| !is_handshake(*kind)).map(|(_, piece)| piece.len()).sum()
    }

    fn handshakes(&self) -> usize {
        self.pieces.iter().filter(|(kind, _)| is_handshake(*kind)).count()
    }

    /// Returns the data without the handshake, which contains times.
    fn content(&self) -> Vec<(PayloadType, String)> {
        let content = self.pieces.iter().filter(|(kind, _)| !is_handshake(*kind));
        content.map(|(kind, piece)| (*kind, String::from_utf8(piece.clone()).unwrap())).collect()
    }
}

fn is_handshake(kind: PayloadType) -> bool {
    matches!(kind, PayloadType::HandshakeRequest | PayloadType::HandshakeComplete)
}

enum Step {
    Client(Bytes),
    Agent(AgentMessage),
}

fn recording(name: &str) -> Vec<Step> {
    let path = format!("{}/../ssm-proto/testdata/captures/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let step = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let bytes = unhex(record["hex"].as_str()?);
        let message = AgentMessage::decode(bytes.clone()).unwrap();
        match (record["dir"].as_str().unwrap(), message.message_type()) {
            ("c2a", MessageType::InputStreamData) => Some(Step::Client(bytes)),
            ("a2c" | "s2c", _) => Some(Step::Agent(message)),
            // Acknowledgements contain message ids, so they are created for the messages that arrive.
            _ => None,
        }
    };
    text.lines().filter_map(step).collect()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Handles the next message, and acknowledges it as a client must.
async fn take(socket: &mut WebSocketStream<TcpStream>, output: &mut Output) {
    let message = socket.next().await.expect("a WebSocket").unwrap();
    let Message::Binary(bytes) = message else { return };
    let message = AgentMessage::decode(bytes).unwrap();
    output.add(&message);
    if message.message_type() == MessageType::OutputStreamData {
        let acknowledgement = Acknowledge::of(&message).encode(1, Uuid::new_v4());
        socket.send(Message::Binary(acknowledgement)).await.unwrap();
    }
}

/// Plays the client's part. Each message is sent as soon as the data that preceded it in the recording has been received again.
async fn play(socket: &mut WebSocketStream<TcpStream>, steps: &[Step]) -> (Output, Output) {
    let (mut recorded, mut output) = (Output::default(), Output::default());
    for step in steps {
        match step {
            Step::Agent(message) => recorded.add(message),
            Step::Client(message) => {
                while output.bytes() < recorded.bytes() || output.handshakes() < recorded.handshakes() {
                    take(socket, &mut output).await;
                }
                let number = AgentMessage::decode(message.clone()).unwrap().sequence_number();
                // Like the official client, retransmits the message until it is acknowledged.
                while output.awaits(number) {
                    socket.send(Message::Binary(message.clone())).await.unwrap();
                    let answered = async {
                        while output.awaits(number) {
                            take(socket, &mut output).await;
                        }
                    };
                    let _ = timeout(Duration::from_millis(100), answered).await;
                }
                if !output.acknowledged.contains_key(&number) {
                    output.late.get_or_insert(number);
                }
            }
        }
    }
    while output.closed.is_none() {
        take(socket, &mut output).await;
    }
    (recorded, output)
}

/// Replays a recording against each kind of agent and compares everything that does not depend on the machine.
async fn replay(name: &str, document: &str, parameters: Value) {
    for profile in [Profile::Fast, Profile::Real] {
        let own = json!({
            "schemaVersion": "1.0", "sessionType": "NonInteractiveCommands",
            "parameters": { "command": { "type": "String", "description": "" } },
            "properties": { "linux": { "commands": "{{ command }}", "separateOutputStream": true } },
        });
        let target = LocalTarget::new(TARGET).agent_version("3.3.0.0");
        let plain = json!({
            "schemaVersion": "1.0", "sessionType": "Standard_Stream", "inputs": { "shellProfile": { "linux": "" } },
        });
        let local = builder()
            .target(target)
            .profile(profile)
            .document("Own-Separate", own.to_string())
            .document("Own-Shell", plain.to_string())
            .start()
            .await
            .unwrap();
        let ticket = start(&local, TARGET, document, parameters.clone()).await;
        let mut socket = open(&ticket).await;
        let steps = recording(name);
        let (recorded, output) = timeout(PATIENCE, play(&mut socket, &steps)).await.expect("the recording's end");
        // The user's name depends on the machine.
        let user = |content: Vec<(PayloadType, String)>| -> Vec<_> {
            let plain = |text: String| text.replace("ssm-user", "USER").replace("# ", "$ ");
            content.into_iter().map(|(kind, text)| (kind, plain(text))).collect()
        };
        assert_eq!(user(output.content()), user(recorded.content()), "{name} {profile:?}");
        assert_eq!(output.closed, recorded.closed);
        // The client sends the recorded messages with their ids, so the acknowledgements are the same, byte for byte.
        let end = output.late.unwrap_or(i64::MAX);
        assert!(output.acknowledged.iter().eq(recorded.acknowledged.range(..end)), "{name}: {output:?}");
    }
}

#[tokio::test]
async fn a_shell_with_its_input_from_a_pipe() {
    replay("shell_stdin_pipe", SHELL, json!({})).await;
}

#[tokio::test]
async fn a_shell_that_exits() {
    replay("shell_exit_fast", SHELL, json!({})).await;
}

#[tokio::test]
async fn a_command_that_reads() {
    let command = "echo start; read x; echo got=$x; echo USER";
    replay("interactive_command", INTERACTIVE, json!({ "command": [command] })).await;
}

#[tokio::test]
async fn a_command_that_is_not_there() {
    replay("interactive_fail", INTERACTIVE, json!({ "command": ["/no/such/binary"] })).await;
}

#[tokio::test]
async fn outputs_as_one() {
    let command = "sh -c 'echo out; echo err >&2; sleep 0.1; echo end'";
    replay("noninteractive", NON_INTERACTIVE, json!({ "command": [command] })).await;
}

#[tokio::test]
async fn outputs_apart() {
    let command = "sh -c 'echo out; sleep 0.1; echo err >&2; sleep 0.1; echo end; exit 7'";
    replay("noninteractive_separate", "Own-Separate", json!({ "command": [command] })).await;
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    replay("noninteractive_enoent", "Own-Separate", json!({ "command": ["/no/such/binary"] })).await;
}
