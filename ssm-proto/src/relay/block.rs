//! A connection's bytes in blocks, compressed where this helps (RELAY-16, RELAY-17).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use zstd_safe::{CCtx, CParameter, DCtx};

/// Maximum number of a connection's bytes in one block.
pub const MAX_BLOCK: usize = 64 << 10;
/// Length of a block's header: kind, length as sent, length of the connection's bytes.
const HEADER: usize = 7;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// zstd's fastest regular level. The rate of the agent limits the throughput, but the node's CPU time belongs to other programs.
const LEVEL: i32 = 1;
/// Minimum length of a block that is compressed.
const WORTHWHILE: usize = 512;
/// Size of the sample at the beginning of a block that is compressed first.
const SAMPLE: usize = 4 << 10;
/// Number of blocks for which compression is not tried after a block that did not get smaller. The number doubles each time, up to
/// `MAX_SKIP`.
const FIRST_SKIP: u32 = 4;
const MAX_SKIP: u32 = 64;

/// Compresses and decompresses the blocks of any number of connections.
pub struct Compressor {
    compress: CCtx<'static>,
    decompress: DCtx<'static>,
    buffer: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        let mut compress = CCtx::create();
        // Both parameters exist, so setting them cannot fail.
        let _ = compress.set_parameter(CParameter::CompressionLevel(LEVEL));
        let _ = compress.set_parameter(CParameter::ContentSizeFlag(true));
        Self { compress, decompress: DCtx::create(), buffer: Vec::with_capacity(zstd_safe::compress_bound(MAX_BLOCK)) }
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// Returns the compressed bytes if they are smaller by at least a tenth.
    fn compress(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        self.buffer.clear();
        let length = self.compress.compress2(&mut self.buffer, bytes).ok()?;
        (length < bytes.len() - bytes.len() / 10).then_some(self.buffer.as_slice())
    }

    fn decompress(&mut self, bytes: &[u8], length: usize) -> Result<Bytes, BlockError> {
        let mut out = Vec::with_capacity(length);
        match self.decompress.decompress(&mut out, bytes) {
            Ok(written) if written == length => Ok(out.into()),
            _ => Err(BlockError),
        }
    }
}

/// Encodes one direction of a connection as blocks.
#[derive(Debug, Default)]
pub struct BlockEncoder {
    /// Whether the last block that was tried became smaller.
    paid: bool,
    /// Number of blocks for which compression is still not tried.
    skip: u32,
    /// The value of `skip` after the last block that did not get smaller; 0 after one that did.
    last_skip: u32,
}

impl BlockEncoder {
    /// Encodes bytes as blocks.
    pub fn encode(&mut self, compressor: &mut Compressor, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(bytes.len() + HEADER);
        for part in bytes.chunks(MAX_BLOCK) {
            let compressed = if self.is_to_be_tried(part) { self.attempt(compressor, part) } else { None };
            let (kind, encoded) = compressed.map_or((PLAIN, part), |compressed| (ZSTD, compressed));
            out.put_u8(kind);
            out.put_uint(encoded.len() as u64, 3);
            out.put_uint(part.len() as u64, 3);
            out.put_slice(encoded);
        }
        out.freeze()
    }

    fn is_to_be_tried(&mut self, part: &[u8]) -> bool {
        if part.len() < WORTHWHILE {
            return false;
        }
        let is_skipped = self.skip > 0;
        self.skip = self.skip.saturating_sub(1);
        !is_skipped
    }

    /// Returns the compressed block, if compression helps.
    fn attempt<'c>(&mut self, compressor: &'c mut Compressor, part: &[u8]) -> Option<&'c [u8]> {
        let sample = part.get(..SAMPLE.min(part.len())).unwrap_or_default();
        // If the last block became smaller, no sample is needed.
        if !self.paid && compressor.compress(sample).is_none() {
            self.pause();
            return None;
        }
        let compressed = compressor.compress(part);
        self.paid = compressed.is_some();
        if self.paid {
            self.last_skip = 0;
        } else {
            self.pause();
        }
        compressed
    }

    fn pause(&mut self) {
        self.last_skip = (self.last_skip * 2).clamp(FIRST_SKIP, MAX_SKIP);
        self.skip = self.last_skip;
    }
}

