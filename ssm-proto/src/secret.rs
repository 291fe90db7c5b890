//! What must not be shown, and not stay in memory.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

/// A token, a password or a key. It is never shown, and its memory is overwritten when it is dropped.
///
/// Whoever needs the value calls [`Secret::expose`]. What copies it from there (a request, a signature, TLS) is out of
/// this type's reach.
///
/// ```
/// let token = ssm_proto::Secret::from("t0ken");
/// assert_eq!(format!("{token:?}"), "[redacted]");
/// assert_eq!(token.expose(), "t0ken");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T: Zeroize = String>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes the value over; the caller keeps no copy.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value.to_owned())
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

/// For the messages that carry it. Nothing else is to be serialized with a secret in it.
impl<T: Zeroize + Serialize> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_nowhere_and_compared_by_its_value() {
        let secret = Secret::from("hush");
        assert_eq!(format!("{:?} {:#?}", secret, Some(&secret)), "[redacted] Some(\n    [redacted],\n)");
        assert!(secret == Secret::new("hush".to_owned()) && secret != Secret::default());
        assert_eq!(serde_json::from_str::<Secret>("\"hush\"").unwrap(), secret);
        assert!(!serde_json::from_str::<Secret<u8>>("\"hush\"").unwrap_err().to_string().is_empty());
    }

    #[test]
    fn the_value_is_overwritten() {
        let mut secret = Secret::new([7_u8; 32]);
        secret.0.zeroize();
        assert_eq!(secret.expose(), &[0; 32]);
    }
}
