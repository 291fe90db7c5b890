//! SHA-256 of files and of their pieces.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::script::PIECE;

/// Returns the digest of `bytes` in hexadecimal digits, as the node's tools print it.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// Returns the digest of a hasher in hexadecimal digits.
pub(super) fn finish(hasher: Sha256) -> String {
    hex(hasher.finalize())
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the digest of a whole file.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(super) fn of_file(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for index in 0.. {
        let piece = piece(file, index)?;
        hasher.update(&piece);
        if (piece.len() as u64) < PIECE {
            break;
        }
    }
    Ok(finish(hasher))
}

/// Reads the piece with this index. Only the last piece is shorter than [`PIECE`].
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(super) fn piece(file: &File, index: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(PIECE).unwrap_or(usize::MAX);
    let mut buffer = vec![0; size];
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, index * PIECE + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(length);
    Ok(buffer)
}
