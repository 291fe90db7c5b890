//! The parts of the forwarding path as repeatable work whose instructions are counted. The same arguments produce the same bytes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use ssm_proto::testing::{Link, Pair};
use ssm_proto::{
    AgentConfig, AgentMessage, ChannelConfig, ChannelEvent, ClientConfig, Clock, DataChannel, MessageBuf, Mux,
    MuxConfig, PayloadType, Session, Side, StreamId,
};

use crate::parts::{self, PAYLOAD};

/// A part of the forwarding path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the part on the command line.
    pub name: &'static str,
    /// Description of one run.
    pub does: &'static str,
    /// Number of digests of 1 KiB per run that the protocol requires.
    pub digests: u32,
    /// Number of digests of an acknowledgement's JSON per run that the protocol requires.
    pub ack_digests: u32,
}

const fn part(name: &'static str, does: &'static str, digests: u32, ack_digests: u32) -> Part {
    Part { name, does, digests, ack_digests }
}

/// Only the digest of 1 KiB.
pub const DIGEST: Part = part("digest", "the SHA-256 of 1 KiB", 1, 0);
/// Only the digest of an acknowledgement.
pub const ACK_DIGEST: Part = part("ack-digest", "the SHA-256 of an acknowledgement's JSON", 0, 1);
/// One message while all of `size` streams of one session have data.
pub const STREAMS: Part = part("streams", "a message of 1 KiB from stream to stream, both sides", 2, 2);
/// One message of each of `size` sessions in turn.
pub const SESSIONS: Part = part("sessions", "a message of 1 KiB, sessions in turn, both sides", 2, 2);

/// The parts that have a budget.
pub const PARTS: &[Part] = &[
    part("encode", "write a message of 1 KiB", 1, 0),
    part("decode", "read a message of 1 KiB", 1, 0),
    part("ack-encode", "write an acknowledgement", 0, 1),
    part("ack-decode", "read an acknowledgement", 0, 1),
    part("mux", "a frame of 1015 bytes through both multiplexers", 0, 0),
    part("channel", "send a message, receive it, acknowledge it, take the acknowledgement", 2, 2),
    STREAMS,
];

/// Runs a part `count` times over `size` streams or sessions. Returns `false` if the part does not exist.
pub fn run(name: &str, size: usize, count: usize) -> bool {
    let payload = parts::payload();
    let message = parts::encode(&payload);
    let ack = parts::encode_ack();
    let json = ack.slice(parts::HEADER..);
    match name {
        "digest" => repeat(count, || Sha256::digest(black_box(&payload))),
        "ack-digest" => repeat(count, || Sha256::digest(black_box(&json))),
        "encode" => repeat(count, || parts::encode(black_box(&payload))),
        "decode" => repeat(count, || AgentMessage::decode(black_box(message.clone()))),
        "ack-encode" => repeat(count, parts::encode_ack),
        "ack-decode" => repeat(count, || parts::decode_ack(black_box(ack.clone()))),
        "mux" => {
            let mut muxes = Muxes::new();
            repeat(count, || muxes.step());
        }
        "channel" => {
            let mut channels = Channels::new();
            repeat(count, || channels.step());
        }
        "streams" => {
            let mut ends = Ends::new(1, size);
            repeat(count / size, || ends.round());
        }
        "sessions" => {
            let mut sessions: Vec<Ends> = (0..size).map(|seed| Ends::new(seed as u64, 1)).collect();
            repeat(count / size, || sessions.iter_mut().for_each(Ends::round));
        }
        _ => return false,
    }
    true
}

fn repeat<T>(count: usize, mut work: impl FnMut() -> T) {
    for _ in 0..count {
        black_box(work());
    }
}

fn clock(now: Instant) -> Clock {
    Clock { start: now, unix: Duration::from_secs(1_700_000_000) }
}

/// Settings with which every message is acknowledged immediately, so that all runs do the same work.
fn channel_config() -> ChannelConfig {
    ChannelConfig { ack_delay: Duration::ZERO, ..ChannelConfig::default() }
}

/// The data of one frame that fills a message. Every other message also ends with the first byte of the next frame (MUX-12).
fn frame_data() -> Bytes {
    parts::payload().into_iter().take(PAYLOAD - 9).collect()
}

/// Two multiplexers, connected directly.
struct Muxes {
    now: Instant,
    client: Mux,
    agent: Mux,
    stream: StreamId,
    data: Bytes,
}

impl Muxes {
    fn new() -> Self {
        let now = Instant::now();
        let mut client = Mux::new(Side::Client, MuxConfig::default(), now);
        let agent = Mux::new(Side::Agent, MuxConfig::default(), now);
        let stream = client.open();
        Self { now, client, agent, stream, data: frame_data() }
    }

