//! Recorded sessions of the official client and agent (`testdata/README.md`), replayed against each side of this crate.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, this is the assertion")]

#[expect(dead_code, reason = "each test uses a part of it")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use ssm_proto::{
    Acknowledge, AgentConfig, AgentMessage, ClientConfig, Clock, Deframer, FrameKind, HandshakeRequest,
    HandshakeResponse, MessageBuf, MessageType, OpenDataChannel, PayloadType, PortFlag, PortProperties, Session,
    SessionEvent, SessionMode as Mode, SessionType, Side, StreamId,
};
use support::bytes_of;

/// Number of binary messages in all captures, number of acknowledgements among them, and number of WebSockets.
const MESSAGES: usize = 499;
const ACKS: usize = 178;
const OPENED: usize = 56;

#[test]
fn every_message_is_read_and_written_again_byte_for_byte() {
    let (mut messages, mut acks) = (0, 0);
    for (capture, lines) in support::captures() {
        for line in lines.iter().filter(|line| line["kind"] == "bin") {
            let (bytes, fields) = (bytes_of(line), &line["m"]);
            let place = format!("{capture} at {}", line["t"]);
            let message = AgentMessage::decode(bytes.clone().into()).unwrap_or_else(|error| panic!("{place}: {error}"));
            let header = message.header();
            assert_eq!(header.message_type.to_string(), fields["type"], "{place}");
            assert_eq!(header.created_date, fields["created"].as_u64().unwrap(), "{place}");
            assert_eq!(header.sequence_number, fields["seq"].as_i64().unwrap(), "{place}");
            assert_eq!(header.flags, fields["flags"].as_u64().unwrap(), "{place}");
            assert_eq!(header.message_id.to_string(), fields["id"], "{place}");
            assert_eq!(u64::from(u32::from(header.payload_type)), fields["ptype"].as_u64().unwrap(), "{place}");
            assert_eq!(header.seal(MessageBuf::from(message.payload())), bytes, "{place}");
            if header.message_type == MessageType::Acknowledge {
                let ack = Acknowledge::decode(message.payload()).unwrap();
                assert_eq!(ack.encode(header.created_date, header.message_id), bytes, "{place}");
                acks += 1;
            }
            messages += 1;
        }
    }
    assert_eq!((messages, acks), (MESSAGES, ACKS));
}

#[test]
fn both_peers_opening_frames_are_read_and_written_again() {
    let mut opened = 0;
    for (capture, lines) in support::captures() {
        for line in &lines {
            let frame = &line["data"]["open"];
            if frame.is_object() {
                let open = OpenDataChannel::from_json(&frame.to_string()).unwrap();
                let again: Value = serde_json::from_str(&open.to_json()).unwrap();
                assert_eq!(again, *frame, "{capture}");
                opened += 1;
            }
        }
    }
    assert_eq!(opened, OPENED);
}

#[test]
fn the_client_side_says_what_the_official_client_said() {
    for recording in recordings() {
        let replay = Replay::run(&recording, Side::Client);
        replay.compare(&recording);
    }
}

#[test]
fn the_agent_side_says_what_the_official_agent_said() {
    for recording in recordings() {
        let replay = Replay::run(&recording, Side::Agent);
        replay.compare(&recording);
    }
}

/// The official client changes a payload that is a single line feed to a carriage return. A tunnel must not do that (PORT-7).
#[test]
fn a_line_feed_alone_in_a_message_stays_one() {
    let recording = recording("portforward_mux_newline_corruption");
    let theirs = &streams(&recording.numbered(Side::Client), Mode::Mux)[&3];
    let replay = Replay::run(&recording, Side::Client);
    let ours = &streams(&replay.sent, Mode::Mux)[&3];
    assert_eq!(theirs.data.len(), ours.data.len());
    let differ: Vec<_> =
        theirs.data.iter().zip(&ours.data).filter(|(a, b)| a != b).map(|(theirs, ours)| (*theirs, *ours)).collect();
    assert_eq!(differ, [(b'\r', b'\n')]);
}

