//! Recorded sessions of the official client with the official agent. Our side replaces each of the two in turn.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails may panic")]

#[expect(dead_code, reason = "each test uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ssm_proto::{
    AgentConfig, AgentKms, AgentMessage, ClientConfig, Clock, DataKey, Identity, KeyRequest, MessageType, Output,
    PayloadType, PlaintextKey, Session, SessionEvent, SessionMode, SessionType, StreamId, TerminalSize,
};

/// A recorded session: time, direction and message.
struct Capture(Vec<(Duration, String, AgentMessage)>);

type Payload = (PayloadType, Vec<u8>);

impl Capture {
    fn read(name: &str) -> Self {
        let (_, lines) = support::captures().into_iter().find(|(capture, _)| capture == name).unwrap();
        let messages = lines.iter().filter(|line| line["kind"] == "bin").map(|line| {
            let at = Duration::from_secs_f64(line["t"].as_f64().unwrap());
            let message = AgentMessage::decode(support::bytes_of(line).into()).unwrap();
            (at, line["dir"].as_str().unwrap().to_owned(), message)
        });
        Self(messages.collect())
    }

    /// Returns the numbered messages of one direction, without duplicates.
    fn payloads(&self, direction: &str) -> Vec<Payload> {
        let numbered = [MessageType::InputStreamData, MessageType::OutputStreamData];
        let messages =
            self.0.iter().filter(|(_, dir, message)| dir == direction && numbered.contains(&message.message_type()));
        let unique: BTreeMap<i64, Payload> = messages
            .map(|(_, _, message)| (message.sequence_number(), (message.payload_type(), message.payload().to_vec())))
            .collect();
        unique.into_values().collect()
    }

    fn payload(&self, direction: &str, wanted: PayloadType) -> Vec<u8> {
        self.payloads(direction).into_iter().find(|(payload_type, _)| *payload_type == wanted).unwrap().1
    }

    fn json(&self, direction: &str, wanted: PayloadType) -> Value {
        serde_json::from_slice(&self.payload(direction, wanted)).unwrap()
    }
}

/// Our side in the place of a recorded side.
struct Replay<'a> {
    capture: &'a Capture,
    session: Session,
    start: Instant,
    stream: Option<StreamId>,
    sent: BTreeMap<i64, Payload>,
    received: Vec<(Output, Vec<u8>)>,
    events: Vec<SessionEvent>,
    kms: Option<RecordedKms>,
}

impl<'a> Replay<'a> {
    fn new(capture: &'a Capture, start: Instant, session: Session, kms: Option<RecordedKms>) -> Self {
        let (sent, received, events) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { capture, session, start, stream: None, sent, received, events, kms }
    }

    /// Replays the whole recording. Messages with the directions `incoming` are passed to our session. For each message that the
    /// replaced side sent (`outgoing`), `act` makes our session do the same.
    fn run(mut self, incoming: [&str; 2], outgoing: &str, act: impl Fn(&mut Self, PayloadType, &[u8])) -> Self {
        self.session.handle_connected(self.start);
        self.drain(self.start);
        let mut done = BTreeMap::new();
        for (at, direction, message) in &self.capture.0 {
            let now = self.start + *at;
            self.run_timers(now);
            if incoming.contains(&direction.as_str()) {
                let raw = message.header().seal(ssm_proto::MessageBuf::from(message.payload()));
                self.session.handle_input(now, raw).unwrap();
            } else if direction == outgoing
                && message.message_type() != MessageType::Acknowledge
                && done.insert(message.sequence_number(), ()).is_none()
            {
                act(&mut self, message.payload_type(), message.payload());
            }
            self.drain(now);
        }
        self
    }

    fn run_timers(&mut self, now: Instant) {
        while let Some(timeout) = self.session.poll_timeout().filter(|timeout| timeout.at <= now) {
            self.session.handle_timeout(timeout.at);
            self.drain(timeout.at);
        }
    }

