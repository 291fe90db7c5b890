//! The header, and the zero-copy view of a whole message.

use byteorder::{BigEndian, ByteOrder};
use bytes::Bytes;
use uuid::Uuid;

use super::digest::PayloadDigest;
use super::outgoing::MessageBuf;
use super::types::{HeaderForm, MessageType, Padding, PayloadType};

/// Maximum length of an accepted payload in bytes. The protocol does not define a maximum: the agent accepts payloads up to 1 MB,
/// and a length field must be limited before it is used (WIRE-7).
pub const MAX_PAYLOAD: usize = 1 << 20;

/// A message with correct lengths and a correct digest. A value of this type is always valid.
///
/// The message is a view of the received bytes; nothing is copied.
///
/// ```text
///  0        4             36        40         48        56     64         80             112           116            120
///  ┌────────┬─────────────┬─────────┬──────────┬─────────┬──────┬──────────┬──────────────┬─────────────┬──────────────┬────────
///  │ header │ MessageType │ schema  │ created  │ seq     │flags │ id       │ SHA-256 of   │ PayloadType │ Payload-     │ payload
///  │ length │ 32, padded  │ version │ date ms  │ number  │      │ swapped  │ the payload  │ (not in 112)│ Length       │
///  └────────┴─────────────┴─────────┴──────────┴─────────┴──────┴──────────┴──────────────┴─────────────┴──────────────┴────────
/// ```
#[derive(Clone, Debug)]
pub struct AgentMessage {
    raw: Bytes,
    header: Header,
    digest: PayloadDigest,
}

impl AgentMessage {
    /// Checks one binary WebSocket message and takes ownership of it.
    ///
    /// As in the official client (WIRE-6), the digest and the creation date of `start_publication` and `pause_publication`
    /// are not checked, and neither is the digest of an empty payload. To check every digest, compare
    /// [`payload_digest`](Self::payload_digest) with [`PayloadDigest::of`] the payload.
    ///
    /// # Errors
    /// Returns the first error in the bytes, in the order of the fields.
    pub fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let (header, digest) = Header::decode(&raw)?;
        let payload = raw.get(header.form.header_length() + 4..).unwrap_or_default();
        // The official client skips every check for these two types (WIRE-6).
        let publication = matches!(header.message_type, MessageType::StartPublication | MessageType::PausePublication);
        if header.created_date == 0 && !publication {
            return Err(DecodeError::NoCreatedDate);
        }
        if !payload.is_empty() && !publication && PayloadDigest::of(payload) != digest {
            return Err(DecodeError::BadDigest);
        }
        Ok(Self { raw, header, digest })
    }

    /// Returns the header: everything in front of the payload except the digest and the length.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the message type.
    pub fn message_type(&self) -> MessageType {
        self.header.message_type
    }

    /// Returns the number within the message's direction; 0 in messages that are not numbered.
    pub fn sequence_number(&self) -> i64 {
        self.header.sequence_number
    }

    /// Returns the flags: bit 0 SYN, bit 1 FIN. Neither peer reads them.
    pub fn flags(&self) -> u64 {
        self.header.flags
    }

    /// Returns the message's id. Retransmissions carry the same id.
    pub fn message_id(&self) -> Uuid {
        self.header.message_id
    }

    /// Returns the payload type.
    pub fn payload_type(&self) -> PayloadType {
        self.header.payload_type
    }

    /// Returns the digest as it was received.
    pub fn payload_digest(&self) -> PayloadDigest {
        self.digest
    }

    /// Returns the payload.
    pub fn payload(&self) -> &[u8] {
        self.raw.get(self.payload_offset()..).unwrap_or_default()
    }

    /// Returns the payload and drops the rest of the message.
    pub fn into_payload(self) -> Bytes {
        let offset = self.payload_offset();
        self.raw.slice(offset..)
    }

    /// Copies the message into its own memory, so that the buffer of which it was a slice can be freed.
    pub(crate) fn into_owned(self) -> Self {
        Self { raw: Bytes::copy_from_slice(&self.raw), ..self }
    }

    fn payload_offset(&self) -> usize {
        self.header.form.header_length() + 4
    }
}

/// The fields in front of a payload, except the digest and the length, which follow from the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The form of the header: with or without a payload type.
    pub form: HeaderForm,
    /// The padding of the MessageType field.
    pub padding: Padding,
    /// The message type.
    pub message_type: MessageType,
    /// The schema version, 1.
    pub schema_version: u32,
    /// Milliseconds since the Unix epoch. 0 is invalid, except in `start_publication` and `pause_publication`.
    pub created_date: u64,
    /// The number within the direction; 0 in messages that are not numbered.
    pub sequence_number: i64,
    /// The flags: bit 0 SYN, bit 1 FIN.
    pub flags: u64,
    /// The message's id.
    pub message_id: Uuid,
    /// The payload type; not on the wire in the short form.
    pub payload_type: PayloadType,
}