/// The received bytes are not a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockError;

impl std::fmt::Display for BlockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a block of compressed data is damaged")
    }
}

impl std::error::Error for BlockError {}

/// Decodes blocks, which may arrive in pieces of any size, into the bytes of a connection.
#[derive(Debug, Default)]
pub struct BlockDecoder {
    buffer: BytesMut,
    /// Number of missing bytes of a plain block. They are passed on without waiting for the whole block.
    plain: usize,
}

impl BlockDecoder {
    /// Consumes as much of `bytes` as is needed for the next piece of the connection's bytes, and returns that piece of at most
    /// [`MAX_BLOCK`] bytes. A few bytes can decompress to a very large amount, so the caller decides after each piece whether it
    /// can store more. Returns `None` if all of `bytes` was consumed and more bytes are needed.
    ///
    /// # Errors
    /// Returns an error if the bytes are not a block.
    pub fn decode(&mut self, compressor: &mut Compressor, bytes: &mut Bytes) -> Result<Option<Bytes>, BlockError> {
        while !bytes.is_empty() {
            if self.plain > 0 {
                let part = bytes.split_to(self.plain.min(bytes.len()));
                self.plain -= part.len();
                return Ok(Some(part));
            }
            let missing = self.wanted()?.saturating_sub(self.buffer.len());
            let part = bytes.split_to(missing.min(bytes.len()));
            self.buffer.extend_from_slice(&part);
            // Once the header is complete, the length of the block is known.
            if self.wanted()? == self.buffer.len()
                && let Some(block) = self.finish(compressor)?
            {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Returns whether the bytes so far end at the end of a block.
    pub fn is_at_end(&self) -> bool {
        self.buffer.is_empty() && self.plain == 0
    }

    /// Returns the number of bytes needed for the next step: the header, or the header and its block.
    fn wanted(&self) -> Result<usize, BlockError> {
        let Some((kind, encoded, length)) = self.header() else { return Ok(HEADER) };
        let is_fit = (1..=MAX_BLOCK).contains(&length) && (1..=length).contains(&encoded);
        match kind {
            PLAIN if is_fit && encoded == length => Ok(HEADER),
            ZSTD if is_fit => Ok(HEADER + encoded),
            _ => Err(BlockError),
        }
    }

    fn header(&self) -> Option<(u8, usize, usize)> {
        let mut header = self.buffer.get(..HEADER)?;
        let kind = header.get_u8();
        let mut length = || usize::try_from(header.get_uint(3)).unwrap_or(usize::MAX);
        Some((kind, length(), length()))
    }

    /// Handles a complete header and block. Returns the bytes of a compressed block. The bytes of a plain block follow in later
    /// calls.
    fn finish(&mut self, compressor: &mut Compressor) -> Result<Option<Bytes>, BlockError> {
        let Some((kind, encoded, length)) = self.header() else { return Err(BlockError) };
        let block = match kind {
            PLAIN => {
                self.plain = length;
                None
            }
            _ => {
                let block = self.buffer.get(HEADER..HEADER + encoded).unwrap_or_default();
                Some(compressor.decompress(block, length)?)
            }
        };
        self.buffer.clear();
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Vec<u8> {
        (0..)
            .flat_map(|row| format!("INSERT INTO t VALUES ({row}, 'name {}');\n", row * 7 % 1000).into_bytes())
            .take(length)
            .collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(7);
        std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
    }

    fn decode(wire: &[u8], piece: usize) -> Result<Vec<u8>, BlockError> {
        let (mut decoder, mut compressor, mut out) = (BlockDecoder::default(), Compressor::default(), Vec::new());
        for bytes in wire.chunks(piece) {
            let mut bytes = Bytes::copy_from_slice(bytes);
            while let Some(piece) = decoder.decode(&mut compressor, &mut bytes)? {
                assert!(piece.len() <= MAX_BLOCK);
                out.push(piece);
            }
            assert!(bytes.is_empty());
        }
        assert!(decoder.is_at_end());
        Ok(out.concat())
    }

    #[test]
    fn bytes_come_back_as_they_were_wherever_blocks_are_cut() {
        for bytes in [text(200_000), noise(200_000), text(3), [text(70_000), noise(70_000), text(70_000)].concat()] {
            let wire = BlockEncoder::default().encode(&mut Compressor::default(), &bytes);
            for piece in [1, 1000, 1 << 20] {
                assert!(decode(&wire, piece).unwrap() == bytes);
            }
        }
    }

    #[test]
    fn what_does_not_get_smaller_is_looked_at_less_and_less_and_text_after_it_is_found() {
        let (mut encoder, mut compressor) = (BlockEncoder::default(), Compressor::default());
        for block in noise(MAX_BLOCK * 300).chunks(MAX_BLOCK) {
            assert_eq!(encoder.encode(&mut compressor, block).len(), MAX_BLOCK + HEADER);
        }
        assert_eq!(encoder.last_skip, MAX_SKIP);
        let block = text(MAX_BLOCK);
        let found = (0..100).position(|_| encoder.encode(&mut compressor, &block).len() < MAX_BLOCK / 2).unwrap();
        assert!(found <= MAX_SKIP as usize);
        assert!(encoder.encode(&mut compressor, &block).len() < MAX_BLOCK / 3, "compression stays enabled");
    }

    #[test]
    fn keystrokes_are_passed_on_before_their_block_is_whole_and_are_never_compressed() {
        let wire = BlockEncoder::default().encode(&mut Compressor::default(), &[b'x'; 100]);
        assert_eq!(wire.len(), 107);
        let piece = BlockDecoder::default().decode(&mut Compressor::default(), &mut wire.slice(..50)).unwrap();
        assert_eq!(piece.unwrap(), [b'x'; 43].as_slice());
    }

    #[test]
    fn a_few_bytes_that_become_very_many_are_decoded_block_by_block() {
        let mut wire = BlockEncoder::default().encode(&mut Compressor::default(), &vec![0; 100 * MAX_BLOCK]);
        assert!(wire.len() < MAX_BLOCK, "{}", wire.len());
        let (mut decoder, mut compressor) = (BlockDecoder::default(), Compressor::default());
        for left in (0..100).rev() {
            assert_eq!(decoder.decode(&mut compressor, &mut wire).unwrap().map(|block| block.len()), Some(MAX_BLOCK));
            assert_eq!(wire.is_empty(), left == 0);
        }
        assert_eq!(decoder.decode(&mut compressor, &mut wire), Ok(None));
    }

    #[test]
    fn lies_about_lengths_are_errors() {
        let good = BlockEncoder::default().encode(&mut Compressor::default(), &text(10_000));
        assert_eq!(good[0], ZSTD);
        let (encoded, length) = (good.len() - HEADER, 10_000);
        let with = |kind: u8, encoded: usize, length: usize| {
            let mut wire = BytesMut::new();
            wire.put_u8(kind);
            wire.put_uint(encoded as u64, 3);
            wire.put_uint(length as u64, 3);
            wire.put_slice(&good[HEADER..]);
            decode(&wire, 1 << 20)
        };
        assert_eq!(with(ZSTD, encoded, length), Ok(text(10_000)));
        for (kind, encoded, length) in [
            (9, encoded, length),
            (PLAIN, encoded, length),
            (PLAIN, encoded, encoded + 1),
            (ZSTD, 0, length),
            (ZSTD, encoded - 1, length),
            (ZSTD, encoded, 0),
            (ZSTD, encoded, encoded - 1),
            (ZSTD, encoded, length - 1),
            (ZSTD, encoded, length + 1),
            (ZSTD, encoded, MAX_BLOCK + 1),
            (ZSTD, MAX_BLOCK + 1, MAX_BLOCK + 1),
        ] {
            assert_eq!(with(kind, encoded, length), Err(BlockError), "{kind} {encoded} {length}");
        }
        let mut damaged = good.to_vec();
        damaged[HEADER] ^= 0x55;
        assert_eq!(decode(&damaged, 1 << 20), Err(BlockError), "the magic number of zstd is damaged");
        // Decompression bombs: a short block whose header or contents exceed the maximum length of a block.
        let mut wire = BytesMut::new();
        wire.put_u8(ZSTD);
        wire.put_uint(20, 3);
        wire.put_uint(1 << 20, 3);
        assert_eq!(decode(&wire, 100), Err(BlockError));
    }
}
