//! An attacker between the two ends changes a bit, truncates messages, replays old messages, or answers with the messages of
//! another session. `SECURITY.md` describes what the protocol can exclude and what only TLS can.

#![expect(clippy::unwrap_used, reason = "in a test, this is the assertion")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use ssm_proto::{
    AgentConfig, AgentKms, AgentMessage, ClientConfig, Clock, DataKey, MessageType, PlaintextKey, Session,
    SessionEvent, Side, StreamId,
};

/// Number of bytes that each end sends.
const LENGTH: usize = 6000;
/// Offset of the digest in a message. The length of the header, the type and the other fields up to the message's id precede it.
const DIGEST: usize = 80;

/// Two correct ends.
struct Ends {
    now: Instant,
    client: Session,
    agent: Session,
    stream: StreamId,
    /// Data that arrived at the client.
    at_client: Vec<u8>,
    at_agent: Vec<u8>,
    failed: bool,
    key: u8,
}

/// Returns the messages that arrive at a side in place of a message to it.
type Middle<'a> = dyn FnMut(Side, Bytes) -> Vec<Bytes> + 'a;

fn honest(_: Side, message: Bytes) -> Vec<Bytes> {
    vec![message]
}

impl Ends {
    /// Creates a session that is ready, with one connection. `key` distinguishes its data key and its bytes from those of other
    /// sessions.
    fn new(key: u8, is_encrypted: bool) -> Self {
        let now = Instant::now();
        let clock = Clock { start: now, unix: Duration::from_secs(1_700_000_000) };
        let kms = AgentKms {
            key_id: "alias/k".into(),
            challenge: None,
            require_acknowledgement: false,
            proof: [1; 64],
            first_nonce: [2; 12],
        };
        let client = ClientConfig { kms_on_ports: true, ..ClientConfig::default() };
        let agent = AgentConfig { kms: is_encrypted.then_some(kms), ..AgentConfig::default() };
        let mut client = Session::client(client, clock, key.into());
        let mut agent = Session::agent(agent, clock, u64::from(key) + 100);
        client.handle_connected(now);
        agent.handle_connected(now);
        let (stream, at_client, at_agent) = (StreamId(0), Vec::new(), Vec::new());
        let mut ends = Self { now, client, agent, stream, at_client, at_agent, failed: false, key };
        ends.exchange(&mut honest);
        ends.stream = ends.client.open().unwrap();
        ends
    }

    /// Returns the bytes that a side sends on the connection.
    fn bytes(&self, from: Side) -> Bytes {
        let mut bytes = vec![0; LENGTH];
        Rng::with_seed(u64::from(self.key) * 2 + u64::from(from == Side::Agent)).fill(&mut bytes);
        bytes.into()
    }

    /// Sends the bytes of both sides. Every message passes through `middle`.
    fn talk(&mut self, middle: &mut Middle<'_>) {
        let (up, down) = (self.bytes(Side::Client), self.bytes(Side::Agent));
        self.client.write(self.stream, up).unwrap();
        self.exchange(middle);
        if !self.failed {
            self.agent.write(self.stream, down).unwrap();
            self.exchange(middle);
        }
    }

    /// Runs both sides until the connection is silent for a while.
    fn exchange(&mut self, middle: &mut Middle<'_>) {
        let until = self.now + Duration::from_secs(5);
        loop {
            while self.pass(middle) {}
            let next =
                [&self.client, &self.agent].into_iter().filter_map(|end| end.poll_timeout().map(|next| next.at)).min();
            let Some(next) = next.filter(|next| *next <= until) else { return };
            self.now = self.now.max(next);
            self.client.handle_timeout(self.now);
            self.agent.handle_timeout(self.now);
        }
    }

    /// Passes the messages of both sides to the other side. Returns whether there were any.
    fn pass(&mut self, middle: &mut Middle<'_>) -> bool {
        let mut messages = VecDeque::new();
        for (from, end) in [(Side::Client, &mut self.client), (Side::Agent, &mut self.agent)] {
            while let Some(event) = end.poll_event() {
                let key = DataKey { plaintext: PlaintextKey::new(&[self.key; 64]).unwrap(), ciphertext: "k".into() };
                match event {
                    SessionEvent::DataKeyNeeded(_) => end.provide_data_key(self.now, &key, [3; 12]),
                    SessionEvent::DecryptNeeded(..) => end.provide_plaintext_key(self.now, &key.plaintext),
                    SessionEvent::Failed(_) | SessionEvent::Closed(_) => self.failed = true,
                    _ => {}
                }
            }
            messages.extend(std::iter::from_fn(|| end.poll_transmit(self.now)).map(|message| (from, message)));
        }
        let any = !messages.is_empty();
        for (from, message) in messages {
            let to = if from == Side::Client { Side::Agent } else { Side::Client };
            for message in middle(to, message) {
                let _ =
                    if to == Side::Client { &mut self.client } else { &mut self.agent }.handle_input(self.now, message);
            }
            self.at_client.extend(std::iter::from_fn(|| self.client.read(self.stream)).flatten());
            self.at_agent.extend(std::iter::from_fn(|| self.agent.read(self.stream)).flatten());
        }
        any
    }

