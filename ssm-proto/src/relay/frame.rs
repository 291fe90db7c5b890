//! The frames of a pipe. The length of each frame is checked before its body is stored (RELAY-4).

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::numbers::Numbers;
use super::{ConnectionId, Destination, FeedId, Refusal, RefusalKind, ResetReason};

/// Length of a frame's header: kind, length of the body, number.
pub(super) const HEADER: usize = 11;
/// Maximum number of a connection's bytes in one frame.
pub(super) const MAX_DATA: usize = 16 << 10;
/// Length of the longest body: data with its connection and offset.
const MAX_BODY: usize = MAX_DATA + 12;
/// Length of the longest host name in DNS.
const MAX_HOST: usize = 255;
/// Maximum length of a refusal's text in bytes.
const MAX_TEXT: usize = 512;
/// Maximum length of a set of numbers in bytes: one bit for each number that may arrive (RELAY-6).
const MAX_NUMBERS: usize = 8 << 10;

const OPEN: u8 = 1;
const OPENED: u8 = 2;
const REFUSED: u8 = 3;
const DATA: u8 = 4;
const FIN: u8 = 5;
const CREDIT: u8 = 6;
const RESET: u8 = 7;
const ACK: u8 = 8;
const BYE: u8 = 9;
const HAVE: u8 = 10;
const FEED_ACK: u8 = 11;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The client requests a connection.
    Open { id: ConnectionId, to: Destination },
    /// The relay has connected.
    Opened { id: ConnectionId },
    /// The relay could not connect.
    Refused { id: ConnectionId, why: Refusal },
    /// Bytes of a connection, which start at this offset.
    Data { id: ConnectionId, offset: u64, data: Bytes },
    /// The sender's direction ends at this offset.
    Fin { id: ConnectionId, offset: u64 },
    /// The sender of this frame accepts bytes up to this offset.
    Credit { id: ConnectionId, limit: u64 },
    /// The connection has ended in both directions.
    Reset { id: ConnectionId, reason: ResetReason },
    /// `position` bytes of numbered frames have arrived over this pipe, the last of them `held` microseconds ago.
    Ack { position: u64, held: u32 },
    /// The sender has ended all connections and will not open another pipe.
    Bye,
    /// The numbers of the frames that have arrived over any pipe.
    Have(Numbers),
    /// Like `Ack`, for a feed, because a feed cannot carry acknowledgements itself.
    FeedAck { feed: FeedId, position: u64, held: u32 },
}

impl Frame {
    /// Returns whether the frame is handled only once, even if it arrives over several pipes (RELAY-6).
    pub(super) fn is_numbered(&self) -> bool {
        !matches!(self, Self::Ack { .. } | Self::FeedAck { .. } | Self::Bye | Self::Have(_))
    }

    /// Encodes the frame.
    pub(super) fn encode(&self, number: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER + 64);
        out.put_bytes(0, HEADER);
        let kind = self.put_body(&mut out);
        finish(out, kind, number)
    }

    fn put_body(&self, out: &mut BytesMut) -> u8 {
        match self {
            Self::Open { id, to } => {
                out.put_u32(id.0);
                out.put_u16(to.port);
                out.put_slice(to.host.as_bytes());
                OPEN
            }
            Self::Opened { id } => {
                out.put_u32(id.0);
                OPENED
            }
            Self::Refused { id, why } => {
                out.put_u32(id.0);
                out.put_u8(why.kind as u8);
                out.put_slice(cut(&why.text, MAX_TEXT).as_bytes());
                REFUSED
            }
            Self::Data { id, offset, data } => {
                out.put_u32(id.0);
                out.put_u64(*offset);
                out.put_slice(data);
                DATA
            }
            Self::Fin { id, offset } => {
                out.put_u32(id.0);
                out.put_u64(*offset);
                FIN
            }
            Self::Credit { id, limit } => {
                out.put_u32(id.0);
                out.put_u64(*limit);
                CREDIT
            }
            Self::Reset { id, reason } => {
                out.put_u32(id.0);
                out.put_u8(*reason as u8);
                RESET
            }
            Self::Ack { position, held } => {
                out.put_u64(*position);
                out.put_u32(*held);
                ACK
            }
            Self::Bye => BYE,
            Self::Have(Numbers { floor, above }) => {
                out.put_u64(*floor);
                out.put_slice(above);
                HAVE
            }
            Self::FeedAck { feed, position, held } => {
                out.put_slice(&feed.0);
                out.put_u64(*position);
                out.put_u32(*held);
                FEED_ACK
            }
        }
    }
}

