//! AES-256-GCM encryption of payloads with a data key from KMS. `docs/protocol.md`, KMS-*.

use std::fmt;

use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag, aead::AeadInOut};

use crate::wire::{MessageBuf, PayloadType};
use crate::{Secret, Side};

const NONCE: usize = 12;
const TAG: usize = 16;
/// Number of bytes that encryption adds to a payload.
const OVERHEAD: usize = NONCE + TAG;

/// A plaintext KMS data key: one key for each direction. It is wiped from memory when it is dropped.
#[derive(Debug)]
pub struct PlaintextKey {
    agent_to_client: Secret<[u8; 32]>,
    client_to_agent: Secret<[u8; 32]>,
}

impl PlaintextKey {
    /// Creates a key. Returns `None` unless `bytes` has a length of 64.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let (&[agent_to_client, client_to_agent], []) = bytes.as_chunks() else { return None };
        Some(Self { agent_to_client: Secret::new(agent_to_client), client_to_agent: Secret::new(client_to_agent) })
    }

    fn cipher(&self, sender: Side) -> Aes256Gcm {
        Aes256Gcm::new(match sender {
            Side::Agent => self.agent_to_client.expose().into(),
            Side::Client => self.client_to_agent.expose().into(),
        })
    }
}

/// The reason why a payload cannot be encrypted or decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CipherError {
    /// The payload is shorter than a nonce and a tag.
    #[error("the ciphertext has {have} bytes, at least {OVERHEAD} are needed")]
    TooShort {
        /// Length of the payload.
        have: usize,
    },
    /// The payload was changed in transit, or was encrypted with another key.
    #[error("the ciphertext does not match its tag: it was changed in transit, or the keys differ")]
    BadTag,
    /// The payload is longer than AES-GCM allows. No message can be that long.
    #[error("the payload is too long to be encrypted")]
    TooLong,
}

/// One end's pair of keys. On the wire: nonce, ciphertext, tag. There is no associated data.
pub(crate) struct Cipher {
    side: Side,
    sealing: Aes256Gcm,
    opening: Aes256Gcm,
    nonce: NonceCounter,
}

impl Cipher {
    /// Creates the pair of keys of one end. `first_nonce` must be random and new for every session; see [`NonceCounter`].
    pub(crate) fn new(side: Side, key: &PlaintextKey, first_nonce: [u8; NONCE]) -> Self {
        Self {
            side,
            sealing: key.cipher(side),
            opening: key.cipher(side.other()),
            nonce: NonceCounter::new(first_nonce),
        }
    }

    /// Encrypts the payload if payloads of this type are encrypted, and returns it unchanged otherwise.
    pub(crate) fn seal_payload(
        &mut self,
        payload_type: PayloadType,
        buf: MessageBuf,
    ) -> Result<MessageBuf, CipherError> {
        if !is_encrypted(self.side, payload_type) {
            return Ok(buf);
        }
        self.seal(buf.payload())
    }

