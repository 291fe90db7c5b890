//! The task of one session: passes messages between the client's WebSocket and the agent. Either of them may be disconnected.
//!
//! All messages of a session pass through [`Relay::pass_up`] or [`Relay::pass_down`], and through no other function. Code that
//! changes messages in transit belongs there.

mod disturb;
mod numbers;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{Sink, SinkExt, StreamExt};
use ssm_proto::{ChannelClosed, MessageType, publication};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use uuid::Uuid;

use self::numbers::AgentNumbers;
use super::BrokerSettings;
use super::session::{BrokerSession, SessionState};
use crate::agent::{self, AgentEnd, AgentSpec};
use crate::faults::{Direction, Fault, SessionFaults};
use crate::wire::{is_data, message_type};

/// A client's open data channel.
pub(crate) type ClientSocket = WebSocketStream<TcpStream>;

/// A command to a relay.
#[derive(Debug)]
pub(super) enum Command {
    /// The client opened a data channel, which replaces the previous one.
    Connect(Box<ClientSocket>),
    /// The session was ended.
    Terminate,
    /// Replaces the faults.
    SetFaults(Option<Box<SessionFaults>>),
    /// Adds a fault.
    AddFault(Fault),
}

/// Maximum number of messages in one direction before the other direction has its turn.
const BATCH: usize = 64;
/// After the end of the session, maximum time for the client to read the remaining messages.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of one session's task.
pub(super) struct Relay {
    session: Arc<BrokerSession>,
    commands: mpsc::Receiver<Command>,
    /// The agent's parameters, until the client connects for the first time.
    spec: Option<AgentSpec>,
    agent: Option<AgentEnd>,
    client: Option<Box<ClientSocket>>,
    /// Messages for the agent that are not passed on yet.
    up: VecDeque<Bytes>,
    /// Messages for the client that the WebSocket has not accepted yet.
    down: VecDeque<Bytes>,
    unflushed: bool,
    numbers: AgentNumbers,
    faults: Option<Box<SessionFaults>>,
    faults_timer: Pin<Box<Sleep>>,
    idle_timeout: Duration,
    last_data: Instant,
    end_of_time: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// The reason for the end of a session.
struct End {
    state: SessionState,
    output: String,
}

impl Relay {
    pub(super) fn new(
        session: Arc<BrokerSession>,
        commands: mpsc::Receiver<Command>,
        spec: AgentSpec,
        settings: &BrokerSettings,
    ) -> Self {
        let now = Instant::now();
        Self {
            session,
            commands,
            spec: Some(spec),
            agent: None,
            client: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
            unflushed: false,
            numbers: AgentNumbers::default(),
            faults: None,
            faults_timer: Box::pin(sleep_until(now)),
            idle_timeout: settings.idle_timeout,
            last_data: now,
            end_of_time: settings.max_session_duration.map(|duration| now + duration),
            timer: Box::pin(sleep_until(now + settings.idle_timeout)),
        }
    }

    /// Runs until the session has ended and both ends have been notified.
    pub(super) async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.session.end(end.state, &end.output);
        tracing::info!(session_id = self.session.id, state = ?end.state, output = end.output, "session ended");
        let _ = timeout(END_TIMEOUT, self.send_end(&end.output)).await;
    }

