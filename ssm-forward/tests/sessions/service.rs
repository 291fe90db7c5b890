//! A service that lets one in and then goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use ssm_forward::{
    BoxFuture, ForwardError, HeaderMap, ProviderError, Session, SessionConfig, SessionProvider, SessionTicket,
    StartRequest, Url,
};
use ssm_proto::{Header, MessageBuf, MessageType, PayloadType};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

use crate::common::request;

/// Grants a session whose WebSocket is a port of the test's.
struct Granting {
    stream_url: String,
    resumed: AtomicUsize,
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
        Box::pin(async { Ok(()) })
    }

    fn sign_upgrade<'a>(&'a self, _: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        Box::pin(async { Ok(HeaderMap::new()) })
    }
}

/// A service that takes the token, says `words`, waits for a word after each, says its last one, and closes.
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
    Arc::new(Granting { stream_url, resumed: AtomicUsize::new(0) })
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
    assert!(timeout(Duration::from_secs(2), start).await.is_err(), "nobody shook hands");
    // At once, then after 100, 200, 400, 800 ms, each less up to half.
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
        assert!(matches!(&outcome, Err(ForwardError::Agent(why)) if why.contains("Sing")), "{outcome:?}");
    }
}
