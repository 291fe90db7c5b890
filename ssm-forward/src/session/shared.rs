//! The state that the driver and the streams share: the protocol state and the wakers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ssm_proto::{KeyRequest, Session, SessionEvent, SessionMode, StreamId};
use tokio::sync::watch;

use super::SessionNotice;
use super::stall::{Congestion, Stall};
use crate::text::bounded;
use crate::{CloseReason, StreamError};

/// The shared state, behind one lock. The driver takes the lock twice per pass, a stream once per chunk of up to 64 KiB. An
/// uncontended lock takes about 20 ns; a queue and a task switch per chunk would take a hundred times as long.
pub(super) struct SharedSession {
    state: Mutex<SessionState>,
    phase: watch::Sender<Phase>,
}

/// The phase of a session.
#[derive(Clone, Debug)]
enum Phase {
    Connecting,
    Ready(SessionMode),
    Ended(CloseReason),
}

pub(super) struct SessionState {
    pub(super) protocol: Session,
    pub(super) mode: Option<SessionMode>,
    pub(super) reconnects: u64,
    connected: watch::Sender<bool>,
    connected_at: Option<Instant>,
    began: Instant,
    congestion: Congestion,
    pub(super) exit_code: Option<i64>,
    /// Set if the agent requests encryption and KMS was not called yet.
    pub(super) key_request: Option<KeyRequest>,
    pub(super) terminating: bool,
    /// Notices for the session's owner, which are delivered without the lock.
    notices: Vec<SessionNotice>,
    pub(super) streams: BTreeMap<StreamId, StreamState>,
    pub(super) ended: Option<CloseReason>,
    /// Number of streams that were open at the end of the session and had not received everything.
    pub(super) cut_streams: usize,
    driver: Option<Waker>,
    openers: Vec<Waker>,
    /// Tasks to be woken after the lock is released.
    woken: Vec<Waker>,
}

#[derive(Default)]
pub(super) struct StreamState {
    /// The error, if the agent did not end the stream normally.
    pub(super) failed: Option<StreamError>,
    /// Whether the agent has ended the stream. Then all data has been received, whether it was read or not.
    complete: bool,
    pub(super) reader: Option<Waker>,
    writers: Vec<Waker>,
}

impl StreamState {
    /// Takes the wakers of the tasks that wait for this stream.
    fn waiting(&mut self) -> impl Iterator<Item = Waker> + '_ {
        self.reader.take().into_iter().chain(self.writers.drain(..))
    }

    fn wait_to_write(&mut self, waker: &Waker) {
        if !self.writers.iter().any(|writer| writer.will_wake(waker)) {
            self.writers.push(waker.clone());
        }
    }
}

impl SharedSession {
    pub(super) fn new(protocol: Session) -> Self {
        let state = SessionState {
            protocol,
            mode: None,
            reconnects: 0,
            connected: watch::Sender::new(false),
            connected_at: None,
            began: Instant::now(),
            congestion: Congestion::default(),
            exit_code: None,
            key_request: None,
            terminating: false,
            notices: Vec::new(),
            streams: BTreeMap::new(),
            ended: None,
            cut_streams: 0,
            driver: None,
            openers: Vec::new(),
            woken: Vec::new(),
        };
        Self { state: Mutex::new(state), phase: watch::Sender::new(Phase::Connecting) }
    }

    /// Locks the state. After a panic while the lock was held, the state is still usable to end the session.
    pub(super) fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_unlocked(&self) -> bool {
        self.state.try_lock().is_ok()
    }

    /// Waits until the session is ready. A session that is one stream counts as ready even if it has already ended, because its
    /// data can still be read.
    pub(super) async fn ready(&self) -> SessionMode {
        let mut phase = self.phase.subscribe();
        loop {
            // The guard must not be held while the state is locked, because the phase is set under that lock.
            let current = phase.borrow_and_update().clone();
            match current {
                Phase::Ready(mode) => return mode,
                Phase::Connecting => {}
                Phase::Ended(_) => {
                    let mode = self.lock().mode.filter(|mode| is_one_stream(*mode));
                    if let Some(mode) = mode {
                        return mode;
                    }
                }
            }
            // The sender exists as long as `self`, so this cannot fail.
            let _ = phase.changed().await;
        }
    }