/// Begins a DATA frame. The caller appends the bytes and calls [`finish_data`].
pub(super) fn begin_data(id: ConnectionId, offset: u64, capacity: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER + 12 + capacity);
    out.put_bytes(0, HEADER);
    out.put_u32(id.0);
    out.put_u64(offset);
    out
}

/// Finishes a frame that [`begin_data`] began.
pub(super) fn finish_data(out: BytesMut, number: u64) -> Bytes {
    finish(out, DATA, number)
}

fn finish(mut out: BytesMut, kind: u8, number: u64) -> Bytes {
    let length = u16::try_from(out.len() - HEADER).unwrap_or(u16::MAX);
    let mut header = out.as_mut();
    header.put_u8(kind);
    header.put_u16(length);
    header.put_u64(number);
    out.freeze()
}

/// Returns the beginning of a text, at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// The reason why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayFrameError {
    /// The frame's kind does not exist.
    Kind(u8),
    /// The kind does not allow this length of the body.
    Length(u8, usize),
    /// A field of the body has an invalid value.
    Field(u8),
}

impl std::fmt::Display for RelayFrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a frame of the unknown kind {kind}"),
            Self::Length(kind, length) => write!(f, "a frame of kind {kind} with {length} bytes"),
            Self::Field(kind) => write!(f, "a frame of kind {kind} with an invalid field"),
        }
    }
}

impl std::error::Error for RelayFrameError {}

/// Finds the frames in a pipe's bytes, which may arrive in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    buffer: BytesMut,
}

