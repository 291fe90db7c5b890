//! Tests of a whole session. Its parts have their own tests.

use std::time::Duration;

use super::*;
use crate::channel::ChannelConfig;
use crate::cipher::PlaintextKey;
use crate::handshake::{AgentKms, DataKey, HandshakeResponse, PortProperties};
use crate::wire::{AgentMessage, Header, MessageType};

fn key() -> PlaintextKey {
    PlaintextKey::new(&(0..64).collect::<Vec<u8>>()).unwrap()
}

fn data_key() -> DataKey {
    DataKey { plaintext: key(), ciphertext: Bytes::from_static(b"blob") }
}

fn kms() -> AgentKms {
    AgentKms {
        key_id: "alias/k".into(),
        challenge: Some([5; 16]),
        require_acknowledgement: true,
        proof: [6; 64],
        first_nonce: [7; 12],
    }
}

/// Two sessions that are connected directly, without a link.
struct Ends {
    now: Instant,
    client: Session,
    agent: Session,
    /// The numbered messages that were exchanged, in both directions.
    crossed: Vec<AgentMessage>,
}

impl Ends {
    fn new(client: ClientConfig, agent: AgentConfig) -> Self {
        let now = Instant::now();
        let clock = Clock { start: now, unix: Duration::from_secs(1) };
        let mut ends = Self {
            now,
            client: Session::client(client, clock, 1),
            agent: Session::agent(agent, clock, 2),
            crossed: Vec::new(),
        };
        ends.client.handle_connected(now);
        ends.agent.handle_connected(now);
        ends
    }

    fn shell(kms: Option<AgentKms>) -> Self {
        let agent = AgentConfig { session_type: SessionType::StandardStream, kms, ..AgentConfig::default() };
        Self::new(ClientConfig::default(), agent)
    }

    /// Creates an encrypted shell with a complete handshake.
    fn encrypted() -> Self {
        let mut ends = Self::shell(Some(kms()));
        ends.exchange();
        ends.client.provide_data_key(ends.now, &data_key(), [9; 12]);
        ends.exchange();
        ends.agent.provide_plaintext_key(ends.now, &key());
        ends.exchange();
        ends.now += Duration::from_secs(1);
        ends.client.handle_timeout(ends.now);
        ends
    }

    fn exchange(&mut self) {
        loop {
            let up = self.client.poll_transmit(self.now);
            let down = self.agent.poll_transmit(self.now);
            if up.is_none() && down.is_none() {
                return;
            }
            for (raw, to) in [(up, &mut self.agent), (down, &mut self.client)] {
                let Some(raw) = raw else { continue };
                let message = AgentMessage::decode(raw.clone()).unwrap();
                if message.message_type() != MessageType::Acknowledge {
                    self.crossed.push(message);
                }
                to.handle_input(self.now, raw).unwrap();
            }
        }
    }

    /// Exchanges everything, advances the time by a second, and exchanges everything again.
    fn settle(&mut self) {
        self.exchange();
        self.now += Duration::from_secs(1);
        self.client.handle_timeout(self.now);
        self.agent.handle_timeout(self.now);
        self.exchange();
    }

    fn crossed_from_agent(&self) -> usize {
        self.crossed.iter().filter(|message| message.message_type() == MessageType::OutputStreamData).count()
    }

    fn crossed(&mut self, wanted: PayloadType) -> Vec<Bytes> {
        let crossed = self.crossed.iter().filter(|message| message.payload_type() == wanted);
        crossed.map(|message| message.clone().into_payload()).collect()
    }
}

fn events(session: &mut Session) -> Vec<SessionEvent> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn failure(session: &mut Session) -> Option<String> {
    events(session).into_iter().find_map(|event| match event {
        SessionEvent::Failed(error) => Some(error.to_string()),
        _ => None,
    })
}

/// Creates a message from the peer.
fn message(message_type: MessageType, number: i64, payload_type: PayloadType, payload: &[u8]) -> Bytes {
    let header = Header::new(message_type, 1, uuid::Uuid::nil());
    Header { sequence_number: number, payload_type, ..header }.seal(MessageBuf::from(payload))
}

