//! smux frames and the byte stream that they form. `docs/protocol.md`, MUX-1 … MUX-4.

use std::fmt;

use byteorder::{ByteOrder, LittleEndian};
use bytes::{Buf, Bytes};

use crate::wire::MessageBuf;

/// Length of a frame's header.
pub(crate) const FRAME_HEADER: usize = 8;
/// The first byte of every frame.
const VERSION: u8 = 1;

/// The number of a stream within a session. Clients use 3, 5, 7 …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Opens a stream.
    Syn,
    /// Ends a stream. The sender forgets the stream when it sends this frame.
    Fin,
    /// Carries data.
    Psh,
    /// Keeps the session alive.
    Nop,
    /// Version 2 only: grants credit.
    Upd,
}

/// A frame, or a part of a data frame whose remainder has not arrived yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The kind of the frame.
    pub kind: FrameKind,
    /// The id of the stream; 0 for [`FrameKind::Nop`].
    pub stream: StreamId,
    /// The data. A data frame may be returned in several parts.
    pub data: Bytes,
}

/// Encodes a frame's header.
pub(super) fn header(kind: FrameKind, stream: StreamId, length: u16) -> [u8; FRAME_HEADER] {
    let command = match kind {
        FrameKind::Syn => 0,
        FrameKind::Fin => 1,
        FrameKind::Psh => 2,
        FrameKind::Nop => 3,
        FrameKind::Upd => 4,
    };
    let [low, high] = length.to_le_bytes();
    let [a, b, c, d] = stream.0.to_le_bytes();
    [VERSION, command, low, high, a, b, c, d]
}

/// Writes frames into messages.
///
/// For an agent, every other message ends with the first byte of the next frame, which is always the same, and the
/// message after it begins without that byte. Therefore a message that the agent processes twice is not a second copy
/// of its frames but a byte stream that is not smux: it ends the session, and no data is delivered twice (MUX-12).
#[derive(Debug)]
pub(super) struct Framer {
    to_agent: bool,
    /// Whether the last message ended with the first byte of the next frame.
    ahead: bool,
}

impl Framer {
    pub(super) fn new(to_agent: bool) -> Self {
        Self { to_agent, ahead: false }
    }

    /// Returns how many more bytes of frames fit into the message.
    pub(super) fn remaining(&self, message: &MessageBuf) -> usize {
        message.remaining().saturating_sub(usize::from(self.to_agent && !self.ahead))
    }

    /// Writes a frame's header. The caller appends the data.
    pub(super) fn put_header(&self, message: &mut MessageBuf, kind: FrameKind, stream: StreamId, length: u16) {
        let mut left_out = usize::from(self.ahead && message.is_empty());
        // A second copy of such a message begins with the frame's command where the version is expected. FIN's command is 1, like
        // the version, so that a second copy would look valid. Therefore a NOP precedes a FIN.
        if left_out > 0 && kind == FrameKind::Fin {
            message.put_slice(header(FrameKind::Nop, StreamId(0), 0).get(left_out..).unwrap_or_default());
            left_out = 0;
        }
        message.put_slice(header(kind, stream, length).get(left_out..).unwrap_or_default());
    }

    /// Ends the message.
    pub(super) fn end(&mut self, message: &mut MessageBuf) {
        if self.to_agent && !message.is_empty() {
            if !self.ahead {
                message.put_slice(&[VERSION]);
            }
            self.ahead = !self.ahead;
        }
    }
}

/// Why a byte stream is not smux. The start of the next frame cannot be found, so the session cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The version byte differs from the version in use.
    #[error("smux version {0} instead of {1}")]
    BadVersion(u8, u8),
    /// The command does not exist in this version.
    #[error("smux command {0} does not exist")]
    BadCommand(u8),
    /// A frame of a kind that has no data has a length other than 0.
    #[error("smux frame of kind {0:?} with {1} bytes of data")]
    UnexpectedData(FrameKind, u16),
}

/// Splits a byte stream into frames. The chunks of the stream may begin and end anywhere. Data is sliced, never copied.
// Invariant: at most one of `header` and `body_left` is in progress, and `chunk` holds the bytes that are not processed yet.
#[derive(Debug)]
pub struct Deframer {
    version: u8,
    chunk: Bytes,
    header: [u8; FRAME_HEADER],
    header_len: usize,
    body: Option<(FrameKind, StreamId)>,
    body_left: usize,
    broken: Option<FrameError>,
}

impl Deframer {
    /// Creates a deframer for this version of smux. Session Manager's data channels use version 1.
    pub fn new(version: u8) -> Self {
        Self {
            version,
            chunk: Bytes::new(),
            header: [0; FRAME_HEADER],
            header_len: 0,
            body: None,
            body_left: 0,
            broken: None,
        }
    }