    fn drain(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            match &event {
                SessionEvent::Ready(mode) => {
                    assert_eq!(*mode, SessionMode::Shell);
                    self.stream = self.stream.or_else(|| self.session.open().ok());
                }
                SessionEvent::Opened(id) => self.stream = Some(*id),
                SessionEvent::Readable(id) => {
                    while let Some((output, chunk)) = self.session.read_output(*id) {
                        self.received.push((output, chunk.to_vec()));
                    }
                }
                SessionEvent::DataKeyNeeded(_) | SessionEvent::DecryptNeeded(..) => {
                    if let Some(kms) = &self.kms {
                        kms.answer(&mut self.session, now, &event);
                    }
                }
                _ => {}
            }
            self.events.push(event);
        }
        while let Some(raw) = self.session.poll_transmit(now) {
            let message = AgentMessage::decode(raw).unwrap();
            if message.message_type() != MessageType::Acknowledge {
                let payload = (message.payload_type(), message.payload().to_vec());
                let before = self.sent.insert(message.sequence_number(), payload.clone());
                assert!(before.is_none_or(|before| before == payload), "sent again, but changed");
            }
        }
    }

    fn sent(&self) -> Vec<Payload> {
        self.sent.values().cloned().collect()
    }

    fn text(&self, wanted: Output) -> String {
        let chunks = self.received.iter().filter(|(output, _)| *output == wanted);
        String::from_utf8(chunks.flat_map(|(_, chunk)| chunk.clone()).collect()).unwrap()
    }

    fn exit_codes(&self) -> Vec<i64> {
        let codes = self.events.iter().filter_map(|event| match event {
            SessionEvent::ExitCode(code) => Some(*code),
            _ => None,
        });
        codes.collect()
    }

    fn failures(&self) -> Vec<String> {
        let texts = self.events.iter().filter_map(|event| match event {
            SessionEvent::Failed(error) => Some(error.to_string()),
            _ => None,
        });
        texts.collect()
    }
}

/// Replays the recorded agent to our client, which does what the official client did.
fn replay_client(capture: &Capture, kms: Option<RecordedKms>) -> Replay<'_> {
    let (start, clock) = clock();
    let config =
        ClientConfig { client_version: "1.2.677.0".into(), identity: identity(capture), ..ClientConfig::default() };
    let mut session = Session::client(config, clock, 1);
    let size = capture.payloads("c2a").into_iter().find(|(payload_type, _)| *payload_type == PayloadType::Size);
    if let Some((_, size)) = size {
        session.resize(TerminalSize { cols: 1, rows: 1 });
        session.resize(serde_json::from_slice(&size).unwrap());
    }
    let keys = kms.as_ref().map(|kms| kms.keys);
    Replay::new(capture, start, session, kms).run(["a2c", "s2c"], "c2a", |replay, payload_type, payload| {
        if payload_type == PayloadType::Output {
            let input = keys.map_or_else(|| payload.to_vec(), |keys| decrypt(&keys[32..], payload));
            replay.session.write(replay.stream.unwrap(), input.into()).unwrap();
        }
    })
}

/// Replays the recorded client to our agent.
fn replay_agent(capture: &Capture, session_type: SessionType, kms: Option<RecordedKms>) -> Replay<'_> {
    let (start, clock) = clock();
    let config = AgentConfig {
        agent_version: "3.3.0.0".into(),
        session_type,
        kms: kms.as_ref().map(|kms| kms.agent.clone()),
        identity: identity(capture),
        ..AgentConfig::default()
    };
    let session = Session::agent(config, clock, 1);
    let keys = kms.as_ref().map(|kms| kms.keys);
    Replay::new(capture, start, session, kms).run(["c2a", "s2a"], "a2c", |replay, payload_type, payload| {
        let plaintext = || keys.map_or_else(|| payload.to_vec(), |keys| decrypt(&keys[..32], payload));
        let stream = replay.stream;
        let mut write = |output| replay.session.write_output(stream.unwrap(), output, plaintext().into()).unwrap();
        match payload_type {
            PayloadType::Output => write(Output::Stdout),
            PayloadType::StdErr => write(Output::Stderr),
            PayloadType::ExitCode => {
                let text = String::from_utf8(plaintext()).unwrap();
                replay.session.exit(text.trim_start_matches("EXIT_CODE: ").parse().unwrap());
            }
            _ => {}
        }
    })
}

