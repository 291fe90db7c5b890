//! The client's side of the handshake.

use super::body::SessionTypeParameters;
use super::kms::{EncChallenge, KmsParameters};
use super::{
    ActionStatus, DataKey, HandshakeComplete, HandshakeError, HandshakeRequest, HandshakeResponse, HandshakeStep,
    Identity, KMS_ENCRYPTION, KeyRequest, KmsResult, ProcessedAction, RequestedAction, SESSION_TYPE, SessionType,
    Version,
};
use crate::Side;
use crate::cipher::Cipher;
use crate::wire::PayloadType;

/// The client's side of the handshake (HS-*).
///
/// ```text
///  AwaitingRequest ── HandshakeRequest ──► AwaitingComplete ── HandshakeComplete ──► Complete
///        │  └─ with KMS ─► AwaitingKey ─── data key ──▲                                 ▲
///        └───────────── Output: a shell whose agent needs no handshake (HS-1) ──────────┘
/// ```
#[derive(Debug)]
pub struct ClientHandshake {
    client_version: String,
    identity: Identity,
    kms_on_ports: bool,
    state: ClientState,
    agent_version: String,
    session_type: Option<SessionType>,
    cipher: Option<Cipher>,
}

#[derive(Debug)]
enum ClientState {
    AwaitingRequest,
    /// Waiting for the data key before the request is answered. `challenge` is the text that the key is bound to.
    AwaitingKey {
        processed: Vec<ProcessedAction>,
        challenge: Option<String>,
    },
    AwaitingComplete,
    Complete,
    Failed,
}

impl ClientHandshake {
    /// Creates a handshake of a client that reports this version. With `kms_on_ports`, the client encrypts a port session if the
    /// agent requests it, which no official agent does. Otherwise the client refuses the request as unsupported.
    pub fn new(client_version: impl Into<String>, identity: Identity, kms_on_ports: bool) -> Self {
        Self {
            client_version: client_version.into(),
            identity,
            kms_on_ports,
            state: ClientState::AwaitingRequest,
            agent_version: String::new(),
            session_type: None,
            cipher: None,
        }
    }

    /// Returns the version that the agent reported; empty before its request, and in shells without a handshake.
    pub fn agent_version(&self) -> &str {
        &self.agent_version
    }

    /// Returns what the session carries, once it is known.
    pub fn session_type(&self) -> Option<&SessionType> {
        self.session_type.as_ref()
    }

