//! Fuzz targets of the decoders of single messages and of the multiplexer's frames.

use bytes::Bytes;
use uuid::Uuid;

use crate::{Acknowledge, AgentMessage, ChannelClosed, Deframer, MessageBuf, MessageType, OpenDataChannel, PortFlag};

/// Any bytes decode to a message or to an error. A decoded message encodes to the same bytes again. Both decoders of an
/// acknowledgement return the same number.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn decode_message(data: &[u8]) {
    let Ok(message) = AgentMessage::decode(Bytes::copy_from_slice(data)) else { return };
    if message.message_type() == MessageType::Acknowledge {
        acknowledge(message.payload());
    }
    let again = message.header().seal_with_digest(MessageBuf::from(message.payload()), message.payload_digest());
    let twice = AgentMessage::decode(again).expect("an encoded message can be decoded");
    assert_eq!(twice.header(), message.header());
    assert_eq!(twice.payload(), message.payload());
}

/// Any payload either is an acknowledgement or is not. Both decoders return the same number, and an acknowledgement that is encoded
/// and decoded again is the same.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn acknowledge(data: &[u8]) {
    let Some(ack) = Acknowledge::decode(data) else { return };
    assert_eq!(Acknowledge::decode_number(data), Some(ack.sequence_number));
    // Only stream data is acknowledged.
    if !matches!(ack.message_type, MessageType::InputStreamData | MessageType::OutputStreamData) {
        return;
    }
    let Ok(again) = AgentMessage::decode(ack.encode(1, Uuid::nil())) else {
        panic!("an encoded message can be decoded")
    };
    let again = Acknowledge::decode(again.payload()).expect("an encoded acknowledgement can be decoded");
    assert_eq!(again.sequence_number, ack.sequence_number);
}

/// The bodies that the service sends, the frame that opens a data channel, and flags: any bytes decode or are an error. The length
/// of texts for users is limited, and no error contains the token.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn control_message(data: &[u8]) {
    let closed = ChannelClosed::decode(data);
    assert!(closed.output.len() <= data.len().max(4 << 10), "a text is longer than its input");
    if let Some(flag) = PortFlag::decode(data) {
        assert_eq!(flag.encode(), data);
    }
    let Ok(text) = str::from_utf8(data) else { return };
    match OpenDataChannel::from_json(text) {
        Ok(open) => {
            let again = OpenDataChannel::from_json(&open.to_json()).expect("an encoded message can be decoded");
            assert!(again == open);
            let token = open.token_value.expose();
            assert!(token.len() < 8 || !format!("{open:?}").contains(token));
        }
        Err(why) => assert!(why.len() < 100, "the error quotes the input: {why}"),
    }
}

/// Any bytes, split at any positions, result in frames or an error. The frames never contain more data than the input.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn deframe(data: &[u8]) {
    let mut deframer = Deframer::new(1);
    let cut = data.first().map_or(1, |byte| usize::from(*byte) + 1);
    let mut out = 0;
    for chunk in data.chunks(cut) {
        deframer.push(Bytes::copy_from_slice(chunk));
        loop {
            match deframer.next_frame() {
                Ok(Some(frame)) => out += frame.data.len(),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(out <= data.len());
}
