//! A message under construction: the payload is written first, then the header is put in front of it in place.

use byteorder::{BigEndian, ByteOrder};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::digest::PayloadDigest;
use super::message::Header;
use super::types::{HeaderForm, Padding};

/// Space for the longest header and the payload's length field, rounded up to a multiple of the allocator's alignment.
/// This aligns the payload too, which makes its digest slightly faster.
const HEADROOM: usize = 128;

/// A payload under construction, with headroom for the header, so that sealing copies nothing.
#[derive(Debug)]
pub struct MessageBuf {
    bytes: BytesMut,
    limit: usize,
}

impl MessageBuf {
    /// Creates an empty payload that may grow to `limit` bytes, and allocates `expected` bytes immediately.
    pub fn with_limit(limit: usize, expected: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(HEADROOM + expected.min(limit));
        bytes.put_bytes(0, HEADROOM);
        Self { bytes, limit }
    }

    /// Returns the number of bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.limit.saturating_sub(self.len())
    }

    /// Returns the length of the payload so far.
    pub fn len(&self) -> usize {
        self.bytes.len() - HEADROOM
    }

    /// Returns whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `data`. The caller must have checked that `data` fits into [`MessageBuf::remaining`].
    pub fn put_slice(&mut self, data: &[u8]) {
        debug_assert!(data.len() <= self.remaining(), "payload over its limit");
        self.bytes.put_slice(data);
    }

    /// Returns the payload so far.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADROOM..).unwrap_or_default()
    }

    pub(crate) fn payload_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(HEADROOM..).unwrap_or_default()
    }

    pub(super) fn seal(mut self, header: &Header, digest: PayloadDigest) -> Bytes {
        let length = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let start = HEADROOM - (header.form.header_length() + 4);
        if let Some(front) = self.bytes.get_mut(start..HEADROOM) {
            write_header(front, header, digest, length);
        }
        let mut message = self.bytes.freeze();
        message.advance(start);
        message
    }
}

impl From<&[u8]> for MessageBuf {
    fn from(payload: &[u8]) -> Self {
        let mut buf = Self::with_limit(payload.len(), payload.len());
        buf.put_slice(payload);
        buf
    }
}

#[expect(clippy::indexing_slicing, reason = "the caller passes exactly the header's length")]
fn write_header(out: &mut [u8], header: &Header, digest: PayloadDigest, length: u32) {
    let end = header.form.header_length();
    BigEndian::write_u32(&mut out[0..4], if end == 116 { 116 } else { 112 });
    let (name, field) = (header.message_type.name(), &mut out[4..36]);
    field.fill(match header.padding {
        Padding::Space => b' ',
        Padding::Nul => 0,
    });
    field[..name.len()].copy_from_slice(name);
    BigEndian::write_u32(&mut out[36..40], header.schema_version);
    BigEndian::write_u64(&mut out[40..48], header.created_date);
    BigEndian::write_i64(&mut out[48..56], header.sequence_number);
    BigEndian::write_u64(&mut out[56..64], header.flags);
    // The id's halves are swapped on the wire (WIRE-5).
    BigEndian::write_u128(&mut out[64..80], header.message_id.as_u128().rotate_left(64));
    out[80..112].copy_from_slice(&digest.0);
    if header.form == HeaderForm::Full {
        BigEndian::write_u32(&mut out[112..116], header.payload_type.into());
    }
    BigEndian::write_u32(&mut out[end..end + 4], length);
}
