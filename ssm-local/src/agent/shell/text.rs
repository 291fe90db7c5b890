//! Reading output so that no character is cut (SHELL-1).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use ssm_proto::Output;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::super::config::REAL_PAYLOAD;
use super::super::shared::Stream;
use crate::Profile;

/// The fast agent reads so much at a time.
const FAST_READ: usize = 32 << 10;
/// The official agent leaves a shell so long before it first reads from it.
pub(super) const REAL_DELAY: Duration = Duration::from_secs(1);

/// Sends all of `source` to the client; ends with the source, or with the stream.
pub(super) async fn pump(
    source: impl AsyncRead + Unpin,
    stream: &Stream,
    output: Output,
    prefix: &str,
    profile: Profile,
) {
    let mut reader = Reader {
        source,
        pending: BytesMut::new(),
        size: if profile == Profile::Fast { FAST_READ } else { REAL_PAYLOAD - prefix.len() },
    };
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
    /// An incomplete character.
    pending: BytesMut,
    size: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// What there is to read, but for a character that is not complete. At the end it is given as it is; the official agent
    /// loses it.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // A terminal's end is an error, EIO, where its last program is gone.
            let read = self.source.read_buf(&mut (&mut self.pending).limit(self.size)).await;
            let length = match read {
                Ok(0) | Err(_) => self.pending.len(),
                Ok(_) => self.pending.len() - incomplete(&self.pending),
            };
            if length > 0 {
                return Some(self.pending.split_to(length).freeze());
            }
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }
}

/// How many bytes at the end are the beginning of a character whose rest is missing.
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
            let mut reader = Reader { source: bytes.as_slice(), pending: BytesMut::new(), size };
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
}
