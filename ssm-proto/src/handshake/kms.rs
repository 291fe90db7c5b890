//! The KMS data key: which end creates it, what it is bound to, and the proof that both ends have it. `docs/protocol.md`, KMS-*.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cipher::PlaintextKey;

/// The session that a data key belongs to. KMS binds the key to these values, so both ends must use identical strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The session's id.
    pub session_id: String,
    /// The managed node's own id. An alias cannot be used, because the agent does not know its aliases.
    pub target: String,
}

impl Identity {
    /// Returns the encryption context. `challenge` is its base64 text, if the client acknowledges the challenge (KMS-2).
    pub(super) fn context(&self, challenge: Option<&str>) -> BTreeMap<String, String> {
        let mut context = BTreeMap::from([
            ("aws:ssm:SessionId".into(), self.session_id.clone()),
            ("aws:ssm:TargetId".into(), self.target.clone()),
        ]);
        if let Some(challenge) = challenge {
            context.insert("aws:ssm:RandomChallenge".into(), challenge.into());
        }
        context
    }
}

/// The parameters of a request to KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    /// The KMS key's id, ARN or alias.
    pub key_id: String,
    /// The encryption context.
    pub context: BTreeMap<String, String>,
}

/// The result of `kms:GenerateDataKey` for 64 bytes.
#[derive(Debug)]
pub struct DataKey {
    /// The plaintext key. It is never sent.
    pub plaintext: PlaintextKey,
    /// The key, encrypted by KMS, to be sent to the agent.
    pub ciphertext: Bytes,
}

/// How an agent requests KMS encryption.
#[derive(Clone)]
pub struct AgentKms {
    /// The KMS key's id, ARN or alias.
    pub key_id: String,
    /// 16 random bytes that the client may bind to the data key; `None` for an old agent.
    pub challenge: Option<[u8; 16]>,
    /// Whether to refuse a client that does not bind the challenge to the data key. The official agent's default: no.
    pub require_acknowledgement: bool,
    /// 64 random bytes. The client proves that it can decrypt them.
    pub proof: [u8; 64],
    /// The nonce of the first encrypted payload, from which the agent counts up. This nonce must be random.
    pub first_nonce: [u8; 12],
}

impl AgentKms {
    pub(super) fn challenge_text(&self) -> Option<String> {
        self.challenge.map(|challenge| STANDARD.encode(challenge))
    }
}

impl fmt::Debug for AgentKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentKms")
            .field("key_id", &self.key_id)
            .field("require_acknowledgement", &self.require_acknowledgement)
            .finish_non_exhaustive()
    }
}

/// The parameters of a `KMSEncryption` action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct KmsParameters {
    #[serde(rename = "KMSKeyId")]
    pub(super) key_id: String,
    #[serde(rename = "Challenge", default, skip_serializing_if = "Option::is_none")]
    pub(super) challenge: Option<String>,
}

/// The result of a `KMSEncryption` action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsResult {
    /// The encrypted data key.
    #[serde(rename = "KMSCipherTextKey", with = "base64_text")]
    pub ciphertext_key: Vec<u8>,
    /// A hash of the encrypted data key. Neither official peer uses it.
    #[serde(rename = "KMSCipherTextHash", default)]
    pub ciphertext_hash: Option<String>,
    /// Whether the data key is bound to the agent's challenge. Clients older than the challenge do not send this field.
    #[serde(rename = "ChallengeAcknowledgement", default, skip_serializing_if = "std::ops::Not::not")]
    pub challenge_acknowledgement: bool,
}

/// The body of the EncChallengeRequest and EncChallengeResponse payloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EncChallenge {
    #[serde(rename = "Challenge", with = "base64_text")]
    pub(super) challenge: Vec<u8>,
}

mod base64_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{Engine, STANDARD};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
