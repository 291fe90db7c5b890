//! Reads output without splitting characters, and applies the official agent's filter (SHELL-1).

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ssm_proto::Output;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::super::config::REAL_PAYLOAD;
use super::super::shared::AgentStream;
use crate::Profile;

/// Maximum size of the fast agent's reads in bytes.
const FAST_READ: usize = 32 << 10;
/// Delay of the official agent before it first reads a shell's output.
pub(super) const REAL_DELAY: Duration = Duration::from_secs(1);

/// Sends all data of `source` to the client. Returns at the end of the source, or of the stream.
pub(super) async fn pump(
    source: impl AsyncRead + Unpin,
    stream: &AgentStream,
    output: Output,
    prefix: &str,
    profile: Profile,
) {
    let size = if profile == Profile::Fast { FAST_READ } else { REAL_PAYLOAD - prefix.len() };
    let mut reader = Reader { source, pending: BytesMut::new(), size, profile };
    let mut at_line_start = true;
    while let Some(chunk) = reader.next().await {
        let ends_line = chunk.ends_with(b"\n");
        let chunk =
            if at_line_start && !prefix.is_empty() { [prefix.as_bytes(), &chunk].concat().into() } else { chunk };
        if !stream.write_output(output, chunk).await {
            return;
        }
        at_line_start = ends_line;
    }
}

struct Reader<R> {
    source: R,
    /// The bytes of an incomplete character.
    pending: BytesMut,
    size: usize,
    profile: Profile,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Returns the available data, without an incomplete character at its end. At the end of the output, the fast agent also
    /// returns the incomplete character.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // `read_buf` reads at most the spare capacity, which would otherwise be 64 bytes.
            self.pending.reserve(self.size);
            // A terminal's output ends with the error EIO when the last program on it has ended.
            let read = self.source.read_buf(&mut (&mut self.pending).limit(self.size)).await;
            let is_over = !matches!(read, Ok(1..));
            let chunk = match self.profile {
                Profile::Real if is_over => return None,
                Profile::Real => filter(&mut self.pending),
                Profile::Fast if is_over => self.pending.split().freeze(),
                Profile::Fast => self.pending.split_to(self.pending.len() - incomplete(&self.pending)).freeze(),
            };
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if is_over {
                return None;
            }
        }
    }
}

/// Removes and returns the bytes that the official agent passes on. Bytes that are not part of a character, including U+FFFD, are
/// held back while fewer than four bytes are available. After that, only the first byte of a U+FFFD is passed on. Bytes that are
/// held back at the end of the output are lost.
fn filter(pending: &mut BytesMut) -> Bytes {
    const LONGEST: usize = 4;
    let length = pending.len();
    let mut passed = BytesMut::with_capacity(length);
    let mut at = 0;
    'all: for chunk in pending.utf8_chunks() {
        for character in chunk.valid().chars() {
            let mut encoded = [0; LONGEST];
            let encoded = character.encode_utf8(&mut encoded).as_bytes();
            match encoded {
                [first, ..] if character == char::REPLACEMENT_CHARACTER => {
                    if length - at < LONGEST {
                        break 'all;
                    }
                    passed.put_u8(*first);
                }
                whole => passed.put_slice(whole),
            }
            at += encoded.len();
        }
        for byte in chunk.invalid() {
            if length - at < LONGEST {
                break 'all;
            }
            passed.put_u8(*byte);
            at += 1;
        }
    }
    pending.advance(at);
    passed.freeze()
}

/// Returns the number of bytes at the end that are an incomplete character.
fn incomplete(bytes: &[u8]) -> usize {
    let mut length = 0;
    for byte in bytes.iter().rev().take(3) {
        length += 1;
        let whole = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length < whole { length } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_character_whose_rest_is_missing_is_held_back() {
        for (text, held) in [("", 0), ("abc", 0), ("ä", 0), ("€", 0), ("😀", 0)] {
            assert_eq!(incomplete(text.as_bytes()), held, "{text}");
        }
        for text in ["xä", "x€", "x😀"] {
            for cut in 2..text.len() {
                assert_eq!(incomplete(&text.as_bytes()[..cut]), cut - 1, "{text} {cut}");
            }
        }
        for no_text in [&b"\x80"[..], b"\x80\x80\x80\x80", b"\xff", b"\xc1", b"\xf5\x80", b"a\xff"] {
            assert_eq!(incomplete(no_text), 0, "{no_text:?}");
        }
    }

    #[tokio::test]
    async fn characters_are_whole_wherever_the_reads_cut_them_and_nothing_is_lost() {
        let text = "aä€😀".repeat(50) + "\u{fffd}";
        let bytes = [text.as_bytes(), b"\xf0\x9f"].concat();
        for size in 1..20 {
            let mut reader =
                Reader { source: bytes.as_slice(), pending: BytesMut::new(), size, profile: Profile::Fast };
            let mut chunks = Vec::new();
            while let Some(chunk) = reader.next().await {
                assert!(chunk.len() <= size + 3);
                chunks.push(chunk);
            }
            let (tail, whole) = chunks.split_last().unwrap();
            assert!(whole.iter().all(|chunk| std::str::from_utf8(chunk).is_ok()), "{size}");
            assert_eq!(tail, &b"\xf0\x9f"[..]);
            assert_eq!(chunks.concat(), bytes);
        }
    }

    #[tokio::test]
    async fn the_real_agent_loses_what_the_official_one_does() {
        for (source, passes) in [
            (&b"text \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"[..], &b"text \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"[..]),
            (b"a\xef\xbf\xbdbcd", b"a\xefbcd"),
            (b"a\xef\xbf\xbd", b"a"),
            (b"\xff\xfe\xfd\xfc", b"\xff"),
            (b"\x80abc", b"\x80abc"),
            (b"\x80ab", b""),
            (b"\xed\xa0\x80\xef\x01abc", b"\xed\xa0\x80\xef\x01abc"),
            (b"cut \xe2\x82", b"cut "),
        ] {
            for size in [1024, 3, 1] {
                let mut reader = Reader { source, pending: BytesMut::new(), size, profile: Profile::Real };
                let mut passed = Vec::new();
                while let Some(chunk) = reader.next().await {
                    passed.extend_from_slice(&chunk);
                }
                assert_eq!(passed, passes, "{source:?} {size}");
            }
        }
    }
}
