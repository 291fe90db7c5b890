//! Compares this crate with an independent codec, vector by vector (`testdata/README.md`).

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, this is the assertion")]

#[expect(dead_code, reason = "each test uses a part of it")]
mod support;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use ssm_proto::{
    Acknowledge, ActionStatus, AgentHandshake, AgentMessage, ChannelClosed, ChannelConfig, ClientHandshake, Clock,
    DataChannel, DecodeError, Deframer, Frame, FrameError, FrameKind, HandshakeComplete, HandshakeError,
    HandshakeRequest, HandshakeResponse, HandshakeStep, Header, HeaderForm, Identity, MessageBuf, MessageType, Mux,
    MuxConfig, OpenDataChannel, Padding, PayloadType, PortFlag, PortProperties, Retransmission, RttEstimator,
    SessionType, Side, StreamId, Version, publication,
};
use support::{bytes_of, unhex};
use uuid::Uuid;

/// Vectors that do not concern this crate, and the reasons.
const ELSEWHERE: [(&str, &str); 9] = [
    ("open_control_channel_agent", "the agent's control channel is not implemented"),
    ("reconnect_backoff", "the official client's schedule of reconnects; this project has its own in ssm-forward"),
    ("sigv4_open_data_channel", "signing is transport: ssm-forward"),
    ("sigv4_no_token", "signing is transport: ssm-forward"),
    ("kms_client_to_agent", "the cipher is private; its unit tests use this vector"),
    ("kms_agent_to_client", "as above"),
    ("kms_neg_bad_tag", "as above"),
    ("kms_neg_too_short", "as above"),
    ("agent_nonce_counter", "as above"),
];

#[test]
fn every_vector_holds_or_is_named_as_anothers() {
    let mut elsewhere: BTreeSet<&str> = ELSEWHERE.iter().map(|(name, _)| *name).collect();
    let (mut held, mut others) = (0, 0);
    for vector in support::vectors() {
        let name = vector["name"].as_str().unwrap();
        if elsewhere.remove(name) {
            others += 1;
            continue;
        }
        match vector["kind"].as_str().unwrap() {
            "agent_message" => message_round_trip(name, &vector),
            "agent_message_negative" => message_error(name, &vector),
            "smux" => frames_match(name, &vector),
            "smux_negative" => frame_error(name, &vector),
            "text_frame" => open_round_trip(name, &vector),
            "uuid" => uuid_halves(name, &vector),
            "rto" => time_outs(name, &vector),
            "version" => versions(name, &vector),
            kind => panic!("{name}: no check for vectors of kind {kind}"),
        }
        held += 1;
    }
    assert_eq!(elsewhere, BTreeSet::new(), "named, but not present");
    assert_eq!((held, others), (67, 9));
}

