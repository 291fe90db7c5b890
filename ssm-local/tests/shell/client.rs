//! A client for the tests: the protocol's client side over a plain WebSocket.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use ssm_local::{Local, LocalBuilder, SessionInfo, SessionState};
use ssm_proto::{
    ClientConfig, Clock, DataKey, Identity, KeyRequest, OpenDataChannel, Output, PlaintextKey, Session, SessionEvent,
    StreamId, TerminalSize, WriteError,
};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::http::send_signed;

/// Maximum time of any step in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The id of the node of a local Session Manager for which no node is configured.
pub(crate) const TARGET: &str = "i-0123456789abcdef0";
pub(crate) const SHELL: &str = "SSM-SessionManagerRunShell";
pub(crate) const INTERACTIVE: &str = "AWS-StartInteractiveCommand";
pub(crate) const NON_INTERACTIVE: &str = "AWS-StartNonInteractiveCommand";

/// Calls one of the APIs.
pub(crate) async fn call(local: &Local, operation: &str, body: Value) -> (u16, Value) {
    let service = match operation.split_once('.') {
        Some(("TrentService", _)) => "kms",
        Some(("AmazonEC2ContainerServiceV20141113", _)) => "ecs",
        _ => "ssm",
    };
    let (status, answer) = send_signed(local, local, service, ("POST", "/"), Some(operation), &body.to_string()).await;
    (status, serde_json::from_str(&answer).unwrap())
}

/// The response of StartSession.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) session_id: String,
    pub(crate) target: String,
    pub(crate) url: String,
    pub(crate) token: String,
}

pub(crate) async fn start(local: &Local, target: &str, document: &str, parameters: Value) -> Ticket {
    let body = json!({ "Target": target, "DocumentName": document, "Parameters": parameters });
    let (status, answer) = call(local, "AmazonSSM.StartSession", body).await;
    assert_eq!(status, 200, "{answer}");
    let text = |key: &str| answer[key].as_str().unwrap().to_owned();
    Ticket { session_id: text("SessionId"), target: target.into(), url: text("StreamUrl"), token: text("TokenValue") }
}

/// Opens a data channel. Returns the WebSocket after the token was sent.
pub(crate) async fn open(ticket: &Ticket) -> WebSocketStream<TcpStream> {
    let authority = ticket.url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
    let stream = TcpStream::connect(authority).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(ticket.url.as_str(), stream).await.unwrap();
    let open = OpenDataChannel::client(Uuid::new_v4(), ticket.token.as_str(), Uuid::new_v4(), "1.2.764.0");
    socket.send(Message::text(open.to_json())).await.unwrap();
    socket
}

/// Returns a builder whose shell is `sh`, for any user who runs the tests.
pub(crate) fn builder() -> LocalBuilder {
    Local::builder().shell("/bin/sh")
}

/// Waits until the first session has ended, and returns it.
pub(crate) async fn ended(local: &Local) -> SessionInfo {
    let wait = async {
        while local.sessions()[0].is_active() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the session's end");
    local.sessions().remove(0)
}

pub(crate) async fn terminate(local: &Local, ticket: &Ticket) {
    let (status, _) = call(local, "AmazonSSM.TerminateSession", json!({ "SessionId": ticket.session_id })).await;
    assert_eq!(status, 200);
}

/// The client of one session, and the data that it received.
pub(crate) struct Client<'a> {
    local: &'a Local,
    session: Session,
    socket: WebSocketStream<TcpStream>,
    stream: Option<StreamId>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Every chunk of output, as split by the messages.
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) message: String,
    pub(crate) failure: Option<String>,
    /// The text of the session's end.
    pub(crate) closed: Option<String>,
    to_type: Bytes,
}

impl<'a> Client<'a> {
    pub(crate) async fn start(local: &'a Local, document: &str, parameters: Value) -> (Ticket, Self) {
        let ticket = start(local, TARGET, document, parameters).await;
        let client = Self::open(local, &ticket).await;
        (ticket, client)
    }

    pub(crate) async fn open(local: &'a Local, ticket: &Ticket) -> Self {
        let clock = Clock { start: Instant::now(), unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap() };
        let identity = Identity { session_id: ticket.session_id.clone(), target: ticket.target.clone() };
        let config = ClientConfig { identity, ..ClientConfig::default() };
        let mut session = Session::client(config, clock, 7);
        session.handle_connected(Instant::now());
        Self {
            local,
            session,
            socket: open(ticket).await,
            stream: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            chunks: Vec::new(),
            exit_code: None,
            message: String::new(),
            failure: None,
            closed: None,
            to_type: Bytes::new(),
        }
    }

