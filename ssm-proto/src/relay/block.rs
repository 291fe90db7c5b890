//! A connection's bytes in blocks, compressed where that pays (RELAY-16, RELAY-17).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use zstd_safe::{CCtx, CParameter, DCtx};

/// Most bytes of a connection in one block.
pub const MAX_BLOCK: usize = 64 << 10;
/// Kind, length as it is sent, length of the connection's bytes.
const HEADER: usize = 7;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// zstd's fastest regular level: the agent's pace is what is scarce, but the node's CPU is not ours.
const LEVEL: i32 = 1;
/// Shorter blocks are not looked at.
const WORTHWHILE: usize = 512;
/// The beginning of a block that is tried first.
const SAMPLE: usize = 4 << 10;
/// After a block that did not get smaller, so many are not looked at; twice as many each time, up to the second number.
const FIRST_REST: u32 = 4;
const LONGEST_REST: u32 = 64;

/// Compresses and decompresses, for any number of connections.
pub struct Compressor {
    compress: CCtx<'static>,
    decompress: DCtx<'static>,
    buffer: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        let mut compress = CCtx::create();
        // Both parameters exist: what zstd says of them is not of interest.
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
    /// The bytes compressed, if they get smaller by a tenth at least.
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

/// Turns one direction of a connection into blocks.
#[derive(Debug, Default)]
pub struct BlockEncoder {
    /// Whether the last block that was tried got smaller.
    paid: bool,
    rest: u32,
    last_rest: u32,
    plain: u64,
    encoded: u64,
}

impl BlockEncoder {
    /// The blocks of these bytes.
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
        self.plain += bytes.len() as u64;
        self.encoded += out.len() as u64;
        out.freeze()
    }

    /// Bytes that were encoded, and what became of them.
    pub fn totals(&self) -> (u64, u64) {
        (self.plain, self.encoded)
    }

    fn is_to_be_tried(&mut self, part: &[u8]) -> bool {
        if part.len() < WORTHWHILE {
            return false;
        }
        let rests = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        !rests
    }

    /// The block compressed, if that pays.
    fn attempt<'c>(&mut self, compressor: &'c mut Compressor, part: &[u8]) -> Option<&'c [u8]> {
        let sample = part.get(..SAMPLE.min(part.len())).unwrap_or_default();
        // Where it paid the last time there is no need for a sample.
        if !self.paid && compressor.compress(sample).is_none() {
            self.pause();
            return None;
        }
        let compressed = compressor.compress(part);
        self.paid = compressed.is_some();
        if self.paid {
            self.last_rest = 0;
        } else {
            self.pause();
        }
        compressed
    }

    fn pause(&mut self) {
        self.last_rest = (self.last_rest * 2).clamp(FIRST_REST, LONGEST_REST);
        self.rest = self.last_rest;
    }
}

/// What came is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockError;

impl std::fmt::Display for BlockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a block of compressed data is damaged")
    }
}

impl std::error::Error for BlockError {}

/// Turns blocks into the bytes of a connection again, wherever they are cut.
#[derive(Debug, Default)]
pub struct BlockDecoder {
    buffer: BytesMut,
    /// Bytes of a plain block that are still to come: they need not wait for the rest of it.
    plain: usize,
}

impl BlockDecoder {
    /// Takes what came, and appends the connection's bytes to `to`.
    ///
    /// # Errors
    /// It is no block.
    pub fn decode(
        &mut self,
        compressor: &mut Compressor,
        mut bytes: Bytes,
        to: &mut Vec<Bytes>,
    ) -> Result<(), BlockError> {
        loop {
            if self.plain > 0 {
                let part = bytes.split_to(self.plain.min(bytes.len()));
                if part.is_empty() {
                    return Ok(());
                }
                self.plain -= part.len();
                to.push(part);
                continue;
            }
            let wanted = self.wanted()?;
            if self.buffer.len() < wanted {
                let part = bytes.split_to((wanted - self.buffer.len()).min(bytes.len()));
                if part.is_empty() {
                    return Ok(());
                }
                self.buffer.extend_from_slice(&part);
                continue;
            }
            self.finish(compressor, to)?;
        }
    }

    /// Whether the bytes so far end with a whole block.
    pub fn is_at_end(&self) -> bool {
        self.buffer.is_empty() && self.plain == 0
    }

    /// How many bytes have to be there before something can be done with them.
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

    /// All that is wanted is there.
    fn finish(&mut self, compressor: &mut Compressor, to: &mut Vec<Bytes>) -> Result<(), BlockError> {
        let Some((kind, encoded, length)) = self.header() else { return Err(BlockError) };
        if kind == PLAIN {
            self.plain = length;
        } else {
            let block = self.buffer.get(HEADER..HEADER + encoded).unwrap_or_default();
            to.push(compressor.decompress(block, length)?);
        }
        self.buffer.clear();
        Ok(())
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
            decoder.decode(&mut compressor, Bytes::copy_from_slice(bytes), &mut out)?;
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
        assert_eq!(encoder.last_rest, LONGEST_REST);
        let block = text(MAX_BLOCK);
        let found = (0..100).position(|_| encoder.encode(&mut compressor, &block).len() < MAX_BLOCK / 2).unwrap();
        assert!(found <= LONGEST_REST as usize);
        assert!(encoder.encode(&mut compressor, &block).len() < MAX_BLOCK / 3, "it stays on");
    }

    #[test]
    fn keystrokes_are_passed_on_before_their_block_is_whole_and_are_never_compressed() {
        let wire = BlockEncoder::default().encode(&mut Compressor::default(), &[b'x'; 100]);
        assert_eq!(wire.len(), 107);
        let (mut decoder, mut out) = (BlockDecoder::default(), Vec::new());
        decoder.decode(&mut Compressor::default(), wire.slice(..50), &mut out).unwrap();
        assert_eq!(out.concat().len(), 43);
    }

    #[test]
    fn lies_about_lengths_are_errors() {
        let good = BlockEncoder::default().encode(&mut Compressor::default(), &text(10_000));
        assert_eq!(good[0], ZSTD);
        for (at, byte) in [(0, 9), (0, PLAIN), (1, 0xff), (4, 0xff), (5, 0), (6, 0), (10, 0x55)] {
            let mut bad = good.to_vec();
            bad[at] ^= byte ^ if at == 0 { bad[0] } else { 0 };
            if bad != good.as_ref() {
                let (mut decoder, mut out) = (BlockDecoder::default(), Vec::new());
                let outcome = decoder.decode(&mut Compressor::default(), bad.into(), &mut out);
                assert!(outcome.is_err() || !decoder.is_at_end() || out.concat() != text(10_000), "{at} {byte}");
            }
        }
        // A bomb: a short block that says, or turns out to be, more than a block may be.
        let mut wire = BytesMut::new();
        wire.put_u8(ZSTD);
        wire.put_uint(20, 3);
        wire.put_uint(1 << 20, 3);
        assert_eq!(decode(&wire, 100), Err(BlockError));
    }
}