fn message_round_trip(name: &str, vector: &Value) {
    let (bytes, fields) = (bytes_of(vector), &vector["decoded"]);
    let message = AgentMessage::decode(bytes.clone().into()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let header = *message.header();
    assert_eq!(header.form.header_length(), number(&fields["header_length"]), "{name}");
    assert_eq!(header.message_type.to_string(), fields["message_type"], "{name}");
    assert_eq!(u64::from(header.schema_version), fields["schema_version"].as_u64().unwrap(), "{name}");
    assert_eq!(header.created_date, fields["created_date"].as_u64().unwrap(), "{name}");
    assert_eq!(header.sequence_number, fields["sequence_number"].as_i64().unwrap(), "{name}");
    assert_eq!(header.flags, fields["flags"].as_u64().unwrap(), "{name}");
    assert_eq!(header.message_id.to_string(), fields["message_id"], "{name}");
    assert_eq!(u64::from(u32::from(header.payload_type)), fields["payload_type"].as_u64().unwrap(), "{name}");
    assert_eq!(format!("{:?}", message.payload_digest()), fields["payload_digest"], "{name}");
    assert_eq!(message.payload().len(), number(&fields["payload_length"]), "{name}");
    // If neither is given, the payload is empty or unspecified.
    let text = fields["payload_utf8"].as_str();
    assert!(text.is_none_or(|text| text.as_bytes() == message.payload()), "{name}");
    let hex = fields["payload_hex"].as_str();
    assert!(hex.is_none_or(|hex| unhex(hex) == message.payload()), "{name}");
    let padding = if bytes[35] == 0 { Padding::Nul } else { Padding::Space };
    assert_eq!(header.padding, padding, "{name}");

    let again = header.seal_with_digest(MessageBuf::from(message.payload()), message.payload_digest());
    assert_eq!(again, bytes, "{name}");
    if !name.contains("bad_digest") {
        assert_eq!(header.seal(MessageBuf::from(message.payload())), bytes, "{name}: own digest");
    }
}

/// Checks the error code of an invalid message against the independent codec's names (WIRE-8).
fn message_error(name: &str, vector: &Value) {
    let error = AgentMessage::decode(bytes_of(vector).into()).expect_err(name);
    let code = match error {
        DecodeError::Truncated { .. } => "TRUNCATED",
        DecodeError::BadHeaderLength { .. } => "BAD_HEADER_LENGTH",
        DecodeError::PayloadTooLarge { .. } => "PAYLOAD_TOO_LARGE",
        DecodeError::PayloadLengthMismatch { .. } => "PAYLOAD_LENGTH_MISMATCH",
        DecodeError::NoMessageType => "NO_MESSAGE_TYPE",
        DecodeError::NoCreatedDate => "NO_CREATED_DATE",
        DecodeError::BadDigest => "BAD_DIGEST",
        other => panic!("{name}: no code for {other:?}"),
    };
    assert_eq!(code, vector["expect"], "{name}: {error}");
}

fn frames_match(name: &str, vector: &Value) {
    let bytes = bytes_of(vector);
    for size in 1..=bytes.len() {
        let (frames, deframer) = deframe(bytes[0], &bytes, size).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(deframer.is_at_boundary(), "{name} in chunks of {size}");
        let expected: Vec<_> = vector["decoded"].as_array().unwrap().iter().map(frame).collect();
        assert_eq!(frames, expected, "{name} in chunks of {size}");
    }
}

fn frame(fields: &Value) -> Frame {
    let kind = match fields["cmd"].as_str().unwrap() {
        "SYN" => FrameKind::Syn,
        "FIN" => FrameKind::Fin,
        "PSH" => FrameKind::Psh,
        "NOP" => FrameKind::Nop,
        "UPD" => FrameKind::Upd,
        other => panic!("{other}"),
    };
    let data: Bytes = unhex(fields["data"].as_str().unwrap()).into();
    assert_eq!(data.len(), number(&fields["length"]));
    Frame { kind, stream: StreamId(u32::try_from(number(&fields["sid"])).unwrap()), data }
}

/// Checks an invalid byte stream. Incomplete input is not an error: the deframer waits for more.
fn frame_error(name: &str, vector: &Value) {
    let outcome = deframe(1, &bytes_of(vector), usize::MAX);
    match (vector["expect"].as_str().unwrap(), outcome) {
        ("SMUX_BAD_VERSION", Err(FrameError::BadVersion(2, 1))) | ("SMUX_BAD_CMD", Err(FrameError::BadCommand(9))) => {}
        ("SMUX_TRUNCATED_HEADER", Ok((frames, deframer))) => {
            assert!(frames.is_empty() && !deframer.is_at_boundary() && !deframer.is_inside_data(), "{name}");
        }
        ("SMUX_TRUNCATED_BODY", Ok((_, deframer))) => assert!(deframer.is_inside_data(), "{name}"),
        (expected, outcome) => panic!("{name}: {expected}, but {outcome:?}"),
    }
}

/// Splits `bytes` into chunks of at most `size`, and the chunks into frames. The parts of a frame are joined.
fn deframe(version: u8, bytes: &[u8], size: usize) -> Result<(Vec<Frame>, Deframer), FrameError> {
    let mut deframer = Deframer::new(version);
    let mut frames: Vec<Frame> = Vec::new();
    let mut continues = false;
    for chunk in bytes.chunks(size) {
        deframer.push(Bytes::copy_from_slice(chunk));
        while let Some(frame) = deframer.next_frame()? {
            match frames.last_mut() {
                Some(last) if continues => last.data = [&last.data[..], &frame.data[..]].concat().into(),
                _ => frames.push(frame),
            }
            continues = deframer.is_inside_data();
        }
    }
    Ok((frames, deframer))
}

fn open_round_trip(name: &str, vector: &Value) {
    let text = vector["utf8"].as_str().unwrap();
    assert_eq!(bytes_of(vector), text.as_bytes(), "{name}");
    let open = OpenDataChannel::from_json(text).unwrap();
    assert_eq!(open.to_json(), text, "{name}");
    assert!(!format!("{open:?}").contains(open.token_value.expose()), "{name}: the token is a secret");
}

/// Checks the order of a UUID's halves (WIRE-5).
fn uuid_halves(name: &str, vector: &Value) {
    let id: Uuid = vector["text"].as_str().unwrap().parse().unwrap();
    let message = Header::new(MessageType::InputStreamData, 1, id).seal(MessageBuf::from(b"x".as_slice()));
    assert_eq!(message[64..80], bytes_of(vector), "{name}");
    assert_eq!(AgentMessage::decode(message).unwrap().message_id(), id, "{name}");
}

/// Checks the retransmission timeout: the peers' arithmetic, their limit of one second, and their initial timeout (DC-9).
fn time_outs(name: &str, vector: &Value) {
    let millis = |value: &Value| Duration::from_secs_f64(value.as_f64().unwrap() / 1000.0);
    let close = |ours: Duration, theirs: Duration| ours.abs_diff(theirs) < Duration::from_micros(1);
    let initial = &vector["initial"];
    let mut rtt = RttEstimator::seeded(millis(&initial["rtt_ms"]));
    assert_eq!(rtt.rttvar(), millis(&initial["var_ms"]), "{name}");
    for step in vector["steps"].as_array().unwrap() {
        rtt.update(millis(&step["sample_ms"]));
        assert!(close(rtt.srtt_or_initial(), millis(&step["rtt_ms"])), "{name}: {step} {rtt:?}");
        assert!(close(rtt.rttvar(), millis(&step["var_ms"])), "{name}: {step} {rtt:?}");
        assert!(close(rtt.rto().min(Duration::from_secs(1)), millis(&step["rto_ms"])), "{name}: {step} {rtt:?}");
    }

    let now = Instant::now();
    let config = ChannelConfig { retransmission: Retransmission::HeadOnly, ..ChannelConfig::default() };
    let mut channel = DataChannel::new(Side::Agent, config, Clock { start: now, unix: Duration::from_secs(1) }, 1);
    channel.handle_connected(now);
    channel.send(now, PayloadType::Output, MessageBuf::from(b"x".as_slice())).unwrap();
    assert!(channel.poll_transmit(now).is_some());
    assert_eq!(channel.poll_timeout().unwrap().at, now + millis(&initial["rto_ms"]), "{name}");
}

/// Checks the comparison of versions (HS-9).
fn versions(name: &str, vector: &Value) {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    for case in vector["plugin_agent_newer_than"].as_array().unwrap() {
        let newer = Version::new(&text(case, "agent")).client_sees_newer_than(&text(case, "constant"));
        assert_eq!(newer, case["result"], "{name}: {case}");
    }
    for case in vector["agent_client_compare"].as_array().unwrap() {
        let ordering = Version::new(&text(case, "client")).agent_compares(&text(case, "constant"));
        let expected = case["cmp"].as_i64().unwrap().cmp(&0);
        assert_eq!(ordering, expected, "{name}: {case}");
    }
}

#[test]
fn acknowledgements_are_written_as_the_peers_write_them() {
    for (name, number, kind) in
        [("ack_by_client", 7, MessageType::OutputStreamData), ("ack_by_agent", 0, MessageType::InputStreamData)]
    {
        let bytes = bytes_of(&named(name));
        let message = decoded(name);
        let ack = Acknowledge::decode(message.payload()).unwrap();
        assert_eq!((ack.sequence_number, ack.message_type), (number, kind), "{name}");
        assert_eq!(ack.message_id.to_string(), "dd01e56b-ff48-483e-a508-b5f073f31b16");
        assert_eq!(ack.encode(message.header().created_date, message.message_id()), bytes, "{name}");
    }
}

#[test]
fn flags_are_read_and_written() {
    let flags = [
        ("flag_DisconnectToPort", PortFlag::DisconnectToPort),
        ("flag_TerminateSession", PortFlag::TerminateSession),
        ("flag_ConnectToPortError", PortFlag::ConnectToPortError),
    ];
    for (name, flag) in flags {
        let message = decoded(name);
        assert_eq!(message.payload_type(), PayloadType::Flag, "{name}");
        assert_eq!(PortFlag::decode(message.payload()), Some(flag), "{name}");
        assert_eq!(message.payload(), flag.encode(), "{name}");
    }
    assert_eq!(PortFlag::decode(&[3, 0, 0, 0]), None, "flags are big-endian");
}

#[test]
fn channel_closed_is_read_in_both_forms_and_written_in_the_services() {
    for (name, form) in [
        ("channel_closed_hl112_nul", HeaderForm::Short),
        ("channel_closed_with_output", HeaderForm::Short),
        ("channel_closed_hl116", HeaderForm::Full),
    ] {
        let message = decoded(name);
        assert_eq!((message.message_type(), message.header().form), (MessageType::ChannelClosed, form), "{name}");
        let closed = ChannelClosed::decode(message.payload());
        let json: Value = serde_json::from_slice(message.payload()).unwrap();
        assert_eq!(serde_json::to_value(&closed).unwrap(), json, "{name}");
        assert_eq!(closed.output.is_empty(), name != "channel_closed_with_output", "{name}");
        if form == HeaderForm::Short {
            let created = message.header().created_date;
            let written = ChannelClosed::encode(
                &closed.session_id,
                &closed.destination_id,
                &closed.output,
                created,
                message.message_id(),
            );
            assert_eq!(written, bytes_of(&named(name)), "{name}");
        }
    }
}

#[test]
fn publication_pauses_and_resumes_a_channel_even_with_a_bad_digest() {
    let now = Instant::now();
    let bytes = |name| Bytes::from(bytes_of(&named(name)));
    let own = |start| publication(start, 1, Uuid::nil());
    let pairs = [
        (bytes("pause_publication"), bytes("start_publication")),
        (bytes("pause_publication_bad_digest_zero_date"), bytes("start_publication")),
        (own(false), own(true)),
    ];
    for (pause, start) in pairs {
        let clock = Clock { start: now, unix: Duration::from_secs(1) };
        let mut channel = DataChannel::new(Side::Client, ChannelConfig::default(), clock, 1);
        channel.handle_connected(now);
        channel.send(now, PayloadType::Output, MessageBuf::from(b"in flight".as_slice())).unwrap();
        channel.poll_transmit(now).unwrap();
        channel.handle_input(now, pause).unwrap();
        assert!(!channel.can_send());
        channel.handle_input(now, start).unwrap();
        assert!(channel.can_send());
        let again = AgentMessage::decode(channel.poll_transmit(now).unwrap()).unwrap();
        assert_eq!((again.sequence_number(), again.payload()), (0, b"in flight".as_slice()));
        assert!(channel.poll_transmit(now).is_none(), "neither is acknowledged");
    }
}

#[test]
fn the_client_answers_a_port_request_byte_for_byte() {
    let request = decoded("handshake_request_port");
    let mut handshake = ClientHandshake::new("1.2.764.0", Identity::default(), false);
    let (step, outcome) = handshake.handle_payload(request.payload_type(), request.payload());
    outcome.unwrap();
    let Some(HandshakeStep::Send(PayloadType::HandshakeResponse, body)) = step else { panic!("{step:?}") };
    assert_eq!(body, decoded("handshake_response_port").payload());
    assert_eq!(handshake.session_type(), Some(&SessionType::Port(port_80())));
    assert_eq!(handshake.agent_version(), "3.3.987.0");
    assert!(handshake.agent_multiplexes() && !handshake.agent_expects_keep_alive());

    let complete = decoded("handshake_complete");
    let (step, _) = handshake.handle_payload(complete.payload_type(), complete.payload());
    assert!(matches!(step, Some(HandshakeStep::Complete(complete)) if complete.customer_message.is_empty()));
    assert!(handshake.is_complete());
}

#[test]
fn the_agent_asks_for_a_port_and_takes_or_refuses_the_answer() {
    let now = Instant::now();
    let begin = || {
        let mut handshake = AgentHandshake::new("3.3.987.0", SessionType::Port(port_80()), None, Identity::default());
        (handshake.start(now), handshake)
    };
    let (step, mut handshake) = begin();
    let Some(HandshakeStep::Send(PayloadType::HandshakeRequest, body)) = step else { panic!("{step:?}") };
    let request = decoded("handshake_request_port");
    assert_eq!(json(&body), json(request.payload()));

    let response = decoded("handshake_response_port");
    let step = handshake.handle_payload(now, response.payload_type(), response.payload()).unwrap();
    assert!(matches!(step, Some(HandshakeStep::Complete(_))));
    assert!(handshake.client_multiplexes() && !handshake.client_sends_keep_alive());

    let (_, mut handshake) = begin();
    let refusal = decoded("handshake_response_failed");
    let outcome = handshake.handle_payload(now, refusal.payload_type(), refusal.payload());
    assert!(matches!(outcome, Err(HandshakeError::Refused(_))), "{outcome:?}");
}

#[test]
fn handshake_bodies_survive_a_round_trip() {
    for name in ["handshake_request_port", "handshake_request_kms"] {
        let payload = decoded(name).into_payload();
        let request: HandshakeRequest = serde_json::from_slice(&payload).unwrap();
        assert_eq!(serde_json::to_value(&request).unwrap(), json(&payload), "{name}");
    }
    for name in ["handshake_response_port", "handshake_response_kms", "handshake_response_failed"] {
        let payload = decoded(name).into_payload();
        let response: HandshakeResponse = serde_json::from_slice(&payload).unwrap();
        assert_eq!(serde_json::to_value(&response).unwrap(), json(&payload), "{name}");
        let failed =
            response.processed_client_actions.iter().any(|action| action.action_status == ActionStatus::Failed);
        assert_eq!(failed, name == "handshake_response_failed", "{name}");
    }
    for (name, text) in
        [("handshake_complete", ""), ("handshake_complete_kms", "This session is encrypted using AWS KMS.")]
    {
        let payload = decoded(name).into_payload();
        let complete: HandshakeComplete = serde_json::from_slice(&payload).unwrap();
        assert_eq!(complete.customer_message, text, "{name}");
        assert_eq!(serde_json::to_vec(&complete).unwrap(), payload, "{name}");
    }
}

#[test]
fn opening_a_data_channel_is_written_as_the_client_writes_it() {
    let vector = named("open_data_channel_client");
    let id = |text: &str| text.parse::<Uuid>().unwrap();
    let request_id = id("0f8fad5b-d9cb-469f-a165-70867728950e");
    let client_id = id("7c9e6679-7425-40de-944b-e07fc1f90ae7");
    let open = OpenDataChannel::client(request_id, "AAEAAexampleToken==", client_id, "1.2.764.0");
    assert_eq!(open.to_json(), vector["utf8"]);
}

#[test]
fn the_mux_writes_the_vectors_frames() {
    let now = Instant::now();
    let message = |mux: &mut Mux| {
        let mut buf = MessageBuf::with_limit(1024, 64);
        mux.poll_transmit(&mut buf);
        buf.payload().to_vec()
    };
    // The first message to an agent ends with the first byte of the next frame (MUX-12).
    let first = |mux: &mut Mux| message(mux).strip_suffix(&[1]).expect("the next frame's first byte").to_vec();
    let mut mux = Mux::new(Side::Client, MuxConfig::default(), now);
    let id = mux.open();
    assert_eq!(first(&mut mux), bytes_of(&named("smux_syn_sid3")));
    mux.write(id, Bytes::from_static(b"abc")).unwrap();
    assert_eq!(message(&mut mux), bytes_of(&named("smux_psh_sid3_abc"))[1..]);
    mux.close(id);
    assert_eq!(first(&mut mux), bytes_of(&named("smux_fin_sid3")));

    let mut mux = Mux::new(Side::Client, MuxConfig::default(), now);
    let id = mux.open();
    mux.write(id, Bytes::from_static(b"GET / HTTP/1.0\r\n\r\n")).unwrap();
    mux.close(id);
    assert_eq!(first(&mut mux), bytes_of(&named("smux_stream_of_frames")));

    let mut mux = Mux::new(Side::Client, MuxConfig::default(), now);
    let id = mux.open();
    mux.write(id, Bytes::from_static(b"ping")).unwrap();
    assert_eq!(first(&mut mux), decoded("port_mux_open_and_write").payload());

    let interval = Duration::from_secs(10);
    let mut mux = Mux::new(Side::Client, MuxConfig { keep_alive: Some(interval), ..MuxConfig::default() }, now);
    mux.handle_timeout(now + interval).unwrap();
    assert_eq!(first(&mut mux), bytes_of(&named("smux_nop")));
}

#[test]
fn versions_that_are_none_are_older_than_everything() {
    assert_eq!(Version::new("").agent_compares(Version::CLIENT_MUX), Ordering::Less);
    assert!(!Version::new("").client_sees_newer_than(Version::AGENT_MUX));
}

fn named(name: &str) -> Value {
    support::vectors().into_iter().find(|vector| vector["name"] == name).unwrap_or_else(|| panic!("no vector {name}"))
}

fn decoded(name: &str) -> AgentMessage {
    AgentMessage::decode(bytes_of(&named(name)).into()).unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn port_80() -> PortProperties {
    PortProperties {
        local_port_number: Some("0".into()),
        port_number: Some("80".into()),
        kind: Some("LocalPortForwarding".into()),
        ..PortProperties::default()
    }
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}
