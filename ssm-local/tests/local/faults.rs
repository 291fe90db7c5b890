//! Faults from a client's point of view. Unit tests in the faults' modules test their effects on single messages.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use ssm_local::{Local, LocalTarget, SessionState};
use ssm_proto::{Acknowledge, AgentMessage, DecodeError, MessageType, PayloadType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Error;

use crate::common::{
    Channel, Incoming, PATIENCE, TARGET, ask_control, call, closed_port, echo, frame, resume, serve, start, ticket,
};

/// A test concludes that nothing happens if nothing has happened for this time.
const A_WHILE: Duration = Duration::from_millis(300);

async fn faulty(specs: &[&str]) -> Local {
    let faults = json!({ "seed": 1, "faults": specs }).to_string();
    Local::builder().faults(ssm_local::Faults::from_json(&faults).unwrap()).start().await.unwrap()
}

/// Opens a stream to an echo service.
async fn stream(local: &Local) -> (crate::common::Ticket, Channel) {
    let (ticket, mut channel) = Channel::connected(local, echo().await).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    (ticket, channel)
}

impl Channel {
    /// Sends data and waits for its echo.
    async fn round_trip(&mut self) {
        self.send(PayloadType::Output, &frame(2, b"x")).await;
        assert_eq!(self.data().await.1, frame(2, b"x"));
    }
}

async fn control(local: &Local, effect: &str, keys: &str) {
    let (status, answer) = ask_control(local, "POST", &format!("/control/{effect}"), keys).await;
    assert_eq!(status, 200, "{answer}");
}

async fn is_connected(local: &Local) -> bool {
    let (_, answer) = call(local, "GetConnectionStatus", json!({ "Target": TARGET })).await;
    answer["Status"] == "connected"
}

// The client's WebSocket.

#[tokio::test]
async fn the_service_says_bye_and_takes_the_client_back() {
    let local = faulty(&["bye,every=1s,times=1"]).await;
    let (ticket, mut channel) = stream(&local).await;
    assert_eq!(channel.close_frame().await, (1000, "Bye".into()));
    assert_eq!(local.sessions()[0].state, SessionState::Disconnected);
    let (_, answer) = resume(&local, &ticket.session_id).await;
    let mut again = Channel::open(&crate::common::ticket(&answer)).await;
    again.send_numbered(2, PayloadType::Output, &frame(2, b"back")).await;
    assert_eq!(again.data().await.1, frame(2, b"back"));
}

#[tokio::test]
async fn the_service_closes_after_so_many_messages_with_any_code() {
    // The handshake has three messages and their acknowledgements. The seventh message is the SYN.
    let local = faulty(&["close,nth=7,code=4001,reason=enough"]).await;
    let (_, mut channel) = stream(&local).await;
    assert_eq!(channel.close_frame().await, (4001, "enough".into()));
}

#[tokio::test]
async fn a_reset_is_no_close() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    control(&local, "reset", "").await;
    loop {
        match channel.receive().await {
            Incoming::Gone(Error::Io(error)) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
            Incoming::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn in_a_black_hole_not_even_pings_are_answered_until_a_new_websocket_comes() {
    let local = faulty(&[]).await;
    let (ticket, mut channel) = stream(&local).await;
    channel.round_trip().await;
    control(&local, "black-hole", "").await;
    channel.ping().await;
    channel.send(PayloadType::Output, &frame(2, b"lost?")).await;
    assert!(!channel.pong(A_WHILE).await);
    assert_eq!(local.sessions()[0].state, SessionState::Connected);
    let mut again = Channel::open(&ticket).await;
    again.send_numbered(3, PayloadType::Output, &frame(2, b"found")).await;
    assert_eq!(again.data().await.1, frame(2, b"found"));
}

#[tokio::test]
async fn a_black_hole_can_end_by_itself() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    control(&local, "black-hole", "for=300ms").await;
    let begun = Instant::now();
    channel.round_trip().await;
    assert!(begun.elapsed() > Duration::from_millis(200));
}

#[tokio::test]
async fn a_stall_answers_pings_but_moves_no_message() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    control(&local, "stall", "for=1s").await;
    let begun = Instant::now();
    channel.ping().await;
    assert!(channel.pong(Duration::from_millis(800)).await);
    channel.round_trip().await;
    assert!(begun.elapsed() > Duration::from_millis(900));
}

#[tokio::test]
async fn a_delay_is_felt_in_the_round_trip() {
    let local = faulty(&["delay,by=50ms"]).await;
    let (_, mut channel) = stream(&local).await;
    let begun = Instant::now();
    channel.round_trip().await;
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn too_many_messages_cost_the_websocket() {
    let local = faulty(&["message-limit,limit=20,bear=1s,code=1008,reason=too much"]).await;
    let (_, mut channel) = stream(&local).await;
    let flood = async {
        loop {
            // The agent waits for a lower number and never delivers this message, so there is no echo, and nearly all messages go in
            // one direction.
            channel.send_numbered(100, PayloadType::Output, &frame(2, b"x")).await;
            match timeout(Duration::from_millis(10), channel.receive()).await {
                Ok(Incoming::Close(code, reason)) => return (code, reason),
                Ok(Incoming::Gone(error)) => panic!("{error}"),
                _ => {}
            }
        }
    };
    assert_eq!(timeout(PATIENCE, flood).await.unwrap(), (1008, "too much".into()));
}

#[tokio::test]
async fn lost_mangled_and_repeated_messages_are_repaired_by_the_agent() {
    for spec in [
        "drop,direction=down,nth=3",
        "corrupt,direction=down,nth=3",
        "bad-header,direction=down,nth=3",
        "oversize,direction=down,nth=3",
        "duplicate,direction=down,nth=2",
        "rate,bytes=20000",
    ] {
        let local = faulty(&[spec]).await;
        let (_, mut channel) = stream(&local).await;
        let mut received = Vec::new();
        let mut numbers = std::collections::BTreeSet::new();
        for _ in 0..10 {
            channel.send(PayloadType::Output, &frame(2, b"0123456789")).await;
        }
        // Faults may lose the agent's acknowledgements, but this client does not wait for them.
        while received.len() < 100 {
            let message = channel.message(MessageType::OutputStreamData).await;
            channel.acknowledge(&message).await;
            if numbers.insert(message.sequence_number()) {
                received.extend(data_of(message.payload()));
            }
        }
        assert_eq!(received.len(), 100, "{spec}");
    }
}

/// The data in smux frames.
fn data_of(mut frames: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let [1, _, low, high, _, _, _, _, rest @ ..] = frames {
        let (bytes, behind) = rest.split_at(u16::from_le_bytes([*low, *high]).into());
        data.extend(bytes);
        frames = behind;
    }
    data
}

#[tokio::test]
async fn a_message_is_processed_twice_and_the_numbers_of_later_ones_stay_right() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    for data in [b"a", b"b"] {
        control(&local, "process-twice", "").await;
        let number = channel.next;
        for acknowledged in [false, true] {
            channel.send_numbered(number, PayloadType::Output, &frame(2, data)).await;
            // The agent acknowledges a message before the echo can arrive.
            let mut numbers = Vec::new();
            loop {
                let Incoming::Message(message) = channel.receive().await else { panic!("no message") };
                if message.message_type() == MessageType::OutputStreamData {
                    channel.acknowledge(&message).await;
                    assert_eq!(message.payload(), frame(2, data), "the echo of each copy");
                    break;
                }
                numbers.extend(Acknowledge::decode_number(message.payload()));
            }
            assert_eq!(numbers.contains(&number), acknowledged);
        }
        channel.next += 1;
        channel.send_numbered(number, PayloadType::Output, &frame(2, data)).await;
        assert!(channel.is_silent(A_WHILE).await, "the third copy is a duplicate");
        // The changed numbers are kept when the faults are replaced.
        local.set_faults(ssm_local::Faults::new()).await;
        channel.round_trip().await;
    }
}

#[tokio::test]
async fn a_mangled_message_reaches_the_client_as_such() {
    let local = faulty(&["bad-digest,direction=down,only=data,times=1"]).await;
    let ticket = start(&local, 1).await;
    let mut channel = Channel::open(&ticket).await;
    let Incoming::Invalid(bytes) = channel.receive().await else { panic!("the message is valid") };
    assert!(matches!(AgentMessage::decode(bytes), Err(DecodeError::BadDigest)));
    channel.handshake().await;
}

#[tokio::test]
async fn without_acknowledgements_the_agent_repeats_itself() {
    let local = faulty(&["drop-acks,direction=up"]).await;
    let (_, mut channel) = stream(&local).await;
    let complete = channel.message(MessageType::OutputStreamData).await;
    let again = channel.message(MessageType::OutputStreamData).await;
    assert!([complete, again].iter().all(|message| message.sequence_number() < 2));
}

#[tokio::test]
async fn publication_is_paused_and_started_at_will() {
    let bell = Arc::new(Notify::new());
    let rings = bell.clone();
    let port = serve(move |mut stream| {
        let rings = rings.clone();
        async move {
            for text in [b"ring", b"more"] {
                rings.notified().await;
                stream.write_all(text).await.unwrap();
            }
            rings.notified().await;
        }
    })
    .await;
    let local = faulty(&[]).await;
    let (_, mut channel) = Channel::connected(&local, port).await;
    control(&local, "pause-publication", "direction=down").await;
    channel.message(MessageType::PausePublication).await;
    control(&local, "start-publication", "direction=down").await;
    channel.message(MessageType::StartPublication).await;
    // For the agent, any message from the client means the same as start_publication. Therefore the client sends none.
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    channel.message(MessageType::Acknowledge).await;
    control(&local, "pause-publication", "direction=up").await;
    bell.notify_one();
    // One message probes whether the client is active again (DC-12). No other message follows.
    let probe = channel.message(MessageType::OutputStreamData).await;
    assert_eq!(probe.into_payload(), frame(2, b"ring"));
    bell.notify_one();
    assert!(channel.is_silent(A_WHILE).await);
    control(&local, "start-publication", "direction=up").await;
    assert_eq!(channel.data().await.1, frame(2, b"ring"));
    assert_eq!(channel.data().await.1, frame(2, b"more"));
}

// The agent and its node.

/// A publication is sent again and again at the same moment as the agent's data.
#[tokio::test]
async fn publications_hold_back_nothing_that_the_agent_sends() {
    let local = faulty(&["pause-publication,direction=down,every=1ms"]).await;
    let (_, mut channel) = stream(&local).await;
    for _ in 0..300 {
        channel.round_trip().await;
    }
}

#[tokio::test]
async fn an_agent_that_was_away_sends_again() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    control(&local, "agent-away", "for=300ms").await;
    channel.message(MessageType::PausePublication).await;
    channel.send(PayloadType::Output, &frame(2, b"lost")).await;
    channel.message(MessageType::StartPublication).await;
    channel.send_numbered(3, PayloadType::Output, &frame(2, b"lost")).await;
    assert_eq!(channel.data().await.1, frame(2, b"lost"));
}

