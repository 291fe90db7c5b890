//! The greeting: both ends of a pipe prove that they know the relay's secret before any other data is accepted (RELAY-2, RELAY-3).
//!
//! A feed's greeting is similar, but the client cannot answer over the feed: the program on the node answers for it, without the
//! secret. The client proves itself by its first acknowledgement, over a pipe (RELAY-20, RELAY-21).

use bytes::{BufMut, Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::FeedId;

/// The protocol's version in this build (RELAY-1).
pub const RELAY_VERSION: u8 = 3;

const RELAY_MAGIC: &[u8; 4] = b"SSMR";
const CLIENT_MAGIC: &[u8; 4] = b"SSMC";
const FEED_MAGIC: &[u8; 4] = b"SSMF";
/// Length of a greeting: magic, version, three zeros, nonce.
const GREETING: usize = 24;
const PROOF: usize = 32;

/// The secret that a relay and its client share. It is never printed, and is wiped from memory when dropped.
#[derive(Clone)]
pub struct RelaySecret(Zeroizing<[u8; 32]>);

impl RelaySecret {
    /// Creates a secret from 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Parses the output of [`RelaySecret::to_hex`].
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Returns the secret as 64 hexadecimal digits, for the relay's standard input.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn mac(&self, who: &[u8], greeting: &[u8], answer: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_slice()).ok()?;
        mac.update(who);
        mac.update(greeting);
        mac.update(answer);
        Some(mac)
    }
}

impl std::fmt::Debug for RelaySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelaySecret([redacted])")
    }
}

/// The reason why a pipe must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GreetingError {
    /// The program that listens on the port is not a relay.
    NotARelay,
    /// The other end speaks this version of the protocol, not [`RELAY_VERSION`].
    Version(u8),
    /// The other end does not know the secret.
    Secret,
}

impl std::fmt::Display for GreetingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotARelay => f.write_str("the other end is not a relay"),
            Self::Version(version) => {
                write!(f, "the relay's protocol has version {version}, this program's {RELAY_VERSION}")
            }
            Self::Secret => f.write_str("the other end does not know the relay's secret"),
        }
    }
}

impl std::error::Error for GreetingError {}

/// One of the two ends of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelaySide {
    /// The end that opens connections.
    Client,
    /// The program on the node, which connects to destinations.
    Relay,
}

/// The first bytes of a pipe or a feed, at either end.
#[derive(Debug)]
pub struct Greeting {
    side: RelaySide,
    /// Whether this is the greeting of a feed. The relay learns this from the answer.
    is_feed: bool,
    secret: RelaySecret,
    nonce: [u8; 16],
    /// The relay's greeting, once it is known.
    greeting: Option<Bytes>,
    /// The client's answer without its proof, once it is known.
    answer: Option<Bytes>,
    received: BytesMut,
    to_send: Option<Bytes>,
    done: bool,
}

impl Greeting {
    /// Creates the greeting of a pipe that has just been opened; at the relay, also of a feed. A nonce must never be used twice
    /// with the same secret.
    pub fn new(side: RelaySide, secret: RelaySecret, nonce: [u8; 16]) -> Self {
        let mut this = Self {
            side,
            is_feed: false,
            secret,
            nonce,
            greeting: None,
            answer: None,
            received: BytesMut::new(),
            to_send: None,
            done: false,
        };
        if side == RelaySide::Relay {
            let greeting = hello(RELAY_MAGIC, nonce);
            this.greeting = Some(greeting.clone());
            this.to_send = Some(greeting);
        }
        this
    }

    /// Creates the greeting of the client's end of a feed. The client cannot send over a feed; the program on the node sends
    /// [`feed_answer`] with the same nonce. A nonce must never be used twice with the same secret.
    pub fn of_feed(secret: RelaySecret, nonce: [u8; 16]) -> Self {
        Self { is_feed: true, ..Self::new(RelaySide::Client, secret, nonce) }
    }

    /// Returns the feed's identifier, once the greeting is done. `None` for a pipe.
    pub fn feed(&self) -> Option<FeedId> {
        let greeting = self.greeting.as_ref().filter(|_| self.is_feed && self.done)?;
        greeting.get(GREETING - 16..)?.try_into().ok().map(FeedId)
    }

