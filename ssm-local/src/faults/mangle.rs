//! Functions that damage messages.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use ssm_proto::{AgentMessage, MessageBuf, PayloadDigest};

/// Positions of the digest and of the payload in a message with a full header.
const DIGEST: std::ops::Range<usize> = 80..112;
const PAYLOAD: usize = 120;

/// Flips one bit of the payload, or of the header if there is no payload.
pub(super) fn corrupt(message: &Bytes, rng: &mut Rng) -> Bytes {
    let start = if message.len() > PAYLOAD { PAYLOAD } else { 0 };
    flip(message, start..message.len(), rng)
}

/// Flips one bit of the digest.
pub(super) fn bad_digest(message: &Bytes, rng: &mut Rng) -> Bytes {
    flip(message, DIGEST, rng)
}

/// Writes an invalid header length.
pub(super) fn bad_header(message: &Bytes, rng: &mut Rng) -> Bytes {
    let mut mangled = BytesMut::from(message.as_ref());
    if let Some(field) = mangled.get_mut(..4) {
        field.copy_from_slice(&rng.u32(117..).to_be_bytes());
    }
    mangled.freeze()
}

/// Appends zeros to the payload up to this length; lengths and digest are correct.
pub(super) fn oversize(message: &Bytes, bytes: usize) -> Bytes {
    let Ok(decoded) = AgentMessage::decode(message.clone()) else { return message.clone() };
    let mut payload = decoded.payload().to_vec();
    payload.resize(bytes.max(payload.len()), 0);
    let digest = PayloadDigest::of(&payload);
    decoded.header().seal_with_digest(MessageBuf::from(payload.as_slice()), digest)
}

fn flip(message: &Bytes, range: std::ops::Range<usize>, rng: &mut Rng) -> Bytes {
    let mut mangled = BytesMut::from(message.as_ref());
    if !range.is_empty()
        && let Some(byte) = mangled.get_mut(rng.usize(range))
    {
        *byte ^= 1 << rng.u32(0..8);
    }
    mangled.freeze()
}
