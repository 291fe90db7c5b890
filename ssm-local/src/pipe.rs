//! One direction between the broker and an agent: a bounded queue of messages, passed on in batches.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

/// Creates a pipe with this capacity in messages. A single batch may exceed the capacity.
pub(crate) fn pipe(capacity: usize) -> (PipeSender, PipeReceiver) {
    let shared = Arc::new(SharedPipe { capacity, state: Mutex::default() });
    (PipeSender(shared.clone()), PipeReceiver(shared))
}

/// The sending end. When it is dropped, the pipe ends after its content.
#[derive(Debug)]
pub(crate) struct PipeSender(Arc<SharedPipe>);

/// The receiving end. After it is dropped, all sent messages are discarded.
#[derive(Debug)]
pub(crate) struct PipeReceiver(Arc<SharedPipe>);

#[derive(Debug)]
struct SharedPipe {
    capacity: usize,
    state: Mutex<PipeState>,
}

#[derive(Debug, Default)]
struct PipeState {
    queue: VecDeque<Bytes>,
    /// Whether the sender was dropped.
    ended: bool,
    /// Whether the receiver was dropped.
    abandoned: bool,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

impl SharedPipe {
    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PipeSender {
    /// Waits until the pipe has space.
    pub(crate) fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.queue.len() < self.0.capacity || state.abandoned {
            return Poll::Ready(());
        }
        register(&mut state.sender, cx);
        Poll::Pending
    }

    /// Sends a batch, which is then empty.
    pub(crate) fn send(&self, batch: &mut VecDeque<Bytes>) {
        if batch.is_empty() {
            return;
        }
        let mut state = self.0.lock();
        if state.abandoned {
            batch.clear();
        }
        state.queue.append(batch);
        wake(&mut state.receiver);
    }
}

impl Drop for PipeSender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        wake(&mut state.receiver);
    }
}

impl PipeReceiver {
    /// Appends all available messages to `batch`. Returns `false` if the pipe has ended.
    pub(crate) fn poll_receive(&self, cx: &Context<'_>, batch: &mut VecDeque<Bytes>) -> Poll<bool> {
        let mut state = self.0.lock();
        if state.queue.is_empty() {
            if state.ended {
                return Poll::Ready(false);
            }
            register(&mut state.receiver, cx);
            return Poll::Pending;
        }
        if batch.is_empty() {
            std::mem::swap(batch, &mut state.queue);
        } else {
            batch.append(&mut state.queue);
        }
        wake(&mut state.sender);
        Poll::Ready(true)
    }
}

impl Drop for PipeReceiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.abandoned = true;
        state.queue.clear();
        wake(&mut state.sender);
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

fn wake(slot: &mut Option<Waker>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_through_a_small_pipe_and_then_the_end() {
        let (sender, receiver) = pipe(3);
        let writer = tokio::spawn(async move {
            for number in 0..1000_u32 {
                poll_fn(|cx| sender.poll_ready(cx)).await;
                sender.send(&mut VecDeque::from([Bytes::copy_from_slice(&number.to_be_bytes())]));
            }
        });
        let mut seen = Vec::new();
        let mut batch = VecDeque::new();
        while poll_fn(|cx| receiver.poll_receive(cx, &mut batch)).await {
            assert!(batch.len() <= 3);
            seen.extend(batch.drain(..).map(|bytes| u32::from_be_bytes(bytes[..].try_into().unwrap())));
        }
        writer.await.unwrap();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_pipe_without_a_receiver_swallows() {
        let (sender, receiver) = pipe(1);
        sender.send(&mut VecDeque::from([Bytes::new(), Bytes::new()]));
        assert!(poll_fn(|cx| Poll::Ready(sender.poll_ready(cx).is_pending())).await);
        drop(receiver);
        tokio::time::timeout(Duration::from_secs(5), poll_fn(|cx| sender.poll_ready(cx))).await.unwrap();
    }
}
