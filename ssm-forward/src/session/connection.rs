//! One WebSocket of a session. Moves messages between the WebSocket and the protocol state.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ssm_proto::{ChannelStats, DecodeError, KeyRequest};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::Instrument as _;

use super::pace::ReportLimit;
use super::pulse::{Due, Pulse};
use super::resume::bounded;
use super::shared::{SessionState, SharedSession};
use super::{Liveness, SessionNotice};
use crate::transport::{Incoming, Transport, TransportError};
use crate::{CloseReason, SessionProvider};

/// Maximum number of messages that are read from the WebSocket before the resulting messages are sent.
const READ_BATCH: usize = 64;
/// Maximum number of messages that are passed to the WebSocket before the next ones are read.
const WRITE_BATCH: usize = 32;
/// Timeout for the last messages of a session.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);

/// How a WebSocket ended.
pub(super) enum Outcome {
    Ended(CloseReason),
    Lost(TransportError),
}

/// The state after a pass.
struct Rest {
    /// When the protocol must be called again.
    timeout: Option<Instant>,
    channel: ChannelStats,
    /// Whether everything is sent and acknowledged.
    is_idle: bool,
}

/// One WebSocket.
pub(super) struct Connection<'a> {
    shared: &'a Arc<SharedSession>,
    provider: Arc<dyn SessionProvider>,
    transport: Transport,
    notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    timer: Pin<Box<Sleep>>,
    pulse: Pulse,
    /// Limits the log lines about messages that could not be decoded.
    malformed: ReportLimit,
    /// Tasks that are woken as soon as the lock is released. The list is kept to reuse its memory.
    woken: Vec<Waker>,
    /// Since when the last messages are being sent, and why the session ended.
    closing: Option<(Instant, CloseReason)>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        shared: &'a Arc<SharedSession>,
        provider: Arc<dyn SessionProvider>,
        transport: Transport,
        liveness: Liveness,
        notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    ) -> Self {
        let now = Instant::now();
        let pulse = Pulse::new(now, transport.path(), liveness);
        Self {
            shared,
            provider,
            transport,
            notify,
            timer: Box::pin(sleep_until(now)),
            pulse,
            malformed: ReportLimit::default(),
            woken: Vec::new(),
            closing: None,
        }
    }

    pub(super) async fn run(mut self) -> Outcome {
        let outcome = poll_fn(|cx| self.poll(cx)).await;
        // The first reason of the end is kept, whatever happens to the WebSocket in the meantime.
        let outcome = match self.closing.take() {
            Some((_, reason)) => Outcome::Ended(reason),
            None => outcome,
        };
        self.shared.lock().set_connected(false);
        if let Outcome::Ended(_) = outcome {
            let _ = tokio::time::timeout(CLOSING_TIMEOUT, poll_fn(|cx| self.transport.poll_close(cx))).await;
        }
        outcome
    }

    /// Changes the state once, then drains it: reads, sends, flushes once, and sets the timer.
    ///
    /// The session's lock is taken twice: to process received messages, and to take the messages to send. After each of the two,
    /// the results are delivered without the lock.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let now = Instant::now();
            let (read, ended) = self.receive(cx, now);
            let read = match read {
                Ok(progress) => progress,
                // The last messages may contain the reason of the end.
                Err(cause) => return Poll::Ready(ended.map_or(Outcome::Lost(cause), Outcome::Ended)),
            };
            if let Some(reason) = ended {
                self.closing.get_or_insert((now, reason));
            }
            let (sent, rest) = match self.send(cx, now) {
                Ok(sent) => sent,
                Err(error) => return Poll::Ready(Outcome::Lost(error)),
            };
            if let Some(outcome) = self.end_when_sent(cx, now, &rest) {
                return Poll::Ready(outcome);
            }
            match self.watch(cx, now, &rest) {
                Err(error) => return Poll::Ready(Outcome::Lost(error)),
                Ok(fired) if fired || read || sent => {}
                Ok(_) => return Poll::Pending,
            }
        }
    }

    /// Processes a batch of messages and the timeouts, and delivers the events. Returns whether messages were read, and why the
    /// session ended, if it did.
    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> (Result<bool, TransportError>, Option<CloseReason>) {
        let (shared, mut malformed) = (self.shared, Vec::new());
        let mut state = shared.lock();
        // The waker must be set before the state is read: any later change wakes the driver again.
        state.set_driver(cx.waker());
        let read = self.read_batch(&mut state, cx, now, &mut malformed);
        state.protocol.handle_timeout(now.into_std());
        let ended = shared.dispatch(&mut state);
        let key_request = state.key_request.take();
        let told = state.ended.clone();
        let terminating = state.terminating.then_some(CloseReason::Terminated);
        self.deliver(state);
        if let Some(request) = key_request {
            let provide = provide_data_key(shared.clone(), self.provider.clone(), request);
            tokio::spawn(provide.in_current_span());
        }
        // A peer can cause any number of these log lines, so they are limited.
        if let Some(more) = self.malformed.record(now, malformed.len() as u64) {
            let error = malformed.last().map(ToString::to_string);
            tracing::warn!(error, more, "malformed messages dropped");
        }
        (read, ended.or(told).or(terminating))
    }

    /// Reads a batch of messages, unless the receive buffers are full.
    fn read_batch(
        &mut self,
        state: &mut SessionState,
        cx: &mut Context<'_>,
        now: Instant,
        malformed: &mut Vec<DecodeError>,
    ) -> Result<bool, TransportError> {
        for taken in 0..READ_BATCH {
            if state.protocol.is_congested() {
                state.note_congestion(now.into_std());
                // While nothing is read, pongs cannot be received.
                self.pulse.proved(now);
                return Ok(taken > 0);
            }
            let Poll::Ready(incoming) = self.transport.poll_recv(cx) else { return Ok(taken > 0) };
            match incoming? {
                Incoming::Pong => self.pulse.proved(now),
                Incoming::Sign => self.pulse.heard(now),
                Incoming::Binary(message) => {
                    tracing::trace!(bytes = message.len(), "message received");
                    self.pulse.heard(now);
                    malformed.extend(state.protocol.handle_input(now.into_std(), message).err());
                }
            }
        }
        Ok(true)
    }

    /// Releases the lock. Then wakes the streams' tasks and reports to the owner, whose callback may take any time.
    fn deliver(&mut self, mut state: MutexGuard<'_, SessionState>) {
        state.swap_woken(&mut self.woken);
        let notices = state.take_notices();
        drop(state);
        self.woken.drain(..).for_each(Waker::wake);
        notices.into_iter().for_each(self.notify);
    }

    /// Passes messages to the WebSocket as long as it accepts them, and flushes once. Returns whether messages were sent, and what
    /// remains to be done.
    fn send(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(bool, Rest), TransportError> {
        let mut sent = 0;
        let shared = self.shared;
        let mut state = shared.lock();
        while self.transport.poll_ready(cx)?.is_ready() {
            let Some(message) = state.protocol.poll_transmit(now.into_std()) else { break };
            tracing::trace!(bytes = message.len(), "message sent");
            self.transport.start_send(message)?;
            sent += 1;
            if sent == WRITE_BATCH {
                break;
            }
        }
        state.wake_openers_in_turn();
        // Sending frees space in queues, which causes events.
        let ended = shared.dispatch(&mut state);
        let rest = Rest {
            timeout: state.protocol.poll_timeout().map(|timeout| Instant::from_std(timeout.at)),
            channel: state.protocol.stats().channel,
            is_idle: state.protocol.is_idle(),
        };
        self.deliver(state);
        if let Some(reason) = ended {
            self.closing.get_or_insert((now, reason));
        }
        if sent < WRITE_BATCH {
            let _ = self.transport.poll_flush(cx)?;
        }
        Ok((sent > 0, rest))
    }

    /// Returns the outcome once the session is closing and all queued messages are sent, or after [`CLOSING_TIMEOUT`]. If the service
    /// closed the session, returns it immediately.
    fn end_when_sent(&mut self, cx: &mut Context<'_>, now: Instant, rest: &Rest) -> Option<Outcome> {
        let (since, reason) = self.closing.as_ref()?;
        let quiet = rest.is_idle && matches!(self.transport.poll_flush(cx), Ok(Poll::Ready(())));
        let over = quiet || now >= *since + CLOSING_TIMEOUT || matches!(reason, CloseReason::Closed(_));
        over.then(|| Outcome::Ended(reason.clone()))
    }

    /// Sends pings, detects silence, and sets the timer. Returns whether the timer has already fired.
    fn watch(&mut self, cx: &mut Context<'_>, now: Instant, rest: &Rest) -> Result<bool, TransportError> {
        let Due { ping, next_check } = self.pulse.check(now, &rest.channel)?;
        if ping {
            tracing::trace!("ping");
            self.transport.start_ping()?;
            let _ = self.transport.poll_flush(cx)?;
        }
        let closing = self.closing.as_ref().map(|(since, _)| *since + CLOSING_TIMEOUT);
        let at = [rest.timeout, closing].into_iter().flatten().fold(next_check, Instant::min);
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
        Ok(self.timer.as_mut().poll(cx).is_ready())
    }
}

