//! The agent's side of the handshake.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::kms::{EncChallenge, KmsParameters};
use super::{
    ActionStatus, AgentKms, HandshakeComplete, HandshakeError, HandshakeRequest, HandshakeResponse, HandshakeStep,
    Identity, KMS_ENCRYPTION, KeyRequest, RequestedAction, SessionType, Version,
};
use crate::Side;
use crate::cipher::{Cipher, PlaintextKey};
use crate::wire::PayloadType;

/// Maximum time for the client's answer (HS-7).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The text that the official agent shows to the user of an encrypted session.
const KMS_TEXT: &str = "This session is encrypted using AWS KMS.";

/// The agent's side of the handshake (HS-*).
///
/// ```text
///  NotStarted ── request ──► AwaitingResponse ── response ──► Complete
///                                └─ with KMS ─► AwaitingKey ── key ──► AwaitingProof ── right answer ──► Complete
/// ```
/// Without a handshake (HS-1), the agent is complete from the start.
#[derive(Debug)]
pub struct AgentHandshake {
    request: HandshakeRequest,
    session_type: SessionType,
    kms: Option<AgentKms>,
    identity: Identity,
    cipher: Option<Cipher>,
    started: Option<Instant>,
    state: AgentState,
    client_version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AgentState {
    NotStarted,
    AwaitingResponse { since: Instant },
    AwaitingKey,
    AwaitingProof { since: Instant },
    Complete,
    Failed,
}

impl AgentHandshake {
    /// Creates the handshake of an agent of this version for this session type.
    pub fn new(
        agent_version: impl Into<String>,
        session_type: SessionType,
        kms: Option<AgentKms>,
        identity: Identity,
    ) -> Self {
        let mut actions = vec![session_type.to_action()];
        actions.extend(kms.as_ref().map(kms_action));
        let needed =
            kms.is_some() || matches!(session_type, SessionType::Port(_) | SessionType::NonInteractiveCommands);
        Self {
            request: HandshakeRequest { agent_version: agent_version.into(), requested_client_actions: actions },
            session_type,
            kms,
            identity,
            cipher: None,
            started: None,
            state: if needed { AgentState::NotStarted } else { AgentState::Complete },
            client_version: String::new(),
        }
    }

    /// Returns what the session carries.
    pub fn session_type(&self) -> &SessionType {
        &self.session_type
    }

    /// Returns whether session data may flow.
    pub fn is_complete(&self) -> bool {
        self.state == AgentState::Complete
    }

    /// Returns whether an agent of the configured version supports multiplexing.
    pub fn agent_multiplexes(&self) -> bool {
        Version::new(&self.request.agent_version).client_sees_newer_than(Version::AGENT_MUX)
    }

    /// Returns whether the client multiplexes, according to its version (HS-9).
    pub fn client_multiplexes(&self) -> bool {
        Version::new(&self.client_version).agent_compares(Version::CLIENT_MUX) != Ordering::Less
    }

    /// Returns whether the client is expected to send smux keep-alives, according to its version (HS-9).
    pub fn client_sends_keep_alive(&self) -> bool {
        Version::new(&self.client_version).agent_compares(Version::CLIENT_NO_KEEP_ALIVE) != Ordering::Greater
    }

    pub(crate) fn cipher(&mut self) -> Option<&mut Cipher> {
        self.cipher.as_mut()
    }

    /// Starts the handshake and returns the first step; `None` if the session needs no handshake.
    pub fn start(&mut self, now: Instant) -> Option<HandshakeStep> {
        if self.state != AgentState::NotStarted {
            return None;
        }
        self.started = Some(now);
        self.state = AgentState::AwaitingResponse { since: now };
        Some(HandshakeStep::send(PayloadType::HandshakeRequest, &self.request))
    }

    /// Returns whether the payload is to be acknowledged. A wrong answer to the encryption challenge is not acknowledged (KMS-5).
    pub fn admits(&self, payload_type: PayloadType, payload: &[u8]) -> bool {
        let proof_due = matches!(self.state, AgentState::AwaitingProof { .. });
        !(proof_due && payload_type == PayloadType::EncChallengeResponse) || self.is_proof(payload)
    }