    /// Decrypts the payload if payloads of this type are encrypted; otherwise returns `None`.
    pub(crate) fn open_payload(
        &self,
        payload_type: PayloadType,
        payload: &[u8],
    ) -> Option<Result<Vec<u8>, CipherError>> {
        is_encrypted(self.side.other(), payload_type).then(|| self.open(payload))
    }

    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Result<MessageBuf, CipherError> {
        let nonce = self.nonce.next();
        let length = OVERHEAD + plaintext.len();
        let mut sealed = MessageBuf::with_limit(length, length);
        sealed.put_slice(&nonce);
        sealed.put_slice(plaintext);
        let body = sealed.payload_mut().get_mut(NONCE..).unwrap_or_default();
        let tag = self
            .sealing
            .encrypt_inout_detached(&Nonce::from(nonce), &[], body.into())
            .map_err(|_| CipherError::TooLong)?;
        sealed.put_slice(&tag);
        Ok(sealed)
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, CipherError> {
        let parts = sealed
            .split_first_chunk::<NONCE>()
            .and_then(|(nonce, rest)| Some((nonce, rest.split_last_chunk::<TAG>()?)));
        let Some((nonce, (body, tag))) = parts else { return Err(CipherError::TooShort { have: sealed.len() }) };
        let mut body = body.to_vec();
        self.opening
            .decrypt_inout_detached(&Nonce::from(*nonce), &[], body.as_mut_slice().into(), &Tag::from(*tag))
            .map_err(|_| CipherError::BadTag)?;
        Ok(body)
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher([redacted])")
    }
}

/// Size, flags and the handshake are not encrypted (KMS-6).
fn is_encrypted(sender: Side, payload_type: PayloadType) -> bool {
    match payload_type {
        PayloadType::Output => true,
        PayloadType::StdErr | PayloadType::ExitCode => sender == Side::Agent,
        _ => false,
    }
}

/// A 96-bit little-endian counter, like the official agent's (KMS-4). The security of GCM requires that a nonce is never used twice
/// with one key. The random start value separates two sessions that share a key.
struct NonceCounter(u128);

impl NonceCounter {
    fn new(first: [u8; NONCE]) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(first) {
            *to = from;
        }
        Self(u128::from_le_bytes(bytes))
    }

    fn next(&mut self) -> [u8; NONCE] {
        let bytes = self.0.to_le_bytes();
        self.0 = self.0.wrapping_add(1);
        bytes.first_chunk().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vector(name: &str) -> Value {
        let all: Vec<Value> = serde_json::from_str(include_str!("../testdata/vectors.json")).unwrap();
        all.into_iter().find(|vector| vector["name"] == name).unwrap()
    }

    fn hex(text: &Value) -> Vec<u8> {
        let text = text.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn cipher(side: Side, first_nonce: &[u8]) -> Cipher {
        let key = PlaintextKey::new(&(0..64).collect::<Vec<u8>>()).unwrap();
        Cipher::new(side, &key, first_nonce.try_into().unwrap())
    }

    #[test]
    fn both_directions_are_sealed_and_opened_as_recorded() {
        for (name, sender) in [("kms_client_to_agent", Side::Client), ("kms_agent_to_client", Side::Agent)] {
            let vector = vector(name);
            let (sealed, plaintext) = (hex(&vector["hex"]), hex(&vector["plaintext"]));
            assert_eq!(cipher(sender, &hex(&vector["nonce"])).seal(&plaintext).unwrap().payload(), sealed, "{name}");
            assert_eq!(cipher(sender.other(), &[0; 12]).open(&sealed).unwrap(), plaintext, "{name}");
        }
    }

    #[test]
    fn what_is_short_or_changed_is_an_error() {
        let agent = cipher(Side::Agent, &[0; 12]);
        assert_eq!(agent.open(&hex(&vector("kms_neg_bad_tag")["hex"])), Err(CipherError::BadTag));
        let short = hex(&vector("kms_neg_too_short")["hex"]);
        assert_eq!(agent.open(&short), Err(CipherError::TooShort { have: short.len() }));
        assert_eq!(agent.open(&[]), Err(CipherError::TooShort { have: 0 }));
    }

    #[test]
    fn nonces_count_as_the_agent_counts() {
        let vector = vector("agent_nonce_counter");
        let start = vector["start"].as_array().unwrap().iter();
        let start: Vec<u8> =
            start.flat_map(|word| u32::try_from(word.as_u64().unwrap()).unwrap().to_le_bytes()).collect();
        let mut counter = NonceCounter::new(start.try_into().unwrap());
        for nonce in vector["nonces"].as_array().unwrap() {
            assert_eq!(counter.next().to_vec(), hex(nonce));
        }
        assert_eq!(NonceCounter(u128::MAX >> 32).next(), [0xff; 12]);
    }

    #[test]
    fn keys_are_not_printed() {
        let key = PlaintextKey::new(&[7; 64]).unwrap();
        assert_eq!(
            format!("{key:?} {:?}", Cipher::new(Side::Client, &key, [1; 12])),
            "PlaintextKey { agent_to_client: [redacted], client_to_agent: [redacted] } Cipher([redacted])"
        );
    }
}
