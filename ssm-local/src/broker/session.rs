//! What is known of a session.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::StartRequest;
use super::relay::{ClientSocket, Command};
use super::token::Token;

/// Where a session is in its life. `DescribeSessions` calls it Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// Started; the client has not opened the data channel.
    Connecting,
    /// The client's data channel is open.
    Connected,
    /// The client's data channel is gone; it may come back.
    Disconnected,
    /// Over.
    Terminated,
    /// Over, because the agent could not do it.
    Failed,
}

impl SessionState {
    /// The name in the API.
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

/// A session as its owner sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its id.
    pub id: String,
    /// The managed node.
    pub target: String,
    /// The document's name.
    pub document: String,
    /// Where it is in its life.
    pub state: SessionState,
    /// Who started it: an ARN.
    pub owner: String,
    /// Why, in the words of who started it.
    pub reason: Option<String>,
    /// Since when.
    pub started: SystemTime,
    /// Until when.
    pub ended: Option<SystemTime>,
    /// What the agent or the service had to say about the end; often empty.
    pub details: String,
}

impl SessionInfo {
    /// Whether it is not over.
    pub fn is_active(&self) -> bool {
        !matches!(self.state, SessionState::Terminated | SessionState::Failed)
    }
}

/// A session as the API, the server and its relay share it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) target: String,
    pub(crate) document: String,
    commands: mpsc::Sender<Command>,
    /// How often it moved to another URL.
    moves: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    info: SessionInfo,
    token: Token,
}

/// The last part of a session's URL after so many moves. As AWS's: a base64 text whose special characters stand in the
/// query as they are.
pub(super) fn cell_number(moves: u32) -> String {
    match moves {
        0 => "AAEAAa5+Lu4/II4==".into(),
        moves => format!("AAEAAa5{moves:08}"),
    }
}

const OWNER: &str = "arn:aws:iam::123456789012:user/local";

impl Session {
    pub(super) fn new(request: &StartRequest, commands: mpsc::Sender<Command>, ttl: Duration) -> (Self, String) {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // A name and 17 digits, as AWS's.
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
            state: Mutex::new(State { info, token }),
        };
        (session, text)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// Whether this token opens the data channel now.
    pub(crate) fn accepts(&self, token: &str) -> bool {
        let state = self.lock();
        state.info.is_active() && state.token.accepts(Instant::now(), token)
    }

    /// From here on no token opens the data channel, until another is issued.
    pub(crate) fn expire_token(&self) {
        self.lock().token.expire(Instant::now());
    }

    pub(super) fn cell_number(&self) -> String {
        cell_number(self.moves.load(Ordering::Relaxed))
    }

    /// Its URL changes; the one before is void.
    pub(crate) fn relocate(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the query of a URL is of where it is. Before it moves, any is.
    pub(crate) fn is_at(&self, query: &str) -> bool {
        let cell = self.cell_number();
        let given = query.split('&').find_map(|part| part.strip_prefix("cell-number="));
        self.moves.load(Ordering::Relaxed) == 0 || given == Some(cell.as_str())
    }

    /// If the session is over, nobody listens.
    pub(super) async fn command(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// Hands over a WebSocket whose first frame was right; it replaces the one before.
    pub(crate) async fn connect(&self, socket: ClientSocket) {
        // If the session ended meanwhile, dropping the socket tells enough.
        self.command(Command::Connect(Box::new(socket))).await;
    }

    /// Ends the session. It counts as over at once; the ends are told a moment later.
    pub(crate) fn terminate(&self) {
        self.end(SessionState::Terminated, "");
        // With a full queue there are sockets in front; the relay looks at the state behind each.
        let _ = self.commands.try_send(Command::Terminate);
    }

    pub(super) fn is_active(&self) -> bool {
        self.lock().info.is_active()
    }

    /// The data channel came or went; says nothing about a session that is over.
    pub(super) fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        if state.info.is_active() {
            state.info.state = if connected { SessionState::Connected } else { SessionState::Disconnected };
        }
    }

    /// It is over; the first reason stays.
    pub(super) fn end(&self, how: SessionState, details: &str) {
        let mut state = self.lock();
        if state.info.is_active() {
            state.info.state = how;
            state.info.details = details.into();
            state.info.ended = Some(SystemTime::now());
        }
    }
}
