//! A client for the tests: plain HTTP, plain WebSocket, and messages by the codec. It uses no part of the session driver.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use ssm_local::Local;
use ssm_proto::{
    Acknowledge, AgentMessage, ChannelClosed, Header, MessageBuf, MessageType, OpenDataChannel, PayloadType,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

use crate::http::send_signed;

/// Maximum time of any step on loopback.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The response of StartSession and ResumeSession.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) session_id: String,
    pub(crate) url: String,
    pub(crate) token: String,
}

/// Calls the SSM API.
pub(crate) async fn call(local: &Local, operation: &str, body: Value) -> (u16, Value) {
    let target = format!("AmazonSSM.{operation}");
    let (status, body) = send_signed(local, local, "ssm", ("POST", "/"), Some(&target), &body.to_string()).await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Calls the control endpoint.
pub(crate) async fn ask_control(local: &Local, method: &str, path: &str, body: &str) -> (u16, String) {
    send_signed(local, local, "ssm", (method, path), None, body).await
}

/// Starts a session to a port of the node.
pub(crate) async fn start(local: &Local, port: u16) -> Ticket {
    start_with(local, "AWS-StartPortForwardingSession", json!({ "portNumber": [port.to_string()] })).await
}

pub(crate) async fn start_with(local: &Local, document: &str, parameters: Value) -> Ticket {
    let body = json!({ "Target": TARGET, "DocumentName": document, "Parameters": parameters });
    let (status, answer) = call(local, "StartSession", body).await;
    assert_eq!(status, 200, "{answer}");
    ticket(&answer)
}

pub(crate) async fn resume(local: &Local, session_id: &str) -> (u16, Value) {
    call(local, "ResumeSession", json!({ "SessionId": session_id })).await
}

pub(crate) fn ticket(answer: &Value) -> Ticket {
    let text = |key: &str| answer[key].as_str().unwrap().to_owned();
    Ticket { session_id: text("SessionId"), url: text("StreamUrl"), token: text("TokenValue") }
}

/// The id of the node of a local Session Manager for which no node is configured.
pub(crate) const TARGET: &str = "i-0123456789abcdef0";

/// Starts an echo service, which serves one connection after the other. Returns its port.
pub(crate) async fn echo() -> u16 {
    serve(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// Starts a service. Returns its port. The service ends with the test's runtime.
pub(crate) async fn serve<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    port
}

/// Returns a port on which nothing listens.
pub(crate) async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// A client's data channel.
pub(crate) struct Channel {
    socket: WebSocketStream<TcpStream>,
    /// The number of the next message.
    pub(crate) next: i64,
}

/// A received message, or the end of the WebSocket.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(AgentMessage),
    /// Bytes that are not a valid message.
    Invalid(Bytes),
    /// The service's close frame: code and reason.
    Close(u16, String),
    /// The socket ended without a close frame.
    Gone(Error),
}

impl Channel {
    /// Opens the WebSocket and sends the token.
    pub(crate) async fn open(ticket: &Ticket) -> Self {
        Self::try_open(ticket).await.unwrap()
    }

    pub(crate) async fn try_open(ticket: &Ticket) -> Result<Self, Error> {
        let authority = ticket.url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let stream = TcpStream::connect(authority).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(ticket.url.as_str(), stream).await?;
        let open = OpenDataChannel::client(Uuid::new_v4(), ticket.token.as_str(), Uuid::new_v4(), "1.2.677.0");
        socket.send(Message::text(open.to_json())).await?;
        Ok(Self { socket, next: 0 })
    }

    /// Opens the data channel of a session to `port` and performs the handshake.
    pub(crate) async fn connected(local: &Local, port: u16) -> (Ticket, Self) {
        let ticket = start(local, port).await;
        let mut channel = Self::open(&ticket).await;
        channel.handshake().await;
        (ticket, channel)
    }

    /// Answers the handshake like the official client, up to HandshakeComplete.
    pub(crate) async fn handshake(&mut self) {
        assert_eq!(self.data().await.0, PayloadType::HandshakeRequest);
        self.send(PayloadType::HandshakeResponse, HANDSHAKE_RESPONSE).await;
        assert_eq!(self.data().await.0, PayloadType::HandshakeComplete);
    }

    /// Sends the next numbered message.
    pub(crate) async fn send(&mut self, payload_type: PayloadType, payload: &[u8]) {
        let number = self.next;
        self.next += 1;
        self.send_numbered(number, payload_type, payload).await;
    }

    pub(crate) async fn send_numbered(&mut self, number: i64, payload_type: PayloadType, payload: &[u8]) {
        let mut header = Header::new(MessageType::InputStreamData, 1, Uuid::new_v4());
        header.sequence_number = number;
        header.payload_type = payload_type;
        self.send_raw(header.seal(MessageBuf::from(payload))).await;
    }

    pub(crate) async fn send_raw(&mut self, message: Bytes) {
        self.socket.send(Message::Binary(message)).await.unwrap();
    }

    pub(crate) async fn ping(&mut self) {
        self.socket.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
    }

    /// Waits up to `limit` for a pong.
    pub(crate) async fn pong(&mut self, limit: Duration) -> bool {
        let wait = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Pong(_))) => return true,
                    Some(Ok(_)) => {}
                    _ => return false,
                }
            }
        };
        timeout(limit, wait).await.unwrap_or(false)
    }

    /// Returns the next received item, except pings and pongs.
    pub(crate) async fn receive(&mut self) -> Incoming {
        timeout(PATIENCE, self.receive_patiently()).await.expect("a message arrives in time")
    }

    async fn receive_patiently(&mut self) -> Incoming {
        loop {
            return match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => match AgentMessage::decode(bytes.clone()) {
                    Ok(message) => Incoming::Message(message),
                    Err(_) => Incoming::Invalid(bytes),
                },
                Some(Ok(Message::Close(frame))) => frame.map_or(Incoming::Close(1005, String::new()), |frame| {
                    Incoming::Close(frame.code.into(), frame.reason.to_string())
                }),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Incoming::Gone(error),
                None => Incoming::Gone(Error::ConnectionClosed),
            };
        }
    }

    /// Returns whether only acknowledgements are received within `limit`.
    pub(crate) async fn is_silent(&mut self, limit: Duration) -> bool {
        let something = async {
            loop {
                match self.receive_patiently().await {
                    Incoming::Message(message) if message.message_type() == MessageType::Acknowledge => {}
                    _ => return,
                }
            }
        };
        timeout(limit, something).await.is_err()
    }

    /// Returns the next message of this type, and skips other messages.
    pub(crate) async fn message(&mut self, wanted: MessageType) -> AgentMessage {
        loop {
            match self.receive().await {
                Incoming::Message(message) if message.message_type() == wanted => return message,
                Incoming::Message(_) | Incoming::Invalid(_) => {}
                other => panic!("received {other:?} instead of {wanted}"),
            }
        }
    }

    /// Acknowledges the next numbered message and returns its payload.
    pub(crate) async fn data(&mut self) -> (PayloadType, Bytes) {
        let message = self.message(MessageType::OutputStreamData).await;
        self.acknowledge(&message).await;
        (message.payload_type(), message.into_payload())
    }

    pub(crate) async fn acknowledge(&mut self, message: &AgentMessage) {
        self.send_raw(Acknowledge::of(message).encode(1, Uuid::new_v4())).await;
    }

    /// Waits for the end of the session. Returns the text of channel_closed, which a close frame must follow.
    pub(crate) async fn closed(&mut self) -> String {
        let closed = self.message(MessageType::ChannelClosed).await;
        assert!(matches!(self.receive().await, Incoming::Close(1000, _)));
        ChannelClosed::decode(closed.payload()).output
    }

    /// Returns the service's close frame, and skips messages.
    pub(crate) async fn close_frame(&mut self) -> (u16, String) {
        loop {
            match self.receive().await {
                Incoming::Close(code, reason) => return (code, reason),
                Incoming::Gone(error) => panic!("received {error} instead of a close frame"),
                _ => {}
            }
        }
    }

    /// Closes the WebSocket.
    pub(crate) async fn close(mut self) {
        self.socket.close(None).await.unwrap();
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}

/// The official client's handshake response.
pub(crate) const HANDSHAKE_RESPONSE: &[u8] = br#"{"ClientVersion":"1.2.677.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;

/// A smux frame of stream 3: 0 SYN, 1 FIN, 2 PSH.
pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let [low, high] = u16::try_from(payload.len()).unwrap().to_le_bytes();
    [&[1, kind, low, high, 3, 0, 0, 0], payload].concat()
}
