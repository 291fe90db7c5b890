//! A local KMS: keys that create and decrypt data keys, for encrypted sessions. KMS-*.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use ssm_proto::{AgentKms, PlaintextKey};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The encryption context to which a data key is bound.
pub(crate) type Context = BTreeMap<String, String>;

/// A fault that prevents the agents of an encrypted session from getting their data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KmsFault {
    /// The agents have a different KMS key with the same name: Decrypt refuses.
    WrongKey,
    /// The encrypted data key is changed on the way to KMS: Decrypt refuses.
    TamperedCiphertext,
    /// Decrypt returns a data key that differs from the client's: the client cannot decrypt the challenge.
    WrongDataKey,
}

/// The KMS keys.
#[derive(Debug, Default)]
pub(crate) struct Kms {
    keys: Vec<Key>,
}

struct Key {
    /// The configured name: an id, an alias or an ARN.
    name: String,
    id: Uuid,
    cipher: Aes256Gcm,
}

/// The reason why KMS refuses a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KmsError {
    #[error("NotFoundException: Key '{0}' does not exist")]
    NotFound(String),
    #[error("InvalidCiphertextException")]
    InvalidCiphertext,
    #[error("IncorrectKeyException: The key ID in the request does not identify the key that encrypted the ciphertext")]
    IncorrectKey,
}

const ARN: &str = "arn:aws:kms:us-east-1:123456789012:";
const ID: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;

impl Kms {
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let key = |name: String| {
            let master = Zeroizing::new(random::<32>());
            Key { name, id: Uuid::new_v4(), cipher: Aes256Gcm::new((&*master).into()) }
        };
        Self { keys: names.into_iter().map(key).collect() }
    }

    /// Encrypts the bytes of a key. Returns the KMS key's ARN and the ciphertext.
    pub(crate) fn encrypt(&self, key: &str, context: &Context, bytes: &[u8]) -> Result<(String, Vec<u8>), KmsError> {
        let key = self.find(key)?;
        let (nonce, mut body) = (random::<NONCE>(), bytes.to_vec());
        let associated = associated(key.id, context);
        let sealed = key.cipher.encrypt_inout_detached(&Nonce::from(nonce), &associated, body.as_mut_slice().into());
        let tag = sealed.map_err(|_| KmsError::InvalidCiphertext)?;
        Ok((key.arn(), [key.id.as_bytes().as_slice(), &nonce, &body, &tag].concat()))
    }

    /// Returns the KMS key's ARN and the decrypted bytes. If no key is given, the key is determined from the ciphertext.
    pub(crate) fn decrypt(
        &self,
        key: Option<&str>,
        context: &Context,
        ciphertext: &[u8],
    ) -> Result<(String, Zeroizing<Vec<u8>>), KmsError> {
        let wanted = key.map(|key| self.find(key)).transpose()?;
        let (id, nonce, body, tag) = split(ciphertext).ok_or(KmsError::InvalidCiphertext)?;
        let key = match wanted {
            Some(key) if key.id != id => return Err(KmsError::IncorrectKey),
            Some(key) => key,
            None => self.keys.iter().find(|key| key.id == id).ok_or(KmsError::InvalidCiphertext)?,
        };
        let mut body = Zeroizing::new(body.to_vec());
        key.cipher
            .decrypt_inout_detached(&nonce, &associated(id, context), body.as_mut_slice().into(), &tag)
            .map_err(|_| KmsError::InvalidCiphertext)?;
        Ok((key.arn(), body))
    }

    fn find(&self, name: &str) -> Result<&Key, KmsError> {
        self.keys.iter().find(|key| key.is(name)).ok_or_else(|| KmsError::NotFound(name.into()))
    }
}

impl Key {
    fn arn(&self) -> String {
        format!("{ARN}key/{}", self.id)
    }

