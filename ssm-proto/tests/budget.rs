//! The rate limit of messages: small writes of many connections share messages.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proto::testing::{Link, Pair};
use ssm_proto::{AgentConfig, ChannelConfig, ClientConfig, Pace, StreamId};

const CONNECTIONS: usize = 200;
/// Pause between the writes of different connections: 10 000 writes per second, eleven times the limit.
const WRITE: &[u8] = &[7; 16];
const PAUSE: Duration = Duration::from_micros(100);
const ROUNDS: usize = 100;

#[test]
fn ten_thousand_small_writes_a_second_fit_into_nine_hundred_messages() {
    let channel = ChannelConfig { pace: Some(Pace::per_second(900)), ..ChannelConfig::default() };
    let client = ClientConfig { channel, ..ClientConfig::default() };
    let link = Link { latency: Duration::from_millis(10), ..Link::default() };
    let mut pair = Pair::new(Instant::now(), 1, link, client, AgentConfig::default());
    assert!(pair.run_until(Duration::from_secs(1), |pair| pair.client.ready));
    pair.run_until(Duration::from_secs(1), |_| false);
    let streams: Vec<StreamId> = (0..CONNECTIONS).map(|_| pair.client.session.open().unwrap()).collect();
    let before = pair.client.session.stats().channel.messages_sent;

    let (mut read, mut late) = (0, Duration::ZERO);
    for _ in 0..ROUNDS {
        for stream in &streams {
            pair.client.session.write(*stream, Bytes::from_static(WRITE)).expect("no queue fills up");
            pair.run_until(PAUSE, |_| false);
        }
        read += drain(&mut pair, &streams);
    }
    let written = CONNECTIONS * ROUNDS * WRITE.len();
    let wrote_at = pair.now;
    while read < written {
        assert!(pair.run_until(Duration::from_secs(1), |pair| pair.agent.session.stats().receive_bytes > 0), "{read}");
        read += drain(&mut pair, &streams);
        late = pair.now - wrote_at;
    }
    assert_eq!(read, written);
    assert!(
        late < Duration::from_millis(50),
        "the last bytes arrived {late:?} after they were written, not after the delay of the path"
    );

    let messages = pair.client.session.stats().channel.messages_sent - before;
    let writes = CONNECTIONS * ROUNDS;
    println!("{writes} writes, {messages} messages, {:.1} bytes of data in each", written as f64 / messages as f64);
    assert!(messages <= 900 * 2 + 100, "{messages} messages in two seconds");
}

fn drain(pair: &mut Pair, streams: &[StreamId]) -> usize {
    let session = &mut pair.agent.session;
    let chunks = streams.iter().flat_map(|stream| std::iter::from_fn(|| session.read(*stream)).collect::<Vec<_>>());
    chunks.map(|chunk| chunk.len()).sum()
}
