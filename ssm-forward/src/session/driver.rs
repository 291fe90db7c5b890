//! The task that moves bytes between the protocol state and the WebSocket.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ssm_proto::{ChannelStats, DecodeError, KeyRequest};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::Instrument as _;

use super::pace::{Backoff, Seldom};
use super::path_watch::PathWatch;
use super::resume::{ChannelDialer, bounded};
use super::shared::{SessionState, SharedSession};
use super::upstream::{Proof, Upstream};
use super::{Liveness, SessionConfig, SessionNotice};
use crate::transport::{Incoming, Transport, TransportError};
use crate::{CloseReason, SessionProvider};

/// Called with what a session reports.
pub(super) type Notify = Box<dyn Fn(SessionNotice) + Send + Sync>;

/// Maximum number of messages read from the WebSocket before the resulting messages are sent.
const READ_BATCH: usize = 64;
/// Maximum number of messages passed to the WebSocket before the next ones are read.
const WRITE_BATCH: usize = 32;
/// Time limit for the last messages of a session.
const GOODBYE: Duration = Duration::from_secs(1);

/// Drives a session until it is over, over as many WebSockets as necessary.
pub(super) async fn run(
    shared: Arc<SharedSession>,
    first: Transport,
    mut dialer: ChannelDialer,
    config: SessionConfig,
    notify: Notify,
) {
    // If the driver panics, streams must not wait forever.
    let _end = EndOnDrop(shared.clone());
    let mut transport = first;
    shared.lock().set_connected(true);
    let mut backoff = Backoff::new(config.retry);
    let reason = loop {
        let (since, before) = (Instant::now(), shared.lock().progress());
        let connection = Connection::new(&shared, dialer.provider(), transport, config.liveness, &*notify);
        let cause = match connection.run().await {
            Outcome::Over(reason) => break reason,
            Outcome::Lost(cause) => cause,
        };
        backoff.lost(since.elapsed(), shared.lock().progress() != before);
        match reconnect(&shared, &mut dialer, &*notify, cause, &mut backoff).await {
            Ok(next) => transport = next,
            Err(reason) => break reason,
        }
    };
    shared.end(reason);
}

struct EndOnDrop(Arc<SharedSession>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(CloseReason::Panicked);
    }
}

/// Has KMS create the data key of an encrypted session, and passes it to the protocol.
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

async fn reconnect(
    shared: &SharedSession,
    dialer: &mut ChannelDialer,
    notify: &(dyn Fn(SessionNotice) + Send + Sync),
    cause: TransportError,
    backoff: &mut Backoff,
) -> Result<Transport, CloseReason> {
    let since = Instant::now();
    let mut cause = cause.to_string();
    for attempt in 1.. {
        let delay = backoff.next();
        tracing::info!(cause, attempt, ?delay, "reconnecting");
        notify(SessionNotice::Reconnecting { cause: cause.clone(), attempt, delay });
        let resumed = tokio::select! {
            resumed = async { sleep(delay).await; dialer.resume().await } => resumed,
            () = terminating(shared) => return Err(CloseReason::Terminated),
        };
        match resumed {
            Ok(transport) => {
                let mut state = shared.lock();
                state.reconnects += 1;
                state.set_connected(true);
                drop(state);
                notify(SessionNotice::Reconnected { outage: since.elapsed() });
                return Ok(transport);
            }
            Err(error) if error.is_passing() => cause = error.to_string(),
            Err(error) => return Err(CloseReason::Lost(error)),
        }
    }
    unreachable!("the attempts have no end")
}

async fn terminating(shared: &SharedSession) {
    poll_fn(|cx| {
        let mut state = shared.lock();
        if state.terminating || state.ended.is_some() {
            return Poll::Ready(());
        }
        state.set_driver(cx.waker());
        Poll::Pending
    })
    .await;
}

/// How a WebSocket ended.
enum Outcome {
    Over(CloseReason),
    Lost(TransportError),
}

/// What is left after a pass.
struct Rest {
    /// When the protocol needs to be called again.
    timeout: Option<Instant>,
    channel: ChannelStats,
    /// Everything is sent and acknowledged.
    is_idle: bool,
}