    fn assert_exact(&self) {
        assert!(self.at_client == self.bytes(Side::Agent) && self.at_agent == self.bytes(Side::Client) && !self.failed);
    }

    /// Asserts that each side received only a prefix of the data that was sent.
    fn assert_not_wrong(&self) {
        assert!(self.bytes(Side::Agent).starts_with(&self.at_client));
        assert!(self.bytes(Side::Client).starts_with(&self.at_agent));
    }
}

/// Returns all messages of a session with their receivers.
fn recorded(key: u8, is_encrypted: bool) -> Vec<(Side, Bytes)> {
    let mut ends = Ends::new(key, is_encrypted);
    let mut messages = Vec::new();
    ends.talk(&mut |to, message| {
        messages.push((to, message.clone()));
        vec![message]
    });
    ends.assert_exact();
    assert!(messages.len() > 20, "{}", messages.len());
    messages
}

#[test]
fn a_bit_changed_in_a_payload_or_in_its_digest_is_refused() {
    for (_, message) in recorded(1, false) {
        let end = message.len();
        for bit in (DIGEST * 8..(DIGEST + 32) * 8).chain(120 * 8..end * 8) {
            let mut changed = message.to_vec();
            changed.get_mut(bit / 8).into_iter().for_each(|byte| *byte ^= 1 << (bit % 8));
            assert!(AgentMessage::decode(changed.into()).is_err(), "bit {bit} of {end} bytes");
        }
    }
}

#[test]
fn a_message_that_is_cut_short_or_has_more_behind_it_is_refused() {
    for (_, message) in recorded(1, false) {
        for length in 0..message.len() {
            assert!(AgentMessage::decode(message.slice(..length)).is_err(), "{length} of {} bytes", message.len());
        }
        assert!(AgentMessage::decode([&message[..], b"x"].concat().into()).is_err());
    }
}

#[test]
fn old_messages_that_are_replayed_change_nothing() {
    for (is_encrypted, seed) in [(false, 1), (true, 2), (false, 3), (true, 4)] {
        let (mut rng, mut old) = (Rng::with_seed(seed), Vec::<(Side, Bytes)>::new());
        let mut ends = Ends::new(1, is_encrypted);
        ends.talk(&mut |to, message| {
            old.push((to, message.clone()));
            let mut messages = vec![message];
            for _ in 0..3 {
                let (side, message) = rng.choice(&old).unwrap().clone();
                messages.extend((side == to).then_some(message));
            }
            messages
        });
        ends.assert_exact();
    }
}

/// Messages that are encrypted with the data key of another session cannot be decrypted in this session.
#[test]
fn another_sessions_messages_give_no_wrong_bytes_in_an_encrypted_session() {
    let foreign = recorded(2, true);
    let mut failures = 0;
    for at in 0..foreign.len() {
        let (mut ends, mut count) = (Ends::new(1, true), 0);
        ends.talk(&mut |to, message| {
            let other = foreign.get(count).filter(|(side, other)| (*side, count) == (to, at) && numbered(other));
            count += 1;
            vec![other.map_or(message, |(_, other)| other.clone())]
        });
        ends.assert_not_wrong();
        failures += usize::from(ends.failed);
    }
    assert!(failures > 5, "messages of the other session had the expected numbers: {failures} of {}", foreign.len());
}

fn numbered(message: &Bytes) -> bool {
    let message = AgentMessage::decode(message.clone()).unwrap();
    matches!(message.message_type(), MessageType::InputStreamData | MessageType::OutputStreamData)
}

/// The numbers of the channel's messages do not begin at 0, so there is no handshake.
#[test]
fn a_channel_of_a_session_that_is_under_way_is_not_taken_for_a_new_one() {
    let now = Instant::now();
    let clock = Clock { start: now, unix: Duration::from_secs(1_700_000_000) };
    let mut client = Session::client(ClientConfig::default(), clock, 5);
    client.handle_connected(now);
    for (_, message) in recorded(2, false).into_iter().filter(|(to, _)| *to == Side::Client) {
        client.handle_input(now, message).unwrap();
    }
    assert!(client.poll_event().is_none() && client.open().is_err());
    assert_eq!(client.stats().receive_bytes, 0);
}
