//! The handle of a stream. It reads and writes the protocol state directly, and wakes the driver.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use ssm_proto::{OpenError, Output, StreamId, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::{SessionState, SharedSession, StreamState, is_one_stream};
use crate::StreamError;

/// A connection to the destination. If it is dropped, it ends in both directions.
#[derive(Debug)]
pub struct SessionStream {
    sender: StreamSender,
    /// The part of the last chunk that `AsyncRead` has not returned yet.
    rest: Bytes,
    /// Whether queued data is still sent after this handle is dropped.
    keep_sending: bool,
}

/// The sending half of a [`SessionStream`]. It cannot be used after the stream is dropped.
#[derive(Clone, Debug)]
pub struct StreamSender {
    shared: Arc<SharedSession>,
    id: StreamId,
}

/// Maximum number of bytes that `AsyncWrite` copies per call.
const WRITE_CHUNK: usize = 64 << 10;

impl SessionStream {
    pub(super) async fn open(shared: Arc<SharedSession>) -> Result<Self, StreamError> {
        let id = poll_fn(|cx| {
            let mut state = shared.lock();
            if let Some(reason) = state.ended.as_ref().filter(|_| !state.mode.is_some_and(is_one_stream)) {
                return Poll::Ready(Err(StreamError::SessionEnded(reason.clone())));
            }
            match state.protocol.open() {
                Ok(id) => {
                    tracing::debug!(stream = ?id, "stream opened");
                    state.streams.insert(id, StreamState::default());
                    state.wake_driver();
                    Poll::Ready(Ok(id))
                }
                Err(_) if let Some(reason) = &state.ended => {
                    Poll::Ready(Err(StreamError::SessionEnded(reason.clone())))
                }
                Err(OpenError::NotReady | OpenError::Busy | _) => {
                    state.wait_to_open(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await?;
        Ok(Self { sender: StreamSender { shared, id }, rest: Bytes::new(), keep_sending: false })
    }

    /// Returns the stream's id in its session.
    pub(crate) fn id(&self) -> StreamId {
        self.sender.id
    }

    /// Returns the sending half, for use in another future.
    pub fn sender(&self) -> StreamSender {
        self.sender.clone()
    }

    /// Returns the next chunk, or `None` at the end.
    ///
    /// # Errors
    /// Returns an error if the destination refused the connection, or if the session ended before the remote side ended the stream.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_read_chunks(cx, &mut Vec::new(), 0)).await
    }

    /// Appends the output of a shell or a command to `chunks`. Each chunk has the kind of output that it belongs to. Appends at
    /// least one chunk, and no further one after `limit` bytes. Returns `false` at the end.
    ///
    /// # Errors
    /// Returns an error if the session ended before the remote side ended the stream.
    pub async fn read_outputs(&mut self, chunks: &mut Vec<(Output, Bytes)>, limit: usize) -> Result<bool, StreamError> {
        poll_fn(|cx| {
            let mut state = self.sender.shared.lock();
            let congested = state.protocol.is_congested();
            let (mut bytes, mut any) = (0, false);
            while bytes < limit || !any {
                let Some(chunk) = state.protocol.read_output(self.sender.id) else { break };
                bytes += chunk.1.len();
                chunks.push(chunk);
                any = true;
            }
            if !any {
                return self.end_or_wait(&mut state, cx).map_ok(|_| false);
            }
            if congested && !state.protocol.is_congested() {
                state.wake_driver();
            }
            Poll::Ready(Ok(true))
        })
        .await
    }

    /// Returns the first chunk, and appends the following ones to `chunks` until there are `limit` bytes in total.
    fn poll_read_chunks(
        &mut self,
        cx: &Context<'_>,
        chunks: &mut Vec<Bytes>,
        limit: usize,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        let StreamSender { shared, id } = &self.sender;
        let mut state = shared.lock();
        let congested = state.protocol.is_congested();
        let Some(first) = state.protocol.read(*id) else { return self.end_or_wait(&mut state, cx) };
        let mut bytes = first.len();
        while bytes < limit {
            let Some(chunk) = state.protocol.read(*id) else { break };
            bytes += chunk.len();
            chunks.push(chunk);
        }
        if congested && !state.protocol.is_congested() {
            state.wake_driver();
        }
        Poll::Ready(Ok(Some(first)))
    }

    /// Appends available data to `chunks`: at least one chunk, and no further one after `limit` bytes. Returns `false`
    /// at the end.
    ///
    /// Data that was read no longer counts as unread. With a large `limit`, a slow reader can block the other streams for as long
    /// as it needs to process that much data.
    ///
    /// # Errors
    /// Returns the same errors as [`SessionStream::read_chunk`].
    pub async fn read_chunks(&mut self, chunks: &mut Vec<Bytes>, limit: usize) -> Result<bool, StreamError> {
        let at = chunks.len();
        let first = poll_fn(|cx| self.poll_read_chunks(cx, chunks, limit)).await?;
        let more = first.is_some();
        if let Some(first) = first {
            chunks.insert(at, first);
        }
        Ok(more)
    }

    fn end_or_wait(&self, state: &mut SessionState, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        let id = self.sender.id;
        let finished = state.protocol.is_finished(id);
        let ended = state.ended.clone();
        let Some(stream) = state.streams.get(&id) else { return Poll::Ready(Err(StreamError::Closed)) };
        if let Some(error) = &stream.failed {
            return Poll::Ready(Err(error.clone()));
        }
        if finished {
            return Poll::Ready(Ok(None));
        }
        if let Some(reason) = ended {
            return Poll::Ready(Err(StreamError::SessionEnded(reason)));
        }
        state.wait_to_read(id, cx.waker());
        Poll::Pending
    }

    /// Ends the stream in both directions without waiting for an answer.
    pub fn close(&self) {
        let mut state = self.sender.shared.lock();
        state.protocol.close(self.sender.id);
        state.wake_driver();
    }

    /// Ends the stream without waiting for data that the remote side may still send. Queued data is sent.
    pub fn abandon(mut self) {
        self.keep_sending = true;
    }
}

impl StreamSender {
    /// Sends a chunk. Waits until the send queue has space.
    ///
    /// # Errors
    /// Returns an error if the stream or the session has ended.
    pub async fn write_chunk(&self, chunk: Bytes) -> Result<(), StreamError> {
        let mut chunk = Some(chunk);
        poll_fn(|cx| match chunk.take() {
            Some(data) => self.poll_write_chunk(cx, data, &mut chunk),
            None => Poll::Ready(Ok(())),
        })
        .await
    }

    fn poll_write_chunk(
        &self,
        cx: &Context<'_>,
        data: Bytes,
        refused: &mut Option<Bytes>,
    ) -> Poll<Result<(), StreamError>> {
        let mut state = self.shared.lock();
        if let Some(reason) = &state.ended {
            return Poll::Ready(Err(StreamError::SessionEnded(reason.clone())));
        }
        match state.protocol.write(self.id, data) {
            Ok(()) => {
                state.wake_driver();
                Poll::Ready(Ok(()))
            }
            Err(WriteError::Full(data)) => {
                *refused = Some(data);
                state.wait_to_write(self.id, cx)
            }
            Err(_) => Poll::Ready(Err(StreamError::Closed)),
        }
    }

    /// Completes when the send queue has space, or when a write would fail.
    fn poll_writable(&self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut state = self.shared.lock();
        // A full queue rejects an empty chunk too. Otherwise, writing an empty chunk has no effect.
        match state.protocol.write(self.id, Bytes::new()) {
            Err(WriteError::Full(_)) if state.ended.is_none() => state.wait_to_write(self.id, cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether the session's WebSocket is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.shared.lock().is_connected()
    }

    /// Ends the sending side. The remote side's answer to the data that it has received can still be read.
    ///
    /// The destination does not see this end while it may still answer, because the agent cannot forward a half-close, and would
    /// discard the answer. So a server that answers only after the end of its input (an echo until end of file) never answers, and
    /// the stream fails with [`StreamError::Silent`] after the linger. Only a relay forwards a half-close.
    pub fn finish(&self) {
        self.shared.lock().finish_stream(self.id);
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        self.sender.shared.drop_stream(self.sender.id, self.keep_sending);
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut chunk) = ready!(self.poll_read_chunks(cx, &mut Vec::new(), 0))? else {
            return Poll::Ready(Ok(()));
        };
        let take = chunk.len().min(buf.remaining());
        buf.put_slice(chunk.get(..take).unwrap_or_default());
        chunk.advance(take);
        self.rest = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let piece = buf.get(..WRITE_CHUNK).unwrap_or(buf);
        // Waits for space first. Otherwise the data would be copied again at each attempt while the queue is full.
        ready!(self.sender.poll_writable(cx))?;
        ready!(self.sender.poll_write_chunk(cx, Bytes::copy_from_slice(piece), &mut None))?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// After this call, dropping the stream does not lose written data, as with a TCP socket.
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.finish();
        self.keep_sending = true;
        Poll::Ready(Ok(()))
    }
}
