//! The functions of the service other than passing messages on.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use ssm_local::{Local, LocalTarget, SessionState};
use ssm_proto::{Header, HeaderForm, MessageBuf, MessageType, Padding, PayloadDigest, PayloadType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error;
use uuid::Uuid;

use crate::common::{Channel, Incoming, PATIENCE, TARGET, Ticket, call, echo, frame, resume, start, ticket};
use crate::http::send;

async fn local() -> Local {
    Local::builder().start().await.unwrap()
}

/// Returns whether the service closes the WebSocket with code 1008, instead of an agent's handshake.
async fn is_refused(ticket: &Ticket) -> bool {
    match Channel::open(ticket).await.receive().await {
        Incoming::Close(code, reason) => {
            assert_eq!((code, reason.as_str()), (1008, "the token is wrong or has expired"));
            true
        }
        _ => false,
    }
}

/// Waits until a session is in this state.
async fn reaches(local: &Local, state: SessionState) {
    let wait = async {
        while local.sessions().first().is_none_or(|session| session.state != state) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{:?}, not {state:?}", local.sessions()));
}

#[tokio::test]
async fn only_the_session_s_own_token_opens_it() {
    let local = local().await;
    let (one, other) = (start(&local, 1).await, start(&local, 1).await);
    assert!(is_refused(&Ticket { token: other.token.clone(), ..one.clone() }).await);
    assert!(is_refused(&Ticket { token: String::new(), ..one.clone() }).await);
    assert!(is_refused(&Ticket { token: format!("{}=", one.token), ..one.clone() }).await);
    assert!(!is_refused(&one).await);
}

#[tokio::test]
async fn a_token_expires() {
    let local = Local::builder().token_ttl(Duration::ZERO).start().await.unwrap();
    assert!(is_refused(&start(&local, 1).await).await);
}

#[tokio::test]
async fn resume_gives_a_token_in_place_of_the_last_one() {
    let local = local().await;
    let first = start(&local, 1).await;
    let (status, answer) = resume(&local, &first.session_id).await;
    assert_eq!(status, 200);
    let second = ticket(&answer);
    assert_eq!(second.session_id, first.session_id);
    assert!(is_refused(&first).await);
    assert!(!is_refused(&second).await);
}

#[tokio::test]
async fn a_terminated_session_gives_no_token_and_takes_no_client() {
    let local = local().await;
    let ticket = start(&local, 1).await;
    let (status, _) = call(&local, "TerminateSession", json!({ "SessionId": ticket.session_id })).await;
    assert_eq!(status, 200);
    assert_eq!(resume(&local, &ticket.session_id).await, (200, json!({ "SessionId": ticket.session_id })));
    let Err(Error::Http(response)) = Channel::try_open(&ticket).await else { panic!("the data channel opens") };
    assert_eq!(response.status(), 410);
}

#[tokio::test]
async fn what_is_no_session_is_not_found() {
    let local = local().await;
    let (status, answer) = resume(&local, "nobody-0123456789abcdef0").await;
    assert_eq!((status, answer["__type"].as_str()), (400, Some("DoesNotExistException")));
    let url = local.stream_url("nobody-0123456789abcdef0");
    let unknown = Ticket { session_id: String::new(), url, token: String::new() };
    let Err(Error::Http(response)) = Channel::try_open(&unknown).await else { panic!("the data channel opens") };
    assert_eq!(response.status(), 404);
    assert_eq!(send(&local, "GET", "/", "", "").await.0, 404);
}

#[tokio::test]
async fn a_second_data_channel_replaces_the_first() {
    let local = local().await;
    let port = echo().await;
    let (ticket, mut first) = Channel::connected(&local, port).await;
    first.send(PayloadType::Output, &frame(0, b"")).await;
    first.message(MessageType::Acknowledge).await;
    let mut second = Channel::open(&ticket).await;
    // The number of the first message is used up.
    second.send_numbered(2, PayloadType::Output, &frame(2, b"hello")).await;
    assert_eq!(second.data().await, (PayloadType::Output, frame(2, b"hello").into()));
    while let Incoming::Message(_) = first.receive().await {}
    assert_eq!(local.sessions()[0].state, SessionState::Connected);
}

#[tokio::test]
async fn what_a_client_missed_comes_again_when_it_returns() {
    let local = local().await;
    let port = echo().await;
    let (ticket, mut channel) = Channel::connected(&local, port).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    channel.send(PayloadType::Output, &frame(2, b"hello")).await;
    // The message arrives, but is not acknowledged.
    let lost = channel.message(MessageType::OutputStreamData).await;
    channel.close().await;
    reaches(&local, SessionState::Disconnected).await;

    let (_, answer) = resume(&local, &ticket.session_id).await;
    let mut channel = Channel::open(&crate::common::ticket(&answer)).await;
    reaches(&local, SessionState::Connected).await;
    let again = channel.message(MessageType::OutputStreamData).await;
    assert_eq!((again.message_id(), again.payload()), (lost.message_id(), lost.payload()));
    channel.acknowledge(&again).await;
    channel.send_numbered(3, PayloadType::Output, &frame(2, b"more")).await;
    assert_eq!(channel.data().await.1, frame(2, b"more"));
}

#[tokio::test]
async fn the_agent_sends_nothing_while_the_client_is_away() {
    let local = local().await;
    let port = echo().await;
    let (ticket, mut channel) = Channel::connected(&local, port).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    channel.send(PayloadType::Output, &frame(2, b"hello")).await;
    let lost = channel.message(MessageType::OutputStreamData).await;
    channel.close().await;
    reaches(&local, SessionState::Disconnected).await;
    // An agent that was not notified would retransmit the message many times in this time, at growing intervals.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut channel = Channel::open(&ticket).await;
    let returned = Instant::now();
    assert_eq!(channel.message(MessageType::OutputStreamData).await.message_id(), lost.message_id());
    assert!(returned.elapsed() < Duration::from_millis(100), "the message arrived after {:?}", returned.elapsed());
}

#[tokio::test]
async fn the_agent_checks_no_digests_as_the_official_one() {
    let local = local().await;
    let port = echo().await;
    let (_, mut channel) = Channel::connected(&local, port).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    let mut header = Header::new(MessageType::InputStreamData, 1, Uuid::new_v4());
    header.sequence_number = 2;
    header.payload_type = PayloadType::Output;
    let payload = MessageBuf::from(frame(2, b"hello").as_slice());
    channel.send_raw(header.seal_with_digest(payload, PayloadDigest([0; 32]))).await;
    assert_eq!(channel.data().await, (PayloadType::Output, frame(2, b"hello").into()));
}

#[tokio::test]
async fn an_idle_session_ends() {
    let local = Local::builder().idle_timeout(Duration::from_millis(200)).start().await.unwrap();
    let port = echo().await;
    let (_, mut channel) = Channel::connected(&local, port).await;
    assert_eq!(channel.closed().await, "The session was idle for too long.");
    assert_eq!(local.sessions()[0].state, SessionState::Terminated);
}

#[tokio::test]
async fn data_keeps_a_session_from_being_idle_but_not_beyond_its_maximum() {
    let builder = Local::builder().idle_timeout(Duration::from_millis(400));
    let local = builder.max_session_duration(Duration::from_millis(900)).start().await.unwrap();
    let started = Instant::now();
    let port = echo().await;
    let (_, mut channel) = Channel::connected(&local, port).await;
    channel.send(PayloadType::Output, &frame(0, b"")).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        channel.send(PayloadType::Output, &frame(2, b"x")).await;
        channel.data().await;
    }
    assert_eq!(channel.closed().await, "The session reached its maximum duration.");
    assert!(started.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn terminate_closes_as_the_service_does() {
    let local = local().await;
    let port = echo().await;
    let (ticket, mut channel) = Channel::connected(&local, port).await;
    call(&local, "TerminateSession", json!({ "SessionId": ticket.session_id })).await;
    let closed = channel.message(MessageType::ChannelClosed).await;
    assert_eq!((closed.header().form, closed.header().padding), (HeaderForm::Short, Padding::Nul));
    let body: Value = serde_json::from_slice(closed.payload()).unwrap();
    assert_eq!(body["SessionId"], ticket.session_id.as_str());
    assert_eq!(body["DestinationId"], TARGET);
    assert_eq!(body["MessageType"], "channel_closed");
    assert_eq!(channel.close_frame().await.0, 1000);
}

#[tokio::test]
async fn sessions_are_described_in_every_state() {
    let local = local().await;
    let port = echo().await;
    let describe = async |state: &str| {
        let (status, answer) = call(&local, "DescribeSessions", json!({ "State": state })).await;
        assert_eq!(status, 200);
        let sessions = answer["Sessions"].as_array().unwrap().clone();
        sessions.iter().map(|s| s["Status"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let waiting = start(&local, port).await;
    assert_eq!(describe("Active").await, ["Connecting"]);
    let (ended, mut channel) = Channel::connected(&local, port).await;
    assert_eq!(describe("Active").await, ["Connected", "Connecting"]);
    assert_eq!(describe("History").await, [""; 0]);
    call(&local, "TerminateSession", json!({ "SessionId": ended.session_id })).await;
    channel.closed().await;
    assert_eq!(describe("Active").await, ["Connecting"]);
    assert_eq!(describe("History").await, ["Terminated"]);
    let filter = json!([{ "key": "SessionId", "value": waiting.session_id }]);
    let (_, answer) = call(&local, "DescribeSessions", json!({ "State": "Active", "Filters": filter })).await;
    let session = &answer["Sessions"][0];
    assert_eq!(session["Target"], TARGET);
    assert_eq!(session["DocumentName"], "AWS-StartPortForwardingSession");
    assert!(session.get("EndDate").is_none() && session["StartDate"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn the_inventory_tells_who_there_is() {
    let away = LocalTarget::new("mi-1").tag("Name", "away").disconnected();
    let local = Local::builder().target(LocalTarget::new(TARGET)).target(away).start().await.unwrap();
    let ids = async |filters: Value| {
        let (status, answer) = call(&local, "GetInventory", json!({ "Filters": filters })).await;
        assert_eq!(status, 200, "{answer}");
        let entities = answer["Entities"].as_array().unwrap().clone();
        entities.iter().map(|entity| entity["Id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let filter = |name: &str, kind: &str, value: &str| json!([{ "Key": format!("AWS:InstanceInformation.{name}"), "Type": kind, "Values": [value] }]);
    assert_eq!(ids(json!([])).await, [TARGET, "mi-1"]);
    assert_eq!(ids(filter("InstanceStatus", "Equal", "Active")).await, [TARGET]);
    assert_eq!(ids(filter("InstanceStatus", "NotEqual", "Active")).await, ["mi-1"]);
    assert_eq!(ids(filter("InstanceId", "BeginWith", "i-")).await, [TARGET]);
    let (_, answer) = call(&local, "GetInventory", json!({ "MaxResults": 1 })).await;
    let content = &answer["Entities"][0]["Data"]["AWS:InstanceInformation"]["Content"][0];
    assert_eq!(
        (content["ComputerName"].as_str(), content["ResourceType"].as_str()),
        (Some("local"), Some("EC2Instance"))
    );
    assert!(answer["NextToken"].is_string());
    let (_, refused) =
        call(&local, "GetInventory", json!({ "Filters": [{ "Key": "Color", "Values": ["red"] }] })).await;
    assert_eq!(refused["__type"], "InvalidFilter");
}

#[tokio::test]
async fn shutdown_tells_every_client() {
    let local = local().await;
    let port = echo().await;
    let (_, mut one) = Channel::connected(&local, port).await;
    let (_, mut other) = Channel::connected(&local, port).await;
    let (one, other, ()) = tokio::join!(one.closed(), other.closed(), local.shutdown());
    assert_eq!((one, other), (String::new(), String::new()));
}

/// Stores the log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_is_ever_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    // The subscriber applies only to this thread, and so only to this test, because its runtime has no other thread.
    let guard = tracing::subscriber::set_default(subscriber);
    let local = local().await;
    let port = echo().await;
    let (ticket, channel) = Channel::connected(&local, port).await;
    channel.close().await;
    let (_, answer) = resume(&local, &ticket.session_id).await;
    let second = crate::common::ticket(&answer);
    assert!(is_refused(&ticket).await);
    let mut channel = Channel::open(&second).await;
    channel.send_numbered(1, PayloadType::Output, &frame(0, b"")).await;
    channel.message(MessageType::Acknowledge).await;
    local.shutdown().await;
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains(&ticket.session_id) && text.contains("token accepted"), "{text}");
    for token in [ticket.token, second.token] {
        assert!(!text.contains(&token[..12]), "{text}");
    }
}

#[tokio::test]
async fn a_request_has_a_length() {
    let local = local().await;
    let most = 1 << 20;
    let (status, text) = send(&local, "POST", "/", "x-amz-target: AmazonSSM.StartSession\r\n", &" ".repeat(most)).await;
    assert_ne!((status, text.contains("length limit")), (400, true), "{text}");
    assert_ne!(status, 413, "{text}");
    let mut stream = TcpStream::connect(local.local_addr()).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", most + 1);
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(
        answer(&mut stream).await.starts_with("HTTP/1.1 413"),
        "the request is refused before its body has arrived"
    );
    // A body without a declared length is limited too.
    let mut stream = TcpStream::connect(local.local_addr()).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [b"10000\r\n", &vec![b' '; 0x10000][..], b"\r\n"].concat();
    for _ in 0..17 {
        let _ = stream.write_all(&chunk).await;
    }
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 400"));
    local.shutdown().await;
}

/// The clock advances immediately whenever all tasks wait.
#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_go_on_is_given_up() {
    let local = local().await;
    for (part, expected) in [
        ("POST / HTTP/1.1\r\nHost: localhost\r\n", ""),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", "HTTP/1.1 408"),
    ] {
        let mut stream = TcpStream::connect(local.local_addr()).await.unwrap();
        stream.write_all(part.as_bytes()).await.unwrap();
        let since = Instant::now();
        let answer = answer(&mut stream).await;
        assert!(answer.starts_with(expected) && answer.is_empty() == expected.is_empty(), "{answer}");
        let waited = since.elapsed();
        assert!(waited >= Duration::from_secs(9) && waited < Duration::from_secs(20), "{waited:?}");
    }
    local.shutdown().await;
}

/// Returns the received data up to the end of the connection, or up to a complete head.
async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_buf(&mut answer).await {
            Ok(1..) => {}
            _ => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn only_the_last_sessions_that_are_over_are_remembered() {
    let local = Local::builder().target(LocalTarget::new(TARGET)).start().await.unwrap();
    for _ in 0..1005 {
        let (status, answer) = call(&local, "StartSession", json!({ "Target": TARGET })).await;
        assert_eq!(status, 200);
        call(&local, "TerminateSession", json!({ "SessionId": answer["SessionId"] })).await;
    }
    let (_, answer) = call(&local, "StartSession", json!({ "Target": TARGET })).await;
    let left = local.sessions();
    assert_eq!(left.iter().filter(|session| !session.is_active()).count(), 1000);
    assert_eq!(left.last().map(|session| session.id.as_str()), answer["SessionId"].as_str());
}
