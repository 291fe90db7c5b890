//! The receive buffer, limited by the memory that it keeps alive.

use std::collections::VecDeque;

use bytes::Bytes;

/// Size of the WebSocket's read buffer in bytes: a short message is a slice that keeps this much memory alive.
const READ_BUFFER: usize = 32 << 10;
/// How many bytes of memory a queue's slices may keep alive beyond their own data. Above this limit, the slices are copied.
const MAX_SLACK: usize = 2 << 20;
/// Copies are split into pieces of this size, so that a reader receives no more at a time than it asks for.
const PIECE: usize = 64 << 10;
/// A last copy shorter than this is copied again together with the data that follows, so that single bytes do not become chunks.
const SHORT: usize = 4 << 10;

/// Unread chunks and their total length.
///
/// A chunk is a slice of a buffer that was read from the network, so that one byte can keep a whole buffer alive. A fast reader
/// receives the slices unchanged. Data for a slow reader is copied into compact memory, each byte about once, so that it needs only
/// as much memory as it has bytes.
#[derive(Debug, Default)]
pub(crate) struct ReceiveQueue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// Number of chunks, from the front, that have their own memory.
    settled: usize,
    /// Upper estimate of the memory that the other chunks keep alive beyond their own bytes.
    slack: usize,
}

impl ReceiveQueue {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns whether the total equals the sum of the chunks, and the memory kept alive beyond the chunks is limited.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_counted(&self) -> bool {
        self.bytes == self.chunks.iter().map(Bytes::len).sum::<usize>()
            && self.settled <= self.chunks.len()
            && self.slack <= MAX_SLACK
    }

    pub(crate) fn slack(&self) -> usize {
        self.slack
    }

    /// Adds a chunk that is not much shorter than the message that it arrived in; see [`owned_if_small`].
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.slack += READ_BUFFER.saturating_sub(chunk.len());
        self.chunks.push_back(chunk);
        if self.slack > MAX_SLACK {
            self.settle();
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.len();
        self.settled = self.settled.saturating_sub(1);
        if self.chunks.is_empty() {
            self.slack = 0;
        }
        Some(chunk)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Copies the slices, so that the queue keeps only its own bytes alive.
    pub(crate) fn settle(&mut self) {
        if self.settled == self.chunks.len() {
            return;
        }
        let last = self.settled.checked_sub(1).filter(|at| self.chunks.get(*at).is_some_and(|last| last.len() < SHORT));
        let slices: Vec<Bytes> = self.chunks.drain(last.unwrap_or(self.settled)..).collect();
        let mut left: usize = slices.iter().map(Bytes::len).sum();
        let mut piece = Vec::with_capacity(left.min(PIECE));
        for mut slice in slices {
            while !slice.is_empty() {
                piece.extend_from_slice(&slice.split_to(slice.len().min(PIECE - piece.len())));
                if piece.len() == PIECE {
                    left -= PIECE;
                    let full = std::mem::replace(&mut piece, Vec::with_capacity(left.min(PIECE)));
                    self.chunks.push_back(full.into());
                }
            }
        }
        if !piece.is_empty() {
            self.chunks.push_back(piece.into());
        }
        (self.settled, self.slack) = (self.chunks.len(), 0);
    }
}

/// Returns `data` unchanged, or a copy if `data` is a small part of a large message of `message` bytes.
pub(crate) fn owned_if_small(data: Bytes, message: usize) -> Bytes {
    if message > READ_BUFFER && data.len() < message / 4 { Bytes::copy_from_slice(&data) } else { data }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk that keeps a whole buffer alive. Its reference to `buffers` is dropped when the buffer is freed.
    fn slice_of_buffer(buffers: &std::sync::Arc<()>, length: usize) -> Bytes {
        struct Buffer(Vec<u8>, #[expect(dead_code, reason = "only its reference count is used")] std::sync::Arc<()>);
        impl AsRef<[u8]> for Buffer {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Buffer(vec![7; READ_BUFFER], buffers.clone())).slice(..length)
    }

    #[test]
    fn what_waits_takes_as_much_memory_as_it_has_bytes() {
        for length in [1, 1000, 30_000] {
            let buffers = std::sync::Arc::new(());
            let mut queue = ReceiveQueue::default();
            let mut most = 0;
            for _ in 0..10_000 {
                queue.push(slice_of_buffer(&buffers, length));
                most = most.max(std::sync::Arc::strong_count(&buffers) - 1);
            }
            let waste = most * (READ_BUFFER - length);
            assert!(waste <= MAX_SLACK, "{length}: {waste} bytes of memory are kept alive without need");
            let chunks = queue.chunks.len();
            assert!(chunks <= 10_000 * length / SHORT + 2 * MAX_SLACK / READ_BUFFER, "{length}: {chunks} chunks");
            let read: usize = std::iter::from_fn(|| queue.pop()).map(|chunk| chunk.len()).sum();
            assert_eq!((read, queue.len(), queue.slack()), (10_000 * length, 0, 0));
        }
    }

    #[test]
    fn bytes_keep_their_order_however_they_are_copied() {
        let mut queue = ReceiveQueue::default();
        let (mut written, mut read) = (Vec::new(), Vec::new());
        for step in 0..2000_usize {
            let chunk: Vec<u8> = (0..step * 37 % 700).flat_map(|byte| (byte + step).to_le_bytes()).collect();
            written.extend_from_slice(&chunk);
            queue.push(chunk.into());
            if step % 3 == 0 {
                read.extend(queue.pop().unwrap());
            }
            if step % 100 == 0 {
                queue.settle();
            }
        }
        read.extend(std::iter::from_fn(|| queue.pop()).flatten());
        assert!(read == written);
    }

    #[test]
    fn a_reader_that_keeps_up_gets_the_slices_themselves() {
        let mut queue = ReceiveQueue::default();
        for _ in 0..1000 {
            let chunk = Bytes::from(vec![1; 1000]);
            queue.push(chunk.clone());
            assert_eq!(queue.pop().unwrap().as_ptr(), chunk.as_ptr());
        }
    }

    #[test]
    fn a_small_part_of_a_large_message_is_copied() {
        let message = Bytes::from(vec![0; 1 << 20]);
        let is_copied = |part: Bytes, of| owned_if_small(part.clone(), of).as_ptr() != part.as_ptr();
        assert!(is_copied(message.slice(..1), message.len()));
        assert!(!is_copied(message.slice(..), message.len()));
        assert!(!is_copied(message.slice(..16), 1024));
    }
}
