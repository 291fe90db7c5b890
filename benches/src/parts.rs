//! Each part's work for one message.

use bytes::Bytes;
use ssm_proto::{Acknowledge, AgentMessage, Header, MessageBuf, MessageType, PayloadType};
use uuid::Uuid;

/// Payload of one message, in bytes, as sent by both official ends.
pub const PAYLOAD: usize = 1024;

/// Number of bytes in front of a payload, including the length field.
pub const HEADER: usize = 120;

const ID: Uuid = Uuid::from_u128(0xdd01_e56b_ff48_483e_a508_b5f0_73f3_1b16);
const DATE: u64 = 1_503_434_274_948;

/// Pseudo-random bytes.
pub fn payload() -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..PAYLOAD).map(|_| rng.u8(..)).collect()
}

/// Encodes a message as the data channel does: copies the payload into a new buffer, adds the digest, and writes the header before
/// the payload.
pub fn encode(payload: &[u8]) -> Bytes {
    let mut buf = MessageBuf::with_limit(PAYLOAD, payload.len());
    buf.put_slice(payload);
    let header = Header {
        sequence_number: 7,
        payload_type: PayloadType::Output,
        ..Header::new(MessageType::InputStreamData, DATE, ID)
    };
    header.seal(buf)
}

/// Encodes an acknowledgement.
pub fn encode_ack() -> Bytes {
    let ack = Acknowledge { message_type: MessageType::OutputStreamData, message_id: ID, sequence_number: 1_234_567 };
    ack.encode(DATE, ID)
}

/// Decodes an acknowledgement and verifies its digest. Returns the number.
pub fn decode_ack(raw: Bytes) -> Option<i64> {
    let message = AgentMessage::decode(raw).ok()?;
    Acknowledge::decode_number(message.payload())
}
