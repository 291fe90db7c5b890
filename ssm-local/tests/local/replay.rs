//! The embedded agent answers the official client's recorded messages as the official agent did.
//!
//! The other end is a recording, so that the agent is not tested only against this project's own client.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};
use ssm_local::{Local, LocalTarget, Profile};
use ssm_proto::{Acknowledge, AgentMessage, ChannelClosed, MessageType, PayloadType};
use tokio::io::AsyncWriteExt;

use crate::common::{Channel, Incoming, TARGET, closed_port, echo, serve, start_with};

/// A recorded session between the official client and the official agent.
struct Recording {
    steps: Vec<Step>,
}

enum Step {
    /// A numbered message of the client.
    Client(Bytes),
    /// A message of the agent or, at the end, of the service.
    Agent(AgentMessage),
}

/// Data that one end received from the other.
#[derive(Debug, Default)]
struct Seen {
    /// The payloads. Adjacent session data is joined, so that the result does not depend on how it was split into messages.
    data: Vec<(PayloadType, Vec<u8>)>,
    numbers: BTreeSet<i64>,
    acknowledged: BTreeMap<i64, Vec<u8>>,
    closed: Option<ChannelClosed>,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Bytes(Vec<u8>),
    /// A smux frame without data: its command and its stream.
    Frame(u8, u32),
    Flag(Vec<u8>),
}

/// Splits smux frames. All recordings have one stream.
fn deframe(mut bytes: &[u8], content: &mut Vec<Content>) {
    while let [1, command, low, high, a, b, c, d, rest @ ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (data, behind) = rest.split_at(length);
        match (content.last_mut(), command) {
            (Some(Content::Bytes(bytes)), 2) => bytes.extend(data),
            (_, 2) => content.push(Content::Bytes(data.to_vec())),
            (_, command) => content.push(Content::Frame(*command, u32::from_le_bytes([*a, *b, *c, *d]))),
        }
        bytes = behind;
    }
}

impl Seen {
    fn add(&mut self, message: &AgentMessage) {
        match message.message_type() {
            MessageType::Acknowledge => {
                let number = Acknowledge::decode(message.payload()).unwrap().sequence_number;
                self.acknowledged.insert(number, message.payload().to_vec());
            }
            MessageType::ChannelClosed => self.closed = Some(ChannelClosed::decode(message.payload())),
            // Retransmissions are not counted.
            MessageType::OutputStreamData if self.numbers.insert(message.sequence_number()) => {
                match (self.data.last_mut(), message.payload_type()) {
                    (Some((PayloadType::Output, bytes)), PayloadType::Output) => bytes.extend(message.payload()),
                    (_, kind) => self.data.push((kind, message.payload().to_vec())),
                }
            }
            _ => {}
        }
    }

    /// Returns the content of the session data, in order.
    fn content(&self) -> Vec<Content> {
        let multiplexed = self.json(PayloadType::HandshakeRequest).to_string().contains("LocalPortForwarding");
        let mut content = Vec::new();
        for (kind, bytes) in &self.data {
            match kind {
                PayloadType::Output if multiplexed => deframe(bytes, &mut content),
                PayloadType::Output => content.push(Content::Bytes(bytes.clone())),
                PayloadType::Flag => content.push(Content::Flag(bytes.clone())),
                _ => {}
            }
        }
        content
    }

    /// Returns a measure that grows with received data, for any split into messages.
    fn amount(&self) -> (usize, usize, usize) {
        if self.data.is_empty() {
            return (0, 0, 0);
        }
        let content = self.content();
        let bytes = content.iter().map(|part| if let Content::Bytes(bytes) = part { bytes.len() } else { 0 });
        (self.data.len(), content.len(), bytes.sum())
    }

    fn json(&self, kind: PayloadType) -> Value {
        let (_, bytes) = self.data.iter().find(|(found, _)| *found == kind).expect("the payload");
        serde_json::from_slice(bytes).unwrap()
    }
}

impl Recording {
    fn read(name: &str) -> Self {
        let path = format!("{}/tests/data/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let mut steps = Vec::new();
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let (direction, Some(hex)) = (record["dir"].as_str().unwrap(), record["hex"].as_str()) else { continue };
            let message = AgentMessage::decode(unhex(hex)).unwrap();
            match (direction, message.message_type()) {
                ("c2a", MessageType::InputStreamData) => steps.push(Step::Client(unhex(hex))),
                ("a2c" | "s2c", _) => steps.push(Step::Agent(message)),
                // Acknowledgements contain message ids, so they are created for the messages that arrive.
                _ => {}
            }
        }
        Self { steps }
    }

    fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for step in &self.steps {
            if let Step::Agent(message) = step {
                seen.add(message);
            }
        }
        seen
    }

    /// Plays the client's part. Each message is sent as soon as the data that preceded it in the recording has been received again.
    /// Then the remaining messages are received until the end.
    async fn play(&self, channel: &mut Channel) -> Seen {
        let (mut recorded, mut seen) = (Seen::default(), Seen::default());
        for step in &self.steps {
            match step {
                Step::Agent(message) => recorded.add(message),
                Step::Client(message) => {
                    while seen.amount() < recorded.amount() {
                        take(channel, &mut seen).await;
                    }
                    channel.send_raw(message.clone()).await;
                }
            }
        }
        while seen.amount() < recorded.amount()
            || !recorded.acknowledged.keys().all(|n| seen.acknowledged.contains_key(n))
        {
            take(channel, &mut seen).await;
        }
        seen
    }
}