#[test]
fn a_shell_without_a_handshake_is_ready_with_its_first_output() {
    let mut ends = Ends::shell(None);
    let agent_events = events(&mut ends.agent);
    let [SessionEvent::Ready(SessionMode::Shell), SessionEvent::Opened(stream)] = agent_events[..] else { panic!() };
    ends.client.resize(TerminalSize { cols: 1, rows: 1 });
    ends.client.resize(TerminalSize { cols: 80, rows: 24 });
    ends.exchange();
    assert!(ends.crossed.is_empty(), "the session type is not known yet");
    assert_eq!(ends.client.open(), Err(OpenError::NotReady));
    ends.agent.write(stream, Bytes::from_static(b"$ ")).unwrap();
    ends.exchange();
    assert_eq!(ends.client.session_type(), Some(&SessionType::StandardStream));
    let id = ends.client.open().unwrap();
    assert_eq!(ends.client.read_output(id), Some((Output::Stdout, Bytes::from_static(b"$ "))));
    assert_eq!(ends.crossed(PayloadType::Size), [&br#"{"cols":80,"rows":24}"#[..]]);
    ends.client.resize(TerminalSize { cols: 80, rows: 24 });
    ends.exchange();
    assert_eq!(ends.crossed(PayloadType::Size).len(), 1, "the agent is known to be ready");
    assert!(matches!(events(&mut ends.agent)[..], [SessionEvent::Resized(TerminalSize { cols: 80, rows: 24 })]));
}

#[test]
fn an_agent_whose_terminal_is_not_up_gets_size_and_input_again() {
    let mut ends = Ends::shell(None);
    let stream = StreamId(1);
    ends.agent.set_refusing(true);
    ends.agent.write(stream, Bytes::from_static(b"$ ")).unwrap();
    ends.exchange();
    let id = ends.client.open().unwrap();
    ends.client.resize(TerminalSize { cols: 80, rows: 24 });
    ends.client.write(id, Bytes::from_static(b"ls\n")).unwrap();
    ends.exchange();
    assert_eq!(ends.agent.read(stream), None);
    // The agent refuses the size. The input after it is in the agent's reorder buffer, and therefore acknowledged.
    assert_eq!(ends.client.stats().channel.in_flight, 1);
    assert!(events(&mut ends.agent).iter().all(|event| !matches!(event, SessionEvent::Resized(_))));
    ends.agent.set_refusing(false);
    ends.now += Duration::from_secs(5);
    ends.client.handle_timeout(ends.now);
    ends.exchange();
    assert_eq!(ends.agent.read(stream).as_deref(), Some(&b"ls\n"[..]));
    assert!(ends.client.is_idle());
}

#[test]
fn a_shell_has_no_terminate_flag() {
    let mut ends = Ends::shell(None);
    ends.agent.write(StreamId(1), Bytes::from_static(b"$ ")).unwrap();
    ends.exchange();
    ends.client.terminate();
    ends.exchange();
    assert!(ends.crossed(PayloadType::Flag).is_empty());
    let flag = message(MessageType::InputStreamData, 0, PayloadType::Flag, &[0, 0, 0, 2]);
    ends.agent.handle_input(ends.now, flag).unwrap();
    assert!(!events(&mut ends.agent).iter().any(|event| matches!(event, SessionEvent::Terminated)));
}

#[test]
fn what_only_the_other_side_may_say_is_ignored() {
    let mut ends = Ends::shell(None);
    ends.agent.write(StreamId(1), Bytes::from_static(b"$ ")).unwrap();
    ends.exchange();
    events(&mut ends.agent);
    events(&mut ends.client);
    let size = br#"{"cols":1,"rows":1}"#;
    let to_client = message(MessageType::OutputStreamData, 1, PayloadType::Size, size);
    ends.client.handle_input(ends.now, to_client).unwrap();
    let to_agent = [(PayloadType::ExitCode, &b"EXIT_CODE: 1"[..]), (PayloadType::StdErr, b"x")];
    for (number, (payload_type, payload)) in (0..).zip(to_agent) {
        ends.agent
            .handle_input(ends.now, message(MessageType::InputStreamData, number, payload_type, payload))
            .unwrap();
    }
    assert!(events(&mut ends.client).is_empty() && events(&mut ends.agent).is_empty());
    assert_eq!(ends.agent.stats().receive_bytes, 0);
}

#[test]
fn a_client_for_ports_says_what_it_got_instead() {
    let agent = AgentConfig { session_type: SessionType::NonInteractiveCommands, ..AgentConfig::default() };
    let mut ends = Ends::new(ClientConfig { ports_only: true, ..ClientConfig::default() }, agent);
    ends.exchange();
    assert!(failure(&mut ends.client).unwrap().contains("NonInteractiveCommands, not a port"));
}

#[test]
fn an_agent_that_would_take_its_own_port_for_another_hosts_is_refused() {
    let outcome = |version: &str, host: &str| {
        let port = PortProperties {
            port_number: Some("5432".into()),
            host: Some(host.into()),
            kind: Some(LOCAL_PORT_FORWARDING.into()),
            ..PortProperties::default()
        };
        let agent = AgentConfig {
            agent_version: version.into(),
            session_type: SessionType::Port(port),
            ..AgentConfig::default()
        };
        let mut ends = Ends::new(ClientConfig::default(), agent);
        ends.exchange();
        failure(&mut ends.client)
    };
    let text = outcome("3.1.1080.0", "db.internal").unwrap();
    assert!(text.contains("3.1.1080.0") && text.contains("db.internal") && text.contains("update it"), "{text}");
    for (version, host) in [("3.1.1188.0", "db.internal"), ("3.1.1080.0", "localhost"), ("", "db.internal")] {
        assert_eq!(outcome(version, host), None, "{version} {host}");
    }
}

#[test]
fn after_the_proof_only_ciphertext_crosses() {
    let mut ends = Ends::encrypted();
    let id = ends.client.open().unwrap();
    ends.client.write(id, Bytes::from_static(b"secret input")).unwrap();
    ends.client.resize(TerminalSize { cols: 80, rows: 24 });
    ends.agent.write_output(id, Output::Stdout, Bytes::from(vec![b'o'; 1024])).unwrap();
    ends.agent.write_output(id, Output::Stderr, Bytes::from_static(b"secret error")).unwrap();
    ends.agent.exit(3);
    ends.exchange();
    assert_eq!(ends.agent.read(id).as_deref(), Some(&b"secret input"[..]));
    assert_eq!(ends.client.read_output(id), Some((Output::Stdout, Bytes::from(vec![b'o'; 1024]))));
    assert_eq!(ends.client.read_output(id), Some((Output::Stderr, Bytes::from_static(b"secret error"))));
    assert!(events(&mut ends.client).iter().any(|event| matches!(event, SessionEvent::ExitCode(3))));
    let secret = [PayloadType::Output, PayloadType::StdErr, PayloadType::ExitCode];
    let lengths: Vec<_> = secret.iter().flat_map(|kind| ends.crossed(*kind)).map(|payload| payload.len()).collect();
    assert_eq!(lengths, [1052, 40, 40, 40]);
    assert!(!ends.crossed.iter().any(|message| message.payload().windows(6).any(|bytes| bytes == b"secret")));
    assert_eq!(ends.crossed(PayloadType::Size).len(), 1, "sizes are not encrypted");
}

#[test]
fn what_can_not_be_decrypted_fails_the_session_without_an_acknowledgement() {
    for (payload, text) in [(&[0; 27][..], "27 bytes"), (&[0; 40], "tag"), (b"", "0 bytes")] {
        let mut ends = Ends::encrypted();
        events(&mut ends.client);
        let number = i64::try_from(ends.agent.stats().channel.messages_sent).unwrap();
        for _ in 0..2 {
            let bad = message(MessageType::OutputStreamData, number, PayloadType::Output, payload);
            ends.client.handle_input(ends.now, bad).unwrap();
        }
        let reported = events(&mut ends.client);
        assert!(
            matches!(&reported[..], [SessionEvent::Failed(error)] if error.to_string().contains(text)),
            "{reported:?}"
        );
        assert!(ends.client.poll_transmit(ends.now).is_none());
    }
}

#[test]
fn a_wrong_proof_is_not_acknowledged_and_times_out() {
    let mut ends = Ends::shell(Some(kms()));
    ends.exchange();
    ends.client.provide_data_key(ends.now, &data_key(), [9; 12]);
    ends.exchange();
    let swapped: Vec<u8> = (32..64).chain(0..32).collect();
    ends.agent.provide_plaintext_key(ends.now, &PlaintextKey::new(&swapped).unwrap());
    ends.exchange();
    assert!(failure(&mut ends.client).unwrap().contains("challenge"), "the client detects it first");
    events(&mut ends.agent);
    for wrong in [&br#"{"Challenge":"AAAA"}"#[..], b"{}", b"x"] {
        let wrong = message(MessageType::InputStreamData, 1, PayloadType::EncChallengeResponse, wrong);
        ends.agent.handle_input(ends.now, wrong).unwrap();
        assert!(ends.agent.poll_transmit(ends.now).is_none());
    }
    assert!(events(&mut ends.agent).is_empty());
    let timeout = ends.agent.answer_timeout().unwrap();
    assert_eq!(timeout, ends.now + Duration::from_secs(15));
    ends.agent.handle_timeout(timeout);
    assert!(failure(&mut ends.agent).unwrap().starts_with("Handshake timed out"));
}

#[test]
fn a_refused_data_key_ends_the_handshake_on_both_sides() {
    let mut ends = Ends::shell(Some(kms()));
    ends.exchange();
    ends.client.refuse_data_key(ends.now, "AccessDenied");
    ends.client.refuse_data_key(ends.now, "twice");
    ends.client.provide_data_key(ends.now, &data_key(), [9; 12]);
    ends.exchange();
    assert_eq!(ends.crossed(PayloadType::HandshakeResponse).len(), 1);
    assert!(failure(&mut ends.client).unwrap().ends_with("AccessDenied"));
    assert!(failure(&mut ends.agent).unwrap().contains("AccessDenied"));
    let complete = message(MessageType::OutputStreamData, 1, PayloadType::HandshakeComplete, b"{}");
    ends.client.handle_input(ends.now, complete).unwrap();
    assert!(events(&mut ends.client).is_empty(), "the session must not begin without encryption");
}

#[test]
fn a_client_that_does_not_bind_its_key_can_be_sent_away() {
    let mut ends = Ends::shell(Some(kms()));
    ends.exchange();
    let response = br#"{"ClientVersion":"1.2.677.0","ProcessedClientActions":[{"ActionType":"KMSEncryption","ActionStatus":1,"ActionResult":{"KMSCipherTextKey":"AAAA","KMSCipherTextHash":null},"Error":""}],"Errors":null}"#;
    let response = message(MessageType::InputStreamData, 0, PayloadType::HandshakeResponse, response);
    ends.agent.handle_input(ends.now, response).unwrap();
    assert!(failure(&mut ends.agent).unwrap().contains("not bound"));
}

#[test]
fn encryption_of_ports_is_unsupported_unless_wanted() {
    let agent = AgentConfig { kms: Some(kms()), ..AgentConfig::default() };
    let mut ends = Ends::new(ClientConfig::default(), agent.clone());
    ends.exchange();
    assert!(failure(&mut ends.client).unwrap().contains("KMS encryption of a port session"));
    let response: HandshakeResponse = serde_json::from_slice(&ends.crossed(PayloadType::HandshakeResponse)[0]).unwrap();
    let statuses = response.processed_client_actions.iter().map(|action| i64::from(action.action_status));
    assert_eq!(statuses.collect::<Vec<_>>(), [1, 3]);

    let mut ends = Ends::new(ClientConfig { kms_on_ports: true, ..ClientConfig::default() }, agent);
    ends.exchange();
    assert!(matches!(events(&mut ends.client)[..], [SessionEvent::DataKeyNeeded(_)]));
}

#[test]
fn a_peer_that_is_said_to_be_away_is_asked_also_when_nothing_is_in_flight() {
    let link = crate::testing::Link { latency: Duration::from_millis(5), ..Default::default() };
    let mut pair = crate::testing::Pair::new(Instant::now(), 1, link, ClientConfig::default(), AgentConfig::default());
    assert!(pair.run_until(Duration::from_secs(10), |pair| pair.client.ready && pair.client.session.is_idle()));
    let stream = pair.client.session.open().unwrap();
    // The notification that the agent is active again is lost.
    let away = crate::publication(false, 1, uuid::Uuid::nil());
    pair.client.session.handle_input(pair.now, away).unwrap();
    for _ in 0..50 {
        pair.client.session.write(stream, Bytes::from_static(&[7; 1000])).unwrap();
    }
    let arrived = pair.run_until(Duration::from_secs(2), |pair| pair.agent.session.stats().receive_bytes == 50_000);
    assert!(arrived, "{:?}", pair.client.session.stats());
}

#[test]
fn what_was_sent_into_a_black_hole_goes_again_as_soon_as_the_peer_has_a_new_websocket() {
    use crate::testing::{Link, Pair};
    let link = Link { latency: Duration::from_millis(5), ..Link::default() };
    let mut pair = Pair::new(Instant::now(), 1, link, ClientConfig::default(), AgentConfig::default());
    assert!(pair.run_until(Duration::from_secs(10), |pair| pair.client.ready));
    let stream = pair.client.session.open().unwrap();
    assert!(pair.run_until(Duration::from_secs(1), |pair| pair.agent.session.stats().streams == 1));
    // No notification reports that the client receives nothing.
    pair.link.loss = 1.0;
    for _ in 0..100 {
        pair.agent.session.write(stream, Bytes::from_static(&[7; 1000])).unwrap();
    }
    pair.run_until(Duration::from_secs(30), |_| false);
    pair.link.loss = 0.0;
    pair.agent.session.handle_input(pair.now, crate::publication(true, 1, uuid::Uuid::nil())).unwrap();
    let arrived =
        pair.run_until(Duration::from_millis(100), |pair| pair.client.session.stats().receive_bytes == 100_000);
    assert!(arrived, "{:?}", pair.agent.session.stats());
}

#[test]
fn an_agent_for_one_connection_at_a_time_keeps_what_comes_for_the_next() {
    let agent = AgentConfig { agent_version: "3.0.196.0".into(), ..AgentConfig::default() };
    let mut ends = Ends::new(ClientConfig::default(), agent);
    ends.exchange();
    ends.now += Duration::from_secs(1);
    ends.client.handle_timeout(ends.now);
    for bytes in [b"one", b"two", b"six"] {
        let stream = ends.client.open().unwrap();
        ends.client.write(stream, Bytes::from_static(bytes)).unwrap();
        ends.client.abandon(stream);
        // The first connection's destination has not detected its end.
        ends.exchange();
    }
    let mut arrived = Vec::new();
    while let Some(event) = ends.agent.poll_event() {
        if let SessionEvent::Opened(stream) = event {
            arrived.push(ends.agent.read(stream).unwrap());
            assert!(ends.agent.is_finished(stream));
            ends.agent.finish(ends.now, stream);
            ends.exchange();
        }
    }
    assert_eq!(arrived, ["one", "two", "six"]);
}

/// Creates a port session whose client may send one message per second.
fn paced(agent: AgentConfig) -> Ends {
    let pace = Some(crate::Pace { interval: Duration::from_secs(1), burst: 1 });
    let channel = ChannelConfig { pace, ..Default::default() };
    let agent_channel = ChannelConfig { ack_delay: Duration::ZERO, ..agent.channel };
    let agent = AgentConfig { channel: agent_channel, ..agent };
    let mut ends = Ends::new(ClientConfig { channel, ..ClientConfig::default() }, agent);
    ends.settle();
    ends
}

#[test]
fn a_turn_that_has_come_does_not_wake_again_while_the_socket_takes_nothing() {
    let mut ends = paced(AgentConfig::default());
    let stream = ends.client.open().unwrap();
    ends.settle();
    for _ in 0..3 {
        ends.client.write(stream, Bytes::from_static(&[7; 1000])).unwrap();
        while ends.client.poll_transmit(ends.now).is_some() {}
    }
    let mut wakes = 0;
    let end = ends.now + Duration::from_secs(60);
    // No message is taken from the session, because the WebSocket is full.
    while let Some(at) = ends.client.poll_timeout().map(|timeout| timeout.at).filter(|at| *at < end) {
        assert!(at > ends.now || wakes == 0, "a timeout in the past wakes the driver again and again");
        ends.now = at.max(ends.now);
        ends.client.handle_timeout(ends.now);
        wakes += 1;
    }
    assert!((1..100).contains(&wakes), "{wakes}");
    assert!(ends.client.poll_transmit(ends.now).is_some(), "the socket accepts data again");
}

#[test]
fn the_end_of_a_connection_in_basic_mode_wakes_when_its_turn_comes() {
    let mut ends = paced(AgentConfig { agent_version: "3.0.196.0".into(), ..AgentConfig::default() });
    let stream = ends.client.open().unwrap();
    ends.client.write(stream, Bytes::from_static(b"last words")).unwrap();
    ends.exchange();
    ends.client.abandon(stream);
    ends.exchange();
    assert!(ends.crossed(PayloadType::Flag).is_empty(), "the rate limit is used up");
    let turn = ends.client.poll_timeout().expect("a flag waits");
    assert_eq!(turn.reason, TimeoutReason::Pace);
    let turn = turn.at;
    assert!(turn <= ends.now + Duration::from_secs(1));
    ends.now = turn;
    ends.client.handle_timeout(ends.now);
    ends.exchange();
    assert_eq!(ends.crossed(PayloadType::Flag).len(), 1);
}

#[test]
fn an_empty_message_is_no_data() {
    for version in ["3.0.196.0", "3.3.0.0"] {
        let agent = AgentConfig { agent_version: version.into(), ..AgentConfig::default() };
        let mut ends = Ends::new(ClientConfig::default(), agent);
        ends.settle();
        let stream = ends.client.open().unwrap();
        ends.settle();
        events(&mut ends.client);
        let number = i64::try_from(ends.crossed_from_agent()).unwrap();
        let empty = message(MessageType::OutputStreamData, number, PayloadType::Output, b"");
        ends.client.handle_input(ends.now, empty).unwrap();
        ends.now += Duration::from_millis(5);
        assert!(ends.client.poll_transmit(ends.now).is_some(), "{version}: the empty message is acknowledged");
        assert!(events(&mut ends.client).is_empty(), "{version}");
        assert_eq!(ends.client.read(stream), None, "{version}");
    }
}

#[test]
fn an_agent_that_does_not_say_its_version_gets_its_moment_too() {
    let agent = AgentConfig { agent_version: String::new(), ..AgentConfig::default() };
    let mut ends = Ends::new(ClientConfig::default(), agent);
    ends.exchange();
    let stream = ends.client.open().unwrap();
    ends.client.write(stream, Bytes::from_static(b"too early")).unwrap();
    ends.exchange();
    assert!(ends.crossed(PayloadType::Output).is_empty(), "the agent still connects to its destination");
    ends.settle();
    assert_eq!(ends.crossed(PayloadType::Output).len(), 1);
}

#[test]
fn what_people_type_and_see_is_not_in_the_debug_text() {
    let (typed, bytes) = ("hunter2", format!("{:?}", b"hunter2"));
    let mut ends = Ends::shell(None);
    ends.agent.write(StreamId(1), Bytes::from_static(b"hunter2")).unwrap();
    ends.exchange();
    let id = ends.client.open().unwrap();
    ends.client.write(id, Bytes::from_static(b"hunter2")).unwrap();
    let text = format!("{:?} {:?}", ends.client, ends.agent);
    assert!(text.contains("Session"), "{text}");
    assert!(!text.contains(typed) && !text.contains(bytes.trim_matches(['[', ']'])), "{text}");
}

#[test]
fn impossible_settings_fail_at_once() {
    let now = Instant::now();
    let clock = Clock { start: now, unix: Duration::ZERO };
    let no_window = || ChannelConfig { window: 0, ..ChannelConfig::default() };
    let zero = |mux| ClientConfig { mux, ..ClientConfig::default() };
    for (config, error) in [
        (ClientConfig { max_payload: 15, ..ClientConfig::default() }, ConfigError::MaxPayload(15)),
        (ClientConfig { max_payload: usize::MAX, ..ClientConfig::default() }, ConfigError::MaxPayload(usize::MAX)),
        (ClientConfig { channel: no_window(), ..ClientConfig::default() }, ConfigError::Zero("channel.window")),
        (zero(MuxConfig { send_queue: 0, ..MuxConfig::default() }), ConfigError::Zero("mux.send_queue")),
        (zero(MuxConfig { receive_total: 0, ..MuxConfig::default() }), ConfigError::Zero("mux.receive_total")),
    ] {
        assert_eq!(config.check(), Err(error));
        let mut session = Session::client(config, clock, 1);
        session.handle_connected(now);
        let Some(SessionEvent::Failed(failed)) = session.poll_event() else { panic!("{error} is accepted") };
        assert_eq!(failed, SessionError::Config(error));
    }
    for (config, error) in [
        (AgentConfig { max_payload: usize::MAX, ..AgentConfig::default() }, ConfigError::MaxPayload(usize::MAX)),
        (AgentConfig { channel: no_window(), ..AgentConfig::default() }, ConfigError::Zero("channel.window")),
    ] {
        assert_eq!(config.check(), Err(error));
        let mut session = Session::agent(config, clock, 1);
        session.handle_connected(now);
        let Some(SessionEvent::Failed(failed)) = session.poll_event() else { panic!("{error} is accepted") };
        assert_eq!(failed, SessionError::Config(error));
        assert!(
            session.poll_event().is_none() && session.poll_transmit(now).is_none(),
            "{error}: the session begins in spite of the error"
        );
    }
    let smallest = ClientConfig { max_payload: 16, ..ClientConfig::default() };
    assert_eq!(smallest.check(), Ok(()));
}