#[tokio::test]
async fn a_deaf_agent_acknowledges_nothing() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    control(&local, "agent-deaf", "").await;
    channel.send(PayloadType::Output, &frame(2, b"x")).await;
    assert!(timeout(A_WHILE, channel.receive()).await.is_err());
}

#[tokio::test]
async fn a_session_ends_in_any_words() {
    let local = faulty(&["end,nth=7,status=failed,text=So long, and thanks"]).await;
    let (_, mut channel) = stream(&local).await;
    assert_eq!(channel.closed().await, "So long, and thanks");
    assert_eq!(local.sessions()[0].state, SessionState::Failed);
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    control(&local, "terminate", "text=timed out").await;
    assert_eq!(channel.closed().await, "timed out");
    assert_eq!(local.sessions()[0].state, SessionState::Terminated);
}

#[tokio::test]
async fn an_agent_s_restart_ends_sessions_but_not_the_node() {
    let local = faulty(&["restart-agent,after=1s"]).await;
    let (_, mut channel) = stream(&local).await;
    assert_eq!(channel.closed().await, "The session worker is gone: the agent was restarted.");
    assert!(is_connected(&local).await);
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    control(&local, "restart-agent", "text=again").await;
    assert_eq!(channel.closed().await, "again");
}

#[tokio::test]
async fn a_reboot_takes_the_node_away_for_a_time() {
    let local = faulty(&["reboot,after=1s,for=2s"]).await;
    let (_, mut channel) = stream(&local).await;
    assert!(channel.closed().await.contains("rebooted"));
    assert!(!is_connected(&local).await);
    let body = json!({ "Target": TARGET, "DocumentName": "AWS-StartPortForwardingSession" });
    let (status, answer) = call(&local, "StartSession", body).await;
    assert_eq!((status, answer["__type"].as_str()), (400, Some("TargetNotConnected")));
    let (_, answer) = call(&local, "DescribeInstanceInformation", json!({})).await;
    assert_eq!(answer["InstanceInformationList"][0]["PingStatus"], "ConnectionLost");
    let back = async {
        while !is_connected(&local).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, back).await.unwrap();
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
}

