//! Basic mode: one connection after the other over a path that loses messages and is interrupted. No byte of one connection reaches
//! another, although no message marks the end of an answer. In virtual time.

#![expect(clippy::unwrap_used, reason = "in a test, this is the assertion")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use ssm_proto::testing::{Link, Pair};
use ssm_proto::{AgentConfig, ClientConfig, SessionEvent, Side, StreamId, WriteError};

/// The destination of the agent's connections. Each connection answers its question with the question's byte, many times.
#[derive(Default)]
struct Destination {
    stream: Option<StreamId>,
    question: Option<u8>,
    left: usize,
    seen: usize,
}

impl Destination {
    fn step(&mut self, pair: &mut Pair, size: usize) {
        let now = pair.now;
        while let Some(event) = pair.agent.events.get(self.seen).cloned() {
            self.seen += 1;
            match event {
                SessionEvent::Opened(id) => *self = Self { stream: Some(id), seen: self.seen, ..Self::default() },
                SessionEvent::Finished(id) if self.stream == Some(id) => {
                    // The client's connection has ended; the destination detects this and closes its own.
                    pair.agent.session.finish(now, id);
                    *self = Self { seen: self.seen, ..Self::default() };
                }
                _ => {}
            }
        }
        let Some(id) = self.stream else { return };
        while let Some(chunk) = pair.agent.session.read(id) {
            for byte in chunk {
                assert_eq!(*self.question.get_or_insert(byte), byte, "one connection, two questions");
                self.left = size;
            }
        }
        let Some(question) = self.question else { return };
        while self.left > 0 {
            let piece = self.left.min(900);
            match pair.agent.session.write(id, vec![question; piece].into()) {
                Ok(()) => self.left -= piece,
                Err(WriteError::Full(_) | WriteError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn connections(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let latency = Duration::from_millis(rng.u64(1..60));
    let link = Link { latency, jitter: latency / 4, loss: 0.01, duplicate: 0.01, reorder: 0.02, ..Link::default() };
    let agent = AgentConfig { agent_version: "3.0.196.0".into(), ..AgentConfig::default() };
    let mut pair = Pair::new(Instant::now(), seed, link, ClientConfig::default(), agent);
    assert!(pair.run_until(Duration::from_secs(60), |pair| pair.client.ready));
    let mut destination = Destination::default();
    for number in 1..=12 {
        let size = rng.usize(1..60_000);
        // Some programs wait for the whole answer, others close the connection before it is complete.
        let wanted = if rng.bool() { size } else { rng.usize(0..size) };
        let mut stream = None;
        pair.run_until(Duration::from_secs(120), |pair| {
            destination.step(pair, size);
            stream = pair.client.session.open().ok();
            stream.is_some()
        });
        let id = stream.unwrap_or_else(|| panic!("seed {seed}: connection {number} does not begin"));
        pair.client.session.write(id, Bytes::from(vec![number; 3])).unwrap();
        if rng.u8(..4) == 0 {
            let side = if rng.bool() { Side::Client } else { Side::Agent };
            pair.cut(side, Duration::from_millis(rng.u64(..3000)));
        }
        let mut read = 0;
        let complete = pair.run_until(Duration::from_secs(300), |pair| {
            destination.step(pair, size);
            while let Some(chunk) = pair.client.session.read(id) {
                assert!(chunk.iter().all(|byte| *byte == number), "seed {seed}: bytes of another connection");
                read += chunk.len();
            }
            read >= wanted
        });
        assert!(complete && read <= size, "seed {seed}: {read} of {wanted} bytes");
        pair.client.session.reset(id);
    }
}

#[test]
fn no_byte_of_one_connection_reaches_the_next() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    for seed in 0..seeds {
        connections(seed);
    }
}
