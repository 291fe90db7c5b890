//! Fuzz targets of the handshake's JSON bodies, including the bodies of the KMS exchange.

use std::time::{Duration, Instant};

use super::input::Input;
use super::keys;
use crate::{
    AgentHandshake, AgentKms, ClientHandshake, HandshakeComplete, HandshakeRequest, HandshakeResponse, HandshakeStep,
    Identity, PayloadType, SessionType,
};

/// A client accepts any sequence of payloads, each with a payload type and a body. Its answers are JSON, its handshake completes at
/// most once, and it requests a data key from KMS at most once.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn client_handshake(data: &[u8]) {
    reads_again(data);
    let mut input = Input::new(data);
    let identity = Identity { session_id: "s-1".into(), target: "i-1".into() };
    let mut handshake = ClientHandshake::new("1.2.764.0", identity, input.flag());
    let (mut completed, mut keys_wanted) = (0, 0);
    while !input.is_empty() {
        let payload_type = PayloadType::from(u32::from(input.byte() % 14));
        let (step, _) = handshake.handle_payload(payload_type, &input.bytes());
        let mut step = step;
        while let Some(now) = step.take() {
            match now {
                HandshakeStep::Send(_, body) => assert_json(&body),
                HandshakeStep::GenerateDataKey(request) => {
                    keys_wanted += 1;
                    assert_eq!(request.context.get("aws:ssm:SessionId").map(String::as_str), Some("s-1"));
                    let key = keys::data_key().filter(|_| input.flag());
                    step = match key {
                        Some(key) => handshake.provide_data_key(&key, [3; 12]),
                        None => handshake.refuse_data_key("no"),
                    };
                }
                HandshakeStep::Complete(_) | HandshakeStep::Skip => completed += 1,
                HandshakeStep::DecryptDataKey(..) => panic!("a client must not decrypt a data key"),
            }
        }
    }
    assert!(completed <= 1, "complete {completed} times");
    assert!(keys_wanted <= 1, "{keys_wanted} keys");
    assert!(completed == 0 || handshake.is_complete());
}

/// An agent accepts any sequence of payloads while time passes. Its handshake completes at most once. If the agent requested
/// encryption, the handshake never completes without the proof that the client has the data key.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn agent_handshake(data: &[u8], now: Instant) {
    let mut input = Input::new(data);
    let mut now = now;
    let kms = input.flag().then(|| AgentKms { require_acknowledgement: input.flag(), ..keys::agent_kms() });
    let identity = Identity { session_id: "s-1".into(), target: "i-1".into() };
    let mut handshake = AgentHandshake::new("3.3.987.0", SessionType::StandardStream, kms, identity);
    let _ = handshake.start(now);
    let mut completed = 0;
    while !input.is_empty() {
        let payload_type = PayloadType::from(u32::from(input.byte() % 14));
        let body = input.bytes();
        if !handshake.admits(payload_type, &body) {
            continue;
        }
        let mut step = handshake.handle_payload(now, payload_type, &body).unwrap_or_default();
        while let Some(taken) = step.take() {
            match taken {
                HandshakeStep::Send(_, body) => assert_json(&body),
                HandshakeStep::DecryptDataKey(..) => {
                    let key = keys::data_key().filter(|_| input.flag());
                    step = key.and_then(|key| handshake.provide_plaintext_key(now, &key.plaintext));
                }
                HandshakeStep::Complete(_) | HandshakeStep::Skip => completed += 1,
                HandshakeStep::GenerateDataKey(_) => panic!("an agent must not generate a data key"),
            }
        }
        now += Duration::from_millis(u64::from(input.byte()) << 4);
        let _ = handshake.handle_timeout(now);
        assert!(handshake.poll_timeout().is_none_or(|at| at > now), "a timeout in the past");
    }
    assert!(completed <= 1, "complete {completed} times");
    assert!(completed == 0 || handshake.is_complete());
}

/// Asserts that a body that can be parsed stays the same after it is serialized and parsed again.
fn reads_again(data: &[u8]) {
    fn check<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq>(data: &[u8]) {
        let Ok(body) = serde_json::from_slice::<T>(data) else { return };
        let text = serde_json::to_vec(&body).expect("a body can be serialized");
        assert!(serde_json::from_slice::<T>(&text).is_ok_and(|again| again == body));
    }
    check::<HandshakeRequest>(data);
    check::<HandshakeResponse>(data);
    check::<HandshakeComplete>(data);
}

fn assert_json(body: &[u8]) {
    assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok(), "an answer is not JSON");
}