#[tokio::test]
async fn an_agent_can_be_of_any_version() {
    let local = faulty(&["agent-version,version=2.9.1.0,times=1"]).await;
    for expected in ["2.9.1.0", "3.3.987.0"] {
        let mut channel = Channel::open(&start(&local, 1).await).await;
        let (kind, request) = channel.data().await;
        assert_eq!(kind, PayloadType::HandshakeRequest);
        let request: Value = serde_json::from_slice(&request).unwrap();
        assert_eq!(request["AgentVersion"], expected);
    }
}

#[tokio::test]
async fn a_dial_can_be_slow() {
    let local = faulty(&["slow-dial,by=300ms"]).await;
    let (_, mut channel) = stream(&local).await;
    let begun = Instant::now();
    channel.round_trip().await;
    assert!(begun.elapsed() > Duration::from_millis(250));
}

#[tokio::test]
async fn a_dial_can_fail_though_somebody_listens() {
    let local = faulty(&["fail-dial,times=1"]).await;
    let (_, mut channel) = stream(&local).await;
    assert_eq!(channel.data().await, (PayloadType::Flag, vec![0, 0, 0, 3].into()));
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    // The result is the same as for a destination that really cannot be reached.
    let (_, mut channel) = Channel::connected(&local, closed_port().await).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    assert_eq!(channel.data().await, (PayloadType::Flag, vec![0, 0, 0, 3].into()));
}

