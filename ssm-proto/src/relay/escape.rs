//! Encodes the bytes of a feed for transport as the output of a command. The agent's filter (SHELL-1) damages the sequence EF BF BD
//! and holds back up to three bytes that are an incomplete character. Therefore EF never precedes BF in the encoded bytes, and each
//! piece ends with padding that the filter may hold back (RELAY-22).

/// The first byte of every code.
const LEAD: u8 = 0xef;
/// The second byte of the code for the byte EF itself.
const LITERAL: u8 = 1;
/// The second byte of the code for padding.
const PADDING: u8 = 2;
/// The rest of the padding after its code. Because of these bytes, no earlier byte is among the last three, which the filter may
/// hold back.
const REST: [u8; 3] = *b"...";

/// Appends the escaped form of a piece, with padding, to `out`.
pub fn escape_feed(piece: &[u8], out: &mut Vec<u8>) {
    let mut parts = piece.split(|byte| *byte == LEAD);
    out.extend_from_slice(parts.next().unwrap_or_default());
    for part in parts {
        out.extend_from_slice(&[LEAD, LITERAL]);
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&[LEAD, PADDING]);
    out.extend_from_slice(&REST);
}

/// The bytes are not the output of [`escape_feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedError;

impl std::fmt::Display for FeedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the output of the feed was changed in transit")
    }
}

impl std::error::Error for FeedError {}

/// Decodes the output of [`escape_feed`], which may arrive in pieces of any size.
#[derive(Debug, Default)]
pub struct FeedDecoder {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Plain,
    /// After the first byte of a code.
    Lead,
    /// In padding, of which this many bytes have been read.
    Padding(usize),
}

impl FeedDecoder {
    /// Appends the decoded bytes to `out`.
    ///
    /// # Errors
    /// Returns an error if the bytes were changed in transit. The bytes appended before the error are correct.
    pub fn decode(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), FeedError> {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.state {
                State::Plain => {
                    let length = bytes.iter().position(|byte| *byte == LEAD).unwrap_or(bytes.len());
                    let (plain, rest) = bytes.split_at(length);
                    out.extend_from_slice(plain);
                    if let Some((_, rest)) = rest.split_first() {
                        self.state = State::Lead;
                        bytes = rest;
                    } else {
                        bytes = rest;
                    }
                    continue;
                }
                State::Lead => {
                    self.state = match first {
                        LITERAL => {
                            out.push(LEAD);
                            State::Plain
                        }
                        PADDING => State::Padding(0),
                        _ => return Err(FeedError),
                    }
                }
                State::Padding(read) if REST.get(read) != Some(&first) => return Err(FeedError),
                State::Padding(read) => {
                    self.state = if read + 1 == REST.len() { State::Plain } else { State::Padding(read + 1) }
                }
            }
            bytes = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| escape_feed(piece, &mut out));
        out
    }

    #[test]
    fn any_bytes_come_back_wherever_they_are_cut_and_none_look_like_the_filters_own() {
        let pieces: [&[u8]; 5] = [b"\xef\xbf\xbd\xef", b"\xbf\xbd", b"", b"\xef\xef\x01\xef\x02...", b"text \xe2\x82"];
        let wire = escaped(&pieces);
        assert!(!wire.windows(2).any(|pair| pair == b"\xef\xbf"));
        for size in 1..=wire.len() {
            let (mut decoder, mut out) = (FeedDecoder::default(), Vec::new());
            wire.chunks(size).for_each(|bytes| decoder.decode(bytes, &mut out).unwrap());
            assert_eq!(out, pieces.concat(), "{size}");
        }
    }

    #[test]
    fn the_last_bytes_of_a_piece_are_before_those_that_the_filter_may_hold_back() {
        const HELD: usize = 3;
        for piece in [b"a\xef".as_slice(), b"\xf0\x9f\x98", b"\x80", b"plain"] {
            let wire = escaped(&[piece]);
            let mut out = Vec::new();
            FeedDecoder::default().decode(&wire[..wire.len() - HELD], &mut out).unwrap();
            assert_eq!(out, piece);
        }
    }

    #[test]
    fn what_was_changed_is_an_error_and_never_other_bytes() {
        let wire = escaped(&[b"one\xeftwo"]);
        for changed in [b"\xef\xbf".as_slice(), b"\xef\x00", b"\xef\x02..x", b"\xef\xef"] {
            let mut out = Vec::new();
            let mut decoder = FeedDecoder::default();
            decoder.decode(&wire, &mut out).unwrap();
            assert_eq!(decoder.decode(changed, &mut out), Err(FeedError));
            assert_eq!(out, b"one\xeftwo");
        }
    }
}