    fn step(&mut self) {
        self.client.write(self.stream, self.data.clone()).expect("the send queue is empty");
        while self.client.wants_transmit() {
            let mut buf = MessageBuf::with_limit(PAYLOAD, PAYLOAD);
            self.client.poll_transmit(&mut buf);
            let payload = Bytes::copy_from_slice(buf.payload());
            self.agent.handle_input(self.now, payload).expect("the other side sends valid smux");
        }
        while self.agent.poll_event().is_some() {}
        while let Some(chunk) = self.agent.read(self.stream) {
            black_box(chunk);
        }
    }
}

/// Two data channels, connected directly.
struct Channels {
    now: Instant,
    client: DataChannel,
    agent: DataChannel,
    payload: Vec<u8>,
}

impl Channels {
    fn new() -> Self {
        let now = Instant::now();
        let of = |side, seed| {
            let mut channel = DataChannel::new(side, channel_config(), clock(now), seed);
            channel.handle_connected(now);
            channel
        };
        Self { now, client: of(Side::Client, 1), agent: of(Side::Agent, 2), payload: parts::payload() }
    }

    fn step(&mut self) {
        let mut buf = MessageBuf::with_limit(PAYLOAD, PAYLOAD);
        buf.put_slice(&self.payload);
        self.client.send(self.now, PayloadType::Output, buf).expect("earlier messages are acknowledged");
        carry(self.now, &mut self.client, &mut self.agent);
        while let Some(event) = self.agent.poll_event() {
            assert!(matches!(event, ChannelEvent::Payload { .. }), "{event:?}");
        }
        carry(self.now, &mut self.agent, &mut self.client);
        assert!(self.client.is_idle());
    }
}

fn carry(now: Instant, from: &mut DataChannel, to: &mut DataChannel) {
    while let Some(message) = from.poll_transmit(now) {
        to.handle_input(now, message).expect("the other side sends valid messages");
    }
}

/// Both ends of a session, connected directly.
struct Ends {
    now: Instant,
    client: Session,
    agent: Session,
    streams: Vec<StreamId>,
    data: Bytes,
}

impl Ends {
    fn new(seed: u64, streams: usize) -> Self {
        let now = Instant::now();
        let client = ClientConfig { channel: channel_config(), ..ClientConfig::default() };
        let agent = AgentConfig { channel: channel_config(), ..AgentConfig::default() };
        let mut pair = Pair::new(now, seed, Link::default(), client, agent);
        assert!(pair.run_until(Duration::from_secs(1), |pair| pair.client.ready));
        // The agent needs a moment after the handshake before it accepts data.
        let now = pair.now + Duration::from_secs(1);
        let (mut client, mut agent) = (pair.client.session, pair.agent.session);
        client.handle_timeout(now);
        agent.handle_timeout(now);
        let mut ends = Self { now, client, agent, streams: Vec::new(), data: frame_data() };
        for _ in 0..streams {
            let stream = ends.client.open().expect("the session is ready");
            ends.streams.push(stream);
            ends.carry();
        }
        ends.round();
        ends
    }

    /// Every stream sends one message's data, and all of it is read.
    fn round(&mut self) {
        for stream in &self.streams {
            self.client.write(*stream, self.data.clone()).expect("the send queue is empty");
        }
        self.carry();
        let mut read = 0;
        for stream in &self.streams {
            while let Some(chunk) = self.agent.read(*stream) {
                read += chunk.len();
            }
        }
        assert_eq!(read, self.streams.len() * self.data.len());
    }

    /// Exchanges messages until neither end has anything to send.
    fn carry(&mut self) {
        let now = self.now;
        let mut moved = true;
        while std::mem::take(&mut moved) {
            while let Some(message) = self.client.poll_transmit(now) {
                self.agent.handle_input(now, message).expect("the client sends valid messages");
                moved = true;
            }
            while self.agent.poll_event().is_some() {}
            while let Some(message) = self.agent.poll_transmit(now) {
                self.client.handle_input(now, message).expect("the agent sends valid messages");
                moved = true;
            }
            while self.client.poll_event().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_be_run() {
        for part in PARTS.iter().chain([&DIGEST, &ACK_DIGEST, &SESSIONS]) {
            assert!(run(part.name, 3, 6), "{}", part.name);
        }
        assert!(!run("other", 1, 1));
    }

    #[test]
    fn the_acknowledgements_json_is_what_follows_its_header() {
        let json = parts::encode_ack().slice(parts::HEADER..);
        assert!(json.starts_with(b"{") && json.ends_with(b"}"), "{json:?}");
    }
}
