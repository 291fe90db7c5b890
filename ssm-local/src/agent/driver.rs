//! Passes messages between the protocol state and the broker's pipes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use ssm_proto::{DecodeError, KeyRequest, SessionEvent, SessionMode, StreamId, Timeout, TimeoutReason};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, Sleep, sleep_until};

use super::AgentResult;
use super::alarm::Alarm;
use super::shared::{AgentState, SharedAgent};
use crate::pipe::{PipeReceiver, PipeSender};
use crate::wire::with_right_digest;

/// An event that the driver reports to the owner of a session.
#[derive(Debug)]
pub(super) enum DriverEvent {
    /// The handshake is complete.
    Ready(SessionMode),
    /// The client opened a stream.
    Opened(StreamId),
    /// The client has obtained this data key from KMS; KMS must decrypt it.
    DecryptNeeded(KeyRequest, Bytes),
    /// The client ends the session.
    Terminated,
}

/// Maximum number of messages per acquisition of the lock.
const BATCH: usize = 64;

/// Drives the session until it has ended, or until it is closing and everything is acknowledged. Returns the agent's result.
pub(super) async fn run(
    shared: &SharedAgent,
    input: PipeReceiver,
    output: &PipeSender,
    events: UnboundedSender<DriverEvent>,
) -> AgentResult {
    shared.lock().protocol.handle_connected(Instant::now().into_std());
    let mut driver = Driver {
        shared,
        input,
        output,
        events,
        inbox: VecDeque::new(),
        outbox: VecDeque::new(),
        timer: Box::pin(sleep_until(Instant::now())),
        alarm: None,
    };
    poll_fn(|cx| driver.poll(cx)).await
}

struct Driver<'a> {
    shared: &'a SharedAgent,
    input: PipeReceiver,
    output: &'a PipeSender,
    events: UnboundedSender<DriverEvent>,
    inbox: VecDeque<Bytes>,
    outbox: VecDeque<Bytes>,
    timer: Pin<Box<Sleep>>,
    /// A precise timer for the sending rate.
    alarm: Option<Alarm>,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<AgentResult> {
        loop {
            let now = Instant::now();
            let mut state = self.shared.lock();
            state.set_driver(cx.waker());
            let Some(read) = read(&mut state, &self.input, &mut self.inbox, cx, now) else {
                return Poll::Ready(AgentResult::default());
            };
            state.protocol.handle_timeout(now.into_std());
            if let Some(result) = dispatch(&mut state, &self.events) {
                return Poll::Ready(result);
            }
            let sent = self.send(&mut state, cx, now);
            // Sending frees space in queues, which can cause events.
            if let Some(result) = dispatch(&mut state, &self.events) {
                return Poll::Ready(result);
            }
            if state.is_settled() {
                return Poll::Ready(AgentResult::default());
            }
            let due = state.protocol.poll_timeout();
            drop(state);
            if !(read || sent || self.watch(cx, due)) {
                return Poll::Pending;
            }
        }
    }

    fn send(&mut self, state: &mut AgentState, cx: &Context<'_>, now: Instant) -> bool {
        if self.output.poll_ready(cx).is_pending() {
            return false;
        }
        while self.outbox.len() < BATCH {
            let Some(message) = state.protocol.poll_transmit(now.into_std()) else { break };
            self.outbox.push_back(message);
        }
        let sent = !self.outbox.is_empty();
        self.output.send(&mut self.outbox);
        sent
    }

    /// Sets the timer. Returns whether it has fired already.
    fn watch(&mut self, cx: &mut Context<'_>, due: Option<Timeout>) -> bool {
        let Some(due) = due else { return false };
        let at = Instant::from_std(due.at);
        if due.reason == TimeoutReason::Pace
            && let Some(fired) = self.watch_pace(cx, at)
        {
            return fired;
        }
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    /// Sets the precise timer. Returns whether it has fired already; `None` if the system has no such timer.
    fn watch_pace(&mut self, cx: &mut Context<'_>, at: Instant) -> Option<bool> {
        if self.alarm.is_none() {
            self.alarm = Alarm::new().ok();
        }
        match self.alarm.as_mut()?.poll(cx, at) {
            Poll::Ready(fired) => fired.ok().map(|()| true),
            Poll::Pending => Some(false),
        }
    }
}

/// Processes received messages, unless the receive buffers are full. Returns `None` if the broker has ended.
fn read(
    state: &mut AgentState,
    input: &PipeReceiver,
    inbox: &mut VecDeque<Bytes>,
    cx: &Context<'_>,
    now: Instant,
) -> Option<bool> {
    if state.protocol.is_congested() {
        return Some(false);
    }
    if inbox.is_empty() {
        match input.poll_receive(cx, inbox) {
            Poll::Ready(true) => {}
            Poll::Ready(false) => return None,
            Poll::Pending => return Some(false),
        }
    }
    while !state.protocol.is_congested() {
        let Some(message) = inbox.pop_front() else { break };
        if let Err(error) = take(state, now, message) {
            tracing::debug!(%error, "the agent drops a message");
        }
    }
    Some(true)
}

/// Processes a message, even one with a wrong digest, because the official agent does not check digests (WIRE-6).
fn take(state: &mut AgentState, now: Instant, message: Bytes) -> Result<(), DecodeError> {
    match state.protocol.handle_input(now.into_std(), message.clone()) {
        Err(DecodeError::BadDigest) => {
            tracing::debug!("the agent accepts a message with a wrong digest, like the official agent");
            state.protocol.handle_input(now.into_std(), with_right_digest(&message))
        }
        taken => taken,
    }
}

/// Passes the protocol's events to the owner of the session. Returns the result if one of the events ends the session.
fn dispatch(state: &mut AgentState, events: &UnboundedSender<DriverEvent>) -> Option<AgentResult> {
    while let Some(event) = state.protocol.poll_event() {
        // If the receiver was dropped, the session is about to end.
        let _ = match event {
            SessionEvent::Ready(mode) => events.send(DriverEvent::Ready(mode)),
            SessionEvent::Opened(id) => events.send(DriverEvent::Opened(id)),
            SessionEvent::Resized(size) => {
                state.resize(size);
                Ok(())
            }
            SessionEvent::DecryptNeeded(request, ciphertext) => {
                events.send(DriverEvent::DecryptNeeded(request, ciphertext))
            }
            SessionEvent::Terminated => events.send(DriverEvent::Terminated),
            SessionEvent::Readable(id) | SessionEvent::Finished(id) => {
                state.wake_reader(id);
                Ok(())
            }
            SessionEvent::Writable(id) => {
                state.wake_writer(id);
                Ok(())
            }
            SessionEvent::Closed(_) => return Some(AgentResult::default()),
            SessionEvent::Failed(error) => return Some(AgentResult::failed(error.to_string())),
            _ => Ok(()),
        };
    }
    None
}