    /// Returns whether session data may flow.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, ClientState::Complete)
    }

    pub(crate) fn cipher(&mut self) -> Option<&mut Cipher> {
        self.cipher.as_mut()
    }

    /// Returns whether the agent multiplexes, according to its version (HS-9).
    pub fn agent_multiplexes(&self) -> bool {
        Version::new(&self.agent_version).client_sees_newer_than(Version::AGENT_MUX)
    }

    /// Returns whether the agent expects smux keep-alives, according to its version (HS-9).
    pub fn agent_expects_keep_alive(&self) -> bool {
        !Version::new(&self.agent_version).client_sees_newer_than(Version::AGENT_NO_KEEP_ALIVE)
    }

    /// Handles the agent's next payload in order. Returns `None` if there is nothing to do.
    ///
    /// The steps must be sent even if an action failed, because the agent waits for exactly one answer.
    ///
    /// # Errors
    /// Returns an error if the request cannot be parsed, or requests an action that this client does not support.
    pub fn handle_payload(
        &mut self,
        payload_type: PayloadType,
        payload: &[u8],
    ) -> (Option<HandshakeStep>, Result<(), HandshakeError>) {
        match (payload_type, &self.state) {
            (PayloadType::HandshakeRequest, ClientState::AwaitingRequest) => self.handle_request(payload),
            (PayloadType::EncChallengeRequest, ClientState::AwaitingComplete) => match self.answer_challenge(payload) {
                Ok(step) => (step, Ok(())),
                Err(error) => (None, Err(self.fail(error))),
            },
            (PayloadType::HandshakeComplete, ClientState::AwaitingComplete) => {
                self.state = ClientState::Complete;
                let complete: HandshakeComplete = serde_json::from_slice(payload).unwrap_or_default();
                (Some(HandshakeStep::Complete(complete)), Ok(()))
            }
            (PayloadType::Output | PayloadType::StdErr | PayloadType::ExitCode, ClientState::AwaitingRequest) => {
                self.state = ClientState::Complete;
                self.session_type = Some(SessionType::StandardStream);
                (Some(HandshakeStep::Skip), Ok(()))
            }
            // A second request must not be answered: a second response blocks the agent's reader permanently (HS-6).
            _ => (None, Ok(())),
        }
    }

    /// Continues the handshake with the data key that KMS has created. `first_nonce` must come from the system's random number
    /// generator: the nonces count up from it, and no nonce may ever be used twice with one key. Returns `None` if no key was
    /// requested.
    pub fn provide_data_key(&mut self, key: &DataKey, first_nonce: [u8; 12]) -> Option<HandshakeStep> {
        let (mut processed, challenge) = self.take_pending()?;
        let result = KmsResult {
            ciphertext_key: key.ciphertext.to_vec(),
            ciphertext_hash: None,
            challenge_acknowledgement: challenge.is_some(),
        };
        self.cipher = Some(Cipher::new(Side::Client, &key.plaintext, first_nonce));
        for action in processed.iter_mut().filter(|action| action.action_type == KMS_ENCRYPTION) {
            *action = success(KMS_ENCRYPTION, Some(result.clone()));
        }
        Some(self.response(processed, None))
    }

    /// Continues the handshake after KMS did not create a data key. `why` is sent to the agent, and the session must be ended.
    /// Returns `None` if no key was requested.
    pub fn refuse_data_key(&mut self, why: &str) -> Option<HandshakeStep> {
        let (mut processed, _) = self.take_pending()?;
        for action in processed.iter_mut().filter(|action| action.action_type == KMS_ENCRYPTION) {
            action.error = format!("Failed to process action {KMS_ENCRYPTION}: {why}");
        }
        self.state = ClientState::Failed;
        Some(self.response(processed, Some(why.into())))
    }

    fn take_pending(&mut self) -> Option<(Vec<ProcessedAction>, Option<String>)> {
        match std::mem::replace(&mut self.state, ClientState::AwaitingComplete) {
            ClientState::AwaitingKey { processed, challenge } => Some((processed, challenge)),
            other => {
                self.state = other;
                None
            }
        }
    }

    fn handle_request(&mut self, payload: &[u8]) -> (Option<HandshakeStep>, Result<(), HandshakeError>) {
        let request: HandshakeRequest = match serde_json::from_slice(payload) {
            Ok(request) => request,
            Err(error) => {
                let why = error.to_string();
                return (None, Err(self.fail(HandshakeError::Malformed { what: "handshake request", why })));
            }
        };
        self.agent_version = request.agent_version;
        let (mut processed, mut key, mut outcome) = (Vec::new(), None, Ok(()));
        for action in &request.requested_client_actions {
            let done = match action.action_type.as_str() {
                SESSION_TYPE => self.take_session_type(action).map(|()| success(SESSION_TYPE, None)),
                KMS_ENCRYPTION if key.is_none() => self.check_kms(action).map(|parameters| {
                    key = Some(parameters);
                    // This result is a placeholder until the data key is available.
                    unsuccessful(action, ActionStatus::Failed, "no data key was created".into())
                }),
                other => Err(HandshakeError::Unsupported(format!("the action {other:?}"))),
            };
            processed.push(done.unwrap_or_else(|error| failed(action, error, &mut outcome)));
        }
        if let Err(error) = outcome {
            let step = self.response(processed, Some(error.to_string()));
            return (Some(step), Err(self.fail(error)));
        }
        let Some(KmsParameters { key_id, challenge }) = key else {
            self.state = ClientState::AwaitingComplete;
            return (Some(self.response(processed, None)), Ok(()));
        };
        let context = self.identity.context(challenge.as_deref());
        self.state = ClientState::AwaitingKey { processed, challenge };
        (Some(HandshakeStep::GenerateDataKey(KeyRequest { key_id, context })), Ok(()))
    }

    fn take_session_type(&mut self, action: &RequestedAction) -> Result<(), HandshakeError> {
        let parameters: SessionTypeParameters = parameters(action, "session type")?;
        let session_type = SessionType::from_wire(&parameters.session_type, &parameters.properties)
            .ok_or_else(|| HandshakeError::Unsupported(format!("session type {:?}", parameters.session_type)))?;
        self.session_type = Some(session_type);
        Ok(())
    }

    fn check_kms(&self, action: &RequestedAction) -> Result<KmsParameters, HandshakeError> {
        match &self.session_type {
            None => Err(HandshakeError::Unsupported("KMS encryption before the session type".into())),
            Some(SessionType::Port(_)) if !self.kms_on_ports => {
                Err(HandshakeError::Unsupported("KMS encryption of a port session".into()))
            }
            Some(_) => parameters(action, "KMS action"),
        }
    }

    /// Proves that this end has the keys of both directions (KMS-5). A challenge that arrives before the data key is available is
    /// ignored.
    fn answer_challenge(&mut self, payload: &[u8]) -> Result<Option<HandshakeStep>, HandshakeError> {
        let Some(cipher) = &mut self.cipher else { return Ok(None) };
        let request: EncChallenge = serde_json::from_slice(payload)
            .map_err(|error| HandshakeError::Malformed { what: "encryption challenge", why: error.to_string() })?;
        let challenge = cipher.open(&request.challenge).map_err(HandshakeError::Challenge)?;
        let challenge = cipher.seal(&challenge).map_err(HandshakeError::Challenge)?.payload().to_vec();
        Ok(Some(HandshakeStep::send(PayloadType::EncChallengeResponse, &EncChallenge { challenge })))
    }

    fn response(&self, processed_client_actions: Vec<ProcessedAction>, error: Option<String>) -> HandshakeStep {
        let response = HandshakeResponse {
            client_version: self.client_version.clone(),
            processed_client_actions,
            errors: error.map(|error| vec![error]),
        };
        HandshakeStep::send(PayloadType::HandshakeResponse, &response)
    }

    fn fail(&mut self, error: HandshakeError) -> HandshakeError {
        self.state = ClientState::Failed;
        error
    }
}

