//! Runs the bodies of the fuzz targets over the fuzz corpus, without a fuzzer.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, this is the assertion")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use ssm_proto::relay::{Destination, FeedId, Link, RelaySide};
use ssm_proto::{Acknowledge, AgentMessage, MessageType, PayloadType, fuzzing};
use support::bytes_of;

/// Seeds by target and file name.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

#[test]
fn no_input_of_the_corpus_breaks_a_promise() {
    let now = Instant::now();
    for (target, body) in fuzzing::TARGETS {
        for (name, data) in inputs(target) {
            run(target, body, &data, now, &name);
        }
    }
}

const SEED: u64 = 15;
const LONGEST: usize = 2048;

/// `FUZZ_TIMES` multiplies the number of variations; `FUZZ_SEED` sets another seed.
#[test]
fn no_variation_of_the_corpus_breaks_a_promise() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (times, seed) = (number("FUZZ_TIMES").unwrap_or(1), number("FUZZ_SEED").unwrap_or(SEED));
    std::thread::scope(|scope| {
        for (target, body) in fuzzing::TARGETS {
            scope.spawn(move || vary(target, body, times * variations(target), seed));
        }
    });
}

/// Returns the number of variations for a few seconds of work without optimization.
fn variations(target: &str) -> u64 {
    match target {
        "session_pair" => 400,
        "relay_link" | "relay_input" | "sealed_input" | "session_input" => 1000,
        _ => 10_000,
    }
}

fn vary(target: &str, body: fn(&[u8], Instant), count: u64, seed: u64) {
    let inputs: Vec<_> = inputs(target).into_values().collect();
    let (mut rng, now) = (Rng::with_seed(seed), Instant::now());
    for number in 0..count {
        let mut data = rng.choice(&inputs).unwrap().clone();
        let other = rng.choice(&inputs).unwrap();
        fuzzing::vary(&mut rng, &mut data, other, LONGEST);
        run(target, body, &data, now, &format!("variation {number} of seed {seed}"));
    }
}

/// Runs a target. Stores an input for which the target panics.
fn run(target: &str, body: fn(&[u8], Instant), data: &[u8], now: Instant, what: &str) {
    let outcome = std::panic::catch_unwind(|| body(data, now));
    if let Err(panic) = outcome {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-{}", std::process::id()));
        std::fs::write(&file, data).unwrap();
        eprintln!("{target} fails for {what}, which is stored in {}", file.display());
        std::panic::resume_unwind(panic);
    }
}

fn inputs(target: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(corpus(target)).unwrap_or_else(|error| panic!("{target} has no corpus: {error}"));
    let files = files.map(|entry| entry.unwrap().path());
    let inputs: BTreeMap<_, _> = files
        .map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&file).unwrap()))
        .collect();
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs
}

#[test]
fn the_corpus_holds_the_seeds_that_testdata_gives() {
    for ((target, name), seed) in seeds() {
        let found = std::fs::read(corpus(target).join(&name)).ok();
        assert!(found.as_ref() == Some(&seed), "{target}/{name} is not up to date: see fuzz/README.md");
    }
}

#[test]
#[ignore = "writes the seeds into fuzz/corpus"]
fn write_the_seeds() {
    for ((target, name), seed) in seeds() {
        std::fs::create_dir_all(corpus(target)).unwrap();
        std::fs::write(corpus(target).join(name), seed).unwrap();
    }
}

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

