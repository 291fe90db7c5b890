//! The hostile service, and an API with an endless answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use ssm_proto::{AgentConfig, Clock, Session, SessionEvent, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

use super::kind::Kind;
use crate::tunnel::SetupError;

type Socket = WebSocketStream<TcpStream>;

/// A hostile service that waits for its client.
pub(super) struct Peer {
    listener: TcpListener,
    address: SocketAddr,
}

/// A hostile service whose client is ready and has opened a stream.
pub(super) struct Ready {
    to_client: SplitSink<Socket, Message>,
    /// The agent's next number.
    next: i64,
    stream: StreamId,
}

impl Peer {
    pub(super) async fn listen() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub(super) fn stream_url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Behaves correctly until the client has opened a stream.
    pub(super) async fn shake_hands(self) -> Result<Ready, SetupError> {
        let (stream, _) = self.listener.accept().await?;
        let (mut to_client, mut from_client) = accept_async(stream).await?.split();
        let clock = Clock { start: std::time::Instant::now(), unix: Duration::from_secs(1) };
        let mut agent = Session::agent(AgentConfig::default(), clock, 1);
        agent.handle_connected(std::time::Instant::now());
        let stream = loop {
            let now = std::time::Instant::now();
            agent.handle_timeout(now);
            while let Some(message) = agent.poll_transmit(now) {
                to_client.send(Message::Binary(message)).await?;
            }
            let opened = std::iter::from_fn(|| agent.poll_event()).find_map(|event| match event {
                SessionEvent::Opened(id) => Some(id),
                _ => None,
            });
            if let Some(id) = opened {
                break id;
            }
            let due = agent.poll_timeout().map_or(now + Duration::from_secs(1), |timeout| timeout.at);
            if let Ok(message) = timeout_at(due.into(), from_client.next()).await
                && let Message::Binary(message) = message.ok_or("the client has disconnected")??
            {
                agent.handle_input(std::time::Instant::now(), message)?;
            }
        };
        // The client's last message is never acknowledged, so the client retransmits it. This is a part of the attack.
        let next = i64::try_from(agent.stats().channel.messages_sent)?;
        tokio::spawn(discard(from_client));
        Ok(Ready { to_client, next, stream })
    }
}

/// Reads and discards the client's answers as fast as they arrive.
async fn discard(mut from_client: SplitStream<Socket>) {
    while let Some(Ok(_)) = from_client.next().await {}
}

impl Ready {
    /// Floods for the given time. Returns the number of messages and bytes that the client, or its socket, accepted.
    pub(super) async fn flood(&mut self, kind: Kind, time: Duration) -> (u64, u64) {
        let end = Instant::now() + time;
        let (mut sent, mut bytes) = (0, 0);
        for count in 0.. {
            let message = kind.message(count, self.next, self.stream);
            let length = message.len() as u64;
            // If the client does not read, the deadline ends the flood.
            if !matches!(timeout_at(end, self.to_client.feed(message)).await, Ok(Ok(()))) || Instant::now() >= end {
                break;
            }
            (sent, bytes) = (sent + 1, bytes + length);
        }
        tokio::time::sleep_until(end).await;
        (sent, bytes)
    }
}

/// Starts an API whose every answer is a gibibyte. Returns its address and the number of bytes that were accepted.
pub(super) async fn endless_api() -> std::io::Result<(SocketAddr, Arc<AtomicU64>)> {
    const LENGTH: u64 = 1 << 30;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (address, sent) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
    let count = sent.clone();
    tokio::spawn(async move {
        let piece = Bytes::from(vec![b' '; 64 << 10]);
        while let Ok((mut stream, _)) = listener.accept().await {
            let (piece, count) = (piece.clone(), count.clone());
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {LENGTH}\r\n\r\n"
                );
                let mut taken = stream.write_all(head.as_bytes()).await;
                while taken.is_ok() && count.load(Ordering::Relaxed) < LENGTH {
                    taken = stream.write_all(&piece).await;
                    count.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    Ok((address, sent))
}
