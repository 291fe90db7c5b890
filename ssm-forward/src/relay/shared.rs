//! The state of the link, which its pipes and its connections share under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use ssm_proto::relay::{Compressor, ConnectionId, FeedId, Link, LinkError, LinkEvent, PipeId, RelaySide};
use tokio::sync::Notify;

/// The shared state of the link; see the module.
pub(super) struct SharedLink {
    state: Mutex<LinkState>,
    /// The compressor has its own lock, because the link must not wait for compression.
    pub(super) compressor: Mutex<Compressor>,
    /// Notified when the link's next timeout is earlier than scheduled.
    pub(super) sooner: Notify,
    /// Notified when the pipes or connections have changed, or the link has ended.
    pub(super) changed: Notify,
}

pub(super) struct LinkState {
    pub(super) link: Link,
    pub(super) waiting: BTreeMap<ConnectionId, Waiting>,
    outboxes: BTreeMap<PipeId, Outbox>,
    scheduled: Option<Instant>,
    pub(super) ended: Option<String>,
}

/// The tasks that wait for a connection.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

struct Outbox {
    bytes: Vec<Bytes>,
    filled: Arc<Notify>,
}

impl SharedLink {
    pub(super) fn new(now: Instant) -> Self {
        let link = Link::new(RelaySide::Client, now);
        Self {
            state: Mutex::new(LinkState {
                link,
                waiting: BTreeMap::new(),
                outboxes: BTreeMap::new(),
                scheduled: None,
                ended: None,
            }),
            compressor: Mutex::default(),
            sooner: Notify::new(),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the link once, and then handles all its output.
    pub(super) fn act<T>(&self, act: impl FnOnce(&mut LinkState, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.lock();
        let outcome = act(&mut state, now);
        if state.drain(now) {
            self.sooner.notify_one();
        }
        outcome
    }

    pub(super) fn add_pipe(&self) -> Option<(PipeId, Arc<Notify>)> {
        let filled = Arc::new(Notify::new());
        let id = self.act(|state, _| {
            let id = state.link.add_pipe()?;
            state.outboxes.insert(id, Outbox { bytes: Vec::new(), filled: filled.clone() });
            Some(id)
        })?;
        self.changed.notify_waiters();
        Some((id, filled))
    }

    pub(super) fn add_feed(&self, id: FeedId) -> Option<PipeId> {
        let added = self.act(|state, now| state.link.add_feed(now, id));
        self.changed.notify_waiters();
        added
    }

    pub(super) fn lose_pipe(&self, id: PipeId) {
        self.act(|state, now| {
            state.outboxes.remove(&id);
            state.link.lose_pipe(now, id);
        });
        self.changed.notify_waiters();
    }

    pub(super) fn take_outbox(&self, id: PipeId) -> Vec<Bytes> {
        self.lock().outboxes.get_mut(&id).map(|outbox| std::mem::take(&mut outbox.bytes)).unwrap_or_default()
    }

    pub(super) fn handle_input(&self, id: PipeId, chunks: &[Bytes]) -> Result<(), LinkError> {
        self.act(|state, now| chunks.iter().try_for_each(|chunk| state.link.handle_input(now, id, chunk)))
    }

    /// Ends all connections.
    pub(super) fn end(&self, why: String) {
        let mut state = self.lock();
        state.ended.get_or_insert(why);
        for waiting in std::mem::take(&mut state.waiting).into_values() {
            waiting.wake();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Handles the link's timeouts. Never returns.
    pub(super) async fn tick(&self) -> std::convert::Infallible {
        loop {
            let sooner = self.sooner.notified();
            let at = {
                let mut state = self.lock();
                state.scheduled = state.link.poll_timeout();
                state.scheduled
            };
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.act(|state, now| {
                    state.scheduled = None;
                    state.link.handle_timeout(now);
                }),
                () = sooner => {}
            }
        }
    }
}

impl LinkState {
    /// Handles the link's output until there is none left. Returns whether its next timeout is earlier than scheduled.
    fn drain(&mut self, now: Instant) -> bool {
        while let Some(event) = self.link.poll_event() {
            let (read, write) = match event {
                LinkEvent::Changed(id) => {
                    let Some(waiting) = self.waiting.get_mut(&id) else { continue };
                    (waiting.read.take(), waiting.write.take())
                }
                LinkEvent::Writable(id) => {
                    let Some(waiting) = self.waiting.get_mut(&id) else { continue };
                    (None, waiting.write.take())
                }
                _ => continue,
            };
            read.into_iter().chain(write).for_each(Waker::wake);
        }
        while let Some((id, bytes)) = self.link.poll_transmit(now) {
            if let Some(outbox) = self.outboxes.get_mut(&id) {
                outbox.bytes.push(bytes);
                outbox.filled.notify_one();
            }
        }
        match (self.link.poll_timeout(), self.scheduled) {
            (Some(at), Some(scheduled)) => at < scheduled,
            (at, None) => at.is_some(),
            (None, _) => false,
        }
    }
}

impl Waiting {
    fn wake(self) {
        self.read.into_iter().chain(self.write).for_each(Waker::wake);
    }
}