    /// Returns the bytes to send now.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.to_send.take()
    }

    /// Returns whether both ends have proved that they know the secret.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Returns the bytes that arrived after the greeting.
    pub fn into_rest(self) -> Bytes {
        self.received.freeze()
    }

    /// Handles bytes that were received over the pipe.
    ///
    /// # Errors
    /// Returns the reason if the pipe must not be used.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<(), GreetingError> {
        self.received.extend_from_slice(bytes);
        if self.done {
            return Ok(());
        }
        match self.side {
            RelaySide::Client => self.as_client(),
            RelaySide::Relay => self.as_relay(),
        }
    }

    fn as_client(&mut self) -> Result<(), GreetingError> {
        if self.greeting.is_none() {
            check(&self.received, RELAY_MAGIC)?;
            if self.received.len() < GREETING {
                return Ok(());
            }
            let greeting = self.received.split_to(GREETING).freeze();
            let answer = hello(if self.is_feed { FEED_MAGIC } else { CLIENT_MAGIC }, self.nonce);
            if !self.is_feed {
                let mut sent = BytesMut::from(answer.as_ref());
                if let Some(mac) = self.secret.mac(b"client", &greeting, &answer) {
                    sent.put_slice(&mac.finalize().into_bytes());
                }
                self.to_send = Some(sent.freeze());
            }
            (self.greeting, self.answer) = (Some(greeting), Some(answer));
        }
        self.verify(self.relays_label())
    }

    /// Returns the label that the relay's proof begins with, so that a proof of a pipe cannot be used for a feed, nor the reverse.
    fn relays_label(&self) -> &'static [u8] {
        if self.is_feed { b"feed" } else { b"relay" }
    }

    fn as_relay(&mut self) -> Result<(), GreetingError> {
        if self.answer.is_none() {
            self.is_feed = self.received.starts_with(FEED_MAGIC);
            check(&self.received, if self.is_feed { FEED_MAGIC } else { CLIENT_MAGIC })?;
            if self.received.len() < GREETING {
                return Ok(());
            }
            self.answer = Some(self.received.split_to(GREETING).freeze());
        }
        match self.is_feed {
            // The program at the other end does not know the secret, so it sends no proof.
            true => self.done = true,
            false => self.verify(b"client")?,
        }
        if let (true, Some(greeting), Some(answer)) = (self.done, &self.greeting, &self.answer) {
            let mac = self.secret.mac(self.relays_label(), greeting, answer);
            self.to_send = mac.map(|mac| Bytes::copy_from_slice(&mac.finalize().into_bytes()));
        }
        Ok(())
    }

    /// Checks the other end's proof once it has arrived.
    fn verify(&mut self, who: &[u8]) -> Result<(), GreetingError> {
        let (Some(greeting), Some(answer)) = (&self.greeting, &self.answer) else { return Ok(()) };
        if self.received.len() < PROOF {
            return Ok(());
        }
        let proof = self.received.split_to(PROOF);
        let mac = self.secret.mac(who, greeting, answer).ok_or(GreetingError::Secret)?;
        mac.verify_slice(&proof).map_err(|_| GreetingError::Secret)?;
        self.done = true;
        Ok(())
    }
}

/// Returns the only bytes that the program on the node sends over a feed's connection to the relay. The client chooses the nonce.
pub fn feed_answer(nonce: [u8; 16]) -> Bytes {
    hello(FEED_MAGIC, nonce)
}

fn hello(magic: &[u8; 4], nonce: [u8; 16]) -> Bytes {
    let mut hello = BytesMut::with_capacity(GREETING);
    hello.put_slice(magic);
    hello.put_u8(RELAY_VERSION);
    hello.put_bytes(0, 3);
    hello.put_slice(&nonce);
    hello.freeze()
}

