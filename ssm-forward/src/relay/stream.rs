//! The handle of a connection. It reads and writes the state of the link directly.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use ssm_proto::relay::{BlockDecoder, BlockEncoder, ConnectionId, ConnectionState, Destination, ResetReason};

use super::shared::{LinkState, SharedLink};
use crate::StreamError;

/// A connection through the relay. If it is dropped, the connection is reset at the other end.
pub(crate) struct RelayStream {
    sender: RelaySender,
    decoder: BlockDecoder,
    /// Received bytes that have not been decoded yet.
    encoded: VecDeque<Bytes>,
    /// Whether the connection ends normally: data that was written is still sent.
    abandoned: bool,
}

impl std::fmt::Debug for RelayStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayStream").field("id", &self.sender.id).finish_non_exhaustive()
    }
}

/// The sending half.
#[derive(Clone)]
pub(crate) struct RelaySender {
    shared: Arc<SharedLink>,
    id: ConnectionId,
    encoder: Arc<Mutex<BlockEncoder>>,
}

impl RelayStream {
    /// Requests the relay to connect. Data can be written immediately.
    pub(super) fn open(shared: &Arc<SharedLink>, to: Destination) -> Result<Self, StreamError> {
        let id = shared.act(|state, _| {
            if let Some(why) = &state.ended {
                return Err(StreamError::RelayEnded { why: why.clone() });
            }
            let id = state.link.open(to);
            let id = id.ok_or(StreamError::RelayFull)?;
            state.waiting.entry(id).or_default();
            Ok(id)
        })?;
        let sender = RelaySender { shared: shared.clone(), id, encoder: Arc::default() };
        Ok(Self { sender, decoder: BlockDecoder::default(), encoded: VecDeque::new(), abandoned: false })
    }

    pub(crate) fn sender(&self) -> RelaySender {
        self.sender.clone()
    }