impl Header {
    /// Creates a header in the form that both peers send.
    pub fn new(message_type: MessageType, created_date: u64, message_id: Uuid) -> Self {
        Self {
            form: HeaderForm::Full,
            padding: Padding::Space,
            message_type,
            schema_version: 1,
            created_date,
            sequence_number: 0,
            flags: 0,
            message_id,
            payload_type: PayloadType::None,
        }
    }

    /// Writes the header, including the digest, in front of the payload and returns the whole message.
    pub fn seal(&self, payload: MessageBuf) -> Bytes {
        let digest = PayloadDigest::of(payload.payload());
        self.seal_with_digest(payload, digest)
    }

    /// Encodes the message like [`Header::seal`], with a digest that may be wrong, for tests and fault injection.
    pub fn seal_with_digest(&self, payload: MessageBuf, digest: PayloadDigest) -> Bytes {
        payload.seal(self, digest)
    }

    fn decode(raw: &[u8]) -> Result<(Self, PayloadDigest), DecodeError> {
        let truncated = |need| move || DecodeError::Truncated { need, have: raw.len() };
        let form = match u32::from_be_bytes(*raw.first_chunk().ok_or_else(truncated(4))?) {
            116 => HeaderForm::Full,
            112 => HeaderForm::Short,
            length => return Err(DecodeError::BadHeaderLength { length }),
        };
        let need = form.header_length() + 4;
        let (head, payload) = raw.split_at_checked(need).ok_or_else(truncated(need))?;
        let (front, rest) = head.split_first_chunk::<112>().ok_or_else(truncated(need))?;
        let (payload_type, field) = rest.split_at(rest.len() - 4);
        let payload_type = match form {
            HeaderForm::Full => BigEndian::read_u32(payload_type).into(),
            HeaderForm::Short => PayloadType::None,
        };
        let field = BigEndian::read_u32(field);
        let length = usize::try_from(field).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(DecodeError::PayloadTooLarge { length: field });
        }
        if payload.len() != length {
            return Err(DecodeError::PayloadLengthMismatch { field: length, have: payload.len() });
        }
        let (mut name, mut digest) = ([0; 32], [0; 32]);
        name.copy_from_slice(&front[4..36]);
        digest.copy_from_slice(&front[80..112]);
        let (message_type, padding) = MessageType::from_field(&name).ok_or(DecodeError::NoMessageType)?;
        let header = Self {
            form,
            padding,
            message_type,
            schema_version: BigEndian::read_u32(&front[36..40]),
            created_date: BigEndian::read_u64(&front[40..48]),
            sequence_number: BigEndian::read_i64(&front[48..56]),
            flags: BigEndian::read_u64(&front[56..64]),
            // The id's halves are swapped on the wire (WIRE-5).
            message_id: Uuid::from_u128(BigEndian::read_u128(&front[64..80]).rotate_left(64)),
            payload_type,
        };
        Ok((header, PayloadDigest(digest)))
    }
}

/// The reason why bytes are not a message. The message is dropped and not acknowledged; the session continues (WIRE-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message is shorter than its header.
    #[error("message is truncated: needs {need} bytes, has {have}")]
    Truncated {
        /// Number of bytes that the next field needs.
        need: usize,
        /// Number of bytes that are present.
        have: usize,
    },
    /// HeaderLength is neither 112 nor 116.
    #[error("header length {length} is neither 112 nor 116")]
    BadHeaderLength {
        /// The field's value.
        length: u32,
    },
    /// PayloadLength is greater than [`MAX_PAYLOAD`].
    #[error("payload length {length} is over the limit of {MAX_PAYLOAD}")]
    PayloadTooLarge {
        /// The field's value.
        length: u32,
    },
    /// PayloadLength differs from the number of bytes that follow.
    #[error("payload length field is {field}, but the message has {have} bytes of payload")]
    PayloadLengthMismatch {
        /// The field's value.
        field: usize,
        /// Number of bytes that are present.
        have: usize,
    },
    /// The MessageType field contains only padding.
    #[error("message has no type")]
    NoMessageType,
    /// CreatedDate is 0 in a message in which it is checked; see [`AgentMessage::decode`].
    #[error("message has no creation date")]
    NoCreatedDate,
    /// The digest does not match the payload, in a message in which it is checked; see [`AgentMessage::decode`].
    #[error("payload does not match its digest")]
    BadDigest,
}
