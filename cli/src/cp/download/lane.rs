//! A lane of a download: one session after the other, each for a part of the queue.
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{Copy, DownloadState, Item, MAX_SMALL, changed};
use crate::cp::destination::{Attributes, PartialFile};
use crate::cp::digest;
use crate::cp::lanes::Losses;
use crate::cp::node::{CopyError, ScriptOutput, failed};
use crate::cp::script::{self, PIECE, word};
use crate::cp::wire::Event;
use crate::exit_code::Failure;

/// Processes the queue until it is empty, over one session after the other.
pub(super) async fn lane(copy: Arc<Copy>, lanes: usize) -> Result<(), CopyError> {
    let mut losses = Losses::default();
    loop {
        let mut items = copy.take(lanes);
        if items.is_empty() {
            return Ok(());
        }
        let before = items.len();
        let mut run = Run { copy: &copy, buffer: Vec::new(), progressed: false, mismatched: Vec::new() };
        let ended = run.run(&mut items).await;
        if run.progressed || items.len() < before {
            losses.reset();
        }
        if let Err(error) = ended {
            // The node's reasons follow at the end of a session, which was not reached.
            for number in std::mem::take(&mut run.mismatched) {
                if let Some(file) = copy.files.get(number) {
                    copy.give_up(number, changed(&file.path));
                }
            }
            copy.return_items(items);
            losses.wait_for_retry(error).await?;
        }
    }
}

/// One session and the state of its transfer.
struct Run<'a> {
    copy: &'a Arc<Copy>,
    /// Data of the current piece or small file.
    buffer: Vec<u8>,
    /// Whether a piece or a file was completed.
    progressed: bool,
    /// Files that differ from their listing, or that the node could not read.
    mismatched: Vec<usize>,
}

