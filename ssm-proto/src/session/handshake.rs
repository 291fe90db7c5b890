//! The part of a session from the first message to the ready session.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::carrier::Carrier;
use super::{LOCAL_PORT_FORWARDING, Session, SessionError, SessionEvent, SessionMode};
use crate::Side;
use crate::cipher::{Cipher, PlaintextKey};
use crate::handshake::{
    AgentHandshake, ClientHandshake, DataKey, HandshakeComplete, HandshakeStep, PortProperties, SessionType, Version,
};
use crate::wire::{MessageBuf, PayloadType};

/// Time after the agent's HandshakeComplete during which the agent acknowledges and discards data (HS-8).
const GRACE: Duration = Duration::from_millis(5);
/// The same time on short paths, over which a message would arrive within `GRACE`.
const GRACE_ON_LOOPBACK: Duration = Duration::from_millis(50);
const LOOPBACK_RTT: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) enum Handshake {
    Client(ClientHandshake),
    Agent(AgentHandshake),
}

impl Handshake {
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Client(handshake) => handshake.is_complete(),
            Self::Agent(handshake) => handshake.is_complete(),
        }
    }

    pub(super) fn session_type(&self) -> Option<&SessionType> {
        match self {
            Self::Client(handshake) => handshake.session_type(),
            Self::Agent(handshake) => Some(handshake.session_type()),
        }
    }

    pub(super) fn cipher(&mut self) -> Option<&mut Cipher> {
        match self {
            Self::Client(handshake) => handshake.cipher(),
            Self::Agent(handshake) => handshake.cipher(),
        }
    }

    /// Checks a payload before it is acknowledged, and decrypts it. The error `None` means that the payload is discarded and the
    /// session continues.
    pub(super) fn admit(&mut self, payload_type: PayloadType, payload: Bytes) -> Result<Bytes, Option<SessionError>> {
        if let Self::Agent(handshake) = self
            && !handshake.admits(payload_type, &payload)
        {
            return Err(None);
        }
        match self.cipher().and_then(|cipher| cipher.open_payload(payload_type, &payload)) {
            None => Ok(payload),
            Some(Ok(plaintext)) => Ok(plaintext.into()),
            Some(Err(source)) => Err(Some(SessionError::Undecryptable { payload_type, source })),
        }
    }

    /// Returns how the session carries its data, and whether the peer expects keep-alive frames. The handshake must be complete.
    fn outcome(&self) -> (Side, SessionMode, bool) {
        let (side, multiplexes, old_peer) = match self {
            Self::Client(client) => (Side::Client, client.agent_multiplexes(), client.agent_expects_keep_alive()),
            Self::Agent(agent) => {
                let multiplexes = agent.agent_multiplexes() && agent.client_multiplexes();
                (Side::Agent, multiplexes, agent.client_sends_keep_alive())
            }
        };
        match self.session_type() {
            Some(SessionType::Port(properties)) => (side, mode_of_port(properties, multiplexes), old_peer),
            _ => (side, SessionMode::Shell, false),
        }
    }
}

/// Returns how a port session carries its data.
fn mode_of_port(port: &PortProperties, multiplexes: bool) -> SessionMode {
    match port.kind.as_deref() {
        Some(LOCAL_PORT_FORWARDING) if multiplexes => SessionMode::Mux,
        Some(LOCAL_PORT_FORWARDING) => SessionMode::Basic,
        _ => SessionMode::Plain,
    }
}

impl Session {
    /// Handles a payload of the handshake. Until the handshake is complete, all other payloads are acknowledged and discarded, as
    /// by the official agent (HS-8).
    pub(super) fn handle_handshake(&mut self, now: Instant, payload_type: PayloadType, payload: &[u8]) {
        let (step, outcome) = match &mut self.handshake {
            Handshake::Client(handshake) => handshake.handle_payload(payload_type, payload),
            Handshake::Agent(handshake) => match handshake.handle_payload(now, payload_type, payload) {
                Ok(step) => (step, Ok(())),
                Err(error) => (None, Err(error)),
            },
        };
        if let Some(step) = step {
            self.perform(now, step);
        }
        if let Err(error) = outcome {
            self.events.push_back(SessionEvent::Failed(error.into()));
        }
    }

    pub(super) fn perform(&mut self, now: Instant, step: HandshakeStep) {
        match step {
            HandshakeStep::Send(payload_type, payload) => {
                self.control.push_back((payload_type, MessageBuf::from(payload.as_slice())));
            }
            HandshakeStep::GenerateDataKey(request) => {
                self.events.push_back(SessionEvent::DataKeyNeeded(request));
            }
            HandshakeStep::DecryptDataKey(request, ciphertext) => {
                self.events.push_back(SessionEvent::DecryptNeeded(request, ciphertext));
            }
            HandshakeStep::Skip => self.begin_without_handshake(now),
            HandshakeStep::Complete(complete) => self.complete(now, complete),
        }
    }