fn clock() -> (Instant, Clock) {
    let start = Instant::now();
    (start, Clock { start, unix: Duration::from_secs(1_700_000_000) })
}

fn identity(capture: &Capture) -> Identity {
    let closed = capture.0.iter().find(|(_, _, message)| message.message_type() == MessageType::ChannelClosed);
    let closed: Value = serde_json::from_slice(closed.unwrap().2.payload()).unwrap();
    let field = |name: &str| closed[name].as_str().unwrap().to_owned();
    Identity { session_id: field("SessionId"), target: field("DestinationId") }
}

/// The recorded data key. The KMS of the recording environment created the ciphertext from the plaintext and the context.
struct RecordedKms {
    keys: [u8; 64],
    ciphertext: Vec<u8>,
    context: BTreeMap<String, String>,
    agent: AgentKms,
    client_nonce: [u8; 12],
}

impl RecordedKms {
    fn of(capture: &Capture) -> Self {
        let response = capture.json("c2a", PayloadType::HandshakeResponse);
        let ciphertext = &response["ProcessedClientActions"][1]["ActionResult"]["KMSCipherTextKey"];
        let ciphertext = STANDARD.decode(ciphertext.as_str().unwrap()).unwrap();
        let blob: Value = serde_json::from_slice(&ciphertext).unwrap();
        let keys = support::unhex(blob["k"].as_str().unwrap()).try_into().unwrap();
        let request = capture.json("a2c", PayloadType::HandshakeRequest);
        let parameters = &request["RequestedClientActions"][1]["ActionParameters"];
        let challenge = STANDARD.decode(parameters["Challenge"].as_str().unwrap()).unwrap();
        let enc_challenge = |direction, payload_type| {
            STANDARD.decode(capture.json(direction, payload_type)["Challenge"].as_str().unwrap()).unwrap()
        };
        let agents = enc_challenge("a2c", PayloadType::EncChallengeRequest);
        let clients = enc_challenge("c2a", PayloadType::EncChallengeResponse);
        Self {
            keys,
            context: serde_json::from_value(blob["ctx"].clone()).unwrap(),
            ciphertext,
            agent: AgentKms {
                key_id: parameters["KMSKeyId"].as_str().unwrap().into(),
                challenge: Some(challenge.try_into().unwrap()),
                require_acknowledgement: false,
                proof: decrypt(&keys[..32], &agents).try_into().unwrap(),
                first_nonce: agents[..12].try_into().unwrap(),
            },
            client_nonce: clients[..12].try_into().unwrap(),
        }
    }

    fn answer(&self, session: &mut Session, now: Instant, event: &SessionEvent) {
        let plaintext = PlaintextKey::new(&self.keys).unwrap();
        match event {
            SessionEvent::DataKeyNeeded(KeyRequest { key_id, context }) => {
                let mut expected = self.context.clone();
                expected.insert("aws:ssm:RandomChallenge".into(), STANDARD.encode(self.agent.challenge.unwrap()));
                assert_eq!((key_id, context), (&self.agent.key_id, &expected));
                let key = DataKey { plaintext, ciphertext: self.ciphertext.clone().into() };
                session.provide_data_key(now, &key, self.client_nonce);
            }
            SessionEvent::DecryptNeeded(KeyRequest { key_id, context }, ciphertext) => {
                assert_eq!((key_id, context), (&self.agent.key_id, &self.context));
                assert_eq!(*ciphertext, self.ciphertext);
                session.provide_plaintext_key(now, &plaintext);
            }
            _ => {}
        }
    }
}

fn decrypt(key: &[u8], sealed: &[u8]) -> Vec<u8> {
    let (nonce, rest) = sealed.split_first_chunk::<12>().unwrap();
    let (body, tag) = rest.split_last_chunk::<16>().unwrap();
    let mut body = body.to_vec();
    let cipher = Aes256Gcm::new_from_slice(key).unwrap();
    cipher.decrypt_inout_detached(&Nonce::from(*nonce), &[], body.as_mut_slice().into(), &Tag::from(*tag)).unwrap();
    body
}

