//! The parts of the forwarding path, compared with only the digests, which the protocol requires.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest, Sha256};
use ssm_bench::parts::{self, PAYLOAD};
use ssm_proto::testing::{Link, Pair};
use ssm_proto::{AgentConfig, AgentMessage, ClientConfig};

fn codec(c: &mut Criterion) {
    let payload = parts::payload();
    let message = parts::encode(&payload);
    let ack = parts::encode_ack();
    let mut group = c.benchmark_group("message of 1 KiB");
    group.throughput(Throughput::Bytes(PAYLOAD as u64));
    group.bench_function("sha256 alone", |b| b.iter(|| Sha256::digest(black_box(&payload))));
    group.bench_function("encode", |b| b.iter(|| parts::encode(black_box(&payload))));
    group.bench_function("decode", |b| {
        b.iter_batched(
            || message.clone(),
            |raw| AgentMessage::decode(raw).map(|m| m.sequence_number()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
    let mut group = c.benchmark_group("acknowledgement");
    let json = ack.slice(parts::HEADER..);
    group.bench_function("sha256 alone", |b| b.iter(|| Sha256::digest(black_box(&json))));
    group.bench_function("encode", |b| b.iter(|| black_box(parts::encode_ack())));
    group.bench_function("decode", |b| b.iter(|| black_box(parts::decode_ack(black_box(ack.clone())))));
    group.finish();
}

/// Two sides of a session without sockets: numbering, acknowledging, multiplexing and four digests per message.
fn channel(c: &mut Criterion) {
    let mut group = c.benchmark_group("channel");
    const BYTES: usize = 1 << 20;
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(20);
    group.bench_function("1 MiB through both sides", |b| {
        b.iter_batched(ready_pair, |mut pair| move_bytes(&mut pair, BYTES), BatchSize::LargeInput);
    });
    group.finish();
}

fn ready_pair() -> Pair {
    let mut pair = Pair::new(Instant::now(), 1, Link::default(), ClientConfig::default(), AgentConfig::default());
    assert!(pair.run_until(Duration::from_secs(1), |pair| pair.client.ready));
    pair
}

fn move_bytes(pair: &mut Pair, bytes: usize) -> usize {
    let id = pair.client.session.open().expect("the session is ready");
    let chunk = Bytes::from(vec![7; 64 << 10]);
    let mut moved = 0;
    let mut left = bytes;
    pair.run_until(Duration::from_secs(60), |pair| {
        if left > 0 && pair.client.session.write(id, chunk.clone()).is_ok() {
            left -= chunk.len();
        }
        while let Some(chunk) = pair.agent.session.read(id) {
            moved += chunk.len();
        }
        moved == bytes
    });
    assert_eq!(moved, bytes);
    moved
}

criterion_group!(parts_benches, codec, channel);
criterion_main!(parts_benches);
