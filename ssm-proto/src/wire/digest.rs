//! The digest of a payload.

use std::fmt;

use sha2::block_api::compress256;

/// The SHA-256 digest of a payload as it is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayloadDigest(pub [u8; 32]);

/// The initial state of SHA-256 (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

impl PayloadDigest {
    /// Computes the digest of `payload`.
    // The blocks are passed directly to the compression function of `sha2`. The hasher of `sha2` supports incremental input, and
    // takes a quarter more time for an acknowledgement.
    pub fn of(payload: &[u8]) -> Self {
        let (blocks, rest) = payload.as_chunks();
        let (last, count) = padded(rest, payload.len());
        let mut state = INITIAL;
        compress256(&mut state, blocks);
        compress256(&mut state, last.split_at(count).0);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
            *bytes = word.to_be_bytes();
        }
        Self(digest)
    }
}

/// Returns the final one or two blocks: the rest of the payload, a one bit, zeros up to the end of the block, and the length in
/// bits at the end of the block (FIPS 180-4, 5.1.1).
#[expect(clippy::indexing_slicing, reason = "the rest of a block and 9 bytes fit into two")]
fn padded(rest: &[u8], length: usize) -> ([[u8; 64]; 2], usize) {
    let mut blocks = [[0; 64]; 2];
    let bytes = blocks.as_flattened_mut();
    let count = (rest.len() + 9).div_ceil(64);
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    bytes[count * 64 - 8..count * 64].copy_from_slice(&(length as u64 * 8).to_be_bytes());
    (blocks, count)
}

impl fmt::Debug for PayloadDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_payload_of_any_length_has_the_digest_that_the_hasher_gives() {
        let mut rng = fastrand::Rng::with_seed(1);
        let payload: Vec<u8> = (0..(1 << 20)).map(|_| rng.u8(..)).collect();
        for length in (0..=2048).chain([65_535, 65_536, 1 << 20]) {
            let payload = &payload[..length];
            assert_eq!(PayloadDigest::of(payload).0, *Sha256::digest(payload), "{length} bytes");
        }
    }
}