/// One WebSocket.
struct Connection<'a> {
    shared: &'a Arc<SharedSession>,
    provider: Arc<dyn SessionProvider>,
    transport: Transport,
    liveness: Liveness,
    notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    timer: Pin<Box<Sleep>>,
    heard: Instant,
    pinged: Option<Instant>,
    upstream: Upstream,
    path_watch: PathWatch,
    /// Limits the log lines about messages that could not be decoded.
    malformed: Seldom,
    /// Tasks that are woken as soon as the lock is released. Kept for its memory.
    woken: Vec<Waker>,
    /// Since when the last messages are being sent.
    goodbye: Option<(Instant, CloseReason)>,
}

impl<'a> Connection<'a> {
    fn new(
        shared: &'a Arc<SharedSession>,
        provider: Arc<dyn SessionProvider>,
        transport: Transport,
        liveness: Liveness,
        notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    ) -> Self {
        let now = Instant::now();
        let path_watch = PathWatch::new(now.into_std(), transport.path());
        Self {
            shared,
            provider,
            transport,
            liveness,
            notify,
            timer: Box::pin(sleep_until(now)),
            heard: now,
            pinged: None,
            upstream: Upstream::new(now),
            path_watch,
            malformed: Seldom::default(),
            woken: Vec::new(),
            goodbye: None,
        }
    }

    async fn run(mut self) -> Outcome {
        let outcome = poll_fn(|cx| self.poll(cx)).await;
        // What ended the session remains the reason, whatever happens to the WebSocket in the meantime.
        let outcome = match self.goodbye.take() {
            Some((_, reason)) => Outcome::Over(reason),
            None => outcome,
        };
        self.shared.lock().set_connected(false);
        if let Outcome::Over(_) = outcome {
            let _ = tokio::time::timeout(GOODBYE, poll_fn(|cx| self.transport.poll_close(cx))).await;
        }
        outcome
    }