    pub(super) async fn ended(&self) -> CloseReason {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Ended(reason) = &*phase.borrow_and_update() {
                return reason.clone();
            }
            let _ = phase.changed().await;
        }
    }

    /// Sets the phase, unless the session has ended. An owner may end the session while its driver still processes messages.
    fn set_ready(&self, mode: SessionMode) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Ended(_) => false,
            Phase::Connecting | Phase::Ready(_) => {
                *phase = Phase::Ready(mode);
                true
            }
        });
    }

    /// Ends the session. The first reason is kept.
    pub(super) fn end(&self, reason: CloseReason) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(reason.clone());
        state.cut_streams = state.streams.values().filter(|stream| !stream.complete).count();
        let mut waiting: Vec<Waker> = state.streams.values_mut().flat_map(StreamState::waiting).collect();
        waiting.append(&mut state.openers);
        waiting.append(&mut state.woken);
        state.wake_driver();
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        self.phase.send_replace(Phase::Ended(reason));
    }

    /// Requests the driver to tell the agent and to stop.
    pub(super) fn terminate(&self) {
        let mut state = self.lock();
        state.terminating = true;
        state.protocol.terminate();
        state.wake_driver();
    }

    /// Tells the protocol that the stream is not used any longer.
    pub(super) fn drop_stream(&self, id: StreamId, keep_sending: bool) {
        let mut state = self.lock();
        match keep_sending {
            true => state.protocol.abandon(id),
            false => state.protocol.reset(id),
        }
        // A sender may wait for space in the queue. It must be woken, because the stream no longer exists.
        let mut waiting: Vec<Waker> =
            state.streams.remove(&id).as_mut().map(|stream| stream.waiting().collect()).unwrap_or_default();
        waiting.append(&mut state.openers);
        state.wake_driver();
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Processes the protocol's events. Tasks are woken and notices delivered later, without the lock: [`SessionState::swap_woken`]
    /// and [`SessionState::take_notices`]. Returns the reason if an event ends the session.
    pub(super) fn dispatch(&self, state: &mut SessionState) -> Option<CloseReason> {
        while let Some(event) = state.protocol.poll_event() {
            match event {
                SessionEvent::Ready(mode) => {
                    state.mode = Some(mode);
                    state.wake_openers();
                    self.set_ready(mode);
                }
                SessionEvent::Readable(id) => state.with_stream(id, |stream, woken| woken.extend(stream.reader.take())),
                SessionEvent::Writable(id) => state.with_stream(id, |stream, woken| woken.append(&mut stream.writers)),
                SessionEvent::Refused(id) => {
                    tracing::debug!(stream = ?id, "the agent could not connect to the destination");
                    state.fail_stream(id, StreamError::Refused);
                }
                SessionEvent::Silent { stream: id, answered, silence } => {
                    state.fail_stream(id, StreamError::Silent { answered, silence });
                }
                SessionEvent::Finished(id) => {
                    tracing::debug!(stream = ?id, "the agent ended the stream");
                    state.with_stream(id, |stream, woken| {
                        stream.complete = true;
                        woken.extend(stream.waiting());
                    });
                }
                SessionEvent::ExitCode(code) => state.exit_code = Some(code),
                SessionEvent::DataKeyNeeded(request) => state.key_request = Some(request),
                SessionEvent::SeemsUsed => state.notices.push(SessionNotice::SeemsUsed),
                SessionEvent::Message(text) => state.notices.push(SessionNotice::Message(bounded(text))),
                SessionEvent::Closed(closed) => return Some(CloseReason::Closed(bounded(closed.output))),
                SessionEvent::Failed(error) => return Some(CloseReason::Agent(error)),
                SessionEvent::Paused => tracing::debug!("the agent's data channel is inactive"),
                SessionEvent::Resumed => tracing::debug!("the agent's data channel is active again"),
                other => tracing::debug!(?other, "event ignored"),
            }
        }
        None
    }
}

/// Whether a session of this mode is one stream, which can be read after the session's end.
pub(super) fn is_one_stream(mode: SessionMode) -> bool {
    matches!(mode, SessionMode::Shell | SessionMode::Plain)
}

impl SessionState {
    /// Records that a WebSocket was connected or lost.
    pub(super) fn set_connected(&mut self, connected: bool) {
        self.connected.send_replace(connected);
        let now = Instant::now();
        self.connected_at = connected.then_some(now);
        match connected {
            true => self.protocol.handle_connected(now),
            false => self.protocol.handle_disconnected(now),
        }
    }