#[tokio::test]
async fn a_deaf_destination_takes_the_connection_and_nothing_else() {
    let (seen, mut events) = tokio::sync::mpsc::unbounded_channel();
    let port = serve(move |mut stream| {
        let seen = seen.clone();
        async move {
            seen.send(0).unwrap();
            let _ = seen.send(stream.read(&mut [0; 10]).await.unwrap_or(99));
        }
    })
    .await;
    let local = faulty(&["deaf-destination"]).await;
    let (_, mut channel) = Channel::connected(&local, port).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    channel.send(PayloadType::Output, &frame(2, b"hello")).await;
    assert_eq!(timeout(PATIENCE, events.recv()).await.unwrap(), Some(0));
    assert!(timeout(A_WHILE, events.recv()).await.is_err());
}

// The API.

#[tokio::test]
async fn resume_is_refused_in_every_way() {
    for (answer, status, code) in [
        ("expired-credentials", 400, "ExpiredTokenException"),
        ("forbidden", 403, "AccessDeniedException"),
        ("error", 500, "InternalServerError"),
        ("unavailable", 503, "ServiceUnavailable"),
        ("throttled", 400, "ThrottlingException"),
    ] {
        let local = faulty(&[&format!("api,operation=ResumeSession,answer={answer},times=1")]).await;
        let session = start(&local, 1).await.session_id;
        let (refused, body) = resume(&local, &session).await;
        assert_eq!((refused, body["__type"].as_str()), (status, Some(code)));
        assert_eq!(resume(&local, &session).await.0, 200);
    }
}

#[tokio::test]
async fn resume_may_never_answer() {
    let local = faulty(&["api,operation=ResumeSession,answer=silence"]).await;
    let session = start(&local, 1).await.session_id;
    assert!(timeout(A_WHILE, resume(&local, &session)).await.is_err());
}

#[tokio::test]
async fn resume_may_give_no_token_though_the_session_lives() {
    let local = faulty(&["api,operation=ResumeSession,answer=no-token"]).await;
    let (ticket, mut channel) = stream(&local).await;
    assert_eq!(resume(&local, &ticket.session_id).await, (200, json!({ "SessionId": ticket.session_id })));
    channel.round_trip().await;
}

