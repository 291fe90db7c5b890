//! The task that moves bytes between the protocol state and the WebSocket.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use ssm_proto::{ChannelStats, DecodeError, KeyRequest};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::Instrument as _;

use super::pace::{Backoff, Seldom};
use super::resume::{Dialer, bounded};
use super::shared::{Shared, State};
use super::surroundings::Surroundings;
use super::{Liveness, SessionConfig, SessionNotice};
use crate::transport::{Incoming, Transport, TransportError};
use crate::{CloseReason, SessionProvider};

/// Called with what a session reports.
pub(super) type Notify = Box<dyn Fn(SessionNotice) + Send + Sync>;

/// Maximum number of messages read from the WebSocket before the resulting messages are sent.
const READ_BATCH: usize = 64;
/// Maximum number of messages passed to the WebSocket under one lock.
const WRITE_BATCH: usize = 32;
/// Time limit for the last messages of a session.
const GOODBYE: Duration = Duration::from_secs(1);

/// Drives a session until it is over, over as many WebSockets as necessary.
pub(super) async fn run(
    shared: Arc<Shared>,
    first: Transport,
    mut dialer: Dialer,
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

struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(CloseReason::Panicked);
    }
}

/// Has KMS create the data key of an encrypted session, and passes it to the protocol.
async fn provide_data_key(shared: Arc<Shared>, provider: Arc<dyn SessionProvider>, request: KeyRequest) {
    let key = bounded(provider.data_key(&request.key_id, &request.context)).await;
    let now = Instant::now().into_std();
    let mut state = shared.lock();
    match key {
        Ok(key) => {
            let [_, _, _, _, first_nonce @ ..] = uuid::Uuid::new_v4().into_bytes();
            state.protocol.provide_data_key(now, &key, first_nonce);
        }
        Err(error) => state.protocol.refuse_data_key(now, &error.message),
    }
    state.wake_driver();
}

