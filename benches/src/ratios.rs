//! The cost of a message relative to the cost of its digest, which the protocol requires. Measured in this process.

use std::hint::black_box;
use std::time::Instant;

use sha2::{Digest, Sha256};
use ssm_bench::parts;
use ssm_proto::AgentMessage;

use crate::report::Report;

/// Runs per measurement. The number is small, so that the scheduler interrupts few measurements.
const RUNS: u32 = 256;
/// Number of measurements of each part, in turn; the median is used.
const ROUNDS: usize = 101;

/// Adds `encode-ratio`, `decode-ratio` and `ack-ratio`, and the time of each in nanoseconds, without a profile.
pub(crate) fn measure(report: &mut Report) {
    let payload = parts::payload();
    let message = parts::encode(&payload);
    let ack = parts::encode_ack();
    let json = ack.slice(parts::HEADER..);
    let mut times: [Vec<f64>; 6] = Default::default();
    for _ in 0..ROUNDS {
        let round = [
            time(|| Sha256::digest(black_box(&payload))),
            time(|| parts::encode(black_box(&payload))),
            time(|| AgentMessage::decode(black_box(message.clone()))),
            time(|| Sha256::digest(black_box(&json))),
            time(parts::encode_ack),
            time(|| parts::decode_ack(black_box(ack.clone()))),
        ];
        times.iter_mut().zip(round).for_each(|(times, time)| times.push(time));
    }
    let [digest, encode, decode, ack_digest, ack_encode, ack_decode] = times.map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        crate::report::quantile(&times, 0.5)
    });
    for (metric, value) in [
        ("digest-ns", digest),
        ("encode-ns", encode),
        ("decode-ns", decode),
        ("encode-ratio", encode / digest),
        ("decode-ratio", decode / digest),
        ("ack-ratio", (ack_encode + ack_decode) / (2.0 * ack_digest)),
    ] {
        report.add_part(metric, value);
    }
}

/// Nanoseconds per run.
fn time<T>(mut run: impl FnMut() -> T) -> f64 {
    let began = Instant::now();
    for _ in 0..RUNS {
        black_box(run());
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(RUNS)
}