    /// Changes the state once, then drains it: reads, sends, flushes once, and sets the timer.
    ///
    /// The session's lock is taken twice: to process what was received, and to take what is to be sent. In between and
    /// after that, the results are delivered without it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let now = Instant::now();
            let (read, ended) = self.receive(cx, now);
            let read = match read {
                Ok(progress) => progress,
                // The last messages may contain the reason of the end.
                Err(cause) => return Poll::Ready(ended.map_or(Outcome::Lost(cause), Outcome::Over)),
            };
            if let Some(reason) = ended {
                self.goodbye.get_or_insert((now, reason));
            }
            let (sent, rest) = match self.send(cx, now) {
                Ok(sent) => sent,
                Err(error) => return Poll::Ready(Outcome::Lost(error)),
            };
            if let Some(outcome) = self.end_after_goodbye(cx, now, &rest) {
                return Poll::Ready(outcome);
            }
            match self.watch(cx, now, &rest) {
                Err(error) => return Poll::Ready(Outcome::Lost(error)),
                Ok(fired) if fired || read || sent => {}
                Ok(_) => return Poll::Pending,
            }
        }
    }

    /// Processes a batch of messages and the timeouts, and delivers the events. Returns whether anything was read, and
    /// why the session is over, if it is.
    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> (Result<bool, TransportError>, Option<CloseReason>) {
        let (shared, mut malformed) = (self.shared, Vec::new());
        let mut state = shared.lock();
        // Before anything is looked at: what changes from now on wakes the driver once more.
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
        // A peer can cause any number of these lines.
        if let Some(more) = self.malformed.tell(now, malformed.len() as u64) {
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
                self.heard = now;
                self.pinged = None;
                self.upstream.prove(now);
                return Ok(taken > 0);
            }
            let Poll::Ready(incoming) = self.transport.poll_recv(cx) else { return Ok(taken > 0) };
            let incoming = incoming?;
            self.heard = now;
            self.pinged = None;
            if let Incoming::Pong = incoming {
                self.upstream.prove(now);
            }
            if let Incoming::Binary(message) = incoming {
                tracing::trace!(bytes = message.len(), "message received");
                malformed.extend(state.protocol.handle_input(now.into_std(), message).err());
            }
        }
        Ok(true)
    }

    /// Releases the lock, and then wakes the streams' tasks and reports to the owner, whose callback may take any time.
    fn deliver(&mut self, mut state: MutexGuard<'_, SessionState>) {
        state.swap_woken(&mut self.woken);
        let notices = state.take_notices();
        drop(state);
        self.woken.drain(..).for_each(Waker::wake);
        notices.into_iter().for_each(self.notify);
    }

    /// Passes messages to the WebSocket as long as it accepts them, and flushes once. Returns whether anything was
    /// sent, and what remains to be done.
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
            self.goodbye.get_or_insert((now, reason));
        }
        if sent < WRITE_BATCH {
            let _ = self.transport.poll_flush(cx)?;
        }
        Ok((sent > 0, rest))
    }

    /// After the end, queued messages are still sent, with a time limit.
    fn end_after_goodbye(&mut self, cx: &mut Context<'_>, now: Instant, rest: &Rest) -> Option<Outcome> {
        let (since, reason) = self.goodbye.as_ref()?;
        let quiet = rest.is_idle && matches!(self.transport.poll_flush(cx), Ok(Poll::Ready(())));
        let over = quiet || now >= *since + GOODBYE || matches!(reason, CloseReason::Closed(_));
        over.then(|| Outcome::Over(reason.clone()))
    }

    fn ping(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), TransportError> {
        tracing::trace!("ping");
        self.transport.start_ping()?;
        let _ = self.transport.poll_flush(cx)?;
        self.pinged = Some(now);
        Ok(())
    }

    /// Sends pings, detects silence, and sets the timer. Returns whether it has fired already.
    fn watch(&mut self, cx: &mut Context<'_>, now: Instant, rest: &Rest) -> Result<bool, TransportError> {
        if now.into_std() >= self.path_watch.next_look()
            && let Some(change) = self.path_watch.look(now.into_std())
            && self.pinged.is_none()
        {
            tracing::info!(change, "checking whether the service still responds");
            self.ping(cx, now)?;
        }
        let watched = match self.pinged {
            Some(at) if now >= at + self.liveness.pong_timeout => {
                let silence = now.saturating_duration_since(self.heard);
                return Err(TransportError::silent(silence));
            }
            Some(at) => at + self.liveness.pong_timeout,
            None if now >= self.heard + self.liveness.ping_interval => {
                self.ping(cx, now)?;
                now + self.liveness.pong_timeout
            }
            None => self.heard + self.liveness.ping_interval,
        };
        let upstream = match self.upstream.watch(now, &rest.channel, self.liveness) {
            Proof::At(at) => at,
            Proof::Ask => {
                self.ping(cx, now)?;
                now + self.liveness.pong_timeout
            }
            Proof::Dead(silence) => return Err(TransportError::silent(silence)),
        };
        let goodbye = self.goodbye.as_ref().map(|(since, _)| *since + GOODBYE);
        let look = Instant::from_std(self.path_watch.next_look());
        let at = [Some(watched), Some(upstream), Some(look), rest.timeout, goodbye]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(watched);
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
        Ok(self.timer.as_mut().poll(cx).is_ready())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use ssm_proto::{ClientConfig, Clock, Session};

    use super::*;
    use crate::session::Driver;
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

    fn ticket() -> SessionTicket {
        SessionTicket { session_id: "s".into(), stream_url: String::new(), token: "t".into(), target: None }
    }

    /// Runs one pass of a driver that has a notice to deliver, and `meanwhile` when it is delivered, which must be
    /// once. Returns how often the driver was woken.
    async fn pass(shared: &Arc<SharedSession>, meanwhile: impl Fn() + Send + Sync) -> usize {
        shared.lock().set_connected(true);
        shared.lock().report(SessionNotice::SeemsUsed);
        let deliveries = AtomicUsize::new(0);
        let notify = |_| {
            deliveries.fetch_add(1, Ordering::Relaxed);
            meanwhile();
        };
        let provider = Arc::new(TicketProvider::new(ticket(), None));
        let mut connection = Connection::new(shared, provider, silent().await, Liveness::default(), &notify);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(connection.poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(deliveries.load(Ordering::Relaxed), 1);
        woken.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_changes_during_a_pass_causes_another_one() {
        let shared = session();
        // As a reader does that makes room.
        let woken = pass(&shared, || shared.lock().wake_driver()).await;
        assert!(woken > 0, "the driver would wait for its next timer");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_driver_that_is_dropped_has_not_panicked() {
        for _ in 0..2000 {
            let shared = session();
            let end = EndOnDrop(shared.clone());
            let run = async move {
                let _end = end;
                std::future::pending().await
            };
            drop(Driver { task: tokio::spawn(run), shared: shared.clone() });
            assert_eq!(shared.ended().await, CloseReason::Terminated);
        }
    }

    #[tokio::test]
    async fn the_owner_is_told_without_the_lock() {
        let shared = session();
        pass(&shared, || assert!(shared.is_unlocked())).await;
    }
}
