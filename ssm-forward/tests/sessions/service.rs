//! A service that accepts the client and then disconnects.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use ssm_forward::{
    BoxFuture, ForwardError, HeaderMap, ProviderError, Session, SessionConfig, SessionNotice, SessionProvider,
    SessionTicket, StartRequest, Url,
};
use ssm_proto::{Header, MessageBuf, MessageType, PayloadType};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::common::request;

/// Grants a session whose WebSocket is a port of the test.
#[derive(Default)]
struct Granting {
    stream_url: String,
    resumed: AtomicUsize,
    terminated: AtomicUsize,
}

impl Granting {
    fn ticket(&self) -> SessionTicket {
        SessionTicket { session_id: "s-1".into(), stream_url: self.stream_url.clone(), token: "t".into(), target: None }
    }
}

impl SessionProvider for Granting {
    fn start<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(async { Ok(self.ticket()) })
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        self.resumed.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(self.ticket()) })
    }

    fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.terminated.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn sign_upgrade<'a>(&'a self, _: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        Box::pin(async { Ok(HeaderMap::new()) })
    }
}

/// Runs a service that accepts the token, sends `words`, waits for a message after each of them, sends its last message, and closes
/// the connection.
async fn service(words: Vec<Bytes>, last: Option<Bytes>) -> Arc<Granting> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream_url = format!("ws://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (words, last) = (words.clone(), last.clone());
            tokio::spawn(async move {
                let mut socket = accept_async(stream).await.unwrap();
                let _token = socket.next().await;
                for word in words {
                    socket.send(Message::Binary(word)).await.unwrap();
                    while !matches!(socket.next().await, Some(Ok(Message::Binary(_))) | None) {}
                }
                if let Some(last) = last {
                    socket.feed(Message::Binary(last)).await.unwrap();
                }
                let _ = socket.close(None).await;
            });
        }
    });
    Arc::new(Granting { stream_url, ..Granting::default() })
}

fn message(message_type: MessageType, payload_type: PayloadType, payload: &str) -> Bytes {
    let header = Header::new(message_type, 1_700_000_000_000, uuid::Uuid::from_u128(1));
    Header { payload_type, ..header }.seal(MessageBuf::from(payload.as_bytes()))
}

#[tokio::test]
async fn a_websocket_that_dies_at_once_is_opened_ever_more_slowly() {
    let provider = service(Vec::new(), None).await;
    let request = request(1);
    let start = Session::start(provider.clone(), &request, SessionConfig::default(), |_| {}, |_| {});
    assert!(timeout(Duration::from_secs(2), start).await.is_err(), "the handshake must not complete");
    // The first attempt is immediate, the next ones after 100, 200, 400 and 800 ms, each reduced by up to half.
    let resumed = provider.resumed.load(Ordering::SeqCst);
    assert!((3..=7).contains(&resumed), "{resumed} times in 2 s");
}

#[tokio::test]
async fn what_made_a_session_impossible_stays_the_reason_when_the_websocket_ends() {
    let wish = r#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"Sing","ActionParameters":{}}]}"#;
    let wish = message(MessageType::OutputStreamData, PayloadType::HandshakeRequest, wish);
    let closed = r#"{"MessageType":"channel_closed","MessageId":"m","SessionId":"s-1","SchemaVersion":1,"Output":""}"#;
    let closed = message(MessageType::ChannelClosed, PayloadType::Output, closed);
    for last in [None, Some(closed)] {
        let provider = service(vec![wish.clone()], last).await;
        let request = request(1);
        let start = Session::start(provider.clone(), &request, SessionConfig::default(), |_| {}, |_| {});
        let outcome = timeout(Duration::from_secs(10), start).await.unwrap();
        assert!(matches!(&outcome, Err(ForwardError::Agent(why)) if why.to_string().contains("Sing")), "{outcome:?}");
    }
}

/// Runs a service that performs the handshake, sends all messages without waiting for an answer, and then only receives.
async fn flood(handshake: Vec<Bytes>, words: Vec<Bytes>) -> Arc<Granting> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream_url = format!("ws://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (handshake, words) = (handshake.clone(), words.clone());
            tokio::spawn(async move {
                let (mut to, mut from) = accept_async(stream).await.unwrap().split();
                for word in handshake {
                    to.send(Message::Binary(word)).await.unwrap();
                }
                // These are the response and both acknowledgements. After them, the session is ready.
                for _ in 0..3 {
                    while !matches!(from.next().await, Some(Ok(Message::Binary(_))) | None) {}
                }
                tokio::spawn(async move { while let Some(Ok(_)) = from.next().await {} });
                for word in words {
                    if to.send(Message::Binary(word)).await.is_err() {
                        return;
                    }
                }
                std::future::pending::<()>().await;
            });
        }
    });
    Arc::new(Granting { stream_url, ..Granting::default() })
}