/// The official client never acknowledges a message twice, and the agent retransmits its first message until the end
/// (DC-6).
#[test]
fn a_repeated_message_is_acknowledged_again() {
    let recording = recording("ssh_server_closes");
    let replay = Replay::run(&recording, Side::Client);
    let copies =
        recording.messages(Side::Agent).filter(|message| is_numbered(message) && message.sequence_number() == 0);
    let theirs = acks(recording.messages(Side::Client)).iter().filter(|ack| ack.sequence_number == 0).count();
    let ours = replay.acks.iter().filter(|ack| ack.sequence_number == 0).count();
    assert_eq!((theirs, ours), (1, copies.count()));
    assert!(ours > 1);
}

/// The official client retransmits an unacknowledged message every 100 ms, 76 times in this recording (DC-10).
#[test]
fn an_unanswered_message_is_repeated_unchanged_but_less_and_less_often() {
    let recording = recording("ssh_refused");
    let copies_of = |messages: Vec<AgentMessage>| -> Vec<Bytes> {
        let of_number_1 = messages.into_iter().filter(|message| is_numbered(message) && message.sequence_number() == 1);
        of_number_1.map(|message| message.header().seal(MessageBuf::from(message.payload()))).collect()
    };
    let theirs = copies_of(recording.messages(Side::Client).collect());
    let ours = copies_of(Replay::run(&recording, Side::Client).messages);
    assert!(ours.len() > 2 && ours.len() < theirs.len() / 2, "{} against {}", ours.len(), theirs.len());
    assert!(ours.iter().all(|copy| *copy == ours[0]));
}

/// Returns the recordings of port sessions: all except shells and commands.
fn recordings() -> Vec<Recording> {
    let recordings: Vec<_> = support::captures()
        .into_iter()
        .filter(|(name, _)| ["portforward_", "ssh_", "reconnect_"].iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, lines)| Recording { name, lines })
        .collect();
    assert_eq!(recordings.len(), 16);
    recordings
}

fn recording(name: &str) -> Recording {
    recordings().into_iter().find(|recording| recording.name == name).unwrap()
}

struct Recording {
    name: String,
    lines: Vec<Value>,
}

impl Recording {
    /// Returns the messages that `from` sent to the other end.
    fn messages(&self, from: Side) -> impl Iterator<Item = AgentMessage> {
        let direction = if from == Side::Client { "c2a" } else { "a2c" };
        let lines = self.lines.iter().filter(move |line| line["kind"] == "bin" && line["dir"] == direction);
        lines.map(|line| AgentMessage::decode(bytes_of(line).into()).unwrap())
    }

    fn numbered(&self, from: Side) -> Numbered {
        numbered(self.messages(from))
    }

    /// Returns the body of `from`'s handshake message of this type.
    fn body(&self, from: Side, payload_type: PayloadType) -> Option<Bytes> {
        self.numbered(from).into_values().find(|(kind, _)| *kind == payload_type).map(|(_, payload)| payload)
    }
}

/// Payloads by number: the payloads that a receiver accepts, without duplicates.
type Numbered = BTreeMap<i64, (PayloadType, Bytes)>;

fn numbered(messages: impl Iterator<Item = AgentMessage>) -> Numbered {
    let numbered = messages.filter(is_numbered);
    numbered.map(|message| (message.sequence_number(), (message.payload_type(), message.into_payload()))).collect()
}

fn is_numbered(message: &AgentMessage) -> bool {
    matches!(message.message_type(), MessageType::InputStreamData | MessageType::OutputStreamData)
}

fn acks(messages: impl Iterator<Item = AgentMessage>) -> Vec<Acknowledge> {
    let acks = messages.filter(|message| message.message_type() == MessageType::Acknowledge);
    acks.map(|message| Acknowledge::decode(message.payload()).unwrap()).collect()
}

/// One direction of one stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stream {
    opened: bool,
    data: Vec<u8>,
    finished: bool,
}

