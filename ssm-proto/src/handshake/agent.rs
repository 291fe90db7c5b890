//! The agent's side of the handshake.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::{
    ActionStatus, HandshakeComplete, HandshakeError, HandshakeRequest, HandshakeResponse, HandshakeStep, SessionType,
    Version,
};
use crate::wire::PayloadType;

/// How long the client may take to answer (HS-7).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Asks, waits for the one answer, and completes.
#[derive(Debug)]
pub struct AgentHandshake {
    request: HandshakeRequest,
    state: State,
    client_version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotStarted,
    AwaitingResponse { since: Instant },
    Complete,
    Failed,
}

impl AgentHandshake {
    /// A handshake of an agent of this version for this session.
    pub fn new(agent_version: impl Into<String>, session_type: &SessionType) -> Self {
        let request = HandshakeRequest {
            agent_version: agent_version.into(),
            requested_client_actions: vec![session_type.to_action()],
        };
        Self { request, state: State::NotStarted, client_version: String::new() }
    }

    /// What the client says its version is; empty before its answer.
    pub fn client_version(&self) -> &str {
        &self.client_version
    }

    /// Whether the session's bytes may flow.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Whether an agent of the version that this one claims knows how to multiplex.
    pub fn agent_multiplexes(&self) -> bool {
        Version::new(&self.request.agent_version).client_sees_newer_than(Version::AGENT_MUX)
    }

    /// Whether the client multiplexes, judged from its version (HS-9).
    pub fn client_multiplexes(&self) -> bool {
        Version::new(&self.client_version).agent_compares(Version::CLIENT_MUX) != Ordering::Less
    }

    /// Whether smux keep-alives are expected of the client, judged from its version (HS-9).
    pub fn client_sends_keep_alive(&self) -> bool {
        Version::new(&self.client_version).agent_compares(Version::CLIENT_NO_KEEP_ALIVE) != Ordering::Greater
    }

    /// The first step.
    pub fn start(&mut self, now: Instant) -> HandshakeStep {
        self.state = State::AwaitingResponse { since: now };
        HandshakeStep::Send(PayloadType::HandshakeRequest, serde_json::to_vec(&self.request).unwrap_or_default())
    }

    /// The client's payload, in order. `None`: nothing to do.
    ///
    /// # Errors
    /// The answer can't be read, or says that an action was not done: the session is to end.
    pub fn handle_payload(
        &mut self,
        now: Instant,
        payload_type: PayloadType,
        payload: &[u8],
    ) -> Result<Option<HandshakeStep>, HandshakeError> {
        let (PayloadType::HandshakeResponse, State::AwaitingResponse { since }) = (payload_type, self.state) else {
            return Ok(None);
        };
        self.state = State::Failed;
        let response: HandshakeResponse = serde_json::from_slice(payload)
            .map_err(|error| HandshakeError::Malformed { what: "handshake response", why: error.to_string() })?;
        self.client_version = response.client_version;
        if let Some(failed) =
            response.processed_client_actions.iter().find(|action| action.action_status != ActionStatus::Success)
        {
            return Err(HandshakeError::Refused(format!("{} ({:?})", failed.error, failed.action_status)));
        }
        self.state = State::Complete;
        let nanoseconds = now.saturating_duration_since(since).as_nanos();
        let complete = HandshakeComplete {
            handshake_time_to_complete: i64::try_from(nanoseconds).unwrap_or(i64::MAX),
            customer_message: String::new(),
        };
        Ok(Some(HandshakeStep::Complete(complete)))
    }

    /// When the answer is too late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::AwaitingResponse { since } => Some(since + ANSWER_TIMEOUT),
            State::NotStarted | State::Complete | State::Failed => None,
        }
    }

    /// The clock moved on.
    ///
    /// # Errors
    /// [`HandshakeError::TimedOut`], once.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), HandshakeError> {
        if self.poll_timeout().is_some_and(|at| now >= at) {
            self.state = State::Failed;
            return Err(HandshakeError::TimedOut);
        }
        Ok(())
    }
}
