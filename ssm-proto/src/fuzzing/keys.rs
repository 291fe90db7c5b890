//! A fake KMS for fuzz targets: every data key is the same.

use std::time::Instant;

use bytes::Bytes;

use crate::{AgentKms, DataKey, PlaintextKey, Session, SessionEvent};

/// Returns the configuration of an agent that requests encryption.
pub(super) fn agent_kms() -> AgentKms {
    AgentKms {
        key_id: "alias/k".into(),
        challenge: None,
        require_acknowledgement: false,
        proof: [1; 64],
        first_nonce: [2; 12],
    }
}

pub(super) fn data_key() -> Option<DataKey> {
    Some(DataKey { plaintext: PlaintextKey::new(&[0; 64])?, ciphertext: Bytes::from_static(b"k") })
}

/// Answers a session's request to KMS, if the event is one.
pub(super) fn answer(session: &mut Session, event: &SessionEvent, now: Instant) {
    let Some(key) = data_key() else { return };
    match event {
        SessionEvent::DataKeyNeeded(_) => session.provide_data_key(now, &key, [3; 12]),
        SessionEvent::DecryptNeeded(..) => session.provide_plaintext_key(now, &key.plaintext),
        _ => {}
    }
}
