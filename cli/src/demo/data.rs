//! Pseudo-random bytes that can be generated again from their seed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest in hexadecimal digits.
pub(super) type HexDigest = String;

/// Bytes generated from a seed, in chunks of at most 64 KiB. Also an HTTP body.
///
/// Each chunk is a random part of a random block. This costs almost no CPU time, so that a demo measures the tunnel and not the
/// generator, even in an unoptimized build.
#[derive(Debug)]
pub(super) struct Seeded {
    random: fastrand::Rng,
    block: Bytes,
    left: u64,
}

const CHUNK: usize = 64 * 1024;
/// Number of different chunks.
const CHUNKS: usize = 1 << 20;

impl Seeded {
    /// Creates a generator of the first `bytes` bytes of `seed`.
    pub(super) fn new(seed: u64, bytes: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut block = vec![0; CHUNK + CHUNKS];
        random.fill(&mut block);
        Self { random, block: block.into(), left: bytes }
    }

    /// Returns the number of remaining bytes.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Returns the digest of the remaining bytes.
    pub(super) fn digest(self) -> HexDigest {
        let mut hasher = Sha256::new();
        self.for_each(|chunk| hasher.update(&chunk));
        hex(hasher)
    }
}

impl Iterator for Seeded {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.left.min(CHUNK as u64)).ok().filter(|length| *length > 0)?;
        let start = self.random.usize(..CHUNKS);
        self.left -= length as u64;
        Some(self.block.slice(start..start + length))
    }
}

impl Body for Seeded {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Returns a hasher's digest in hexadecimal digits.
pub(super) fn hex(hasher: Sha256) -> HexDigest {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let all = |seed, bytes| Seeded::new(seed, bytes).flatten().collect::<Vec<u8>>();
        assert_eq!(all(1, 200_000), all(1, 200_000));
        assert_ne!(all(1, 200_000), all(2, 200_000));
        assert_eq!(all(1, 200_000).len(), 200_000);
        assert_eq!(all(1, 0), [0_u8; 0]);
    }

    #[test]
    fn the_digest_is_that_of_the_bytes() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Seeded::new(7, 0).digest(), empty);
        let mut hasher = Sha256::new();
        hasher.update(Seeded::new(7, 100_001).flatten().collect::<Vec<u8>>());
        assert_eq!(Seeded::new(7, 100_001).digest(), hex(hasher));
    }
}