/// Checks whether the bytes so far can be the beginning of a greeting.
fn check(received: &[u8], magic: &[u8; 4]) -> Result<(), GreetingError> {
    let length = received.len().min(magic.len());
    if received.get(..length) != magic.get(..length) {
        return Err(GreetingError::NotARelay);
    }
    match received.get(magic.len()) {
        Some(&version) if version != RELAY_VERSION => Err(GreetingError::Version(version)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> RelaySecret {
        RelaySecret::new([byte; 32])
    }

    /// Passes all bytes to the other end, in pieces of this size, until neither end has anything to send.
    fn talk(client: &mut Greeting, relay: &mut Greeting, piece: usize) -> Result<(), GreetingError> {
        loop {
            let (down, up) = (relay.poll_transmit(), client.poll_transmit());
            if down.is_none() && up.is_none() {
                return Ok(());
            }
            for bytes in down.iter().flat_map(|down| down.chunks(piece)) {
                client.handle_input(bytes)?;
            }
            for bytes in up.iter().flat_map(|up| up.chunks(piece)) {
                relay.handle_input(bytes)?;
            }
        }
    }

    #[test]
    fn ends_that_share_the_secret_agree_wherever_the_bytes_are_cut() {
        for piece in [1, 5, 100] {
            let mut client = Greeting::new(RelaySide::Client, secret(1), [1; 16]);
            let mut relay = Greeting::new(RelaySide::Relay, secret(1), [2; 16]);
            talk(&mut client, &mut relay, piece).unwrap();
            assert!(client.is_done() && relay.is_done());
            client.handle_input(b"frames").unwrap();
            assert_eq!(client.into_rest(), b"frames".as_slice());
        }
    }

    #[test]
    fn a_wrong_secret_is_refused_by_the_relay_and_a_false_relay_by_the_client() {
        let mut client = Greeting::new(RelaySide::Client, secret(1), [1; 16]);
        let mut relay = Greeting::new(RelaySide::Relay, secret(2), [2; 16]);
        assert_eq!(talk(&mut client, &mut relay, 100), Err(GreetingError::Secret));
        assert!(!relay.is_done() && !client.is_done());
        let mut client = Greeting::new(RelaySide::Client, secret(1), [1; 16]);
        client.handle_input(&Greeting::new(RelaySide::Relay, secret(2), [2; 16]).poll_transmit().unwrap()).unwrap();
        assert_eq!(client.handle_input(&[0; 32]), Err(GreetingError::Secret));
    }

    /// Returns the relay's end of a feed, and all bytes that the feed carries to the client.
    fn fed(of_relay: u8, nonce_of_relay: [u8; 16], answer: &[u8]) -> (Greeting, Vec<u8>) {
        let mut relay = Greeting::new(RelaySide::Relay, secret(of_relay), nonce_of_relay);
        let mut down = relay.poll_transmit().unwrap().to_vec();
        answer.iter().for_each(|byte| relay.handle_input(&[*byte]).unwrap());
        down.extend(relay.poll_transmit().into_iter().flatten());
        (relay, down)
    }

    #[test]
    fn a_feed_is_the_relays_answer_to_the_clients_nonce_and_both_ends_call_it_the_same() {
        let (relay, down) = fed(1, [2; 16], &feed_answer([1; 16]));
        for piece in [1, 5, 100] {
            let mut client = Greeting::of_feed(secret(1), [1; 16]);
            for bytes in down.chunks(piece) {
                assert!(!client.is_done() && client.feed().is_none());
                client.handle_input(bytes).unwrap();
                assert_eq!(client.poll_transmit(), None, "the client sends nothing over a feed");
            }
            assert!(client.is_done() && relay.is_done());
            assert_eq!((client.feed(), relay.feed()), (Some(FeedId([2; 16])), Some(FeedId([2; 16]))));
        }
    }

    #[test]
    fn a_false_feed_a_recorded_one_and_a_pipes_proof_are_refused() {
        let refused = |down: &[u8]| {
            let mut client = Greeting::of_feed(secret(1), [1; 16]);
            let outcome = client.handle_input(down);
            assert!(!client.is_done() && client.feed().is_none());
            outcome
        };
        let (_, by_a_stranger) = fed(9, [2; 16], &feed_answer([1; 16]));
        assert_eq!(refused(&by_a_stranger), Err(GreetingError::Secret));
        let (_, recorded) = fed(1, [2; 16], &feed_answer([8; 16]));
        assert_eq!(refused(&recorded), Err(GreetingError::Secret));
        let mut client = Greeting::new(RelaySide::Client, secret(1), [1; 16]);
        let mut relay = Greeting::new(RelaySide::Relay, secret(1), [2; 16]);
        let greeting = relay.poll_transmit().unwrap();
        client.handle_input(&greeting).unwrap();
        relay.handle_input(&client.poll_transmit().unwrap()).unwrap();
        let of_a_pipe = [greeting, relay.poll_transmit().unwrap()].concat();
        assert_eq!(refused(&of_a_pipe), Err(GreetingError::Secret));
        assert_eq!(relay.feed(), None);
    }

    #[test]
    fn another_version_and_another_program_are_named() {
        let mut client = Greeting::new(RelaySide::Client, secret(1), [1; 16]);
        assert_eq!(client.handle_input(b"SSMR\x01"), Err(GreetingError::Version(1)));
        let mut client = Greeting::new(RelaySide::Client, secret(1), [1; 16]);
        assert_eq!(client.handle_input(b"SSH-2.0"), Err(GreetingError::NotARelay));
        let mut relay = Greeting::new(RelaySide::Relay, secret(1), [1; 16]);
        assert_eq!(relay.handle_input(b"GET / HTTP/1.1"), Err(GreetingError::NotARelay));
        let mut relay = Greeting::new(RelaySide::Relay, secret(1), [1; 16]);
        assert_eq!(relay.handle_input(b"SSMF\x02"), Err(GreetingError::Version(2)));
    }

    #[test]
    fn a_secret_is_read_as_it_was_written_and_never_shown() {
        let secret = RelaySecret::new(std::array::from_fn(|at| u8::try_from(at * 7).unwrap()));
        assert_eq!(RelaySecret::from_hex(&secret.to_hex()).unwrap().0, secret.0);
        assert!(RelaySecret::from_hex("00").is_none() && RelaySecret::from_hex(&"é".repeat(32)).is_none());
        assert_eq!(format!("{secret:?}"), "RelaySecret([redacted])");
    }
}