async fn take(channel: &mut Channel, seen: &mut Seen) {
    match channel.receive().await {
        Incoming::Message(message) => {
            seen.add(&message);
            if message.message_type() == MessageType::OutputStreamData {
                channel.acknowledge(&message).await;
            }
        }
        other => panic!("{other:?} after {seen:?}"),
    }
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Replays a recording against each kind of agent. Returns the recorded data, the received data, and the channel.
async fn replay(name: &str, profile: Profile, document: &str, parameters: Value) -> (Seen, Seen, Channel, Local) {
    let target = LocalTarget::new(TARGET).agent_version("3.3.0.0");
    let local = Local::builder().target(target).profile(profile).start().await.unwrap();
    let ticket = start_with(&local, document, parameters).await;
    let mut channel = Channel::open(&ticket).await;
    let recording = Recording::read(name);
    let seen = recording.play(&mut channel).await;
    (recording.seen(), seen, channel, local)
}

/// Compares what must be equal for every recording: the same payloads in the same order, the same handshake, the same
/// acknowledgements.
fn compare(recorded: &Seen, seen: &Seen, port: u16) {
    let mut request = recorded.json(PayloadType::HandshakeRequest);
    request["RequestedClientActions"][0]["ActionParameters"]["Properties"]["portNumber"] = json!(port.to_string());
    assert_eq!(seen.json(PayloadType::HandshakeRequest), request);
    let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let [ours, theirs] = [seen, recorded].map(|seen| keys(seen.json(PayloadType::HandshakeComplete)));
    assert_eq!(ours, theirs);

    let [ours, theirs] = [seen, recorded].map(|seen| seen.data.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
    assert_eq!(ours, theirs);
    assert_eq!(seen.content(), recorded.content());
    // The client sends the recorded messages with their ids, so the acknowledgements are the same, byte for byte.
    for (number, acknowledgement) in &recorded.acknowledged {
        assert_eq!(seen.acknowledged[number], *acknowledgement, "acknowledgement of {number}");
    }
}

const PORT: &str = "AWS-StartPortForwardingSession";
const REMOTE: &str = "AWS-StartPortForwardingSessionToRemoteHost";
const SSH: &str = "AWS-StartSSHSession";

#[tokio::test]
async fn a_multiplexed_stream_is_echoed() {
    let port = echo().await;
    for profile in [Profile::Fast, Profile::Real] {
        let parameters = json!({ "portNumber": [port.to_string()] });
        let (recorded, seen, mut channel, _local) = replay("portforward_mux_echo", profile, PORT, parameters).await;
        compare(&recorded, &seen, port);
        // The recording ends with the client's TerminateSession flag.
        assert_eq!(channel.closed().await, "");
    }
}

#[tokio::test]
async fn a_refused_connection_is_told_by_flag_and_fin() {
    let port = closed_port().await;
    let parameters = json!({ "portNumber": [port.to_string()] });
    let (recorded, seen, ..) = replay("portforward_mux_refused", Profile::Fast, PORT, parameters).await;
    compare(&recorded, &seen, port);
}

/// Sends a greeting and closes.
async fn greeter() -> u16 {
    serve(|mut stream| async move { stream.write_all(b"hello from server\n").await.unwrap() }).await
}

#[tokio::test]
async fn a_destination_that_closes_ends_the_stream() {
    let port = greeter().await;
    let parameters = json!({ "portNumber": [port.to_string()] });
    let (recorded, seen, ..) = replay("portforward_mux_server_closes", Profile::Fast, PORT, parameters).await;
    compare(&recorded, &seen, port);
}

#[tokio::test]
async fn a_forbidden_host_ends_the_session_in_the_same_words() {
    let parameters = json!({ "host": ["169.254.169.254"], "portNumber": ["80"] });
    let (recorded, mut seen, mut channel, local) =
        replay("portforward_denied_ip", Profile::Fast, REMOTE, parameters).await;
    while seen.closed.is_none() {
        take(&mut channel, &mut seen).await;
    }
    compare(&recorded, &seen, 80);
    assert_eq!(seen.closed.unwrap().output, recorded.closed.unwrap().output);
    assert_eq!(local.sessions()[0].state, ssm_local::SessionState::Failed);
}

#[tokio::test]
async fn an_unknown_host_ends_the_session() {
    let parameters = json!({ "host": ["no-such-host.invalid"], "portNumber": ["19001"] });
    let (recorded, mut seen, mut channel, local) =
        replay("portforward_remotehost_badname", Profile::Fast, REMOTE, parameters).await;
    while seen.closed.is_none() {
        take(&mut channel, &mut seen).await;
    }
    compare(&recorded, &seen, 19001);
    // There is no name server, so its name is removed from the recorded text.
    let text = recorded.closed.unwrap().output.replace(" on 10.255.255.53:53", "");
    assert_eq!(seen.closed.unwrap().output, text);
    assert_eq!(local.sessions()[0].state, ssm_local::SessionState::Failed);
}

#[tokio::test]
async fn ssh_is_one_plain_connection() {
    let port = echo().await;
    for profile in [Profile::Fast, Profile::Real] {
        let parameters = json!({ "portNumber": [port.to_string()] });
        let (recorded, seen, ..) = replay("ssh_echo", profile, SSH, parameters).await;
        compare(&recorded, &seen, port);
    }
}

#[tokio::test]
async fn ssh_ends_with_its_server() {
    let port = greeter().await;
    let parameters = json!({ "portNumber": [port.to_string()] });
    let (recorded, mut seen, mut channel, _local) = replay("ssh_server_closes", Profile::Fast, SSH, parameters).await;
    while seen.closed.is_none() {
        take(&mut channel, &mut seen).await;
    }
    compare(&recorded, &seen, port);
    assert_eq!(seen.closed.unwrap().output, recorded.closed.unwrap().output);
}
