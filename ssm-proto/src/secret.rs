//! Values that must not be printed and must not stay in memory.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

/// A token, a password or a key. It is never printed, and its memory is overwritten when it is dropped.
///
/// Code that needs the value calls [`Secret::expose`]. This type does not protect copies that are made from there (in a request, a
/// signature, TLS).
///
/// ```
/// let token = ssm_proto::Secret::from("t0ken");
/// assert_eq!(format!("{token:?}"), "[redacted]");
/// assert_eq!(token.expose(), "t0ken");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T: Zeroize = String>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes ownership of the value; the caller keeps no copy.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// Returns the value.
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

/// Serializes the value, for the messages that carry it. No other type that contains a secret should be serialized.
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
