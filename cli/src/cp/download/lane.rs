//! A lane: one session after the other, each with a part of the queue.
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{Copy, DownloadState, Item, MAX_SMALL, changed};
use crate::cp::digest;
use crate::cp::landing::{Attributes, Landing};
use crate::cp::lanes::Losses;
use crate::cp::node::{Saying, Trouble, failed};
use crate::cp::script::{self, PIECE, word};
use crate::cp::wire::Event;
use crate::exit_code::Failure;

/// Works off the queue, one session after the other.
pub(super) async fn lane(copy: Arc<Copy>, lanes: usize) -> Result<(), Trouble> {
    let mut losses = Losses::default();
    loop {
        let mut items = copy.take(lanes);
        if items.is_empty() {
            return Ok(());
        }
        let before = items.len();
        let mut run = Run { copy: &copy, buffer: Vec::new(), moved: false, unread: Vec::new() };
        let ended = run.run(&mut items).await;
        if run.moved || items.len() < before {
            losses.forget();
        }
        if let Err(trouble) = ended {
            // The node's reasons would have come at the end of the session.
            for number in std::mem::take(&mut run.unread) {
                if let Some(file) = copy.files.get(number) {
                    copy.give_up(number, changed(&file.path));
                }
            }
            copy.give_back(items);
            losses.bear(trouble).await?;
        }
    }
}

/// One session, and what it carries.
struct Run<'a> {
    copy: &'a Arc<Copy>,
    /// Of the piece that is coming.
    buffer: Vec<u8>,
    moved: bool,
    /// Files that came otherwise than they were listed.
    unread: Vec<usize>,
}

impl Run<'_> {
    /// Does `items`, of which those that are done go.
    async fn run(&mut self, items: &mut VecDeque<Item>) -> Result<(), Trouble> {
        let operations = items.iter().flat_map(|item| self.operation(item)).collect();
        let mut saying = self.copy.node.run(|mark| script::give(mark, operations)).await?;
        loop {
            match (saying.next().await?, items.front_mut()) {
                (Event::Data(data), Some(_)) => {
                    self.buffer.extend_from_slice(&data);
                    if self.buffer.len() > MAX_SMALL {
                        return Err(Trouble::Fatal(failed("the node sends more than it was asked for")));
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
                _ => return Err(Trouble::Fatal(failed("the node sent an answer that was not requested"))),
            }
        }
        self.explain(&mut saying).await;
        saying.end().await;
        Ok(())
    }

    fn operation(&self, item: &Item) -> Vec<String> {
        let (Item::Whole(file) | Item::Digest(file) | Item::Pieces { file, .. }) = item;
        let name = self.copy.files.get(*file).map(|file| word(file.path.bytes())).unwrap_or_default();
        match item {
            Item::Whole(_) => vec!["c".to_owned(), name],
            Item::Digest(_) => vec!["h".to_owned(), name],
            Item::Pieces { next, end, .. } => vec!["g".to_owned(), name, next.to_string(), end.to_string()],
        }
    }

    async fn piece(&mut self, number: usize, index: u64) -> Result<(), Trouble> {
        let piece = std::mem::take(&mut self.buffer);
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        if self.copy.is_over(number) {
            return Ok(());
        }
        if piece.len() as u64 != file.length(index) {
            self.unread.push(number);
            return Ok(());
        }
        let copy = self.copy.clone();
        let written = spawn_blocking(move || copy.landing(number)?.write(index, &piece)).await;
        if let Err(error) = written.map_err(internal)? {
            return self.copy.cannot_write(number, &error);
        }
        self.moved = true;
        self.copy.report.copied(file.length(index));
        if let Some(state) = self.copy.work().states.get_mut(number) {
            state.missing = state.missing.saturating_sub(1);
        }
        self.finish(number).await
    }

    async fn whole(&mut self, number: usize, digest: String) -> Result<(), Trouble> {
        let content = std::mem::take(&mut self.buffer);
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        let matches = match digest.as_str() {
            "-" => content.len() as u64 == file.size,
            digest => digest == digest::of_bytes(&content),
        };
        if !matches {
            self.unread.push(number);
            return Ok(());
        }
        let (copy, attributes, told) = (self.copy.clone(), file.attributes, digest.clone());
        let written = spawn_blocking(move || {
            let landing = copy.landing(number)?;
            let written = land(&landing, &content, &told, attributes);
            if written.is_err() {
                landing.remove();
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

    async fn digest(&mut self, number: usize, digest: String) -> Result<(), Trouble> {
        if digest.is_empty() {
            self.unread.push(number);
            return Ok(());
        }
        if let Some(state) = self.copy.work().states.get_mut(number) {
            state.digest = Some(digest);
        }
        self.finish(number).await
    }

    /// Gives a large file its name, if everything of it is there.
    async fn finish(&mut self, number: usize) -> Result<(), Trouble> {
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        let theirs = {
            let mut work = self.copy.work();
            let is_whole = |state: &&mut DownloadState| state.missing == 0 && !state.is_over && !state.is_finishing;
            let Some(state) = work.states.get_mut(number).filter(is_whole) else { return Ok(()) };
            let Some(digest) = state.digest.clone() else { return Ok(()) };
            state.is_finishing = true;
            digest
        };
        let (copy, size, attributes, expected) = (self.copy.clone(), file.size, file.attributes, theirs.clone());
        let finished = spawn_blocking(move || {
            let landing = copy.landing(number)?;
            let ours = landing.digest(size)?;
            if expected == ours || expected == "-" {
                landing.finish(attributes).map(|()| true)
            } else {
                landing.remove();
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
        self.moved = true;
        if let Some(state) = self.copy.work().states.get_mut(number) {
            (state.is_over, state.landing) = (true, None);
        }
        self.copy.report.finished(digest);
    }

    /// Says of the files that did not come as they were listed why that is.
    async fn explain(&mut self, saying: &mut Saying) {
        for number in std::mem::take(&mut self.unread) {
            let Some(file) = self.copy.files.get(number) else { continue };
            let failure = match saying.complaint(file.path.bytes()).await {
                Some(reason) => failed(format!("{}: {reason}", file.path.shown())),
                None => changed(&file.path),
            };
            self.copy.give_up(number, failure);
        }
    }
}

/// Writes a small file.
fn land(landing: &Landing, content: &[u8], digest: &str, attributes: Attributes) -> io::Result<()> {
    for (index, piece) in (0..).zip(content.chunks(usize::try_from(PIECE).unwrap_or(usize::MAX))) {
        landing.write(index, piece)?;
    }
    if digest == landing.digest(content.len() as u64)? || digest == "-" {
        landing.finish(attributes)
    } else {
        Err(io::Error::other("what was written is not what is read"))
    }
}

fn internal(error: tokio::task::JoinError) -> Trouble {
    Trouble::Fatal(Failure::internal(error))
}