impl Deframer {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete frame, its number and its length on the pipe.
    pub(super) fn next_frame(&mut self) -> Result<Option<(Frame, u64, usize)>, RelayFrameError> {
        let Some(mut header) = self.buffer.get(..HEADER) else { return Ok(None) };
        let (kind, length, number) = (header.get_u8(), usize::from(header.get_u16()), header.get_u64());
        if !lengths(kind)?.contains(&length) {
            return Err(RelayFrameError::Length(kind, length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let whole = self.buffer.split_to(HEADER + length);
        let frame = decode(kind, whole.get(HEADER..).unwrap_or_default())?;
        Ok(Some((frame, number, HEADER + length)))
    }
}

/// Returns the permitted lengths of the body of a frame of this kind.
fn lengths(kind: u8) -> Result<RangeInclusive<usize>, RelayFrameError> {
    Ok(match kind {
        OPEN => 7..=6 + MAX_HOST,
        OPENED => 4..=4,
        REFUSED => 5..=5 + MAX_TEXT,
        DATA => 13..=MAX_BODY,
        FIN | CREDIT | ACK => 12..=12,
        RESET => 5..=5,
        BYE => 0..=0,
        HAVE => 8..=8 + MAX_NUMBERS,
        FEED_ACK => 28..=28,
        _ => return Err(RelayFrameError::Kind(kind)),
    })
}

/// Decodes a body whose length was checked.
fn decode(kind: u8, mut body: &[u8]) -> Result<Frame, RelayFrameError> {
    let wrong = RelayFrameError::Field(kind);
    if kind == BYE {
        return Ok(Frame::Bye);
    }
    if kind == ACK {
        return Ok(Frame::Ack { position: body.get_u64(), held: body.get_u32() });
    }
    if kind == HAVE {
        return Ok(Frame::Have(Numbers { floor: body.get_u64(), above: Bytes::copy_from_slice(body) }));
    }
    if kind == FEED_ACK {
        let mut feed = FeedId([0; 16]);
        body.copy_to_slice(&mut feed.0);
        return Ok(Frame::FeedAck { feed, position: body.get_u64(), held: body.get_u32() });
    }
    let id = ConnectionId(body.get_u32());
    Ok(match kind {
        OPEN => {
            let port = body.get_u16();
            let host = std::str::from_utf8(body).map_err(|_| wrong)?;
            Frame::Open { id, to: Destination::new(host, port).ok_or(wrong)? }
        }
        OPENED => Frame::Opened { id },
        REFUSED => {
            let kind = RefusalKind::from_code(body.get_u8());
            Frame::Refused { id, why: Refusal { kind, text: String::from_utf8_lossy(body).into_owned() } }
        }
        // The data is copied, so that unread data does not keep a larger buffer alive.
        DATA => Frame::Data { id, offset: body.get_u64(), data: Bytes::copy_from_slice(body) },
        FIN => Frame::Fin { id, offset: body.get_u64() },
        CREDIT => Frame::Credit { id, limit: body.get_u64() },
        _ => Frame::Reset { id, reason: ResetReason::from_code(body.get_u8()) },
    })
}

impl Destination {
    /// Creates a destination from a host, which is a name or an address, and a port. Returns `None` if the host is empty, is longer
    /// than a DNS name, or contains characters that neither names nor addresses contain, or if the port is 0.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'%');
        let is_host = (1..=MAX_HOST).contains(&host.len()) && host.bytes().all(is_fit);
        (is_host && port != 0).then(|| Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let id = ConnectionId(7);
        vec![
            Frame::Open { id, to: Destination::new("db.internal", 3306).unwrap() },
            Frame::Opened { id },
            Frame::Refused { id, why: Refusal { kind: RefusalKind::Refused, text: "connection refused".into() } },
            Frame::Data { id, offset: 1 << 40, data: Bytes::from_static(b"x") },
            Frame::Fin { id, offset: 5 },
            Frame::Credit { id, limit: u64::MAX },
            Frame::Reset { id, reason: ResetReason::Reset },
            Frame::Ack { position: 9, held: 3 },
            Frame::Bye,
            Frame::Have(Numbers { floor: 7, above: Bytes::from_static(&[0x40, 1]) }),
            Frame::FeedAck { feed: FeedId([3; 16]), position: 9, held: 3 },
        ]
    }

    #[test]
    fn every_frame_is_read_as_it_was_written_wherever_it_is_cut() {
        let wire: Vec<u8> = frames().iter().enumerate().flat_map(|(at, frame)| frame.encode(at as u64)).collect();
        for piece in [1, 2, 7, 1000] {
            let mut deframer = Deframer::default();
            let mut read = Vec::new();
            for bytes in wire.chunks(piece) {
                deframer.push(bytes);
                while let Some((frame, number, _)) = deframer.next_frame().unwrap() {
                    assert_eq!(number, read.len() as u64);
                    read.push(frame);
                }
            }
            assert_eq!(read, frames());
        }
    }

    #[test]
    fn lengths_are_checked_before_the_body_is_there() {
        for (header, wanted) in [
            (vec![200, 0, 0], RelayFrameError::Kind(200)),
            (vec![DATA, 0xff, 0xff], RelayFrameError::Length(DATA, 0xffff)),
            (vec![OPENED, 0, 3], RelayFrameError::Length(OPENED, 3)),
            (vec![OPENED, 0x40, 0], RelayFrameError::Length(OPENED, 0x4000)),
            (vec![OPEN, 2, 0], RelayFrameError::Length(OPEN, 0x200)),
            (vec![BYE, 0, 1], RelayFrameError::Length(BYE, 1)),
            (vec![HAVE, 0, 7], RelayFrameError::Length(HAVE, 7)),
            (vec![HAVE, 0x20, 9], RelayFrameError::Length(HAVE, 0x2009)),
            (vec![FEED_ACK, 0, 12], RelayFrameError::Length(FEED_ACK, 12)),
            (vec![DATA, 0, 12], RelayFrameError::Length(DATA, 12)),
        ] {
            let mut deframer = Deframer::default();
            deframer.push(&header);
            assert_eq!(deframer.next_frame(), Ok(None));
            deframer.push(&[0; HEADER - 3]);
            assert_eq!(deframer.next_frame(), Err(wanted), "{header:?}");
        }
    }

    #[test]
    fn hosts_and_texts_are_bounded() {
        assert!(Destination::new("", 1).is_none() && Destination::new("a", 0).is_none());
        assert!(Destination::new("a b", 1).is_none() && Destination::new(&"a".repeat(256), 1).is_none());
        assert!(Destination::new("fe80::1%eth0", 1).is_some());
        assert_eq!(cut("aéé", 4), "aé");
    }
}
