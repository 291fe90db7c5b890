//! Warns about connections that get no answer.
//!
//! The agent reports only failed connection attempts, not successful ones. If packets to the destination are dropped, the
//! connection looks like a connection to a silent server, until the node's system gives up after about two minutes. In the
//! meantime, a probe is not possible, because the agent connects one stream after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Minimum interval between warnings. Without it, a connection pool with an unreachable host would cause one warning for each
/// connection.
const PAUSE: Duration = Duration::from_secs(60);

/// Reports a forwarder's connections that have waited for a long time.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// The destination, for messages.
    destination: String,
    patience: Duration,
    told: Mutex<LastReport>,
    explained: AtomicBool,
}

/// The last report.
#[derive(Debug, Default)]
struct LastReport {
    at: Option<Instant>,
    /// Number of connections since then that were not reported.
    unreported: u64,
}

impl Unanswered {
    /// `patience` is how long a connection waits before a warning.
    pub(crate) fn new(destination: String, patience: Duration) -> Self {
        Self { destination, patience, told: Mutex::default(), explained: AtomicBool::new(false) }
    }

    /// Waits until this connection has had no answer for too long. Returns the warning, if there is one.
    ///
    /// `answers` counts the bytes that arrived from the destination on any connection: while it answers others, the server of this
    /// connection is only slow. `is_connected` is whether there is a path to the node: while it is interrupted, nothing is known
    /// about the destination.
    pub(crate) async fn watch(
        &self,
        connection: u64,
        answers: impl Fn() -> u64,
        is_connected: impl Fn() -> bool,
    ) -> Option<String> {
        let before = answers();
        loop {
            sleep(self.patience).await;
            if answers() != before {
                return None;
            }
            if is_connected() {
                return self.warning(connection, Instant::now());
            }
        }
    }

    /// Returns why this connection was reset after its linger. `None` if this was reported before. `answered` is whether some data
    /// had arrived.
    pub(crate) fn explain_reset(&self, connection: u64, answered: bool) -> Option<String> {
        let cause = match answered {
            true => "sent a part of its answer and then paused for longer than the linger, or keeps connections open",
            false => "needs longer than the linger to answer, or answers only at the end of the input",
        };
        (!self.explained.swap(true, Ordering::Relaxed)).then(|| {
            format!(
                "connection {connection} was reset after the linger: {} {cause}. The agent cannot forward the end of the input \
                 without losing the answer",
                self.destination
            )
        })
    }

    fn warning(&self, connection: u64, now: Instant) -> Option<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.at.is_some_and(|at| now < at + PAUSE) {
            told.unreported += 1;
            return None;
        }
        let others = match std::mem::take(&mut told.unreported) {
            0 => String::new(),
            1 => " (and one other since the last warning)".to_owned(),
            others => format!(" (and {others} others since the last warning)"),
        };
        told.at = Some(now);
        let (destination, seconds) = (&self.destination, self.patience.as_secs_f32());
        Some(format!(
            "connection {connection}{others} has had no answer from {destination} for {seconds} s: a firewall or security \
             group may drop the packets to it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn unanswered() -> Unanswered {
        Unanswered::new("db:3306".into(), Duration::from_secs(10))
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_told_about_after_a_while() {
        let began = Instant::now();
        let text = unanswered().watch(3, || 0, || true).await.unwrap();
        assert!(text.starts_with("connection 3 has had no answer from db:3306 for 10 s: "), "{text}");
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_any_connection_shows_that_the_destination_is_reached() {
        let answers = AtomicU64::new(100);
        let (unanswered, count) = (unanswered(), || answers.load(Ordering::Relaxed));
        let answer = async {
            sleep(Duration::from_secs(9)).await;
            answers.fetch_add(1, Ordering::Relaxed);
        };
        let (told, ()) = tokio::join!(unanswered.watch(1, count, || true), answer);
        assert_eq!(told, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_not_the_destinations_silence() {
        let began = Instant::now();
        let back = began + Duration::from_secs(25);
        assert!(unanswered().watch(1, || 0, || Instant::now() >= back).await.is_some());
        assert_eq!(began.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn many_silent_connections_are_one_warning_a_minute() {
        let unanswered = unanswered();
        let now = Instant::now();
        let told: Vec<_> = (1..=100).filter_map(|connection| unanswered.warning(connection, now)).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        let text = unanswered.warning(101, now + PAUSE).unwrap();
        assert!(text.starts_with("connection 101 (and 99 others since the last warning) has had"), "{text}");
        assert_eq!(unanswered.warning(102, now + PAUSE), None);
    }
}