/// Returns the content of the payloads, by stream.
fn streams(numbered: &Numbered, mode: Mode) -> BTreeMap<u32, Stream> {
    let mut streams: BTreeMap<u32, Stream> = BTreeMap::new();
    let mut deframer = Deframer::new(1);
    for (_, payload) in numbered.values().filter(|(kind, _)| *kind == PayloadType::Output) {
        if mode != Mode::Mux {
            streams.entry(1).or_default().data.extend_from_slice(payload);
            continue;
        }
        deframer.push(payload.clone());
        while let Some(frame) = deframer.next_frame().unwrap() {
            // Our client sends a NOP before a FIN that would begin a message (MUX-12).
            if frame.kind == FrameKind::Nop {
                continue;
            }
            let stream = streams.entry(frame.stream.0).or_default();
            match frame.kind {
                FrameKind::Syn => stream.opened = true,
                FrameKind::Psh => stream.data.extend_from_slice(&frame.data),
                FrameKind::Fin => stream.finished = true,
                other => panic!("unexpected frame {other:?}"),
            }
        }
    }
    streams
}

/// Reverts the official client's change of a payload that is a single line feed.
fn as_the_program_wrote(payload: Bytes) -> Bytes {
    if payload == "\r" { Bytes::from_static(b"\n") } else { payload }
}

/// One of our sides in the place of a recorded side. It receives the messages that the recorded side received, and its programs act
/// like the recorded programs.
struct Replay {
    side: Side,
    session: Session,
    now: Instant,
    mode: Option<Mode>,
    /// The data that the recorded side sent, as frames. It determines the actions of the programs.
    script: Deframer,
    script_at: i64,
    refusing: bool,
    connected: bool,
    received: Vec<AgentMessage>,
    messages: Vec<AgentMessage>,
    sent: Numbered,
    acks: Vec<Acknowledge>,
    read: BTreeMap<u32, Vec<u8>>,
    refused: BTreeSet<u32>,
    finished: BTreeSet<u32>,
    /// Streams that this side ended first.
    left: BTreeSet<u32>,
    terminated: bool,
    closed: Option<String>,
}

impl Replay {
    fn run(recording: &Recording, side: Side) -> Self {
        let start = Instant::now();
        let mut replay = Self::new(side, Self::session(recording, side, start), start);
        for line in &recording.lines {
            let at = start + Duration::from_secs_f64(line["t"].as_f64().unwrap());
            // Our sides wait longer after the handshake than the recorded sides. Nothing else takes additional time.
            replay.advance(at.max(replay.now + Duration::from_millis(60)));
            replay.play(line);
            replay.drain();
        }
        replay.sent = numbered(replay.messages.iter().cloned());
        replay.acks = acks(replay.messages.iter().cloned());
        replay
    }

    fn session(recording: &Recording, side: Side, start: Instant) -> Session {
        let clock = Clock { start, unix: Duration::from_secs(1_700_000_000) };
        let request = recording.body(Side::Agent, PayloadType::HandshakeRequest).unwrap();
        let request: HandshakeRequest = serde_json::from_slice(&request).unwrap();
        if side == Side::Agent {
            let properties = &request.requested_client_actions[0].action_parameters["Properties"];
            let properties: PortProperties = serde_json::from_value(properties.clone()).unwrap();
            let config = AgentConfig {
                agent_version: request.agent_version,
                session_type: SessionType::Port(properties),
                ..AgentConfig::default()
            };
            return Session::agent(config, clock, 1);
        }
        let response = recording.body(Side::Client, PayloadType::HandshakeResponse).unwrap();
        let response: HandshakeResponse = serde_json::from_slice(&response).unwrap();
        let config = ClientConfig { client_version: response.client_version, ..ClientConfig::default() };
        Session::client(config, clock, 1)
    }

    fn new(side: Side, session: Session, now: Instant) -> Self {
        Self {
            side,
            session,
            now,
            mode: None,
            script: Deframer::new(1),
            script_at: 0,
            refusing: false,
            connected: false,
            received: Vec::new(),
            messages: Vec::new(),
            sent: Numbered::new(),
            acks: Vec::new(),
            read: BTreeMap::new(),
            refused: BTreeSet::new(),
            finished: BTreeSet::new(),
            left: BTreeSet::new(),
            terminated: false,
            closed: None,
        }
    }

