//! The state of a session.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::StartRequest;
use super::relay::{ClientSocket, Command};
use super::token::Token;

/// The state of a session. `DescribeSessions` calls it Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// The session was started; the client has not opened the data channel.
    Connecting,
    /// The client's data channel is open.
    Connected,
    /// The client's data channel is closed; the client may reconnect.
    Disconnected,
    /// The session has ended.
    Terminated,
    /// The session has ended because the agent failed.
    Failed,
}

impl SessionState {
    /// Returns the name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Connected => "Connected",
            Self::Disconnected => "Disconnected",
            Self::Terminated => "Terminated",
            Self::Failed => "Failed",
        }
    }
}

/// Information about a session for the owner of a [`Local`](crate::Local).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's id.
    pub id: String,
    /// The managed node.
    pub target: String,
    /// The document's name.
    pub document: String,
    /// The state.
    pub state: SessionState,
    /// The ARN of the caller that started the session.
    pub owner: String,
    /// The reason in the caller's StartSession request.
    pub reason: Option<String>,
    /// The time of the start.
    pub started: SystemTime,
    /// The time of the end; `None` for an active session.
    pub ended: Option<SystemTime>,
    /// The text of the agent or the service about the end; often empty.
    pub details: String,
}

impl SessionInfo {
    /// Returns whether the session has not ended.
    pub fn is_active(&self) -> bool {
        !matches!(self.state, SessionState::Terminated | SessionState::Failed)
    }
}

/// A session, shared by the API, the server and its relay.
#[derive(Debug)]
pub(crate) struct BrokerSession {
    pub(crate) id: String,
    pub(crate) target: String,
    pub(crate) document: String,
    commands: mpsc::Sender<Command>,
    /// Number of changes of the session's URL.
    moves: AtomicU32,
    state: Mutex<BrokerSessionState>,
}

#[derive(Debug)]
struct BrokerSessionState {
    info: SessionInfo,
    token: Token,
}

/// Returns the last part of a session's URL after this many changes. Like in AWS, it is base64 text whose special characters are
/// not escaped in the query.
pub(super) fn cell_number(moves: u32) -> String {
    match moves {
        0 => "AAEAAa5+Lu4/II4==".into(),
        moves => format!("AAEAAa5{moves:08}"),
    }
}

const OWNER: &str = "arn:aws:iam::123456789012:user/local";

impl BrokerSession {
    pub(super) fn new(request: &StartRequest, commands: mpsc::Sender<Command>, ttl: Duration) -> (Self, String) {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // A name and 17 digits, like in AWS.
        let id = format!("local-0{:016x}", high ^ low);
        let info = SessionInfo {
            id: id.clone(),
            target: request.target.id().into(),
            document: request.document.name.clone(),
            state: SessionState::Connecting,
            owner: OWNER.into(),
            reason: request.reason.clone(),
            started: SystemTime::now(),
            ended: None,
            details: String::new(),
        };
        let (token, text) = Token::issue(Instant::now(), ttl);
        let session = Self {
            id,
            target: info.target.clone(),
            document: request.document.name.clone(),
            commands,
            moves: AtomicU32::new(0),
            state: Mutex::new(BrokerSessionState { info, token }),
        };
        (session, text)
    }

    fn lock(&self) -> MutexGuard<'_, BrokerSessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn info(&self) -> SessionInfo {
        self.lock().info.clone()
    }

    pub(super) fn issue_token(&self, ttl: Duration) -> Option<String> {
        let mut state = self.lock();
        if !state.info.is_active() {
            return None;
        }
        let (token, text) = Token::issue(Instant::now(), ttl);
        state.token = token;
        Some(text)
    }

    /// Returns whether this token opens the data channel now.
    pub(crate) fn accepts(&self, token: &str) -> bool {
        let state = self.lock();
        state.info.is_active() && state.token.accepts(Instant::now(), token)
    }

    /// Makes the token invalid until another one is issued.
    pub(crate) fn expire_token(&self) {
        self.lock().token.expire(Instant::now());
    }

    pub(super) fn cell_number(&self) -> String {
        cell_number(self.moves.load(Ordering::Relaxed))
    }

    /// Changes the session's URL; the old URL becomes invalid.
    pub(crate) fn relocate(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether the query of a URL is valid for this session. Before the first change, any query is valid.
    pub(crate) fn is_at(&self, query: &str) -> bool {
        let cell = self.cell_number();
        let given = query.split('&').find_map(|part| part.strip_prefix("cell-number="));
        self.moves.load(Ordering::Relaxed) == 0 || given == Some(cell.as_str())
    }

    /// Sends a command to the relay. If the session has ended, the command has no receiver.
    pub(super) async fn command(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// Passes a WebSocket whose first frame was valid to the relay. It replaces the previous WebSocket.
    pub(crate) async fn connect(&self, socket: ClientSocket) {
        // If the session has ended in the meantime, the socket is dropped, which shows the client that the session has ended.
        self.command(Command::Connect(Box::new(socket))).await;
    }

    /// Ends the session. Its state changes immediately; the two ends are notified later.
    pub(crate) fn terminate(&self) {
        self.end(SessionState::Terminated, "");
        // If the queue is full, it contains sockets. The relay checks the session's state after each of them.
        let _ = self.commands.try_send(Command::Terminate);
    }

    pub(super) fn is_active(&self) -> bool {
        self.lock().info.is_active()
    }

    /// Records that the data channel was opened or closed. Has no effect on an ended session.
    pub(super) fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        if state.info.is_active() {
            state.info.state = if connected { SessionState::Connected } else { SessionState::Disconnected };
        }
    }

    /// Marks the session as ended. If it has ended already, the first reason is kept.
    pub(super) fn end(&self, how: SessionState, details: &str) {
        let mut state = self.lock();
        if state.info.is_active() {
            state.info.state = how;
            state.info.details = details.into();
            state.info.ended = Some(SystemTime::now());
        }
    }
}