    /// Adds the next chunk. [`Deframer::next_frame`] must have returned `None` since the last chunk.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "the last chunk was not drained");
        self.chunk = chunk;
    }

    /// Returns whether the bytes so far end between two frames.
    pub fn is_at_boundary(&self) -> bool {
        self.chunk.is_empty() && self.header_len == 0 && self.body.is_none()
    }

    /// Returns whether the bytes so far end inside a frame's data.
    pub fn is_inside_data(&self) -> bool {
        self.body.is_some()
    }

    /// Returns the next frame or part of a frame; `None` if more bytes are needed.
    ///
    /// # Errors
    /// Returns an error if the stream is not smux of this version. The deframer cannot be used any more: every later call returns
    /// the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.broken {
            self.chunk.clear();
            return Err(error);
        }
        loop {
            if let Some((kind, stream)) = self.body {
                return Ok(self.next_piece(kind, stream));
            }
            let Some(header) = self.next_header() else { return Ok(None) };
            let (kind, stream, length) = self.parse(header).inspect_err(|error| {
                self.broken = Some(*error);
                self.chunk.clear();
            })?;
            if length == 0 && kind == FrameKind::Psh {
                continue;
            }
            if length == 0 {
                return Ok(Some(Frame { kind, stream, data: Bytes::new() }));
            }
            self.body = Some((kind, stream));
            self.body_left = usize::from(length);
        }
    }

    fn next_piece(&mut self, kind: FrameKind, stream: StreamId) -> Option<Frame> {
        if self.chunk.is_empty() {
            return None;
        }
        let data = self.chunk.split_to(self.body_left.min(self.chunk.len()));
        self.body_left -= data.len();
        if self.body_left == 0 {
            self.body = None;
        }
        Some(Frame { kind, stream, data })
    }

    fn next_header(&mut self) -> Option<[u8; FRAME_HEADER]> {
        let missing = self.header.get_mut(self.header_len..)?;
        let take = missing.len().min(self.chunk.len());
        self.chunk.copy_to_slice(missing.get_mut(..take)?);
        self.header_len += take;
        if self.header_len < FRAME_HEADER {
            return None;
        }
        self.header_len = 0;
        Some(self.header)
    }

    fn parse(&self, header: [u8; FRAME_HEADER]) -> Result<(FrameKind, StreamId, u16), FrameError> {
        let [version, command, rest @ ..] = header;
        if version != self.version {
            return Err(FrameError::BadVersion(version, self.version));
        }
        let kind = match command {
            0 => FrameKind::Syn,
            1 => FrameKind::Fin,
            2 => FrameKind::Psh,
            3 => FrameKind::Nop,
            4 if self.version == 2 => FrameKind::Upd,
            other => return Err(FrameError::BadCommand(other)),
        };
        let (length, stream) = rest.split_at(2);
        let length = LittleEndian::read_u16(length);
        if length > 0 && !matches!(kind, FrameKind::Psh | FrameKind::Upd) {
            return Err(FrameError::UnexpectedData(kind, length));
        }
        Ok((kind, StreamId(LittleEndian::read_u32(stream)), length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames_of(chunks: &[&[u8]]) -> Vec<(FrameKind, u32, Vec<u8>)> {
        let mut deframer = Deframer::new(1);
        let mut frames: Vec<(FrameKind, u32, Vec<u8>)> = Vec::new();
        let mut continues = false;
        for chunk in chunks {
            deframer.push(Bytes::copy_from_slice(chunk));
            while let Some(frame) = deframer.next_frame().unwrap() {
                match frames.last_mut() {
                    Some(last) if continues => last.2.extend_from_slice(&frame.data),
                    _ => frames.push((frame.kind, frame.stream.0, frame.data.to_vec())),
                }
                continues = deframer.is_inside_data();
            }
        }
        assert!(deframer.is_at_boundary());
        frames
    }

    #[test]
    fn a_broken_stream_stays_broken_whatever_comes() {
        let mut deframer = Deframer::new(1);
        deframer.push(Bytes::from_static(b"SSH-2.0-x and more"));
        let error = deframer.next_frame().unwrap_err();
        deframer.push(Bytes::copy_from_slice(&header(FrameKind::Syn, StreamId(3), 0)));
        assert_eq!(deframer.next_frame(), Err(error));
        assert_eq!(error, FrameError::BadVersion(b'S', 1));
    }

    #[test]
    fn a_stream_means_the_same_wherever_it_is_cut() {
        let mut bytes = Vec::new();
        bytes.extend(header(FrameKind::Syn, StreamId(3), 0));
        bytes.extend(header(FrameKind::Psh, StreamId(3), 5));
        bytes.extend(b"hello");
        bytes.extend(header(FrameKind::Psh, StreamId(3), 0));
        bytes.extend(header(FrameKind::Fin, StreamId(3), 0));
        let whole = frames_of(&[&bytes]);
        assert_eq!(whole.len(), 3);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                assert_eq!(frames_of(&[&bytes[..first], &bytes[first..second], &bytes[second..]]), whole);
            }
        }
    }
}
