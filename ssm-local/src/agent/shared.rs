//! The state that the driver and the connections of one session share: the protocol state, and the wakers.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use ssm_proto::{Output, PlaintextKey, Session, StreamId, TerminalSize, WriteError};
use tokio::sync::watch;
use tokio::time::Instant;

/// The shared state behind a lock, which is acquired once per batch of messages, and once per chunk of a stream.
#[derive(Debug)]
pub(super) struct SharedAgent {
    state: Mutex<AgentState>,
}

#[derive(Debug)]
pub(super) struct AgentState {
    pub(super) protocol: Session,
    /// Whether the session ends once all sent data is acknowledged.
    closing: bool,
    /// The size of the client's terminal. It is stored here, so that a reader of data knows the size that was set before the data.
    size: watch::Sender<TerminalSize>,
    driver: Option<Waker>,
    waiting: BTreeMap<StreamId, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The terminal size for a client that has sent none.
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

impl SharedAgent {
    pub(super) fn new(protocol: Session) -> Arc<Self> {
        let size = watch::Sender::new(DEFAULT_SIZE);
        let state = AgentState { protocol, closing: false, size, driver: None, waiting: BTreeMap::new() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, AgentState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentState {
    /// Ends the session once all sent data is acknowledged.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.wake_driver();
    }

    /// Sets whether input and sizes are neither accepted nor acknowledged, because the terminal is not open yet.
    pub(super) fn set_refusing(&mut self, refusing: bool) {
        self.protocol.set_refusing(refusing);
    }

    pub(super) fn resize(&self, size: TerminalSize) {
        self.size.send_replace(size);
    }

    pub(super) fn size(&self) -> watch::Receiver<TerminalSize> {
        self.size.subscribe()
    }

    pub(super) fn provide_plaintext_key(&mut self, key: &PlaintextKey) {
        self.protocol.provide_plaintext_key(Instant::now().into_std(), key);
        self.wake_driver();
    }

    pub(super) fn is_settled(&self) -> bool {
        self.closing && self.protocol.is_idle()
    }

    pub(super) fn set_driver(&mut self, waker: &Waker) {
        if !self.driver.as_ref().is_some_and(|driver| driver.will_wake(waker)) {
            self.driver = Some(waker.clone());
        }
    }

    fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    pub(super) fn wake_reader(&mut self, id: StreamId) {
        if let Some(waker) = self.waiting.get_mut(&id).and_then(|waiting| waiting.reader.take()) {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self, id: StreamId) {
        if let Some(waker) = self.waiting.get_mut(&id).and_then(|waiting| waiting.writer.take()) {
            waker.wake();
        }
    }
}

/// One stream, for the task that serves it.
#[derive(Clone, Debug)]
pub(super) struct AgentStream {
    shared: Arc<SharedAgent>,
    id: StreamId,
}

impl AgentStream {
    pub(super) fn new(shared: Arc<SharedAgent>, id: StreamId) -> Self {
        Self { shared, id }
    }

    /// Reads the available chunks, at least one and up to `limit`. Returns `false` at the end of the stream.
    pub(super) async fn read(&self, chunks: &mut Vec<Bytes>, limit: usize) -> bool {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            let congested = state.protocol.is_congested();
            while chunks.len() < limit {
                let Some(chunk) = state.protocol.read(self.id) else { break };
                chunks.push(chunk);
            }
            if !chunks.is_empty() {
                if congested && !state.protocol.is_congested() {
                    state.wake_driver();
                }
                return Poll::Ready(true);
            }
            if state.protocol.is_finished(self.id) {
                return Poll::Ready(false);
            }
            state.waiting.entry(self.id).or_default().reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Sends a chunk when the send queue has space. Returns `false` if the stream has ended.
    pub(super) async fn write(&self, chunk: Bytes) -> bool {
        self.write_output(Output::Stdout, chunk).await
    }

    /// Sends a chunk like [`AgentStream::write`], for a command whose outputs are kept separate.
    pub(super) async fn write_output(&self, output: Output, chunk: Bytes) -> bool {
        let mut chunk = Some(chunk);
        poll_fn(|cx| {
            let Some(data) = chunk.take() else { return Poll::Ready(true) };
            let mut state = self.shared.lock();
            match state.protocol.write_output(self.id, output, data) {
                Ok(()) => {
                    state.wake_driver();
                    Poll::Ready(true)
                }
                Err(WriteError::Full(data)) => {
                    chunk = Some(data);
                    state.waiting.entry(self.id).or_default().writer = Some(cx.waker().clone());
                    Poll::Pending
                }
                Err(_) => Poll::Ready(false),
            }
        })
        .await
    }

    /// Ends the direction to the client, because the destination sends nothing more.
    pub(super) fn finish(&self) {
        self.command(|protocol, id| protocol.finish(Instant::now().into_std(), id));
    }

    /// Sends the exit code of the command after the data that was written before.
    pub(super) fn exit(&self, code: i64) {
        self.command(|protocol, _| protocol.exit(code));
    }

    /// Reports that the destination cannot be reached.
    pub(super) fn refuse(&self) {
        self.command(Session::refuse);
    }

    /// Ends the stream without serving it any further.
    pub(super) fn forget(&self) {
        self.shared.lock().waiting.remove(&self.id);
    }

    fn command(&self, command: impl FnOnce(&mut Session, StreamId)) {
        let mut state = self.shared.lock();
        command(&mut state.protocol, self.id);
        state.wake_driver();
    }
}
