//! Detects that the agent no longer reads a command's output (AGENT-9). If the command printed something while the client was
//! disconnected, the agent stops reading the output for good, and reports nothing.

use std::time::Duration;

use ssm_forward::Session;
use tokio::time::{Instant, sleep_until};

/// Interval of the checks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Silence after a reconnect from which the agent is assumed to have stopped reading. The command may also only be slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// Number of messages after a reconnect that shows that the agent still reads. Fewer messages may be output that the agent had read
/// before the reconnect and sends only now.
const PROOF: u64 = 2000;
/// A command was active if it printed something within this time before the session was disconnected.
const RECENT: Duration = Duration::from_secs(5);

/// Watches the output of one session.
#[derive(Debug)]
pub(crate) struct Silence {
    last: Sample,
    last_message: Instant,
    /// Number of messages that had been received at the last reconnect; `None` before a reconnect, and after [`PROOF`] messages.
    received_before: Option<u64>,
    was_active: bool,
    next_check: Instant,
}

/// The state of a session's data channel.
#[derive(Clone, Copy, Debug)]
struct Sample {
    is_connected: bool,
    reconnects: u64,
    /// Number of messages received so far.
    received: u64,
    /// Whether this process has unread output. While it has, the absence of new messages proves nothing.
    has_unread: bool,
}

impl Silence {
    /// Watches a session that has just been started.
    pub(crate) fn new(now: Instant) -> Self {
        let last = Sample { is_connected: true, reconnects: 0, received: 0, has_unread: false };
        Self { last, last_message: now, received_before: None, was_active: false, next_check: now + INTERVAL }
    }

    /// Completes when the session was silent for [`LIMIT`] after a reconnect. Can be called again after it was cancelled.
    pub(crate) async fn detected(&mut self, session: &Session) {
        loop {
            sleep_until(self.next_check).await;
            let stats = session.stats();
            let sample = Sample {
                is_connected: session.is_connected(),
                reconnects: session.reconnects(),
                received: stats.channel.messages_received,
                has_unread: stats.receive_bytes > 0,
            };
            if self.check(Instant::now(), sample) {
                return;
            }
        }
    }

    /// Returns whether the command had printed something shortly before the session was disconnected.
    pub(crate) fn was_active(&self) -> bool {
        self.was_active
    }

    fn check(&mut self, now: Instant, sample: Sample) -> bool {
        self.next_check = now + INTERVAL;
        let last = std::mem::replace(&mut self.last, sample);
        if !sample.is_connected || sample.reconnects > last.reconnects {
            // Without a message since the previous reconnect, the previous result still holds.
            if last.is_connected && self.received_before.is_none_or(|before| last.received > before) {
                self.was_active = now.saturating_duration_since(self.last_message) <= RECENT;
            }
            (self.received_before, self.last_message) = (Some(sample.received), now);
        } else if sample.received > last.received || sample.has_unread {
            self.last_message = now;
        }
        self.received_before = self.received_before.filter(|before| sample.received - before < PROOF);
        self.received_before.is_some() && now.saturating_duration_since(self.last_message) >= LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that is reconnected after three seconds and receives `rate` messages per second until `silent_from`. Returns after
    /// how many seconds its silence is detected, and whether the command was active.
    fn detected(silent_from: u32, rate: u64, is_connected: impl Fn(u32) -> bool) -> (Option<u32>, bool) {
        let start = Instant::now();
        let (mut silence, mut received) = (Silence::new(start), 0);
        let after = (1..100).find(|second| {
            received += if *second < silent_from { rate } else { 0 };
            let (is_connected, reconnects) = (is_connected(*second), u64::from(*second >= 3));
            let sample = Sample { is_connected, reconnects, received, has_unread: false };
            silence.check(start + INTERVAL * *second, sample)
        });
        (after, silence.was_active())
    }

    #[test]
    fn silence_after_a_reconnect_is_detected_unless_much_output_arrived_since() {
        assert_eq!(detected(3, 100, |_| true), (Some(13), true), "silent at once");
        assert_eq!(detected(9, 10, |_| true), (Some(18), true), "silent after some retransmissions");
        assert_eq!(detected(9, 1000, |_| true), (None, true), "silent after much new output");
        assert_eq!(detected(100, 1, |_| true), (None, true), "slow but never silent");
        assert_eq!(detected(3, 100, |second| !(5..15).contains(&second)).0, Some(24), "an outage is no silence");
    }

    #[test]
    fn a_command_may_be_silent_without_a_reconnect_and_before_one() {
        let (start, mut silence) = (Instant::now(), Silence::new(Instant::now()));
        let sample = Sample { is_connected: true, reconnects: 0, received: 9, has_unread: false };
        assert!((1..1000).all(|second| !silence.check(start + INTERVAL * second, sample)));
        assert!(!silence.check(start + INTERVAL * 1000, Sample { reconnects: 1, ..sample }));
        assert!(
            !silence.check(start + INTERVAL * 1010, Sample { reconnects: 1, has_unread: true, ..sample }),
            "it is not read"
        );
        assert!(silence.check(start + INTERVAL * 1020, Sample { reconnects: 1, ..sample }));
        assert!(!silence.was_active());
    }
}