    /// Answers [`SessionEvent::DataKeyNeeded`]. Without that event the call has no effect.
    ///
    /// `first_nonce` must come from the system's random number generator, never from the session's seed. The nonces count up from
    /// it, and a nonce that is used twice with one key reveals the plaintext.
    pub fn provide_data_key(&mut self, now: Instant, key: &DataKey, first_nonce: [u8; 12]) {
        if let Handshake::Client(handshake) = &mut self.handshake
            && let Some(step) = handshake.provide_data_key(key, first_nonce)
        {
            self.perform(now, step);
        }
    }

    /// Answers [`SessionEvent::DataKeyNeeded`] if KMS refused the request: `why` is sent to the agent, and the session fails.
    pub fn refuse_data_key(&mut self, now: Instant, why: &str) {
        if let Handshake::Client(handshake) = &mut self.handshake
            && let Some(step) = handshake.refuse_data_key(why)
        {
            self.perform(now, step);
            self.events.push_back(SessionEvent::Failed(SessionError::NoDataKey(why.to_owned())));
        }
    }

    /// Answers [`SessionEvent::DecryptNeeded`] (agent side). Without that event the call has no effect.
    pub fn provide_plaintext_key(&mut self, now: Instant, key: &PlaintextKey) {
        if let Handshake::Agent(handshake) = &mut self.handshake
            && let Some(step) = handshake.provide_plaintext_key(now, key)
        {
            self.perform(now, step);
        }
    }

    fn complete(&mut self, now: Instant, complete: HandshakeComplete) {
        let (side, mode, old_peer) = self.handshake.outcome();
        match side {
            Side::Client => {
                let short = self.channel.stats().srtt.is_some_and(|srtt| srtt < LOOPBACK_RTT);
                self.data_from = Some(now + if short { GRACE_ON_LOOPBACK } else { GRACE });
                self.channel.expect_unready_peer();
            }
            Side::Agent => {
                let body = serde_json::to_vec(&complete).unwrap_or_default();
                self.control.push_back((PayloadType::HandshakeComplete, MessageBuf::from(body.as_slice())));
            }
        }
        if !complete.customer_message.is_empty() && side == Side::Client {
            self.events.push_back(SessionEvent::Message(complete.customer_message));
        }
        self.begin(now, side, mode, old_peer);
    }

    /// Begins a session without a handshake immediately (HS-1).
    pub(super) fn begin_without_handshake(&mut self, now: Instant) {
        let (side, mode, old_peer) = self.handshake.outcome();
        self.begin(now, side, mode, old_peer);
    }

    fn begin(&mut self, now: Instant, side: Side, mode: SessionMode, old_peer: bool) {
        if let Some(error) = self.refusal_of_shells().or_else(|| self.refusal_of_old_agents()) {
            return self.events.push_back(SessionEvent::Failed(error));
        }
        self.completed_at = Some(now);
        self.carrier = Carrier::new(side, mode, self.mux_config.clone(), old_peer, now);
        self.events.push_back(SessionEvent::Ready(mode));
        self.collect_events();
    }

    fn refusal_of_shells(&self) -> Option<SessionError> {
        match self.handshake.session_type() {
            Some(SessionType::Port(_)) => None,
            _ if !self.ports_only => None,
            other => {
                let name = other.map_or("nothing", SessionType::name);
                Some(SessionError::NotAPort(name.to_owned()))
            }
        }
    }

    /// Refuses agents that would ignore the host name: a connection to the wrong service is worse than an error (PORT-8).
    fn refusal_of_old_agents(&self) -> Option<SessionError> {
        let version = self.agent_version();
        let Some(SessionType::Port(properties)) = self.handshake.session_type() else { return None };
        let host =
            properties.host.as_deref().filter(|host| !matches!(*host, "" | "localhost" | "127.0.0.1" | "::1"))?;
        Version::new(version)
            .is_older_than(Version::AGENT_REMOTE_HOST)
            .then(|| SessionError::AgentTooOld { version: version.to_owned(), host: host.to_owned() })
    }

    pub(super) fn handle_answer_timeout(&mut self, now: Instant) {
        if let Handshake::Agent(handshake) = &mut self.handshake
            && let Err(error) = handshake.handle_timeout(now)
        {
            self.events.push_back(SessionEvent::Failed(error.into()));
        }
    }

    pub(super) fn answer_timeout(&self) -> Option<Instant> {
        match &self.handshake {
            Handshake::Client(_) => None,
            Handshake::Agent(handshake) => handshake.poll_timeout(),
        }
    }
}