#[tokio::test]
async fn resume_may_give_another_url_and_void_the_first() {
    let local = faulty(&["api,operation=ResumeSession,answer=new-url"]).await;
    let first = start(&local, 1).await;
    let (_, answer) = resume(&local, &first.session_id).await;
    let second = ticket(&answer);
    assert_ne!(first.url, second.url);
    let stale = crate::common::Ticket { url: first.url, ..second.clone() };
    let Err(Error::Http(response)) = Channel::try_open(&stale).await else { panic!("the data channel opens") };
    assert_eq!(response.status(), 410);
    Channel::open(&second).await.handshake().await;
}

#[tokio::test]
async fn tokens_may_be_expired_when_they_come() {
    let local = faulty(&["api,answer=expired-token,times=2"]).await;
    let first = start(&local, 1).await;
    assert_eq!(Channel::open(&first).await.close_frame().await.0, 1008);
    let (_, answer) = resume(&local, &first.session_id).await;
    assert_eq!(Channel::open(&ticket(&answer)).await.close_frame().await.0, 1008);
    let (_, answer) = resume(&local, &first.session_id).await;
    Channel::open(&ticket(&answer)).await.handshake().await;
}

// At run time.

#[tokio::test]
async fn faults_are_read_set_added_and_removed_over_the_port() {
    let local = faulty(&["drop"]).await;
    let faults = async |method: &str, body: &str| {
        let (status, answer) = ask_control(&local, method, "/faults", body).await;
        (status, serde_json::from_str::<Value>(&answer).unwrap())
    };
    assert_eq!(faults("GET", "").await, (200, json!({ "seed": 1, "faults": ["drop"] })));
    let new = json!({ "seed": 5, "faults": ["reset,after=1h"] });
    assert_eq!(faults("PUT", &new.to_string()).await, (200, new));
    let both = json!({ "seed": 5, "faults": ["reset,after=1h", "fail-dial"] });
    assert_eq!(faults("POST", "fail-dial\n").await, (200, both.clone()));
    let (status, answer) = faults("POST", "explode").await;
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().starts_with("unknown fault \"explode\""));
    assert_eq!(faults("PUT", "{").await.0, 400);
    assert_eq!(faults("PATCH", "").await.0, 405);
    assert_eq!(faults("GET", "").await, (200, both));
    assert_eq!(faults("DELETE", "").await, (200, json!({ "seed": 0, "faults": [] })));
}

#[tokio::test]
async fn what_can_not_happen_at_once_is_refused_there() {
    let local = faulty(&[]).await;
    let refused = [
        ("fail-dial", ""),
        ("slow-dial", "by=1s"),
        ("agent-version", "version=3.0.196.0"),
        ("expired-credentials", ""),
    ];
    for (effect, keys) in refused {
        let (status, answer) = ask_control(&local, "POST", &format!("/control/{effect}"), keys).await;
        assert!(status == 400 && answer.contains("POST it to /faults"), "{effect}: {status} {answer}");
    }
}

#[tokio::test]
async fn faults_that_are_set_reach_sessions_that_live() {
    let local = faulty(&[]).await;
    let (_, mut channel) = stream(&local).await;
    channel.round_trip().await;
    local.set_faults(ssm_local::Faults::new().with("stall".parse().unwrap())).await;
    channel.send(PayloadType::Output, &frame(2, b"held")).await;
    assert!(channel.is_silent(A_WHILE).await);
    // The messages that were held back are passed on now. Some of them may be retransmissions.
    local.set_faults(ssm_local::Faults::new()).await;
    while channel.data().await.1 != frame(2, b"held") {}
}

#[tokio::test]
async fn a_struck_fault_happens_once() {
    let local = Local::builder().target(LocalTarget::new(TARGET)).start().await.unwrap();
    let (ticket, mut channel) = stream(&local).await;
    local.strike("bye,every=10ms".parse().unwrap()).await.unwrap();
    assert_eq!(channel.close_frame().await, (1000, "Bye".into()));
    let mut channel = Channel::open(&ticket).await;
    assert!(timeout(A_WHILE, channel.close_frame()).await.is_err());
    let error = local.strike("fail-dial".parse().unwrap()).await.unwrap_err();
    assert_eq!(error, ssm_local::FaultError::NotAtOnce("fail-dial".into()));
}