    fn advance(&mut self, to: Instant) {
        while let Some(timeout) = self.session.poll_timeout().filter(|timeout| timeout.at <= to) {
            self.now = self.now.max(timeout.at);
            self.session.handle_timeout(self.now);
            self.drain();
        }
        self.now = to;
    }

    fn play(&mut self, line: &Value) {
        let (own, received, service, socket) = match self.side {
            Side::Client => ("c2a", "a2c", "s2c", "c2s"),
            Side::Agent => ("a2c", "c2a", "s2a", "a2s"),
        };
        let direction = line["dir"].as_str().unwrap();
        if line["kind"] == "bin" && (direction == received || direction == service) {
            // Messages that were recorded after this end had disconnected never reached it.
            if self.connected {
                let bytes = Bytes::from(bytes_of(line));
                self.session.handle_input(self.now, bytes.clone()).unwrap();
                self.received.push(AgentMessage::decode(bytes).unwrap());
            }
        } else if line["kind"] == "bin" && direction == own {
            self.act(AgentMessage::decode(bytes_of(line).into()).unwrap());
        } else if line["kind"] == "event" && direction == socket {
            if line["data"]["open"].is_object() {
                self.connected = true;
                self.session.handle_connected(self.now);
            } else if line["data"]["ws_closed"].is_number() {
                self.connected = false;
                self.session.handle_disconnected(self.now);
            }
        }
    }

    /// Performs the action that made the recorded side send this message.
    fn act(&mut self, message: AgentMessage) {
        if !is_numbered(&message) || message.sequence_number() < self.script_at {
            return;
        }
        self.script_at = message.sequence_number() + 1;
        match message.payload_type() {
            PayloadType::Output if self.mode == Some(Mode::Mux) => {
                let payload = message.into_payload();
                let payload = if self.side == Side::Client { as_the_program_wrote(payload) } else { payload };
                self.script.push(payload);
                while let Some(frame) = self.script.next_frame().unwrap() {
                    self.act_on_stream(frame.kind, frame.stream, frame.data);
                }
            }
            PayloadType::Output => self.session.write(StreamId(1), message.into_payload()).unwrap(),
            PayloadType::Flag => match PortFlag::decode(message.payload()).unwrap() {
                PortFlag::TerminateSession => self.session.terminate(),
                PortFlag::ConnectToPortError => self.refusing = true,
                other => panic!("unexpected frame {other:?}"),
            },
            _ => {}
        }
    }

    fn act_on_stream(&mut self, kind: FrameKind, id: StreamId, data: Bytes) {
        match kind {
            FrameKind::Syn => assert_eq!(self.session.open().unwrap(), id),
            FrameKind::Psh => self.session.write(id, data).unwrap(),
            FrameKind::Fin if std::mem::take(&mut self.refusing) => {
                self.session.refuse(id);
                self.left.insert(id.0);
            }
            FrameKind::Fin => {
                // An agent that ends a stream first forgets the stream and ignores all data that arrives for it (MUX-8).
                if self.side == Side::Agent && !self.finished.contains(&id.0) {
                    self.left.insert(id.0);
                }
                self.session.finish(self.now, id);
            }
            other => panic!("unexpected frame {other:?}"),
        }
    }

