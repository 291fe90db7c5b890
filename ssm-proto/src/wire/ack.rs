//! The acknowledgement's JSON, without a JSON library on the hot path.

use serde::Deserialize;
use uuid::Uuid;

use super::message::{AgentMessage, Header};
use super::outgoing::MessageBuf;
use super::types::MessageType;

/// SYN and FIN: what both peers set on acknowledgements (DC-4).
const ACK_FLAGS: u64 = 3;

/// "The message with this number arrived": acknowledges exactly one message (DC-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge {
    /// The acknowledged message's type.
    pub message_type: MessageType,
    /// The acknowledged message's id.
    pub message_id: Uuid,
    /// The acknowledged message's number: the only thing that peers match on.
    pub sequence_number: i64,
}

const TYPE: &[u8] = br#"{"AcknowledgedMessageType":""#;
const ID: &[u8] = br#"","AcknowledgedMessageId":""#;
const NUMBER: &[u8] = br#"","AcknowledgedMessageSequenceNumber":"#;
const TAIL: &[u8] = br#","IsSequentialMessage":true}"#;

impl Acknowledge {
    /// The acknowledgement of `message`.
    pub fn of(message: &AgentMessage) -> Self {
        Self {
            message_type: message.message_type(),
            message_id: message.message_id(),
            sequence_number: message.sequence_number(),
        }
    }

    /// The whole message that says it.
    pub fn encode(&self, created_date: u64, message_id: Uuid) -> bytes::Bytes {
        let mut payload = MessageBuf::with_limit(256, 192);
        let mut digits = [0; 20];
        payload.put_slice(TYPE);
        payload.put_slice(self.message_type.name());
        payload.put_slice(ID);
        payload.put_slice(self.message_id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        payload.put_slice(NUMBER);
        payload.put_slice(decimal(self.sequence_number, &mut digits));
        payload.put_slice(TAIL);
        let header = Header { flags: ACK_FLAGS, ..Header::new(MessageType::Acknowledge, created_date, message_id) };
        header.seal(payload)
    }

    /// Reads the payload of an `acknowledge` message. `None` if it is none.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Self::decode_canonical(payload).or_else(|| Self::decode_json(payload))
    }

    /// The one spelling that every known peer writes.
    fn decode_canonical(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(TYPE)?;
        let (name, rest) = rest.split_at_checked(rest.iter().position(|&byte| byte == b'"')?)?;
        let (id, rest) = rest.strip_prefix(ID)?.split_at_checked(36)?;
        let digits = rest.strip_prefix(NUMBER)?.strip_suffix(TAIL)?;
        Some(Self {
            message_type: MessageType::from_name(name)?,
            message_id: Uuid::try_parse_ascii(id).ok()?,
            sequence_number: std::str::from_utf8(digits).ok()?.parse().ok()?,
        })
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

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(rename = "AcknowledgedMessageType", borrow)]
    message_type: std::borrow::Cow<'a, str>,
    #[serde(rename = "AcknowledgedMessageId", borrow)]
    message_id: std::borrow::Cow<'a, str>,
    #[serde(rename = "AcknowledgedMessageSequenceNumber")]
    sequence_number: i64,
}

/// Sequence numbers as text; `write!` costs more than the rest of an acknowledgement.
fn decimal(number: i64, out: &mut [u8; 20]) -> &[u8] {
    let (mut rest, mut at) = (number.unsigned_abs(), out.len());
    loop {
        at -= 1;
        if let (Some(digit), Ok(value)) = (out.get_mut(at), u8::try_from(rest % 10)) {
            *digit = b'0' + value;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        if let Some(sign) = out.get_mut(at) {
            *sign = b'-';
        }
    }
    out.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_rust_writes_them() {
        for number in [0, 1, 9, 10, 1234567890123, i64::MAX, i64::MIN, -1] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn other_spellings_of_the_same_json_are_understood() {
        let text = br#"{ "IsSequentialMessage": true, "AcknowledgedMessageSequenceNumber": 7,
            "AcknowledgedMessageId": "dd01e56b-ff48-483e-a508-b5f073f31b16", "AcknowledgedMessageType": "output_stream_data", "x": 1 }"#;
        let ack = Acknowledge::decode(text).unwrap();
        assert_eq!((ack.sequence_number, ack.message_type), (7, MessageType::OutputStreamData));
        assert_eq!(Acknowledge::decode(b"{}"), None);
        assert_eq!(Acknowledge::decode(b"\xff"), None);
    }
}