    /// Completes when the relay has connected to the destination.
    pub(crate) async fn connected(&self) -> Result<(), StreamError> {
        poll_fn(|cx| {
            let mut state = self.sender.shared.lock();
            if let Some(error) = failure(&state, self.sender.id) {
                return Poll::Ready(Err(error));
            }
            if state.link.state(self.sender.id) == Some(ConnectionState::Open) {
                return Poll::Ready(Ok(()));
            }
            state.waiting.entry(self.sender.id).or_default().read = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Reads chunks like [`SessionStream::read_chunks`](crate::SessionStream::read_chunks).
    pub(crate) async fn read_chunks(&mut self, chunks: &mut Vec<Bytes>, limit: usize) -> Result<bool, StreamError> {
        loop {
            if self.decode(chunks, limit)? {
                return Ok(true);
            }
            let encoded = poll_fn(|cx| self.sender.poll_read(cx, limit)).await?;
            if encoded.is_empty() {
                return match self.decoder.is_at_end() {
                    true => Ok(false),
                    false => Err(StreamError::Damaged),
                };
            }
            self.encoded.extend(encoded);
        }
    }

    /// Decodes received bytes until there are `limit` bytes or nothing is left. Returns whether bytes were decoded.
    fn decode(&mut self, chunks: &mut Vec<Bytes>, limit: usize) -> Result<bool, StreamError> {
        let mut decoded = 0;
        let mut compressor = self.sender.shared.compressor.lock().unwrap_or_else(PoisonError::into_inner);
        while decoded < limit
            && let Some(first) = self.encoded.front_mut()
        {
            match self.decoder.decode(&mut compressor, first).map_err(|_| StreamError::Damaged)? {
                Some(piece) => {
                    decoded += piece.len();
                    chunks.push(piece);
                }
                None => drop(self.encoded.pop_front()),
            }
        }
        Ok(decoded > 0)
    }

    /// Ends the connection normally: data that was written is still sent; received data is dropped.
    pub(crate) fn abandon(mut self) {
        self.abandoned = true;
    }
}

impl RelaySender {
    /// Sends a chunk. Waits until the send queue has space.
    pub(crate) async fn write_chunk(&self, chunk: Bytes) -> Result<(), StreamError> {
        let encoded = {
            let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
            let mut compressor = self.shared.compressor.lock().unwrap_or_else(PoisonError::into_inner);
            encoder.encode(&mut compressor, &chunk)
        };
        let mut left = Some(encoded);
        poll_fn(|cx| {
            let Some(chunk) = left.take() else { return Poll::Ready(Ok(())) };
            self.shared.act(|state, _| {
                if let Some(error) = failure(state, self.id) {
                    return Poll::Ready(Err(error));
                }
                match state.link.write(self.id, chunk) {
                    Ok(()) => Poll::Ready(Ok(())),
                    Err(chunk) => {
                        left = Some(chunk);
                        state.waiting.entry(self.id).or_default().write = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&self) {
        self.shared.act(|state, _| state.link.finish(self.id));
    }

    /// Whether there is a pipe.
    pub(crate) fn is_connected(&self) -> bool {
        self.shared.lock().link.alone_since().is_none()
    }

    /// Returns the received chunks, at least one. At the end, returns none.
    fn poll_read(&self, cx: &std::task::Context<'_>, limit: usize) -> Poll<Result<Vec<Bytes>, StreamError>> {
        self.shared.act(|state, _| {
            let (mut chunks, mut bytes) = (Vec::new(), 0);
            while bytes < limit
                && let Some(chunk) = state.link.read(self.id)
            {
                bytes += chunk.len();
                chunks.push(chunk);
            }
            if !chunks.is_empty() || state.link.is_at_end(self.id) {
                return Poll::Ready(Ok(chunks));
            }
            if let Some(error) = failure(state, self.id) {
                return Poll::Ready(Err(error));
            }
            state.waiting.entry(self.id).or_default().read = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}

/// Returns why a connection cannot be used any longer. `None` if it can be used.
fn failure(state: &LinkState, id: ConnectionId) -> Option<StreamError> {
    if let Some(why) = &state.ended {
        return Some(StreamError::RelayEnded { why: why.clone() });
    }
    match state.link.state(id) {
        Some(ConnectionState::Opening | ConnectionState::Open) => None,
        Some(ConnectionState::Refused(why)) => Some(StreamError::Unreachable { kind: why.kind, why: why.text }),
        Some(ConnectionState::Reset(ResetReason::Reset)) => Some(StreamError::Reset),
        Some(ConnectionState::Reset(ResetReason::Abandoned)) | None => Some(StreamError::Closed),
    }
}

impl Drop for RelayStream {
    fn drop(&mut self) {
        let RelaySender { shared, id, .. } = &self.sender;
        shared.act(|state, _| {
            match self.abandoned {
                true => state.link.abandon(*id),
                false => state.link.release(*id),
            }
            state.waiting.remove(id);
        });
        shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ssm_proto::relay::{Link, MAX_BLOCK, RelaySide};

    use super::*;

    #[tokio::test]
    async fn no_more_is_decoded_at_once_than_the_reader_takes() {
        const LIMIT: usize = 2 * MAX_BLOCK;
        const LENGTH: usize = 100 * MAX_BLOCK;
        let now = Instant::now();
        let shared = Arc::new(SharedLink::new(now));
        let (pipe, _) = shared.add_pipe().unwrap();
        let mut stream = RelayStream::open(&shared, Destination::new("db", 1).unwrap()).unwrap();
        let mut relay = Link::new(RelaySide::Relay, now);
        let at_relay = relay.add_pipe().unwrap();
        let (_, begin) = relay.poll_transmit(now).unwrap();
        shared.handle_input(pipe, &[begin]).unwrap();
        for bytes in shared.take_outbox(pipe) {
            relay.handle_input(now, at_relay, &bytes).unwrap();
        }
        let zeros = BlockEncoder::default().encode(&mut Default::default(), &vec![0; LENGTH]);
        relay.write(stream.sender.id, zeros).unwrap();
        relay.finish(stream.sender.id);
        while let Some((_, bytes)) = relay.poll_transmit(now) {
            shared.handle_input(pipe, &[bytes]).unwrap();
        }
        let (mut chunks, mut total) = (Vec::new(), 0);
        while stream.read_chunks(&mut chunks, LIMIT).await.unwrap() {
            let read: usize = chunks.drain(..).map(|chunk| chunk.len()).sum();
            assert!(read <= LIMIT, "{read}");
            total += read;
        }
        assert_eq!(total, LENGTH);
    }
}