/// Creates the data key of an encrypted session by a call of KMS, and passes it to the protocol.
async fn provide_data_key(shared: Arc<SharedSession>, provider: Arc<dyn SessionProvider>, request: KeyRequest) {
    let key = bounded(provider.data_key(&request.key_id, &request.context)).await;
    let mut first_nonce = [0; _];
    let random = getrandom::fill(&mut first_nonce);
    let now = Instant::now().into_std();
    let mut state = shared.lock();
    match (key, random) {
        (Ok(key), Ok(())) => state.protocol.provide_data_key(now, &key, first_nonce),
        (Ok(_), Err(error)) => state.protocol.refuse_data_key(now, &error.to_string()),
        (Err(error), _) => state.protocol.refuse_data_key(now, &error.message),
    }
    state.wake_driver();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use ssm_proto::{ClientConfig, Clock, Session};

    use super::*;
    use crate::transport::tests::silent;
    use crate::{SessionTicket, TicketProvider};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn session() -> Arc<SharedSession> {
        let clock = Clock { start: Instant::now().into_std(), unix: Duration::ZERO };
        Arc::new(SharedSession::new(Session::client(ClientConfig::default(), clock, 1)))
    }

    fn connection<'a>(
        shared: &'a Arc<SharedSession>,
        transport: Transport,
        notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    ) -> Connection<'a> {
        let ticket =
            SessionTicket { session_id: "s".into(), stream_url: String::new(), token: "t".into(), target: None };
        Connection::new(shared, Arc::new(TicketProvider::new(ticket, None)), transport, Liveness::default(), notify)
    }

    /// Runs one pass of a driver that has one notice to deliver, and calls `meanwhile` when the notice is delivered. Checks that it
    /// is delivered once. Returns how often the driver was woken.
    async fn pass(shared: &Arc<SharedSession>, meanwhile: impl Fn() + Send + Sync) -> usize {
        shared.lock().set_connected(true);
        shared.lock().report(SessionNotice::SeemsUsed);
        let deliveries = AtomicUsize::new(0);
        let notify = |_| {
            deliveries.fetch_add(1, Ordering::Relaxed);
            meanwhile();
        };
        let mut connection = connection(shared, silent().await, &notify);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(connection.poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(deliveries.load(Ordering::Relaxed), 1);
        woken.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_changes_during_a_pass_causes_another_one() {
        let shared = session();
        // A reader that frees space in a buffer does the same.
        let woken = pass(&shared, || shared.lock().wake_driver()).await;
        assert!(woken > 0, "the driver would wait for its next timer");
    }

    #[tokio::test]
    async fn the_owner_is_told_without_the_lock() {
        let shared = session();
        pass(&shared, || assert!(shared.is_unlocked())).await;
    }
}