/// Returns an agent's first messages, for a multiplexed port session.
fn handshake() -> Vec<Bytes> {
    let wish = r#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":
        {"SessionType":"Port","Properties":{"type":"LocalPortForwarding","portNumber":"80"}}}]}"#;
    let done = r#"{"HandshakeTimeToComplete":1000000,"CustomerMessage":""}"#;
    [(PayloadType::HandshakeRequest, wish), (PayloadType::HandshakeComplete, done)]
        .iter()
        .zip(0..)
        .map(|((payload_type, payload), number)| numbered(number, *payload_type, payload.as_bytes()))
        .collect()
}

fn numbered(sequence_number: i64, payload_type: PayloadType, payload: &[u8]) -> Bytes {
    let header = Header::new(MessageType::OutputStreamData, 1_700_000_000_000, uuid::Uuid::from_u128(1));
    Header { sequence_number, payload_type, ..header }.seal(MessageBuf::from(payload))
}

async fn start(provider: Arc<Granting>) -> Session {
    let request = request(1);
    let start = Session::start(provider, &request, SessionConfig::default(), |_| {}, |_| {});
    timeout(Duration::from_secs(10), start).await.unwrap().unwrap()
}

/// A log that blocks after its first line until the test releases it.
#[derive(Clone, Default)]
struct StuckLog {
    lines: Arc<AtomicUsize>,
    lock: Arc<Mutex<()>>,
}

impl std::io::Write for StuckLog {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.lines.fetch_add(1, Ordering::SeqCst);
        drop(self.lock.lock().unwrap());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn malformed_messages_are_told_seldom_and_never_under_the_lock() {
    const FLOOD: usize = 20_000;
    let log = StuckLog::default();
    let (send, receive) = std::sync::mpsc::channel::<Arc<Session>>();
    let stuck = log.lock.clone();
    let stuck = stuck.lock().unwrap();
    let writer = log.clone();
    let driver = std::thread::spawn(move || {
        // Set on the thread that drives the session.
        let log = move || {
            let writer = writer.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            std::mem::forget(tracing::subscriber::set_default(subscriber));
        };
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().on_thread_start(log).build().unwrap();
        runtime.block_on(async {
            let words = vec![Bytes::from_static(b"none"); FLOOD];
            let session = Arc::new(start(flood(handshake(), words).await).await);
            send.send(session.clone()).unwrap();
            while session.stats().channel.dropped < FLOOD as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    });
    let session = receive.recv_timeout(Duration::from_secs(10)).unwrap();
    while log.lines.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    // The driver is blocked in the log. Everything else must continue.
    let (done, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        session.stats();
        done.send(())
    });
    asked.recv_timeout(Duration::from_secs(5)).expect("the session is locked while its driver writes the log");
    drop(stuck);
    driver.join().unwrap();
    let lines = log.lines.load(Ordering::SeqCst);
    assert!(lines <= 30, "{lines} lines about {FLOOD} messages");
}

#[tokio::test]
async fn a_service_that_says_one_word_and_closes_is_not_asked_again_without_a_pause() {
    let provider = service(Vec::new(), Some(handshake().remove(0))).await;
    let request = request(1);
    let start = Session::start(provider.clone(), &request, SessionConfig::default(), |_| {}, |_| {});
    assert!(timeout(Duration::from_secs(3), start).await.is_err(), "the handshake must not complete");
    let resumed = provider.resumed.load(Ordering::SeqCst);
    assert!((3..=12).contains(&resumed), "{resumed} times in 3 s");
}

#[tokio::test]
async fn a_session_that_does_not_start_in_time_is_terminated() {
    let provider = service(Vec::new(), Some(handshake().remove(0))).await;
    let mut config = SessionConfig::default();
    config.start_timeout = Duration::from_millis(500);
    let terminations = config.terminations.clone();
    let granted = AtomicUsize::new(0);
    let on_granted = |_: &str| {
        granted.fetch_add(1, Ordering::SeqCst);
    };
    let started = Session::start(provider.clone(), &request(1), config, on_granted, |_| {}).await;
    assert!(matches!(started, Err(ForwardError::TimedOut { .. })), "{started:?}");
    assert_eq!(granted.load(Ordering::SeqCst), 1);
    terminations.finished().await;
    assert_eq!(provider.terminated.load(Ordering::SeqCst), 1);
}

/// The owner is slow to handle a notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_is_told_without_the_lock() {
    let mut words = handshake();
    let done = r#"{"HandshakeTimeToComplete":1000000,"CustomerMessage":"welcome"}"#;
    words[1] = numbered(1, PayloadType::HandshakeComplete, done.as_bytes());
    let provider = flood(words, Vec::new()).await;
    let (told, hear) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let notice = move |notice| {
        told.send(notice).unwrap();
        let _ = wait.lock().unwrap().recv();
    };
    let request = request(1);
    let session = Session::start(provider, &request, SessionConfig::default(), |_| {}, notice).await.unwrap();
    let notice = tokio::task::spawn_blocking(move || hear.recv_timeout(Duration::from_secs(10))).await.unwrap();
    assert!(matches!(notice, Ok(SessionNotice::Message(text)) if text == "welcome"));
    let session = Arc::new(session);
    let asking = session.clone();
    let asked = tokio::task::spawn_blocking(move || asking.stats());
    timeout(Duration::from_secs(5), asked).await.expect("the session is locked while its owner is told").unwrap();
    drop(go_on);
}