/// Converts payloads for comparison: the keys in the agent's bodies are in another order, and its time differs. Everything else
/// must be the same, byte for byte.
fn comparable(payloads: Vec<Payload>) -> Vec<(PayloadType, Value)> {
    let comparable = payloads.into_iter().map(|(payload_type, payload)| {
        let value = match payload_type {
            PayloadType::HandshakeRequest => serde_json::from_slice(&payload).unwrap(),
            PayloadType::HandshakeComplete => {
                let mut value: Value = serde_json::from_slice(&payload).unwrap();
                assert!(value["HandshakeTimeToComplete"].take().is_i64());
                value
            }
            _ => json!(payload),
        };
        (payload_type, value)
    });
    comparable.collect()
}

const PLAIN: [&str; 8] = [
    "interactive_command",
    "interactive_fail",
    "noninteractive",
    "noninteractive_enoent",
    "noninteractive_separate",
    "shell_exit_fast",
    "shell_stdin_pipe",
    "shell_terminate_api",
];

#[test]
fn our_client_sends_what_the_official_client_sent() {
    for name in PLAIN {
        let capture = Capture::read(name);
        let replay = replay_client(&capture, None);
        assert_eq!(replay.sent(), capture.payloads("c2a"), "{name}");
        assert!(replay.failures().is_empty(), "{name}: {:?}", replay.failures());
        assert!(matches!(replay.events.last(), Some(SessionEvent::Closed(_))), "{name}");
        assert!(replay.session.is_finished(replay.stream.unwrap()), "{name}");
    }
}

#[test]
fn our_client_gives_out_what_the_official_agent_said() {
    let expected = [
        ("interactive_command", "start\r\nabc\r\ngot=abc\r\nssm-user\r\n", "", &[][..]),
        ("interactive_fail", "sh: 1: /no/such/binary: not found\r\n", "", &[]),
        ("noninteractive", "out\nerr\nend\n", "", &[]),
        ("noninteractive_enoent", "", "fork/exec /no/such/binary: no such file or directory", &[1]),
        ("noninteractive_separate", "out\nend\n", "err\n", &[7]),
        ("shell_exit_fast", "$ echo early\r\nearly\r\n$ exit 3\r\n", "", &[]),
        ("shell_stdin_pipe", "$ echo piped; exit\r\npiped\r\n", "", &[]),
        ("shell_terminate_api", "$ echo hi\r\nhi\r\n$ ", "", &[]),
    ];
    for (name, stdout, stderr, codes) in expected {
        let capture = Capture::read(name);
        let replay = replay_client(&capture, None);
        assert_eq!(
            (replay.text(Output::Stdout).as_str(), replay.text(Output::Stderr).as_str()),
            (stdout, stderr),
            "{name}"
        );
        assert_eq!(replay.exit_codes(), codes, "{name}");
    }
}

#[test]
fn our_agent_sends_what_the_official_agent_sent() {
    for name in PLAIN {
        let capture = Capture::read(name);
        let session_type = match name {
            name if name.starts_with("interactive") => SessionType::InteractiveCommands,
            name if name.starts_with("noninteractive") => SessionType::NonInteractiveCommands,
            _ => SessionType::StandardStream,
        };
        let replay = replay_agent(&capture, session_type, None);
        assert_eq!(comparable(replay.sent()), comparable(capture.payloads("a2c")), "{name}");
        let input =
            capture.payloads("c2a").into_iter().filter(|(payload_type, _)| *payload_type == PayloadType::Output);
        assert_eq!(
            replay.text(Output::Stdout).into_bytes(),
            input.flat_map(|(_, input)| input).collect::<Vec<u8>>(),
            "{name}"
        );
        let size = serde_json::from_slice(&capture.payload("c2a", PayloadType::Size)).unwrap();
        assert!(
            replay.events.iter().any(|event| matches!(event, SessionEvent::Resized(reported) if *reported == size)),
            "{name}"
        );
        assert!(replay.failures().is_empty(), "{name}: {:?}", replay.failures());
    }
}