impl Run<'_> {
    /// Transfers `items`. Removes the completed ones.
    async fn run(&mut self, items: &mut VecDeque<Item>) -> Result<(), CopyError> {
        let operations = items.iter().flat_map(|item| self.operation(item)).collect();
        let mut output = self.copy.node.run(|mark| script::send(mark, operations)).await?;
        loop {
            match (output.next().await?, items.front_mut()) {
                (Event::Data(data), Some(_)) => {
                    self.buffer.extend_from_slice(&data);
                    if self.buffer.len() > MAX_SMALL {
                        return Err(CopyError::Fatal(failed("the node sent more data than requested")));
                    }
                }
                (Event::PieceEnd, Some(Item::Pieces { file, next, end })) => {
                    let (file, index) = (*file, *next);
                    *next += 1;
                    let is_last = next == end;
                    self.piece(file, index).await?;
                    if is_last {
                        items.pop_front();
                    }
                }
                (Event::PieceEnd, Some(_)) => {}
                (Event::Line(digest), Some(Item::Digest(file))) => {
                    self.digest(*file, digest).await?;
                    items.pop_front();
                }
                (Event::Line(digest), Some(Item::Whole(file))) => {
                    self.whole(*file, digest).await?;
                    items.pop_front();
                }
                (Event::End, None) => break,
                _ => return Err(CopyError::Fatal(failed("the node sent an answer that was not requested"))),
            }
        }
        self.explain(&mut output).await;
        output.end().await;
        Ok(())
    }

    /// Returns the words that request an item from the script.
    fn operation(&self, item: &Item) -> Vec<String> {
        let (Item::Whole(file) | Item::Digest(file) | Item::Pieces { file, .. }) = item;
        let name = self.copy.files.get(*file).map(|file| word(file.path.bytes())).unwrap_or_default();
        match item {
            Item::Whole(_) => vec!["c".to_owned(), name],
            Item::Digest(_) => vec!["h".to_owned(), name],
            Item::Pieces { next, end, .. } => vec!["g".to_owned(), name, next.to_string(), end.to_string()],
        }
    }

    /// Handles the end of a piece of a large file.
    async fn piece(&mut self, number: usize, index: u64) -> Result<(), CopyError> {
        let piece = std::mem::take(&mut self.buffer);
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        if self.copy.is_done(number) {
            return Ok(());
        }
        if piece.len() as u64 != file.length(index) {
            self.mismatched.push(number);
            return Ok(());
        }
        let copy = self.copy.clone();
        let written = spawn_blocking(move || copy.partial_file(number)?.write(index, &piece)).await;
        if let Err(error) = written.map_err(internal)? {
            return self.copy.cannot_write(number, &error);
        }
        self.progressed = true;
        self.copy.report.copied(file.length(index));
        if let Some(state) = self.copy.work().states.get_mut(number) {
            state.missing = state.missing.saturating_sub(1);
        }
        self.finish(number).await
    }

    /// Handles the digest that follows a small file.
    async fn whole(&mut self, number: usize, digest: String) -> Result<(), CopyError> {
        let content = std::mem::take(&mut self.buffer);
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        let matches = match digest.as_str() {
            "-" => content.len() as u64 == file.size,
            digest => digest == digest::of_bytes(&content),
        };
        if !matches {
            self.mismatched.push(number);
            return Ok(());
        }
        let (copy, attributes, told) = (self.copy.clone(), file.attributes, digest.clone());
        let written = spawn_blocking(move || {
            let partial = copy.partial_file(number)?;
            let written = write_small(&partial, &content, &told, attributes);
            if written.is_err() {
                partial.remove();
            }
            written
        });
        if let Err(error) = written.await.map_err(internal)? {
            return self.copy.cannot_write(number, &error);
        }
        self.copy.report.copied(file.size);
        self.done(number, &digest);
        Ok(())
    }

    /// Handles the digest of a large file.
    async fn digest(&mut self, number: usize, digest: String) -> Result<(), CopyError> {
        if digest.is_empty() {
            self.mismatched.push(number);
            return Ok(());
        }
        if let Some(state) = self.copy.work().states.get_mut(number) {
            state.digest = Some(digest);
        }
        self.finish(number).await
    }

    /// Renames a large file to its final name, if all its pieces and its digest have arrived and the digests match.
    async fn finish(&mut self, number: usize) -> Result<(), CopyError> {
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        let theirs = {
            let mut work = self.copy.work();
            let is_whole = |state: &&mut DownloadState| state.missing == 0 && !state.is_done && !state.is_finishing;
            let Some(state) = work.states.get_mut(number).filter(is_whole) else { return Ok(()) };
            let Some(digest) = state.digest.clone() else { return Ok(()) };
            state.is_finishing = true;
            digest
        };
        let (copy, size, attributes, expected) = (self.copy.clone(), file.size, file.attributes, theirs.clone());
        let finished = spawn_blocking(move || {
            let partial = copy.partial_file(number)?;
            let ours = partial.digest(size)?;
            if expected == ours || expected == "-" {
                partial.finish(attributes).map(|()| true)
            } else {
                partial.remove();
                Ok(false)
            }
        });
        match finished.await.map_err(internal)? {
            Ok(true) => self.done(number, &theirs),
            Ok(false) => self.copy.give_up(number, changed(&file.path)),
            Err(error) => return self.copy.cannot_write(number, &error),
        }
        Ok(())
    }

    fn done(&mut self, number: usize, digest: &str) {
        self.progressed = true;
        if let Some(state) = self.copy.work().states.get_mut(number) {
            (state.is_done, state.partial) = (true, None);
        }
        self.copy.report.finished(digest);
    }

    /// Gives up the files in `mismatched`, each with the node's reason if there is one.
    async fn explain(&mut self, output: &mut ScriptOutput) {
        for number in std::mem::take(&mut self.mismatched) {
            let Some(file) = self.copy.files.get(number) else { continue };
            let failure = match output.read_error(file.path.bytes()).await {
                Some(reason) => failed(format!("{}: {reason}", file.path.shown())),
                None => changed(&file.path),
            };
            self.copy.give_up(number, failure);
        }
    }
}

/// Writes a small file and renames it to its final name.
fn write_small(partial: &PartialFile, content: &[u8], digest: &str, attributes: Attributes) -> io::Result<()> {
    for (index, piece) in (0..).zip(content.chunks(usize::try_from(PIECE).unwrap_or(usize::MAX))) {
        partial.write(index, piece)?;
    }
    if digest == partial.digest(content.len() as u64)? || digest == "-" {
        partial.finish(attributes)
    } else {
        Err(io::Error::other("the file differs from the data that was written to it"))
    }
}

fn internal(error: tokio::task::JoinError) -> CopyError {
    CopyError::Fatal(Failure::internal(error))
}