    fn drain(&mut self) {
        loop {
            while let Some(message) = self.session.poll_transmit(self.now) {
                self.messages.push(AgentMessage::decode(message).unwrap());
            }
            let Some(event) = self.session.poll_event() else { return };
            match event {
                SessionEvent::Ready(mode) => {
                    self.mode = Some(mode);
                    if mode == Mode::Plain && self.side == Side::Client {
                        assert_eq!(self.session.open().unwrap(), StreamId(1));
                    }
                }
                SessionEvent::Readable(id) => {
                    while let Some(chunk) = self.session.read(id) {
                        self.read.entry(id.0).or_default().extend_from_slice(&chunk);
                    }
                }
                SessionEvent::Refused(id) => drop(self.refused.insert(id.0)),
                SessionEvent::Finished(id) => drop(self.finished.insert(id.0)),
                SessionEvent::Terminated => self.terminated = true,
                SessionEvent::Closed(closed) => self.closed = Some(closed.output),
                SessionEvent::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }

    fn compare(&self, recording: &Recording) {
        let name = format!("{} ({:?} side)", recording.name, self.side);
        let mode = self.mode.unwrap_or_else(|| panic!("{name}: never ready"));
        self.compare_acks(recording, &name);
        self.compare_control(recording, &name);

        let theirs = recording.numbered(self.side);
        let theirs = theirs.into_iter().map(|(number, (kind, payload))| match (self.side, mode) {
            (Side::Client, Mode::Mux) => (number, (kind, as_the_program_wrote(payload))),
            _ => (number, (kind, payload)),
        });
        assert_eq!(streams(&self.sent, mode), streams(&theirs.collect(), mode), "{name}: sent");

        let received = numbered(self.received.iter().cloned());
        for (id, stream) in &streams(&received, mode) {
            let read = self.read.get(id).map_or(&[][..], Vec::as_slice);
            assert_eq!(read, stream.data, "{name}: read from stream {id}");
            let over = [&self.finished, &self.refused, &self.left].iter().any(|streams| streams.contains(id));
            assert!(!stream.finished || over, "{name}: the end of stream {id} was not reported");
        }
        let flags = received.values().filter(|(kind, _)| *kind == PayloadType::Flag);
        let flags: Vec<_> = flags.map(|(_, payload)| PortFlag::decode(payload).unwrap()).collect();
        assert_eq!(self.terminated, flags.contains(&PortFlag::TerminateSession), "{name}");
        assert_eq!(!self.refused.is_empty(), flags.contains(&PortFlag::ConnectToPortError), "{name}");
        assert_eq!(self.closed, closing_text(&self.received), "{name}");
    }

    /// Our side must acknowledge at least the messages that the recorded side acknowledged, with the same number, type and id.
    fn compare_acks(&self, recording: &Recording, name: &str) {
        let key = |ack: &Acknowledge| (ack.sequence_number, ack.message_type.to_string(), ack.message_id);
        let ours: BTreeSet<_> = self.acks.iter().map(key).collect();
        let theirs: BTreeSet<_> = acks(recording.messages(self.side)).iter().map(key).collect();
        assert!(theirs.is_subset(&ours), "{name}: {theirs:?} but {ours:?}");
        let received = self.received.iter().filter(|message| is_numbered(message));
        assert_eq!(received.map(|message| key(&Acknowledge::of(message))).collect::<BTreeSet<_>>(), ours, "{name}");
    }

    /// Handshake bodies and flags must be the same, in the same order, except for times.
    fn compare_control(&self, recording: &Recording, name: &str) {
        let control = |numbered: &Numbered| -> Vec<(PayloadType, Value)> {
            let control = numbered.values().filter(|(kind, _)| *kind != PayloadType::Output);
            control.map(|(kind, payload)| (*kind, without_times(*kind, payload))).collect()
        };
        assert_eq!(control(&self.sent), control(&recording.numbered(self.side)), "{name}");
    }
}

fn without_times(payload_type: PayloadType, payload: &[u8]) -> Value {
    if payload_type == PayloadType::Flag {
        return payload.into();
    }
    let mut body: Value = serde_json::from_slice(payload).unwrap();
    if let Some(time) = body.get_mut("HandshakeTimeToComplete") {
        assert!(time.is_i64());
        *time = Value::Null;
    }
    body
}

/// Returns the text of the last `channel_closed`.
fn closing_text(received: &[AgentMessage]) -> Option<String> {
    let closed = received.iter().rfind(|message| message.message_type() == MessageType::ChannelClosed)?;
    let body: Value = serde_json::from_slice(closed.payload()).unwrap();
    Some(body["Output"].as_str().unwrap_or_default().to_owned())
}
