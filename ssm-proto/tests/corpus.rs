//! Runs the bodies of the fuzz targets over the fuzz corpus, without a fuzzer.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test, this is the assertion")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ssm_proto::relay::{Destination, Link, RelaySide};
use ssm_proto::{AgentMessage, MessageType, PayloadType, fuzzing};
use support::bytes_of;

/// Seeds by target and file name.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

const TARGETS: [&str; 4] = ["decode_message", "deframe", "session_input", "relay_input"];

#[test]
fn no_input_of_the_corpus_breaks_a_promise() {
    let now = Instant::now();
    for target in TARGETS {
        let files: Vec<_> = std::fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{target} has no corpus");
        for file in files {
            let data = std::fs::read(&file).unwrap();
            match target {
                "decode_message" => fuzzing::decode_message(&data),
                "deframe" => fuzzing::deframe(&data),
                "session_input" => fuzzing::session_input(&data, now),
                _ => fuzzing::relay_input(&data, now),
            }
        }
    }
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
            // Dozens of repetitions are of no use to a fuzzer.
            seeds.insert(
                ("session_input", file),
                messages.iter().take(24).flat_map(|message| with_length(message)).collect(),
            );
        }
    }
    seeds.extend(relays());
    seeds
}

/// What the two ends of a relay's link say to each other.
fn relays() -> Seeds {
    let now = Instant::now();
    let [mut client, mut relay] = [RelaySide::Client, RelaySide::Relay].map(|side| Link::new(side, now));
    let (to_relay, to_client) = (client.add_pipe().unwrap(), relay.add_pipe().unwrap());
    let id = client.open(Destination::new("db.internal", 3306).unwrap()).unwrap();
    client.write(id, vec![7; 300].into()).unwrap();
    client.finish(id);
    let up: Vec<_> = std::iter::from_fn(|| client.poll_transmit(now)).flat_map(|(_, bytes)| bytes).collect();
    relay.handle_input(now, to_client, &up).unwrap();
    relay.opened(id);
    relay.write(id, vec![8; 300].into()).unwrap();
    relay.finish(id);
    let down: Vec<_> = std::iter::from_fn(|| relay.poll_transmit(now)).flat_map(|(_, bytes)| bytes).collect();
    client.handle_input(now, to_relay, &down).unwrap();
    [("seed-up", up), ("seed-down", down)].map(|(name, bytes)| (("relay_input", name.to_owned()), bytes)).into()
}

/// The multiplexed bytes in the messages.
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
