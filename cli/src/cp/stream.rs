//! Downloads to a stream: standard output, a pipe or a device. The bytes have to be written in order, so one session at a time
//! sends them.

use std::fs::OpenOptions;
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::digest;
use super::download::{MAX_SMALL, cannot_write, changed};
use super::lanes::Losses;
use super::list::{Entry, Kind, list};
use super::node::{CopyError, Node, failed};
use super::place::RemotePath;
use super::report::Report;
use super::script::{self, PIECE, word};
use super::wire::Event;
use crate::exit_code::Failure;
use crate::writer::Writer;

/// Writes all `sources` to standard output, one after the other.
///
/// # Errors
/// Returns an error if a file cannot be read, if standard output cannot be written, or if the digests differ.
pub(super) async fn to_stdout(node: &Node, sources: &[RemotePath], report: &Report) -> Result<(), Failure> {
    copy(node, sources, Writer::stdout()?, report).await
}

/// Writes all `sources` to a device or a pipe.
///
/// # Errors
/// As for [`to_stdout`], for `path`.
pub(super) async fn to_special(
    node: &Node,
    sources: &[RemotePath],
    path: &Path,
    report: &Report,
) -> Result<(), Failure> {
    let opening = path.to_owned();
    // Opening a pipe blocks until the pipe has a reader.
    let opened = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(opening)).await;
    let file = opened.map_err(Failure::internal)?.map_err(|error| cannot_write(&path.display(), &error))?;
    copy(node, sources, Writer::of(file, path.display().to_string()), report).await
}

async fn copy(node: &Node, sources: &[RemotePath], writer: Writer, report: &Report) -> Result<(), Failure> {
    let listed = list(node, sources, false).await?;
    let mut files = Vec::new();
    for (source, listed) in sources.iter().zip(listed) {
        match listed?.into_iter().next() {
            Some(Entry { is_readable: false, .. }) => {
                return Err(failed(format!("{}: Permission denied", source.shown())));
            }
            Some(Entry { kind: Kind::File, size, .. }) => {
                report.expect(size);
                files.push((source, size));
            }
            _ => {
                return Err(failed(format!(
                    "{}: is not a regular file; use exec TARGET -- cat to read it",
                    source.shown()
                )));
            }
        }
    }
    let mut sink = Sink { writer, chunks: Vec::new() };
    for (path, size) in files {
        let mut file = Reading { node, path, size, next: 0, hasher: Sha256::new(), rest: Vec::new(), length: 0 };
        let digest = file.read(&mut sink, report).await?;
        report.finished(&digest);
    }
    Ok(())
}

struct Sink {
    writer: Writer,
    chunks: Vec<Bytes>,
}

/// A file that is read piece after piece.
struct Reading<'a> {
    node: &'a Node,
    path: &'a RemotePath,
    /// In bytes, as listed.
    size: u64,
    /// Index of the next piece.
    next: u64,
    hasher: Sha256,
    /// Data of the current piece. It is written when the piece is complete, so that another session can begin with the same piece.
    rest: Vec<Bytes>,
    /// Size of `rest` in bytes.
    length: u64,
}

impl Reading<'_> {
    async fn read(&mut self, sink: &mut Sink, report: &Report) -> Result<String, Failure> {
        let mut losses = Losses::default();
        loop {
            let before = self.next;
            match self.session(sink, report).await {
                Ok(digest) => return Ok(digest),
                Err(error) => {
                    if self.next > before {
                        losses.reset();
                    }
                    self.rest.clear();
                    self.length = 0;
                    losses.wait_for_retry(error).await?;
                }
            }
        }
    }

    async fn session(&mut self, sink: &mut Sink, report: &Report) -> Result<String, CopyError> {
        let name = word(self.path.bytes());
        let (next, end) = (self.next.to_string(), self.size.div_ceil(PIECE).to_string());
        // Files below /proc report a size of 0, so a small file is read as a whole.
        let operations = match self.size {
            ..=PIECE if self.next == 0 => vec!["c", &name],
            _ => vec!["g", &name, &next, &end, "h", &name],
        };
        let operations = operations.into_iter().map(str::to_owned).collect();
        let mut output = self.node.run(|mark| script::send(mark, operations)).await?;
        loop {
            match output.next().await? {
                Event::Data(data) => {
                    self.length += data.len() as u64;
                    self.rest.push(data);
                    if self.length > MAX_SMALL as u64 {
                        return Err(CopyError::Fatal(failed("the node sent more data than requested")));
                    }
                }
                Event::PieceEnd => {
                    let length = std::mem::take(&mut self.length);
                    let expected = self.size.saturating_sub(self.next * PIECE).min(PIECE);
                    if length != expected && self.size > 0 {
                        let reason = output.read_error(self.path.bytes()).await;
                        let failure = reason.map(|reason| failed(format!("{}: {reason}", self.path.shown())));
                        return Err(CopyError::Fatal(failure.unwrap_or_else(|| changed(self.path))));
                    }
                    self.rest.iter().for_each(|data| self.hasher.update(data));
                    sink.chunks.append(&mut self.rest);
                    sink.writer.write(&mut sink.chunks).await.map_err(CopyError::Fatal)?;
                    self.next += 1;
                    report.copied(length);
                }
                Event::Line(theirs) => {
                    output.end().await;
                    let ours = digest::finish(self.hasher.clone());
                    return match theirs.as_str() {
                        "-" => Ok(theirs),
                        theirs if theirs == ours => Ok(ours),
                        _ => Err(CopyError::Fatal(changed(self.path))),
                    };
                }
                _ => return Err(CopyError::Fatal(failed("the node sent an answer that was not requested"))),
            }
        }
    }
}
