//! The client's side of the handshake.

use serde_json::Value;

use super::body::SessionTypeParameters;
use super::{
    ActionStatus, HandshakeComplete, HandshakeError, HandshakeRequest, HandshakeResponse, HandshakeStep,
    KMS_ENCRYPTION, ProcessedAction, RequestedAction, SESSION_TYPE, SessionType, Version,
};
use crate::wire::PayloadType;

/// ```text
///  AwaitingRequest ── HandshakeRequest ──► AwaitingComplete ── HandshakeComplete ──► Complete
///        └───────────── Output: a shell whose agent needs no handshake (HS-1) ──────────▲
/// ```
#[derive(Debug)]
pub struct ClientHandshake {
    client_version: String,
    state: State,
    agent_version: String,
    session_type: Option<SessionType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitingRequest,
    AwaitingComplete,
    Complete,
}

impl ClientHandshake {
    /// A handshake in which the client says that it has this version.
    pub fn new(client_version: impl Into<String>) -> Self {
        Self {
            client_version: client_version.into(),
            state: State::AwaitingRequest,
            agent_version: String::new(),
            session_type: None,
        }
    }

    /// What the agent says its version is; empty before its request, and in shells without a handshake.
    pub fn agent_version(&self) -> &str {
        &self.agent_version
    }

    /// What the session carries, once known.
    pub fn session_type(&self) -> Option<&SessionType> {
        self.session_type.as_ref()
    }

    /// Whether the session's bytes may flow.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Whether the agent multiplexes, judged from its version (HS-9).
    pub fn agent_multiplexes(&self) -> bool {
        Version::new(&self.agent_version).client_sees_newer_than(Version::AGENT_MUX)
    }

    /// Whether the agent expects smux keep-alives, judged from its version (HS-9).
    pub fn agent_expects_keep_alive(&self) -> bool {
        !Version::new(&self.agent_version).client_sees_newer_than(Version::AGENT_NO_KEEP_ALIVE)
    }

    /// The agent's payload, in order. `None`: nothing to do.
    ///
    /// The steps of a failed action are to be sent all the same: the agent waits for exactly one answer.
    ///
    /// # Errors
    /// The request can't be read or asks for what this client can't do.
    pub fn handle_payload(
        &mut self,
        payload_type: PayloadType,
        payload: &[u8],
    ) -> (Option<HandshakeStep>, Result<(), HandshakeError>) {
        match (payload_type, self.state) {
            (PayloadType::HandshakeRequest, State::AwaitingRequest) => self.handle_request(payload),
            (PayloadType::HandshakeComplete, State::AwaitingComplete) => {
                self.state = State::Complete;
                let complete: HandshakeComplete = serde_json::from_slice(payload).unwrap_or_default();
                (Some(HandshakeStep::Complete(complete)), Ok(()))
            }
            (PayloadType::Output, State::AwaitingRequest) => {
                self.state = State::Complete;
                self.session_type = Some(SessionType::StandardStream);
                (Some(HandshakeStep::Complete(HandshakeComplete::default())), Ok(()))
            }
            // A second request must not be answered: a second response blocks the agent's reader for good (HS-6).
            _ => (None, Ok(())),
        }
    }

    fn handle_request(&mut self, payload: &[u8]) -> (Option<HandshakeStep>, Result<(), HandshakeError>) {
        let request: HandshakeRequest = match serde_json::from_slice(payload) {
            Ok(request) => request,
            Err(error) => {
                let why = error.to_string();
                return (None, Err(HandshakeError::Malformed { what: "handshake request", why }));
            }
        };
        self.state = State::AwaitingComplete;
        self.agent_version = request.agent_version;
        let mut outcome = Ok(());
        let processed = request
            .requested_client_actions
            .iter()
            .map(|action| self.process(action).unwrap_or_else(|error| failed(action, error, &mut outcome)))
            .collect();
        let errors = outcome.as_ref().err().map(|error: &HandshakeError| vec![error.to_string()]);
        let response = HandshakeResponse {
            client_version: self.client_version.clone(),
            processed_client_actions: processed,
            errors,
        };
        let body = serde_json::to_vec(&response).unwrap_or_default();
        (Some(HandshakeStep::Send(PayloadType::HandshakeResponse, body)), outcome)
    }

    fn process(&mut self, action: &RequestedAction) -> Result<ProcessedAction, HandshakeError> {
        match action.action_type.as_str() {
            SESSION_TYPE => {
                let parameters: SessionTypeParameters = serde_json::from_value(action.action_parameters.clone())
                    .map_err(|error| HandshakeError::Malformed { what: "session type", why: error.to_string() })?;
                let session_type = SessionType::from_wire(&parameters.session_type, &parameters.properties)
                    .ok_or(HandshakeError::Unsupported(format!("session type {:?}", parameters.session_type)))?;
                self.session_type = Some(session_type);
            }
            KMS_ENCRYPTION => return Err(HandshakeError::Unsupported("KMS encryption of this session type".into())),
            other => return Err(HandshakeError::Unsupported(format!("the action {other:?}"))),
        }
        Ok(ProcessedAction {
            action_type: action.action_type.clone(),
            action_status: ActionStatus::Success,
            action_result: Value::Null,
            error: String::new(),
        })
    }
}

fn failed(
    action: &RequestedAction,
    error: HandshakeError,
    outcome: &mut Result<(), HandshakeError>,
) -> ProcessedAction {
    let known = action.action_type == SESSION_TYPE;
    let processed = ProcessedAction {
        action_type: action.action_type.clone(),
        action_status: if known { ActionStatus::Failed } else { ActionStatus::Unsupported },
        action_result: Value::Null,
        error: error.to_string(),
    };
    if outcome.is_ok() {
        *outcome = Err(error);
    }
    processed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(step: Option<HandshakeStep>) -> HandshakeResponse {
        let Some(HandshakeStep::Send(PayloadType::HandshakeResponse, body)) = step else { panic!("{step:?}") };
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn an_unknown_action_is_answered_as_unsupported_and_told() {
        let mut handshake = ClientHandshake::new("1.2.764.0");
        let request =
            br#"{"AgentVersion":"9.0.0.0","RequestedClientActions":[{"ActionType":"Dance","ActionParameters":{}}]}"#;
        let (step, outcome) = handshake.handle_payload(PayloadType::HandshakeRequest, request);
        assert_eq!(answer(step).processed_client_actions[0].action_status, ActionStatus::Unsupported);
        assert!(matches!(outcome, Err(HandshakeError::Unsupported(_))));
    }

    #[test]
    fn only_the_first_request_is_answered() {
        let mut handshake = ClientHandshake::new("1.2.764.0");
        let request = br#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"portNumber":80,"type":"LocalPortForwarding"}}}]}"#;
        let (step, outcome) = handshake.handle_payload(PayloadType::HandshakeRequest, request);
        assert_eq!(answer(step).errors, None);
        outcome.unwrap();
        let Some(SessionType::Port(properties)) = handshake.session_type() else { panic!() };
        assert_eq!(properties.port_number.as_deref(), Some("80"));
        let (again, _) = handshake.handle_payload(PayloadType::HandshakeRequest, request);
        assert_eq!(again, None);
        assert!(!handshake.is_complete());
    }

    #[test]
    fn output_first_is_a_shell_without_a_handshake() {
        let mut handshake = ClientHandshake::new("1.2.764.0");
        let (step, _) = handshake.handle_payload(PayloadType::Output, b"$ ");
        assert!(matches!(step, Some(HandshakeStep::Complete(_))));
        assert_eq!(handshake.session_type(), Some(&SessionType::StandardStream));
    }
}