async fn reconnect(
    shared: &Shared,
    dialer: &mut Dialer,
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

async fn terminating(shared: &Shared) {
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

/// One WebSocket.
struct Connection<'a> {
    shared: &'a Arc<Shared>,
    provider: Arc<dyn SessionProvider>,
    transport: Transport,
    liveness: Liveness,
    notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    timer: Pin<Box<Sleep>>,
    heard: Instant,
    pinged: Option<Instant>,
    upstream: Upstream,
    surroundings: Surroundings,
    /// Limits the log lines about messages that could not be decoded.
    malformed: Seldom,
    /// Since when the last messages are being sent.
    goodbye: Option<(Instant, CloseReason)>,
}

impl<'a> Connection<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        provider: Arc<dyn SessionProvider>,
        transport: Transport,
        liveness: Liveness,
        notify: &'a (dyn Fn(SessionNotice) + Send + Sync),
    ) -> Self {
        let now = Instant::now();
        let surroundings = Surroundings::new(now.into_std(), transport.path());
        Self {
            shared,
            provider,
            transport,
            liveness,
            notify,
            timer: Box::pin(sleep_until(now)),
            heard: now,
            pinged: None,
            upstream: Upstream { proven: now, asked: None, acknowledged: 0 },
            surroundings,
            malformed: Seldom::default(),
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
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let now = Instant::now();
            let read = match self.read(cx, now) {
                Ok(progress) => progress,
                // The last messages may contain the reason of the end.
                Err(cause) => {
                    let outcome = self.dispatch(now).map_or(Outcome::Lost(cause), Outcome::Over);
                    return Poll::Ready(outcome);
                }
            };
            if let Some(reason) = self.dispatch(now) {
                self.goodbye.get_or_insert((now, reason));
            }
            let sent = match self.send(cx, now) {
                Ok(progress) => progress,
                Err(error) => return Poll::Ready(Outcome::Lost(error)),
            };
            if let Some(outcome) = self.end_after_goodbye(cx, now) {
                return Poll::Ready(outcome);
            }
            match self.watch(cx, now) {
                Err(error) => return Poll::Ready(Outcome::Lost(error)),
                Ok(fired) if fired || read || sent => {}
                Ok(_) => return Poll::Pending,
            }
        }
    }

    /// Processes a batch of messages, unless the receive buffers are full.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, TransportError> {
        let mut malformed = Vec::new();
        let outcome = self.read_batch(cx, now, &mut malformed);
        // Not under the lock: logging may block, and a peer can cause any number of lines.
        let times = malformed.len() as u64;
        if let Some(more) = self.malformed.tell(now, times) {
            let error = malformed.last().map(ToString::to_string);
            tracing::warn!(error, more, "malformed messages dropped");
        }
        outcome
    }

    fn read_batch(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        malformed: &mut Vec<DecodeError>,
    ) -> Result<bool, TransportError> {
        let mut state = self.shared.lock();
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

    fn dispatch(&mut self, now: Instant) -> Option<CloseReason> {
        let mut state = self.shared.lock();
        state.protocol.handle_timeout(now.into_std());
        let ended = self.shared.dispatch(&mut state);
        if let Some(request) = state.key_request.take() {
            let provide = provide_data_key(self.shared.clone(), self.provider.clone(), request);
            tokio::spawn(provide.in_current_span());
        }
        let told = state.ended.clone();
        let terminating = state.terminating.then_some(CloseReason::Terminated);
        self.tell(state);
        ended.or(told).or(terminating)
    }

    /// Reports to the owner without holding the lock, because the callback may take any time.
    fn tell(&self, mut state: MutexGuard<'_, State>) {
        let notices = state.take_notices();
        drop(state);
        notices.into_iter().for_each(self.notify);
    }

    /// Passes messages to the WebSocket as long as it accepts them, and flushes once.
    fn send(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, TransportError> {
        let mut sent = 0;
        let mut state = self.shared.lock();
        state.set_driver(cx.waker());
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
        let ended = self.shared.dispatch(&mut state);
        self.tell(state);
        if let Some(reason) = ended {
            self.goodbye.get_or_insert((now, reason));
        }
        if sent < WRITE_BATCH {
            let _ = self.transport.poll_flush(cx)?;
        }
        Ok(sent > 0)
    }

    /// After the end, queued messages are still sent, with a time limit.
    fn end_after_goodbye(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Outcome> {
        let (since, reason) = self.goodbye.as_ref()?;
        let quiet =
            self.shared.lock().protocol.is_idle() && matches!(self.transport.poll_flush(cx), Ok(Poll::Ready(())));
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
    fn watch(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, TransportError> {
        if now.into_std() >= self.surroundings.next_look()
            && let Some(change) = self.surroundings.look(now.into_std())
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
        let (protocol, stats) = {
            let state = self.shared.lock();
            (state.protocol.poll_timeout().map(|timeout| Instant::from_std(timeout.at)), state.protocol.stats().channel)
        };
        let upstream = match self.upstream.watch(now, &stats, self.liveness) {
            Proof::At(at) => at,
            Proof::Ask => {
                self.ping(cx, now)?;
                now + self.liveness.pong_timeout
            }
            Proof::Dead(silence) => return Err(TransportError::silent(silence)),
        };
        let goodbye = self.goodbye.as_ref().map(|(since, _)| *since + GOODBYE);
        let look = Instant::from_std(self.surroundings.next_look());
        let at = [Some(watched), Some(upstream), Some(look), protocol, goodbye]
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

/// Checks that sent data gets through, even if something is received: a path may fail in one direction only, or the
/// service may not read any more. Acknowledgements and pongs are the proof.
#[derive(Debug)]
struct Upstream {
    proven: Instant,
    /// When a ping was sent for this check.
    asked: Option<Instant>,
    acknowledged: u64,
}

/// The state of the upstream direction.
enum Proof {
    /// It works, or there is nothing to judge by. Check again at this time.
    At(Instant),
    /// A ping must be sent.
    Ask,
    /// Nothing has got through for this long.
    Dead(Duration),
}

impl Upstream {
    fn prove(&mut self, now: Instant) {
        self.proven = now;
        self.asked = None;
    }

    /// The pong may be queued behind data, so the timeout is longer than after silence.
    fn watch(&mut self, now: Instant, stats: &ChannelStats, liveness: Liveness) -> Proof {
        let acknowledged = stats.messages_sent.saturating_sub(stats.in_flight as u64);
        if acknowledged != self.acknowledged || stats.in_flight == 0 {
            self.acknowledged = acknowledged;
            self.prove(now);
        }
        let ask_at = self.proven + liveness.ping_interval;
        let patience = liveness.ping_interval + liveness.pong_timeout;
        match self.asked {
            Some(at) if now >= at + patience => Proof::Dead(now.saturating_duration_since(self.proven)),
            Some(at) => Proof::At(at + patience),
            None if now >= ask_at => {
                self.asked = Some(now);
                Proof::Ask
            }
            None => Proof::At(ask_at),
        }
    }
}