    /// Passes messages on as far as possible. The directions are independent, so that neither waits for the other.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if let Some(end) = self.run_commands(cx) {
                return Poll::Ready(end);
            }
            if let Some(end) = self.disturb(cx) {
                return Poll::Ready(end);
            }
            let up = self.move_up(cx);
            let down = match self.move_down(cx) {
                Ok(progress) => progress,
                Err(end) => return Poll::Ready(end),
            };
            if up || down {
                continue;
            }
            if let Some(end) = self.watch(cx) {
                return Poll::Ready(end);
            }
            return Poll::Pending;
        }
    }

    fn run_commands(&mut self, cx: &mut Context<'_>) -> Option<End> {
        while let Poll::Ready(command) = self.commands.poll_recv(cx) {
            match command {
                Some(Command::Connect(socket)) => self.connect(socket),
                Some(Command::SetFaults(faults)) => self.set_faults(faults),
                Some(Command::AddFault(fault)) => self.add_fault(fault),
                Some(Command::Terminate) | None => {}
            }
            if !self.session.is_active() {
                let info = self.session.info();
                return Some(End { state: info.state, output: info.details });
            }
        }
        None
    }

    fn connect(&mut self, socket: Box<ClientSocket>) {
        tracing::debug!(session_id = self.session.id, again = self.spec.is_none(), "data channel opened");
        self.session.set_connected(true);
        self.last_data = Instant::now();
        self.client = Some(socket);
        self.unflushed = false;
        if let Some(faults) = &mut self.faults {
            faults.handle_connected(now());
        }
        match self.spec.take() {
            Some(spec) => {
                self.faults = spec.faults.of_session(now());
                self.agent = Some(agent::spawn(spec));
            }
            None => self.up.push_back(service_message(|date, id| publication(true, date, id))),
        }
    }

    fn disconnect(&mut self, why: &dyn std::fmt::Display) {
        tracing::debug!(session_id = self.session.id, %why, "data channel lost");
        self.session.set_connected(false);
        self.client = None;
        self.unflushed = false;
        self.up.push_back(service_message(|date, id| publication(false, date, id)));
    }

    /// Passes messages from the client to the agent. Returns whether any were passed.
    fn move_up(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(agent) = &self.agent else { return false };
        let blocked = |faults: &SessionFaults| faults.is_black_hole() || faults.is_blocked(Direction::Up);
        if agent.input.poll_ready(cx).is_pending() {
            return false;
        }
        let mut moved = !self.up.is_empty();
        let limit = if self.faults.as_deref().is_some_and(blocked) { 0 } else { BATCH };
        for _ in 0..limit {
            let Some(client) = &mut self.client else { break };
            match client.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(Message::Binary(message)))) => self.pass_up(message),
                Poll::Ready(Some(Ok(Message::Text(message)))) => self.pass_up(message.into()),
                // The WebSocket crate answers pings with the next flush.
                Poll::Ready(Some(Ok(_))) => self.unflushed = true,
                Poll::Ready(Some(Err(error))) => self.disconnect(&error),
                Poll::Ready(None) => self.disconnect(&"closed"),
                Poll::Pending => break,
            }
            moved = true;
        }
        if let Some(agent) = &self.agent {
            agent.input.send(&mut self.up);
        }
        moved
    }

    fn pass_up(&mut self, message: Bytes) {
        match message_type(&message) {
            Some(kind @ (MessageType::InputStreamData | MessageType::Acknowledge)) => {
                let is_data = kind == MessageType::InputStreamData;
                if is_data {
                    self.last_data = Instant::now();
                }
                let is_new = is_data && self.numbers.is_new(&message);
                let message = if is_data { self.numbers.to_agent(message) } else { message };
                match &mut self.faults {
                    Some(faults) => {
                        if faults.pass(now(), Direction::Up, message, is_new, &mut self.up) {
                            self.numbers.repeat_newest();
                        }
                    }
                    None => self.up.push_back(message),
                }
            }
            other => tracing::debug!(session_id = self.session.id, message_type = ?other, "client's message ignored"),
        }
    }

    /// Passes messages from the agent to the client. Returns whether any were passed. When the agent has ended, the session ends.
    fn move_down(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        if self.down.is_empty() && !self.faults.as_deref().is_some_and(|faults| faults.is_blocked(Direction::Down)) {
            moved = self.receive_from_agent(cx)?;
        }
        if self.faults.as_deref().is_some_and(SessionFaults::is_black_hole) {
            self.down.clear();
            return Ok(moved);
        }
        // Messages for a disconnected client are lost. They are not acknowledged, so the agent retransmits them.
        let Some(client) = &mut self.client else {
            self.down.clear();
            return Ok(moved);
        };
        let waited = !self.down.is_empty();
        let outcome = pump(client, &mut self.down, &mut self.unflushed, cx);
        // While messages waited for the WebSocket, the agent was not polled. It must be polled again now.
        moved |= waited && self.down.is_empty();
        if let Err(error) = outcome {
            self.disconnect(&error);
            moved = true;
        }
        Ok(moved)
    }

    fn receive_from_agent(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let Some(agent) = &mut self.agent else { return Ok(false) };
        match agent.output.poll_receive(cx, &mut self.down) {
            Poll::Ready(true) => {
                self.pass_down();
                Ok(true)
            }
            Poll::Ready(false) => match agent.poll_result(cx) {
                Poll::Ready(result) => {
                    let state = if result.failed { SessionState::Failed } else { SessionState::Terminated };
                    Err(End { state, output: result.output })
                }
                Poll::Pending => Ok(false),
            },
            Poll::Pending => Ok(false),
        }
    }

    /// Removes, in place, the messages that are not for the client.
    fn pass_down(&mut self) {
        let mut data = false;
        self.down.retain(|message| match message_type(message) {
            Some(MessageType::OutputStreamData) => {
                data |= is_data(message);
                true
            }
            Some(MessageType::Acknowledge) => true,
            // Other messages, for example agent_session_state, are for the service.
            _ => false,
        });
        if data {
            self.last_data = Instant::now();
        }
        if self.faults.is_none() && !self.numbers.differ() {
            return;
        }
        for message in std::mem::take(&mut self.down) {
            let Some(message) = self.numbers.ack_for_client(message) else { continue };
            match &mut self.faults {
                Some(faults) => drop(faults.pass(now(), Direction::Down, message, false, &mut self.down)),
                None => self.down.push_back(message),
            }
        }
    }

    /// Sets the timer. Returns the end if the session has timed out.
    fn watch(&mut self, cx: &mut Context<'_>) -> Option<End> {
        loop {
            let idle_at = self.last_data + self.idle_timeout;
            let at = self.end_of_time.map_or(idle_at, |end| end.min(idle_at));
            if self.timer.deadline() != at {
                self.timer.as_mut().reset(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return None;
            }
            let output = match self.end_of_time {
                Some(end) if end <= idle_at => "The session reached its maximum duration.",
                _ => "The session was idle for too long.",
            };
            if at <= Instant::now() {
                return Some(End { state: SessionState::Terminated, output: output.into() });
            }
        }
    }

    /// Notifies the client and the agent that the session has ended, and gives the client time to read the notification.
    async fn send_end(mut self, output: &str) {
        let (id, target) = (&self.session.id, &self.session.target);
        let closed = service_message(|date, uuid| ChannelClosed::encode(id, target, output, date, uuid));
        if let Some(agent) = &self.agent {
            agent.input.send(&mut VecDeque::from([closed.clone()]));
        }
        // A client that connects at the last moment is notified too.
        while let Ok(Command::Connect(socket)) = self.commands.try_recv() {
            self.client = Some(socket);
        }
        let Some(mut client) = self.client.take() else { return };
        let close = CloseFrame { code: CloseCode::Normal, reason: "session ended".into() };
        let last_messages =
            self.down.drain(..).chain([closed]).map(Message::Binary).chain([Message::Close(Some(close))]);
        for message in last_messages {
            if client.feed(message).await.is_err() {
                return;
            }
        }
        // Closing a socket with unread data resets the connection, and the last messages would be lost. So the remaining data is
        // read.
        if client.flush().await.is_ok() {
            while let Some(Ok(_)) = client.next().await {}
        }
    }
}

/// Returns the time for the faults, which do not depend on the runtime.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Passes `messages` to the WebSocket as far as it accepts them, then flushes once.
fn pump(
    client: &mut ClientSocket,
    messages: &mut VecDeque<Bytes>,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let mut client = Pin::new(client);
    while !messages.is_empty() && client.as_mut().poll_ready(cx)?.is_ready() {
        if let Some(message) = messages.pop_front() {
            client.as_mut().start_send(Message::Binary(message))?;
            *unflushed = true;
        }
    }
    if *unflushed && client.poll_flush(cx)?.is_ready() {
        *unflushed = false;
    }
    Ok(())
}

/// Creates a message of the service with the current time.
fn service_message(make: impl FnOnce(u64, Uuid) -> Bytes) -> Bytes {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let date = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX).max(1);
    make(date, Uuid::new_v4())
}