fn parameters<T: serde::de::DeserializeOwned>(
    action: &RequestedAction,
    what: &'static str,
) -> Result<T, HandshakeError> {
    serde_json::from_value(action.action_parameters.clone())
        .map_err(|error| HandshakeError::Malformed { what, why: error.to_string() })
}

fn success(action_type: &str, action_result: Option<KmsResult>) -> ProcessedAction {
    let action_status = ActionStatus::Success;
    ProcessedAction { action_type: action_type.into(), action_status, action_result, error: String::new() }
}

fn unsuccessful(action: &RequestedAction, action_status: ActionStatus, error: String) -> ProcessedAction {
    ProcessedAction { action_type: action.action_type.clone(), action_status, action_result: None, error }
}

fn failed(
    action: &RequestedAction,
    error: HandshakeError,
    outcome: &mut Result<(), HandshakeError>,
) -> ProcessedAction {
    let known = action.action_type == SESSION_TYPE;
    let status = if known { ActionStatus::Failed } else { ActionStatus::Unsupported };
    let processed = unsuccessful(action, status, error.to_string());
    if outcome.is_ok() {
        *outcome = Err(error);
    }
    processed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(kms_on_ports: bool) -> ClientHandshake {
        let identity = Identity { session_id: "alice-1".into(), target: "i-1".into() };
        ClientHandshake::new("1.2.764.0", identity, kms_on_ports)
    }

    fn answer(step: Option<HandshakeStep>) -> HandshakeResponse {
        let Some(HandshakeStep::Send(PayloadType::HandshakeResponse, body)) = step else { panic!("{step:?}") };
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn an_unknown_action_is_answered_as_unsupported_and_told() {
        let mut handshake = client(false);
        let request =
            br#"{"AgentVersion":"9.0.0.0","RequestedClientActions":[{"ActionType":"Dance","ActionParameters":{}}]}"#;
        let (step, outcome) = handshake.handle_payload(PayloadType::HandshakeRequest, request);
        assert_eq!(answer(step).processed_client_actions[0].action_status, ActionStatus::Unsupported);
        assert!(matches!(outcome, Err(HandshakeError::Unsupported(_))));
    }

    #[test]
    fn only_the_first_request_is_answered() {
        let mut handshake = client(false);
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
        for first in [PayloadType::Output, PayloadType::StdErr, PayloadType::ExitCode] {
            let mut handshake = client(false);
            let (step, _) = handshake.handle_payload(first, b"$ ");
            assert!(matches!(step, Some(HandshakeStep::Skip)));
            assert_eq!(handshake.session_type(), Some(&SessionType::StandardStream));
        }
    }

    fn vector(name: &str) -> Vec<u8> {
        let all: Vec<serde_json::Value> = serde_json::from_str(include_str!("../../testdata/vectors.json")).unwrap();
        let vector = all.into_iter().find(|vector| vector["name"] == name).unwrap();
        let hex = vector["hex"].as_str().unwrap();
        let raw: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        crate::AgentMessage::decode(raw.into()).unwrap().payload().to_vec()
    }

    fn key() -> DataKey {
        let plaintext = crate::PlaintextKey::new(&(0..64).collect::<Vec<u8>>()).unwrap();
        DataKey { plaintext, ciphertext: b"cipher-text-key"[..].into() }
    }

    #[test]
    fn a_data_key_is_asked_for_and_bound_to_the_challenge() {
        let mut handshake = client(false);
        let (step, outcome) = handshake.handle_payload(PayloadType::HandshakeRequest, &vector("handshake_request_kms"));
        outcome.unwrap();
        let Some(HandshakeStep::GenerateDataKey(KeyRequest { key_id, context })) = step else { panic!("{step:?}") };
        assert!(key_id.starts_with("arn:aws:kms:"));
        let expected = [
            ("aws:ssm:RandomChallenge", "AAECAwQFBgcICQoLDA0ODw=="),
            ("aws:ssm:SessionId", "alice-1"),
            ("aws:ssm:TargetId", "i-1"),
        ];
        assert!(context.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected));
        let response = answer(handshake.provide_data_key(&key(), [0; 12]));
        let result = response.processed_client_actions[1].action_result.as_ref().unwrap();
        assert!(result.challenge_acknowledgement);
        assert_eq!(handshake.provide_data_key(&key(), [0; 12]), None, "only one answer is sent");
    }

    #[test]
    fn the_recorded_challenge_gets_the_recorded_answer() {
        let mut handshake = client(false);
        let request = String::from_utf8(vector("handshake_request_kms")).unwrap();
        // The recorded response answers an agent older than the random challenge, so the challenge is removed from the request.
        let (head, tail) = request.split_once(r#","Challenge":""#).unwrap();
        let request = format!("{head}{}", tail.split_once('"').unwrap().1);
        let _ = handshake.handle_payload(PayloadType::HandshakeRequest, request.as_bytes());
        let first_nonce = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let response = HandshakeStep::Send(PayloadType::HandshakeResponse, vector("handshake_response_kms"));
        assert_eq!(handshake.provide_data_key(&key(), first_nonce), Some(response));
        let (step, outcome) =
            handshake.handle_payload(PayloadType::EncChallengeRequest, &vector("enc_challenge_request"));
        outcome.unwrap();
        let response = HandshakeStep::Send(PayloadType::EncChallengeResponse, vector("enc_challenge_response"));
        assert_eq!(step, Some(response));
        let (step, _) = handshake.handle_payload(PayloadType::HandshakeComplete, &vector("handshake_complete_kms"));
        assert!(matches!(step, Some(HandshakeStep::Complete(_))));
    }
}