#[test]
fn our_client_reads_an_encrypted_shell_and_answers_its_challenge_bit_by_bit() {
    let capture = Capture::read("shell_kms");
    let kms = RecordedKms::of(&capture);
    let keys = kms.keys;
    let replay = replay_client(&capture, Some(kms));
    assert_eq!(replay.text(Output::Stdout), "$ echo secret $((6*7))\r\nsecret 42\r\n$ exit\r\n");
    let texts = replay.events.iter().filter_map(|event| match event {
        SessionEvent::Message(text) => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(texts.collect::<Vec<_>>(), ["This session is encrypted using AWS KMS."]);
    let (sent, recorded) = (replay.sent(), capture.payloads("c2a"));
    // The recorded client is older than the acknowledgement of the challenge.
    let response = String::from_utf8(recorded[0].1.clone()).unwrap();
    let response =
        response.replace(r#""KMSCipherTextHash":null"#, r#""KMSCipherTextHash":null,"ChallengeAcknowledgement":true"#);
    assert_eq!(String::from_utf8(sent[0].1.clone()).unwrap(), response);
    assert_eq!(sent[1..3], recorded[1..3], "challenge and size");
    let input: Vec<_> = sent[3..].iter().map(|(_, sealed)| decrypt(&keys[32..], sealed)).collect();
    assert_eq!(input, [b"echo secret $((6*7))\n".to_vec(), b"exit\n".to_vec()]);
    let nonces: std::collections::BTreeSet<_> = sent[3..].iter().map(|(_, sealed)| sealed[..12].to_vec()).collect();
    assert_eq!(nonces.len(), 2);
}

#[test]
fn our_agent_encrypts_as_the_official_agent_bit_by_bit() {
    let capture = Capture::read("shell_kms");
    let replay = replay_agent(&capture, SessionType::StandardStream, Some(RecordedKms::of(&capture)));
    assert_eq!(comparable(replay.sent()), comparable(capture.payloads("a2c")));
    assert_eq!(replay.text(Output::Stdout), "echo secret $((6*7))\nexit\n");
}

#[test]
fn a_refused_data_key_is_told_as_the_official_client_tells_it() {
    let capture = Capture::read("shell_kms_failed");
    let why = capture.json("c2a", PayloadType::HandshakeResponse)["Errors"][0].as_str().unwrap().to_owned();
    let (start, clock) = clock();
    let config =
        ClientConfig { client_version: "1.2.677.0".into(), identity: identity(&capture), ..ClientConfig::default() };
    let replay = Replay::new(&capture, start, Session::client(config, clock, 1), None).run(
        ["a2c", "s2c"],
        "c2a",
        |replay, payload_type, _| {
            assert_eq!(payload_type, PayloadType::HandshakeResponse);
            replay.session.refuse_data_key(replay.start, &why);
        },
    );
    assert_eq!(replay.sent(), capture.payloads("c2a"));
    assert!(matches!(replay.failures()[..], [ref text] if text.ends_with(&why)));
    assert!(matches!(replay.events.last(), Some(SessionEvent::Closed(closed)) if closed.output.contains(&why)));
    assert!(!replay.events.iter().any(|event| matches!(event, SessionEvent::Ready(_))));
}

#[test]
fn mangled_recordings_leave_every_session_alive() {
    let captures: Vec<_> =
        PLAIN.iter().chain(&["shell_kms", "shell_kms_failed"]).map(|name| Capture::read(name)).collect();
    for seed in 0..100 {
        let mut rng = fastrand::Rng::with_seed(seed);
        for capture in &captures {
            let mut data = Vec::new();
            for (_, _, message) in &capture.0 {
                let mut payload = message.payload().to_vec();
                if rng.u8(..4) == 0 {
                    payload.truncate(rng.usize(..=payload.len()));
                    let at = rng.usize(..payload.len().max(1));
                    payload.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.u8(..8));
                }
                let raw = message.header().seal(ssm_proto::MessageBuf::from(payload.as_slice()));
                data.extend(u16::try_from(raw.len()).unwrap().to_be_bytes());
                data.extend(raw);
            }
            ssm_proto::fuzzing::session_input(&data, Instant::now());
        }
    }
}
