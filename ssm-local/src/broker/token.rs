//! The secret token that opens a session's data channel.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// The stored form of a token, which is enough to recognize the token but not to reveal it.
#[derive(Debug)]
pub(super) struct Token {
    digest: [u8; 32],
    expires: Instant,
}

impl Token {
    /// Creates a token. The returned string is for the client.
    pub(super) fn issue(now: Instant, ttl: Duration) -> (Self, String) {
        // Two random UUIDs: 244 bits from the system.
        let random = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
        let text = format!("AAEAA{}", STANDARD.encode(random));
        (Self { digest: digest(&text), expires: now + ttl }, text)
    }

    /// Makes the token invalid.
    pub(super) fn expire(&mut self, now: Instant) {
        self.expires = now;
    }

    /// Returns whether `presented` is this token and still valid. The comparison takes constant time.
    pub(super) fn accepts(&self, now: Instant, presented: &str) -> bool {
        bool::from(self.digest.ct_eq(&digest(presented))) && now < self.expires
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_accepted_and_only_for_a_time() {
        let now = Instant::now();
        let ttl = Duration::from_secs(60);
        let (token, text) = Token::issue(now, ttl);
        let (_, other) = Token::issue(now, ttl);
        assert!(token.accepts(now, &text));
        assert!(token.accepts(now + ttl - Duration::from_millis(1), &text));
        assert!(!token.accepts(now + ttl, &text));
        assert!(!token.accepts(now, &other));
        assert!(!token.accepts(now, ""));
        assert!(!token.accepts(now, text.trim_end_matches('=')));
        assert!(!format!("{token:?}").contains(&text));
    }
}
