//! The parts of a message that the service examines.

use bytes::{Bytes, BytesMut};
use ssm_proto::{MessageType, PayloadDigest, PayloadType};

/// Position of the sequence number in a header.
pub(crate) const SEQUENCE_NUMBER: std::ops::Range<usize> = 48..56;

/// Returns the type in a message's header. The rest of the message is not checked.
pub(crate) fn message_type(message: &[u8]) -> Option<MessageType> {
    let field = message.get(4..36)?;
    let end = field.iter().rposition(|byte| !matches!(byte, 0 | b' '))?;
    let start = field.iter().position(|byte| !matches!(byte, 0 | b' '))?;
    MessageType::from_name(field.get(start..=end)?)
}

/// Returns whether the message carries session data, in either direction.
pub(crate) fn is_data(message: &[u8]) -> bool {
    let payload_type = message.get(112..116).and_then(|field| field.try_into().ok()).map(u32::from_be_bytes);
    payload_type == Some(PayloadType::Output.into())
        && matches!(message_type(message), Some(MessageType::InputStreamData | MessageType::OutputStreamData))
}

/// Returns the sequence number in a message's header.
pub(crate) fn sequence_number(message: &[u8]) -> Option<i64> {
    message.get(SEQUENCE_NUMBER)?.try_into().ok().map(i64::from_be_bytes)
}

/// Returns a message in the full header form, with the correct digest of its payload.
pub(crate) fn with_right_digest(message: &[u8]) -> Bytes {
    let digest = PayloadDigest::of(message.get(120..).unwrap_or_default());
    let mut mended = BytesMut::from(message);
    if let Some(field) = mended.get_mut(80..112) {
        field.copy_from_slice(&digest.0);
    }
    mended.freeze()
}

#[cfg(test)]
mod tests {
    use ssm_proto::{ChannelClosed, Header, MessageBuf};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn types_are_read_whatever_the_padding() {
        let mut header = Header::new(MessageType::InputStreamData, 1, Uuid::nil());
        header.payload_type = PayloadType::Output;
        let data = header.seal(MessageBuf::from(b"x".as_slice()));
        assert_eq!(message_type(&data), Some(MessageType::InputStreamData));
        assert!(is_data(&data));
        header.payload_type = PayloadType::Flag;
        assert!(!is_data(&header.seal(MessageBuf::from(b"x".as_slice()))));
        let closed = ChannelClosed::encode("s", "t", "", 1, Uuid::nil());
        assert_eq!(message_type(&closed), Some(MessageType::ChannelClosed));
        for bad in [&b""[..], &[0; 20], &[0; 200], &[b' '; 200]] {
            assert_eq!(message_type(bad), None);
        }
    }
}