    /// Handles the client's next payload in order. Returns `None` if there is nothing to do.
    ///
    /// # Errors
    /// Returns an error if the answer cannot be parsed or reports a failed action. The session must then be ended.
    pub fn handle_payload(
        &mut self,
        now: Instant,
        payload_type: PayloadType,
        payload: &[u8],
    ) -> Result<Option<HandshakeStep>, HandshakeError> {
        match (payload_type, self.state) {
            (PayloadType::HandshakeResponse, AgentState::AwaitingResponse { .. }) => {
                self.state = AgentState::Failed;
                self.handle_response(now, payload).map(Some)
            }
            (PayloadType::EncChallengeResponse, AgentState::AwaitingProof { .. }) if self.is_proof(payload) => {
                Ok(Some(self.complete(now)))
            }
            _ => Ok(None),
        }
    }

    /// Continues the handshake with the data key that KMS has decrypted. Returns `None` if no key was requested.
    pub fn provide_plaintext_key(&mut self, now: Instant, key: &PlaintextKey) -> Option<HandshakeStep> {
        let kms = self.kms.as_ref().filter(|_| self.state == AgentState::AwaitingKey)?;
        let mut cipher = Cipher::new(Side::Agent, key, kms.first_nonce);
        let challenge = cipher.seal(&kms.proof).ok()?.payload().to_vec();
        self.cipher = Some(cipher);
        self.state = AgentState::AwaitingProof { since: now };
        Some(HandshakeStep::send(PayloadType::EncChallengeRequest, &EncChallenge { challenge }))
    }

    fn handle_response(&mut self, now: Instant, payload: &[u8]) -> Result<HandshakeStep, HandshakeError> {
        let response: HandshakeResponse =
            serde_json::from_slice(payload).map_err(|error| malformed(error.to_string()))?;
        self.client_version = response.client_version;
        let actions = response.processed_client_actions;
        if let Some(failed) = actions.iter().find(|action| action.action_status != ActionStatus::Success) {
            return Err(HandshakeError::Refused(format!("{} ({:?})", failed.error, failed.action_status)));
        }
        let Some(kms) = &self.kms else { return Ok(self.complete(now)) };
        let result = actions.into_iter().find(|action| action.action_type == KMS_ENCRYPTION);
        let result = result
            .and_then(|action| action.action_result)
            .ok_or_else(|| malformed("the answer contains no data key".into()))?;
        if kms.require_acknowledgement && !result.challenge_acknowledgement {
            return Err(HandshakeError::Refused("the data key is not bound to the agent's challenge".into()));
        }
        let challenge = kms.challenge_text().filter(|_| result.challenge_acknowledgement);
        self.state = AgentState::AwaitingKey;
        let context = self.identity.context(challenge.as_deref());
        let request = KeyRequest { key_id: kms.key_id.clone(), context };
        Ok(HandshakeStep::DecryptDataKey(request, result.ciphertext_key.into()))
    }

    fn is_proof(&self, payload: &[u8]) -> bool {
        let (Some(cipher), Some(kms)) = (&self.cipher, &self.kms) else { return false };
        let answer = serde_json::from_slice::<EncChallenge>(payload).ok();
        answer.and_then(|answer| cipher.open(&answer.challenge).ok()).is_some_and(|answer| answer == kms.proof)
    }

    fn complete(&mut self, now: Instant) -> HandshakeStep {
        self.state = AgentState::Complete;
        let nanoseconds = self.started.map_or(0, |since| now.saturating_duration_since(since).as_nanos());
        HandshakeStep::Complete(HandshakeComplete {
            handshake_time_to_complete: i64::try_from(nanoseconds).unwrap_or(i64::MAX),
            customer_message: self.kms.as_ref().map_or("", |_| KMS_TEXT).into(),
        })
    }

    /// Returns the deadline for the client's answer.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            AgentState::AwaitingResponse { since } | AgentState::AwaitingProof { since } => {
                Some(since + ANSWER_TIMEOUT)
            }
            AgentState::NotStarted | AgentState::AwaitingKey | AgentState::Complete | AgentState::Failed => None,
        }
    }

    /// Handles the passing of time.
    ///
    /// # Errors
    /// Returns [`HandshakeError::TimedOut`], once, if the client did not answer in time.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), HandshakeError> {
        if self.poll_timeout().is_some_and(|at| now >= at) {
            self.state = AgentState::Failed;
            return Err(HandshakeError::TimedOut);
        }
        Ok(())
    }
}

fn kms_action(kms: &AgentKms) -> RequestedAction {
    let parameters = KmsParameters { key_id: kms.key_id.clone(), challenge: kms.challenge_text() };
    RequestedAction {
        action_type: KMS_ENCRYPTION.into(),
        action_parameters: serde_json::to_value(parameters).unwrap_or_default(),
    }
}

fn malformed(why: String) -> HandshakeError {
    HandshakeError::Malformed { what: "handshake response", why }
}