    fn is(&self, name: &str) -> bool {
        let plain = |name: &str| {
            let name = name.strip_prefix(ARN).unwrap_or(name);
            name.strip_prefix("key/").unwrap_or(name).to_owned()
        };
        let name = plain(name);
        name == plain(&self.name) || name == self.id.to_string()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Returns the key and the context in an unambiguous form: each string follows its length.
fn associated(id: Uuid, context: &Context) -> Vec<u8> {
    let texts = context.iter().flat_map(|(key, value)| [key, value]);
    let mut bytes = id.as_bytes().to_vec();
    for text in texts {
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn split(ciphertext: &[u8]) -> Option<(Uuid, Nonce<aes_gcm::aead::consts::U12>, &[u8], Tag)> {
    let (id, rest) = ciphertext.split_first_chunk::<ID>()?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE>()?;
    let (body, tag) = rest.split_last_chunk::<TAG>()?;
    Some((Uuid::from_bytes(*id), Nonce::from(*nonce), body, Tag::from(*tag)))
}

/// Returns random bytes from the system.
///
/// # Panics
/// Panics if the system has no random numbers.
#[expect(
    clippy::expect_used,
    reason = "without random numbers there are no secrets; Linux, macOS and Windows always have them"
)]
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("randomness of the system");
    bytes
}

/// The way in which an agent gets the keys of an encrypted session.
#[derive(Clone, Debug)]
pub(crate) struct Encryption {
    pub(crate) key_id: String,
    pub(crate) kms: Arc<Kms>,
    pub(crate) fault: Option<KmsFault>,
}

impl Encryption {
    /// Returns the agent's request for encryption to the client.
    pub(crate) fn agent_request(&self) -> AgentKms {
        AgentKms {
            key_id: self.key_id.clone(),
            challenge: Some(random()),
            require_acknowledgement: false,
            proof: random(),
            first_nonce: random(),
        }
    }

    /// Decrypts the client's data key. The error is the official agent's text.
    pub(crate) fn decrypt(&self, ciphertext: &[u8], context: &Context) -> Result<PlaintextKey, String> {
        let (mut ciphertext, mut other) = (ciphertext.to_vec(), None);
        match self.fault {
            Some(KmsFault::WrongKey) => other = Some(Kms::new([self.key_id.clone()])),
            Some(KmsFault::TamperedCiphertext) => flip(ciphertext.last_mut()),
            Some(KmsFault::WrongDataKey) | None => {}
        }
        let kms = other.as_ref().unwrap_or(&self.kms);
        let refused = |why: &dyn fmt::Display| format!("{REFUSED}{why}");
        let (_, mut key) = kms.decrypt(Some(&self.key_id), context, &ciphertext).map_err(|error| refused(&error))?;
        if self.fault == Some(KmsFault::WrongDataKey) {
            flip(key.first_mut());
        }
        PlaintextKey::new(&key).ok_or_else(|| refused(&"the data key does not have 64 bytes"))
    }
}

const REFUSED: &str = "\n----------ERROR-------\nEncountered error while initiating handshake. Fetching data key failed: \
                       Unable to retrieve data key, Error when decrypting data key ";

fn flip(byte: Option<&mut u8>) {
    if let Some(byte) = byte {
        *byte ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(value: &str) -> Context {
        Context::from([("aws:ssm:SessionId".into(), value.into()), ("aws:ssm:TargetId".into(), "i-1".into())])
    }

    #[test]
    fn a_data_key_comes_back_under_any_name_of_its_key() {
        let kms = Kms::new(["alias/lab".into(), "1234".into()]);
        let (arn, sealed) = kms.encrypt("alias/lab", &context("s"), b"secret").unwrap();
        for name in ["alias/lab", arn.as_str(), &format!("{ARN}alias/lab")] {
            let (from, plain) = kms.decrypt(Some(name), &context("s"), &sealed).unwrap();
            assert_eq!((from, plain.as_slice()), (arn.clone(), b"secret".as_slice()));
        }
        assert_eq!(kms.decrypt(None, &context("s"), &sealed).unwrap().0, arn);
        assert!(kms.encrypt(&format!("{ARN}key/1234"), &context("s"), b"x").is_ok());
    }

    #[test]
    fn what_differs_is_refused() {
        let kms = Kms::new(["a".into(), "b".into()]);
        let (_, sealed) = kms.encrypt("a", &context("s"), b"secret").unwrap();
        let error = |key, context: &Context, sealed: &[u8]| kms.decrypt(key, context, sealed).unwrap_err();
        assert_eq!(error(None, &context("t"), &sealed), KmsError::InvalidCiphertext);
        assert_eq!(error(None, &Context::new(), &sealed), KmsError::InvalidCiphertext);
        assert_eq!(error(Some("b"), &context("s"), &sealed), KmsError::IncorrectKey);
        assert_eq!(error(Some("c"), &context("s"), &sealed), KmsError::NotFound("c".into()));
        for at in [0, ID, ID + NONCE, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(error(None, &context("s"), &changed), KmsError::InvalidCiphertext);
        }
        assert_eq!(error(None, &context("s"), &sealed[..20]), KmsError::InvalidCiphertext);
    }

    #[test]
    fn a_context_is_not_taken_for_another_one_of_the_same_letters() {
        let (one, two) = (Context::from([("a".into(), "bc".into())]), Context::from([("ab".into(), "c".into())]));
        assert_ne!(associated(Uuid::nil(), &one), associated(Uuid::nil(), &two));
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", Kms::new(["k".into()])).matches("cipher").count(), 0);
    }
}
