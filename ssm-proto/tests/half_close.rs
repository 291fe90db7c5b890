//! After the local end has finished, the whole answer arrives, even if the path is interrupted or the reader pauses for any time.
//! There is no clean end if the answer may be incomplete. In virtual time.

#![expect(clippy::unwrap_used, reason = "in a test, this is the assertion")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proto::testing::{Link, Pair};
use ssm_proto::{AgentConfig, ClientConfig, MuxConfig, SessionEvent, Side, StreamId, WriteError};

const BASIC: &str = "3.0.196.0";
const MUX: &str = "3.3.987.0";

/// One half-closed stream whose destination has read the question.
struct Call {
    pair: Pair,
    id: StreamId,
    agent_id: StreamId,
    /// Number of bytes of the answer that the client has read.
    read: usize,
    /// Whether the client's program reads.
    reads: bool,
    written: usize,
}

/// Interval between the steps of the programs at both ends.
const STEP: Duration = Duration::from_millis(50);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Call {
    fn new(version: &str, latency: Duration) -> Self {
        let link = Link { latency, ..Link::default() };
        let mux = MuxConfig { receive_store: 256 << 10, receive_total: 1 << 20, ..MuxConfig::default() };
        let agent = AgentConfig { agent_version: version.into(), mux: mux.clone(), ..AgentConfig::default() };
        let client = ClientConfig { mux, ..ClientConfig::default() };
        let mut pair = Pair::new(Instant::now(), 1, link, client, agent);
        assert!(pair.run_until(seconds(30), |pair| pair.client.ready));
        let id = pair.client.session.open().unwrap();
        pair.client.session.write(id, Bytes::from_static(b"question")).unwrap();
        pair.client.session.finish(pair.now, id);
        assert!(pair.run_until(seconds(30), |pair| pair.agent.session.stats().receive_bytes == 8));
        let opened = pair.agent.events.iter().find_map(|event| match event {
            SessionEvent::Opened(id) => Some(*id),
            _ => None,
        });
        let agent_id = opened.unwrap();
        while pair.agent.session.read(agent_id).is_some() {}
        Self { pair, id, agent_id, read: 0, reads: true, written: 0 }
    }

    /// Writes this many bytes of the destination's answer, and waits while the send queue is full.
    fn answer(&mut self, bytes: usize) {
        let end = self.written + bytes;
        while self.written < end {
            match self.pair.agent.session.write(self.agent_id, vec![7; 4096.min(end - self.written)].into()) {
                Ok(()) => self.written += 4096.min(end - self.written),
                Err(WriteError::Full(_)) => self.wait(STEP),
                Err(error) => panic!("the agent's stream has ended: {error}"),
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.pair.now + time;
        while self.pair.now < until {
            self.pair.run_until(STEP, |_| false);
            if !self.reads {
                continue;
            }
            while let Some(chunk) = self.pair.client.session.read(self.id) {
                self.read += chunk.len();
            }
            self.pair.client.session.wait_for_data(self.pair.now, self.id);
        }
    }

    fn silent(&self) -> Option<bool> {
        self.pair.client.events.iter().find_map(|event| match event {
            SessionEvent::Silent { answered, .. } => Some(*answered),
            _ => None,
        })
    }

    fn has_finished(&self) -> bool {
        self.pair.client.events.iter().any(|event| matches!(event, SessionEvent::Finished(_)))
    }

    /// Writes more of the destination's answer and ends it. All of it must arrive, followed by a clean end.
    fn answer_to_the_end(mut self, what: &str) {
        assert_eq!(self.silent(), None, "{what}");
        self.answer(300_000);
        self.pair.agent.session.finish(self.pair.now, self.agent_id);
        self.reads = true;
        // Repeated losses of the oldest message and probes over a long path take time.
        for _ in 0..300 {
            if self.has_finished() && self.read == self.written {
                break;
            }
            self.wait(seconds(1));
        }
        assert_eq!((self.read, self.silent()), (self.written, None), "{what}");
        assert!(
            self.has_finished() && self.pair.client.session.is_finished(self.id),
            "{what}: {:?}",
            self.pair.client.session
        );
    }
}

const LATENCY: Duration = Duration::from_millis(20);

#[test]
fn silence_that_this_end_causes_is_none_of_the_far_sides() {
    for version in [MUX, BASIC] {
        let mut call = Call::new(version, LATENCY);
        call.answer(100_000);
        call.reads = false;
        call.wait(seconds(100));
        call.answer_to_the_end("the reader paused with unread data");

        let mut call = Call::new(version, LATENCY);
        call.answer(100_000);
        call.pair.cut(Side::Client, seconds(100));
        call.wait(seconds(99));
        call.answer_to_the_end("an outage of the client");

        let mut call = Call::new(version, LATENCY);
        call.answer(100_000);
        call.pair.cut(Side::Agent, seconds(100));
        call.wait(seconds(99));
        call.answer_to_the_end("an outage of the agent");

        let mut call = Call::new(version, LATENCY);
        call.answer(100_000);
        call.pair.link.latency = seconds(100);
        call.wait(seconds(99));
        call.pair.link.latency = LATENCY;
        call.answer_to_the_end("a path that stalls undetected");

        let mut call = Call::new(version, LATENCY);
        call.answer(100_000);
        call.pair.link.loss = 1.0;
        call.wait(seconds(100));
        call.pair.link.loss = 0.0;
        call.answer_to_the_end("a path that loses all messages undetected");
    }
}

/// The agent's window is full, because it does not receive the acknowledgements of its data. The agent can acknowledge the probe
/// and send the data that it held back only when it reads again, at any time around the end of the linger.
#[test]
fn an_agent_that_was_kept_from_sending_was_not_silent() {
    for quarters in 0..24 {
        let mut call = Call::new(MUX, LATENCY);
        call.pair.deafen(Side::Agent, seconds(28) + Duration::from_millis(250) * quarters);
        while call.pair.agent.session.write(call.agent_id, vec![7; 4096].into()).is_ok() {
            call.written += 4096;
            call.wait(Duration::from_millis(1));
        }
        call.wait(seconds(36));
        call.answer_to_the_end(&format!("{quarters}"));
    }
}

#[test]
fn another_streams_slow_reader_makes_silence_too() {
    let mut call = Call::new(MUX, LATENCY);
    let other = call.pair.client.session.open().unwrap();
    call.wait(seconds(1));
    while call.pair.agent.session.write(other, vec![1; 16 << 10].into()).is_ok() {}
    for _ in 0..40 {
        call.wait(STEP);
        while call.pair.agent.session.write(other, vec![1; 16 << 10].into()).is_ok() {}
    }
    assert!(call.pair.client.session.is_congested());
    call.wait(seconds(40));
    assert_eq!(call.silent(), None);
    call.pair.client.session.reset(other);
    call.answer_to_the_end("the session was congested");
}

#[test]
fn an_upload_that_is_still_on_its_way_can_not_be_answered() {
    let link = Link { latency: LATENCY, ..Link::default() };
    let mut pair = Pair::new(Instant::now(), 1, link, ClientConfig::default(), AgentConfig::default());
    assert!(pair.run_until(seconds(10), |pair| pair.client.ready));
    let id = pair.client.session.open().unwrap();
    pair.client.session.write(id, vec![7; 200_000].into()).unwrap();
    pair.client.session.finish(pair.now, id);
    pair.client.session.wait_for_data(pair.now, id);
    pair.link.latency = seconds(60);
    pair.run_until(seconds(100), |_| false);
    assert!(!pair.client.events.iter().any(|event| matches!(event, SessionEvent::Silent { .. })));
}

#[test]
fn a_far_side_that_could_have_answered_and_did_not_is_given_up_and_not_as_a_clean_end() {
    for (version, answer) in [(MUX, 0), (MUX, 1000), (BASIC, 0)] {
        let mut call = Call::new(version, LATENCY);
        call.answer(answer);
        call.wait(seconds(29));
        assert_eq!(call.silent(), None, "{version} {answer}");
        call.wait(seconds(4));
        assert_eq!((call.silent(), call.has_finished()), (Some(answer > 0), false), "{version} {answer}");
        assert_eq!(call.read, answer);
        call.wait(seconds(1));
        assert_eq!(call.pair.client.session.stats().streams, 0, "{version} {answer}");
        // The destination is notified, so that its connection does not stay open forever.
        assert!(call.pair.agent.session.is_finished(call.agent_id), "{version} {answer}");
        assert_eq!(call.pair.client.session.poll_timeout(), None, "{version} {answer}");
    }
}

#[test]
fn where_nobody_tells_the_end_a_short_silence_after_some_answer_is_it() {
    let mut call = Call::new(BASIC, LATENCY);
    call.wait(seconds(20));
    for _ in 0..20 {
        call.answer(50_000);
        call.wait(seconds(2));
    }
    assert!(!call.has_finished(), "the stream has not ended");
    call.wait(seconds(4));
    assert_eq!((call.read, call.has_finished(), call.silent()), (1_000_000, true, None));
    assert!(call.pair.client.session.is_finished(call.id));
    call.pair.client.session.abandon(call.id);
    call.wait(seconds(1));
    assert!(call.pair.client.session.open().is_ok(), "the next connection can be opened");
}

#[test]
fn a_long_way_is_no_silence() {
    for version in [MUX, BASIC] {
        let mut call = Call::new(version, Duration::from_millis(1200));
        call.answer(100_000);
        call.answer_to_the_end(version);
    }
}