    /// Returns a counter that grows with all data that is transferred for the first time, in either direction.
    pub(super) fn progress(&self) -> u64 {
        let stats = self.protocol.stats().channel;
        stats.messages_received + stats.messages_sent.saturating_sub(stats.in_flight as u64)
    }

    /// Records that the receive buffers are full, so that nothing is read.
    pub(super) fn note_congestion(&mut self, now: Instant) {
        self.congestion.note(now);
    }

    pub(super) fn stall(&mut self, now: Instant) -> Option<Stall> {
        Stall::of(&self.protocol, &mut self.congestion, now)
    }

    fn with_stream(&mut self, id: StreamId, change: impl FnOnce(&mut StreamState, &mut Vec<Waker>)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            change(stream, &mut self.woken);
        }
    }

    fn fail_stream(&mut self, id: StreamId, error: StreamError) {
        self.with_stream(id, |stream, woken| {
            stream.failed = Some(error);
            woken.extend(stream.waiting());
        });
    }

    #[cfg(test)]
    pub(super) fn report(&mut self, notice: SessionNotice) {
        self.notices.push(notice);
    }

    /// Exchanges the list of tasks to be woken for an empty one.
    pub(super) fn swap_woken(&mut self, woken: &mut Vec<Waker>) {
        std::mem::swap(&mut self.woken, woken);
    }

    /// Takes the notices for the owner, which must be delivered without the lock.
    pub(super) fn take_notices(&mut self) -> Vec<SessionNotice> {
        std::mem::take(&mut self.notices)
    }

    pub(super) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    pub(super) fn connected_for(&self) -> Option<Duration> {
        self.connected_at.map(|at| at.elapsed())
    }

    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn watch_connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Wakes the driver, because there is something to send or a new deadline.
    pub(super) fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    pub(super) fn set_driver(&mut self, waker: &Waker) {
        if !self.driver.as_ref().is_some_and(|driver| driver.will_wake(waker)) {
            self.driver = Some(waker.clone());
        }
    }

    pub(super) fn wait_to_open(&mut self, waker: &Waker) {
        self.openers.push(waker.clone());
    }

    fn wake_openers(&mut self) {
        self.woken.append(&mut self.openers);
    }

    /// Wakes the tasks that wait to open a stream, if the agent carries one at a time: the next stream may follow when the end of
    /// the previous one is acknowledged.
    pub(super) fn wake_openers_in_turn(&mut self) {
        if !self.openers.is_empty() && self.protocol.stats().streams == 0 {
            self.wake_openers();
        }
    }

    /// Registers the stream's reader, which has read everything. From now on, silence of the remote side may count.
    pub(super) fn wait_to_read(&mut self, id: StreamId, waker: &Waker) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reader = Some(waker.clone());
        }
        if self.protocol.wait_for_data(Instant::now(), id) {
            self.wake_driver();
        }
    }

    /// Registers a task that waits for space in the stream's send queue. It is woken when there is space.
    pub(super) fn wait_to_write<T>(&mut self, id: StreamId, cx: &Context<'_>) -> Poll<Result<T, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(StreamError::Closed)) };
        stream.wait_to_write(cx.waker());
        Poll::Pending
    }

    pub(super) fn finish_stream(&mut self, id: StreamId) {
        self.protocol.finish(Instant::now(), id);
        self.wake_driver();
    }
}

impl fmt::Debug for SharedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSession").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use ssm_proto::{ClientConfig, Clock};

    use super::*;

    fn ended(mode: Option<SessionMode>) -> SharedSession {
        let clock = Clock { start: Instant::now(), unix: Duration::ZERO };
        let shared = SharedSession::new(Session::client(ClientConfig::default(), clock, 1));
        shared.lock().mode = mode;
        shared.end(CloseReason::Closed(String::new()));
        shared
    }

    #[test]
    fn a_command_that_is_over_at_once_was_ready() {
        let ready = |mode| ended(mode).ready().now_or_never();
        assert_eq!(ready(Some(SessionMode::Shell)), Some(SessionMode::Shell));
        assert_eq!(ready(Some(SessionMode::Plain)), Some(SessionMode::Plain));
        // A tunnel that has ended has nothing to read.
        assert_eq!(ready(Some(SessionMode::Mux)), None);
        assert_eq!(ready(None), None);
    }

    #[test]
    fn what_the_driver_still_processes_does_not_undo_the_end() {
        let shared = ended(None);
        shared.set_ready(SessionMode::Mux);
        assert_eq!(shared.ended().now_or_never(), Some(CloseReason::Closed(String::new())));
    }
}