fn seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for vector in support::vectors() {
        let name = format!("seed-{}", vector["name"].as_str().unwrap());
        match vector["kind"].as_str().unwrap() {
            "agent_message" | "agent_message_negative" => seeds.insert(("decode_message", name), bytes_of(&vector)),
            "smux" | "smux_negative" => seeds.insert(("deframe", name), bytes_of(&vector)),
            _ => None,
        };
    }
    for (name, lines) in support::captures() {
        for direction in ["c2a", "a2c"] {
            let lines = lines.iter().filter(|line| line["kind"] == "bin" && line["dir"] == direction);
            let messages: Vec<Vec<u8>> = lines.map(bytes_of).collect();
            let file = format!("seed-{name}-{direction}");
            if name.contains("mux") || name.contains("reconnect") {
                seeds.insert(("deframe", file.clone()), stream_of(&messages));
            }
            // Dozens of repeated messages are of no use to a fuzzer.
            seeds.insert(
                ("session_input", file),
                messages.iter().take(24).flat_map(|message| with_length(message)).collect(),
            );
        }
    }
    seeds.extend(relays());
    for (name, lines) in support::captures() {
        for direction in ["c2a", "a2c"] {
            let lines = lines.iter().filter(|line| line["kind"] == "bin" && line["dir"] == direction);
            let messages = lines.take(24).map(|line| AgentMessage::decode(bytes_of(line).into()).unwrap());
            bodies(&mut seeds, &name, direction, &messages.collect::<Vec<_>>());
        }
    }
    for (name, text) in [
        ("seed-open", r#"{"MessageSchemaVersion":"1.0","RequestId":"r","TokenValue":"a token","ClientId":"c"}"#),
        ("seed-closed", r#"{"MessageType":"channel_closed","SessionId":"s","SchemaVersion":1,"Output":"bye"}"#),
    ] {
        seeds.insert(("control_message", name.to_owned()), text.as_bytes().to_vec());
    }
    seeds
}

/// Returns the bytes that the two ends of a relay's link send to each other.
fn relays() -> Seeds {
    let now = Instant::now();
    let [mut client, mut relay] = [RelaySide::Client, RelaySide::Relay].map(|side| Link::new(side, now));
    let (to_relay, to_client) = (client.add_pipe().unwrap(), relay.add_pipe().unwrap());
    let id = client.open(Destination::new("db.internal", 3306).unwrap()).unwrap();
    client.write(id, vec![7; 300].into()).unwrap();
    client.finish(id);
    let (_, begin) = relay.poll_transmit(now).unwrap();
    client.handle_input(now, to_relay, &begin).unwrap();
    let up: Vec<_> = std::iter::from_fn(|| client.poll_transmit(now)).flat_map(|(_, bytes)| bytes).collect();
    relay.handle_input(now, to_client, &up).unwrap();
    relay.opened(id);
    relay.write(id, vec![8; 300].into()).unwrap();
    relay.finish(id);
    let answers = std::iter::from_fn(|| relay.poll_transmit(now)).flat_map(|(_, bytes)| bytes);
    let down: Vec<_> = begin.iter().copied().chain(answers).collect();
    client.handle_input(now, to_relay, &down[begin.len()..]).unwrap();
    let feed = FeedId([5; 16]);
    client.add_feed(now, feed).unwrap();
    relay.add_feed(now, feed).unwrap();
    let acks = std::iter::from_fn(|| client.poll_transmit(now + Duration::from_secs(1))).flat_map(|(_, bytes)| bytes);
    let fed = up.iter().copied().chain(acks).collect();
    [("seed-up", up), ("seed-down", down), ("seed-fed", fed)]
        .map(|(name, bytes)| (("relay_input", name.to_owned()), bytes))
        .into()
}

/// Adds the payloads of a recorded direction, for the targets whose input is payloads.
fn bodies(seeds: &mut Seeds, name: &str, direction: &str, messages: &[AgentMessage]) {
    let (of_client, file) = (direction == "c2a", format!("seed-{name}-{direction}"));
    let handshake = if of_client { "agent_handshake" } else { "client_handshake" };
    // The client encrypts ports. There are agents with and without encryption.
    let mut body = vec![1];
    let mut sealed = vec![if of_client { 2 } else { 0 }];
    for message in messages {
        let payload_type = u8::try_from(u32::from(message.payload_type())).unwrap();
        let payload = with_short_length(message.payload());
        match message.message_type() {
            MessageType::Acknowledge => {
                let number = Acknowledge::decode_number(message.payload()).unwrap();
                sealed.extend([8, u8::try_from(number + 2).unwrap()]);
                seeds.insert(("acknowledge", format!("seed-{direction}")), message.payload().to_vec());
            }
            MessageType::ChannelClosed => {
                seeds.insert(("control_message", file.clone()), message.payload().to_vec());
            }
            _ => {
                sealed.extend([0, payload_type]);
                sealed.extend(&payload);
            }
        }
        if payload_type > 4 {
            body.push(payload_type);
            body.extend(&payload);
            body.push(1);
        }
    }
    seeds.insert((handshake, file.clone()), body);
    seeds.insert(("sealed_input", file), sealed);
}

/// Returns the payload after its length, in the format of the targets' input.
fn with_short_length(payload: &[u8]) -> Vec<u8> {
    let length = payload.len().min(8191);
    let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
    let mut bytes = if length < 224 { vec![low] } else { vec![224 + high, low] };
    bytes.extend(&payload[..length]);
    bytes
}

/// Returns the multiplexed bytes in the messages.
fn stream_of(messages: &[Vec<u8>]) -> Vec<u8> {
    let messages = messages.iter().map(|bytes| AgentMessage::decode(bytes.clone().into()).unwrap());
    let data = messages.filter(|message| {
        message.payload_type() == PayloadType::Output && message.message_type() != MessageType::Acknowledge
    });
    data.flat_map(AgentMessage::into_payload).collect()
}

fn with_length(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap();
    [&length.to_be_bytes()[..], message].concat()
}
