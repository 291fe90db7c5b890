//! The acknowledgement's JSON, encoded and decoded without a JSON library, because this is the hot path.

use serde::Deserialize;
use uuid::Uuid;

use super::message::{AgentMessage, Header};
use super::outgoing::MessageBuf;
use super::types::MessageType;

/// The flags SYN and FIN, which both peers set on acknowledgements (DC-4).
const ACK_FLAGS: u64 = 3;

/// An acknowledgement of exactly one message (DC-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge {
    /// The type of the acknowledged message.
    pub message_type: MessageType,
    /// The id of the acknowledged message.
    pub message_id: Uuid,
    /// The number of the acknowledged message, the only field that peers compare.
    pub sequence_number: i64,
}

const TYPE: &[u8; 28] = br#"{"AcknowledgedMessageType":""#;
const ID: &[u8; 27] = br#"","AcknowledgedMessageId":""#;
const NUMBER: &[u8; 38] = br#"","AcknowledgedMessageSequenceNumber":"#;
const TAIL: &[u8; 28] = br#","IsSequentialMessage":true}"#;

impl Acknowledge {
    /// Creates the acknowledgement of `message`.
    pub fn of(message: &AgentMessage) -> Self {
        Self {
            message_type: message.message_type(),
            message_id: message.message_id(),
            sequence_number: message.sequence_number(),
        }
    }

    /// Encodes the whole message.
    pub fn encode(&self, created_date: u64, message_id: Uuid) -> bytes::Bytes {
        let (mut id, mut number) = (Uuid::encode_buffer(), itoa::Buffer::new());
        let id = self.message_id.hyphenated().encode_lower(&mut id);
        let number = number.format(self.sequence_number);
        let parts: [&[u8]; 7] = [TYPE, self.message_type.name(), ID, id.as_bytes(), NUMBER, number.as_bytes(), TAIL];
        let length = parts.iter().map(|part| part.len()).sum();
        let mut payload = MessageBuf::with_limit(length, length);
        parts.iter().for_each(|part| payload.put_slice(part));
        let header = Header { flags: ACK_FLAGS, ..Header::new(MessageType::Acknowledge, created_date, message_id) };
        header.seal(payload)
    }

    /// Decodes the payload of an `acknowledge` message. Returns `None` if the payload is not an acknowledgement.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Self::decode_canonical(payload).or_else(|| Self::decode_json(payload))
    }

    /// Decodes only the number, because peers compare no other field (DC-4). This is the hot path. The id is not checked.
    pub fn decode_number(payload: &[u8]) -> Option<i64> {
        let number = canonical(payload).and_then(|(_, _, digits)| decimal(digits));
        number.or_else(|| Self::decode_json(payload).map(|ack| ack.sequence_number))
    }

    fn decode_canonical(payload: &[u8]) -> Option<Self> {
        let (message_type, id, digits) = canonical(payload)?;
        Some(Self { message_type, message_id: Uuid::try_parse_ascii(id).ok()?, sequence_number: decimal(digits)? })
    }

    fn decode_json(payload: &[u8]) -> Option<Self> {
        let body: Body<'_> = serde_json::from_slice(payload).ok()?;
        Some(Self {
            message_type: MessageType::from_name(body.message_type.as_bytes())?,
            message_id: Uuid::try_parse(&body.message_id).unwrap_or_default(),
            sequence_number: body.sequence_number,
        })
    }
}

/// Returns type, id and digits if the payload has the exact form that every known peer writes, for one of the two types that peers
/// acknowledge. Comparing pieces of constant length needs no function call.
fn canonical(payload: &[u8]) -> Option<(MessageType, &[u8; 36], &[u8])> {
    let rest = strip(payload, TYPE)?;
    let (message_type, rest) = match (strip(rest, b"input_stream_data"), strip(rest, b"output_stream_data")) {
        (Some(rest), _) => (MessageType::InputStreamData, rest),
        (_, Some(rest)) => (MessageType::OutputStreamData, rest),
        _ => return None,
    };
    let (id, rest) = strip(rest, ID)?.split_first_chunk()?;
    let (digits, tail) = strip(rest, NUMBER)?.split_last_chunk()?;
    (tail == TAIL).then_some((message_type, id, digits))
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(rename = "AcknowledgedMessageType", borrow)]
    message_type: std::borrow::Cow<'a, str>,
    #[serde(rename = "AcknowledgedMessageId", borrow)]
    message_id: std::borrow::Cow<'a, str>,
    #[serde(rename = "AcknowledgedMessageSequenceNumber")]
    sequence_number: i64,
}

fn strip<'a, const N: usize>(text: &'a [u8], prefix: &[u8; N]) -> Option<&'a [u8]> {
    text.split_first_chunk().and_then(|(start, rest)| (start == prefix).then_some(rest))
}

/// Parses up to 18 digits, which always fit into an `i64`.
fn decimal(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_as_it_was_written() {
        for sequence_number in [0, 1, 9, 10, 1234567890123, 999999999999999999, i64::MAX, i64::MIN, -1] {
            let ack = Acknowledge {
                message_type: MessageType::OutputStreamData,
                message_id: Uuid::from_u128(7),
                sequence_number,
            };
            let message = AgentMessage::decode(ack.encode(1, Uuid::nil())).unwrap();
            assert!(
                message.payload().ends_with(format!(":{sequence_number},\"IsSequentialMessage\":true}}").as_bytes())
            );
            assert_eq!(Acknowledge::decode(message.payload()), Some(ack));
            assert_eq!(Acknowledge::decode_number(message.payload()), Some(sequence_number));
        }
    }

    #[test]
    fn other_spellings_of_the_same_json_are_understood() {
        let text = br#"{ "IsSequentialMessage": true, "AcknowledgedMessageSequenceNumber": 7,
            "AcknowledgedMessageId": "dd01e56b-ff48-483e-a508-b5f073f31b16", "AcknowledgedMessageType": "output_stream_data", "x": 1 }"#;
        let ack = Acknowledge::decode(text).unwrap();
        assert_eq!((ack.sequence_number, ack.message_type), (7, MessageType::OutputStreamData));
        assert_eq!(Acknowledge::decode_number(text), Some(7));
        for none in [&b"{}"[..], b"\xff", b""] {
            assert_eq!((Acknowledge::decode(none), Acknowledge::decode_number(none)), (None, None));
        }
    }
}