    pub(crate) fn resize(&mut self, cols: u32, rows: u32) {
        self.session.resize(TerminalSize { cols, rows });
    }

    /// Queues this input. It is sent as fast as the session accepts it.
    pub(crate) fn type_in(&mut self, text: impl AsRef<[u8]>) {
        self.to_type = [&self.to_type, text.as_ref()].concat().into();
    }

    /// Runs until the standard output contains this text. Removes the text and everything before it, so that a later call does not
    /// find it again.
    pub(crate) async fn expect(&mut self, text: &str) {
        let find = |client: &Self| client.stdout.windows(text.len()).position(|window| window == text.as_bytes());
        self.run_until(text, |client| find(client).is_some()).await;
        let end = find(self).unwrap() + text.len();
        self.stdout.drain(..end);
    }

    /// Runs until the session's end. Returns the text of the end.
    pub(crate) async fn end(&mut self) -> String {
        self.run_until("the end", |client| client.closed.is_some()).await;
        self.closed.clone().unwrap()
    }

    pub(crate) async fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let run = async {
            self.drain().await;
            while !done(self) {
                assert!(self.closed.is_none(), "the session ended: {:?} {:?}", self.closed, self.text());
                self.step().await;
            }
        };
        if timeout(PATIENCE, run).await.is_err() {
            panic!("no {what:?} but {:?} {:?}", self.text(), self.session.stats());
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned() + &String::from_utf8_lossy(&self.stderr)
    }

    /// Waits for a message or a timeout.
    async fn step(&mut self) {
        let at = self.session.poll_timeout().map_or_else(|| Instant::now() + PATIENCE, |timeout| timeout.at);
        tokio::select! {
            message = self.socket.next() => match message.expect("a WebSocket").unwrap() {
                Message::Binary(bytes) => self.session.handle_input(Instant::now(), bytes).unwrap(),
                Message::Close(_) => panic!("the WebSocket was closed without channel_closed"),
                _ => {}
            },
            () = sleep_until(at.into()) => self.session.handle_timeout(Instant::now()),
        }
        self.drain().await;
    }

    async fn drain(&mut self) {
        loop {
            while let Some(event) = self.session.poll_event() {
                self.handle(event).await;
            }
            self.write();
            let Some(message) = self.session.poll_transmit(Instant::now()) else { break };
            self.socket.feed(Message::Binary(message)).await.unwrap();
        }
        self.socket.flush().await.unwrap();
    }

    fn write(&mut self) {
        let Some(stream) = self.stream else { return };
        while !self.to_type.is_empty() {
            let piece = self.to_type.slice(..self.to_type.len().min(1000));
            match self.session.write(stream, piece.clone()) {
                Ok(()) => drop(self.to_type.split_to(piece.len())),
                Err(WriteError::Full(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn handle(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Ready(_) => self.stream = Some(self.session.open().unwrap()),
            SessionEvent::Readable(id) => {
                while let Some((output, chunk)) = self.session.read_output(id) {
                    match output {
                        Output::Stdout => self.stdout.extend(&chunk),
                        Output::Stderr => self.stderr.extend(&chunk),
                    }
                    self.chunks.push(chunk);
                }
            }
            SessionEvent::ExitCode(code) => self.exit_code = Some(code),
            SessionEvent::Message(text) => self.message = text,
            SessionEvent::Failed(error) => self.failure = Some(error.to_string()),
            SessionEvent::Closed(closed) => self.closed = Some(closed.output),
            SessionEvent::DataKeyNeeded(KeyRequest { key_id, context }) => {
                let body = json!({ "KeyId": key_id, "NumberOfBytes": 64, "EncryptionContext": context });
                let (status, answer) = call(self.local, "TrentService.GenerateDataKey", body).await;
                if status != 200 {
                    let why = answer["__type"].as_str().unwrap();
                    return self.session.refuse_data_key(Instant::now(), why);
                }
                let bytes = |key: &str| STANDARD.decode(answer[key].as_str().unwrap()).unwrap();
                let plaintext = PlaintextKey::new(&bytes("Plaintext")).unwrap();
                let key = DataKey { plaintext, ciphertext: bytes("CiphertextBlob").into() };
                self.session.provide_data_key(Instant::now(), &key, [9; 12]);
            }
            _ => {}
        }
    }
}

/// Checks that a session ended as expected.
pub(crate) async fn assert_ended(local: &Local, state: SessionState, details: &str) {
    let session = ended(local).await;
    assert_eq!((session.state, session.details.as_str()), (state, details));
}
