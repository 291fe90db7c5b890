//! The program of a command session that brings data from the relay to the client: it copies a connection to the relay to its
//! standard output, in a form that the agent passes on unchanged (RELAY-20).
//!
//! It does not know the secret, and needs no permission: the relay sends nothing but its greeting until the client has said over
//! an ordinary pipe that the greeting has arrived.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd as _;

use ssm_proto::relay::{escape_feed, feed_answer};

use crate::Outcome;

/// Maximum number of bytes per read.
const READ: usize = 64 << 10;

/// Copies until the relay or the reader ends.
pub(crate) fn run(port: &str, nonce: &str) -> Outcome<()> {
    let nonce = parse_nonce(nonce).ok_or("the nonce has another form")?;
    let mut relay = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?))?;
    relay.write_all(&feed_answer(nonce))?;
    // Not the standard library's: it would keep the end of each piece until the next one.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    Ok(copy(relay, output)?)
}

/// From 32 hexadecimal digits.
fn parse_nonce(text: &str) -> Option<[u8; 16]> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(u128::to_be_bytes)
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let (mut piece, mut escaped) = (vec![0; READ], Vec::with_capacity(READ + READ / 64));
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                escaped.clear();
                escape_feed(piece.get(..length).unwrap_or_default(), &mut escaped);
                to.write_all(&escaped)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use ssm_proto::relay::FeedDecoder;

    use super::*;

    #[test]
    fn a_nonce_is_32_digits() {
        assert_eq!(
            parse_nonce("000102030405060708090a0b0c0d0e0F"),
            Some(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f_u128.to_be_bytes())
        );
        for text in ["", "00", "+00102030405060708090a0b0c0d0e0f", "0001020304050607 8090a0b0c0d0e0f", "é"] {
            assert_eq!(parse_nonce(text), None, "{text}");
        }
    }

    #[test]
    fn everything_is_copied_and_nothing_looks_like_the_filters_own() {
        let data: Vec<u8> = b"text\xef\xbf\xbd\xef".iter().copied().cycle().take(3 * READ + 5).collect();
        let (mut output, mut decoded) = (Vec::new(), Vec::new());
        copy(data.as_slice(), &mut output).unwrap();
        assert!(!output.windows(2).any(|pair| pair == b"\xef\xbf"));
        FeedDecoder::default().decode(&output, &mut decoded).unwrap();
        assert!(decoded == data);
    }
}
