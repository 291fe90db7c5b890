//! The messages that a hostile service sends.

use bytes::Bytes;
use ssm_proto::{Acknowledge, Header, MessageBuf, MessageType, PayloadType, StreamId, publication};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

/// One kind of flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Frames that each open a new stream.
    Syn,
    /// Frames that end streams which do not exist.
    Fin,
    /// Keep-alive frames.
    Nop,
    /// Data frames without data.
    EmptyFrames,
    /// Data frames of one byte, for a stream without a reader: nine bytes each.
    TinyFrames,
    /// The same frames, with each of their bytes in a separate message.
    OneByteMessages,
    /// Data for a stream without a reader.
    Unread,
    /// WebSocket pings.
    Pings,
    /// Messages without a payload.
    EmptyMessages,
    /// Acknowledgements of messages that were never sent.
    Acks,
    /// The same message repeatedly.
    Duplicates,
    /// Messages of one byte that are early, because an earlier message is missing.
    Early,
    /// Early messages of full size.
    EarlyAndFull,
    /// Messages that the agent is disconnected, and connected again.
    Pauses,
    /// Malformed messages.
    Malformed,
}

impl Kind {
    pub(crate) const ALL: [Self; 15] = [
        Self::Syn,
        Self::Fin,
        Self::Nop,
        Self::EmptyFrames,
        Self::TinyFrames,
        Self::OneByteMessages,
        Self::Unread,
        Self::Pings,
        Self::EmptyMessages,
        Self::Acks,
        Self::Duplicates,
        Self::Early,
        Self::EarlyAndFull,
        Self::Pauses,
        Self::Malformed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYN frames",
            Self::Fin => "FIN frames",
            Self::Nop => "NOP frames",
            Self::EmptyFrames => "empty data frames",
            Self::TinyFrames => "9-byte frames, unread",
            Self::OneByteMessages => "1-byte messages, unread",
            Self::Unread => "full messages, unread",
            Self::Pings => "WebSocket pings",
            Self::EmptyMessages => "messages without a payload",
            Self::Acks => "acknowledgements of nothing",
            Self::Duplicates => "duplicates",
            Self::Early => "early messages of 1 byte",
            Self::EarlyAndFull => "early messages of 32 KiB",
            Self::Pauses => "pauses and their ends",
            Self::Malformed => "malformed messages",
        }
    }

    /// Returns the flood's message `count`, from 0. `next` is the agent's next number, `stream` the client's stream.
    pub(crate) fn message(self, count: i64, next: i64, stream: StreamId) -> Message {
        let in_order = |payload: &[u8]| numbered(next + count, payload);
        let number = u32::try_from(count & 0xffff_ffff).unwrap_or(0);
        let frames = |command: u8, data: &[u8]| {
            let ids = (0..FRAMES).map(|frame| number.wrapping_mul(FRAMES).wrapping_add(frame).wrapping_mul(2) + 1);
            ids.flat_map(|id| frame(command, id, data)).collect::<Vec<u8>>()
        };
        let binary = match self {
            Self::Syn => in_order(&frames(0, &[])),
            Self::Fin => in_order(&frames(1, &[])),
            Self::Nop => in_order(&frame(3, 0, &[]).repeat(128)),
            Self::EmptyFrames => in_order(&frame(2, stream.0, &[]).repeat(128)),
            Self::TinyFrames => in_order(&frame(2, stream.0, &[7]).repeat(128)),
            // One frame of the maximum length, whose data arrives byte by byte.
            Self::OneByteMessages if count % 65_536 == 0 => {
                in_order(&[1, 2, 0xff, 0xff, stream.0.to_le_bytes()[0], 0, 0, 0])
            }
            Self::OneByteMessages => in_order(&[7]),
            Self::Unread => in_order(&frame(2, stream.0, &[7; 32 << 10])),
            Self::Pings => return Message::Ping(Bytes::from_static(&[7; 125])),
            Self::EmptyMessages => in_order(&[]),
            Self::Acks => {
                let message_type = MessageType::InputStreamData;
                let ack = Acknowledge { message_type, message_id: Uuid::nil(), sequence_number: 1_000_000 + count };
                ack.encode(1, Uuid::nil())
            }
            Self::Duplicates => numbered(0, &[7; 1024]),
            Self::Early => numbered(next + 1 + count, &[7]),
            Self::EarlyAndFull => numbered(next + 1 + count, &[7; 32 << 10]),
            Self::Pauses => publication(count % 2 == 1, 1, Uuid::nil()),
            Self::Malformed => Bytes::from_static(&[7; 200]),
        };
        Message::Binary(binary)
    }
}

/// Encodes frames in a message.
const FRAMES: u32 = 128;

/// Encodes a frame of smux's version 1.
fn frame(command: u8, stream: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(0).to_le_bytes();
    [&[1, command][..], &length, &stream.to_le_bytes(), data].concat()
}

fn numbered(sequence_number: i64, payload: &[u8]) -> Bytes {
    let header = Header::new(MessageType::OutputStreamData, 1, Uuid::nil());
    Header { sequence_number, payload_type: PayloadType::Output, ..header }.seal(MessageBuf::from(payload))
}
