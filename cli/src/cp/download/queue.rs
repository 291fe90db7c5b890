//! The queue of a download, and the results of its items.
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;

use super::{Copy, File, Item, Work, cannot_write, shown};
use crate::cp::destination::{self, Attributes, PartialFile, part_name};
use crate::cp::lanes::Losses;
use crate::cp::node::CopyError;
use crate::cp::place::RemotePath;
use crate::cp::script::{self, PIECE, word};
use crate::cp::wire::Event;
use crate::exit_code::{ExitCode, Failure};

impl Copy {
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the partial file of `file`. Opens it at the first call.
    pub(super) fn partial_file(&self, file: usize) -> io::Result<Arc<PartialFile>> {
        let mut work = self.work();
        let (Some(state), Some(File { path, names, .. })) = (work.states.get_mut(file), self.files.get(file)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Some(partial) = &state.partial {
            return Ok(partial.clone());
        }
        let (name, above) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = self.root.directory(above.iter().map(Vec::as_slice), Some(0o777))?;
        let partial = Arc::new(PartialFile::open(directory, name, &self.identity(path))?);
        state.partial = Some(partial.clone());
        Ok(partial)
    }

    /// Returns what a partial file's name is derived from: the target and the path on the node.
    pub(super) fn identity(&self, path: &RemotePath) -> String {
        format!("{}\0{}", self.target, word(path.bytes()))
    }

    /// Whether an earlier attempt left a partial file.
    pub(super) fn has_part(&self, file: &File) -> bool {
        let Some((name, above)) = file.names.split_last() else { return false };
        let Ok(directory) = self.root.directory(above.iter().map(Vec::as_slice), None) else { return false };
        let part = part_name(&self.identity(&file.path), name);
        rustix::fs::statat(directory, part.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Fills the queue. Compares what earlier attempts left, and queues only what is missing.
    pub(super) async fn queue(self: &Arc<Self>) -> Result<(), Failure> {
        for (number, file) in self.files.iter().enumerate() {
            let mut items = Vec::new();
            let mut missing = file.pieces();
            if file.is_small() {
                items.push(Item::Whole(number));
            } else {
                let runs = match self.has_part(file) {
                    true => self.missing(number).await?,
                    false => vec![(0, missing)],
                };
                missing = runs.iter().map(|(next, end)| end - next).sum();
                items.push(Item::Digest(number));
                items.extend(runs.into_iter().map(|(next, end)| Item::Pieces { file: number, next, end }));
            }
            let mut work = self.work();
            work.queue.extend(items);
            if let Some(state) = work.states.get_mut(number) {
                state.missing = missing;
            }
        }
        Ok(())
    }

    /// Returns the runs of pieces in which the partial file differs from the node's file.
    pub(super) async fn missing(self: &Arc<Self>, number: usize) -> Result<Vec<(u64, u64)>, Failure> {
        let Some(file) = self.files.get(number) else { return Ok(Vec::new()) };
        let pieces = file.pieces();
        let all = vec![(0, pieces)];
        // The same error occurs when the file is written, and is reported there.
        let Ok(partial) = self.partial_file(number) else { return Ok(all) };
        let old = partial.old_pieces().min(pieces);
        let mut losses = Losses::default();
        let theirs = loop {
            match self.digests(file, old).await {
                Ok(digests) => break digests,
                Err(error) => losses.wait_for_retry(error).await?,
            }
        };
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for index in 0..pieces {
            let their = theirs.get(usize::try_from(index).unwrap_or(usize::MAX));
            let length = file.length(index);
            let reading = partial.clone();
            let ours = spawn_blocking(move || reading.digest_of(index, length)).await.map_err(Failure::internal)?;
            match runs.last_mut() {
                _ if ours.is_ok_and(|ours| their == Some(&ours)) => self.report.kept(length),
                Some((_, end)) if *end == index => *end += 1,
                _ => runs.push((index, index + 1)),
            }
        }
        Ok(runs)
    }

    /// Returns the node's digests of the first `count` pieces.
    pub(super) async fn digests(&self, file: &File, count: u64) -> Result<Vec<String>, CopyError> {
        let operation = vec!["p".to_owned(), word(file.path.bytes()), "0".to_owned(), count.to_string()];
        let mut output = self.node.run(|mark| script::send(mark, operation)).await?;
        let mut digests = Vec::new();
        loop {
            match output.next().await? {
                Event::Line(digest) => digests.push(digest),
                Event::End => break,
                _ => {}
            }
        }
        output.end().await;
        Ok(digests)
    }

    /// Returns the number of lanes that the queue is large enough for, at most `most`.
    pub(super) fn lanes(&self, most: usize) -> usize {
        const BYTES: u64 = 8 << 20;
        const FILES: usize = 64;
        let work = self.work();
        let bytes: u64 = work.queue.iter().map(|item| self.bytes(item)).sum();
        let by_bytes = usize::try_from(bytes / BYTES).unwrap_or(usize::MAX);
        most.min(by_bytes.max(work.queue.len() / FILES).max(1))
    }

    /// Returns the number of bytes that an item transfers.
    pub(super) fn bytes(&self, item: &Item) -> u64 {
        match item {
            Item::Whole(file) => self.files.get(*file).map_or(0, |file| file.size),
            Item::Digest(_) => 0,
            Item::Pieces { next, end, .. } => (end - next) * PIECE,
        }
    }

    /// Takes the items of one session from the queue. The share shrinks as the queue does, so that all lanes end at about the same
    /// time. It is limited by the length of a command line.
    pub(super) fn take(&self, lanes: usize) -> VecDeque<Item> {
        const LEAST: u64 = 8 << 20;
        const MOST: u64 = 256 << 20;
        const LINE: usize = 24 << 10;
        let mut work = self.work();
        let waiting: u64 = work.queue.iter().map(|item| self.bytes(item)).sum();
        let mut room = (waiting / (2 * lanes as u64)).clamp(LEAST, MOST);
        let mut line = LINE;
        let mut taken = VecDeque::new();
        while let Some(item) = work.queue.pop_front() {
            let (Item::Whole(file) | Item::Digest(file) | Item::Pieces { file, .. }) = item;
            if work.states.get(file).is_some_and(|state| state.is_done) {
                continue;
            }
            let words = self.files.get(file).map_or(0, |file| word(file.path.bytes()).len() + 16);
            if words > line && !taken.is_empty() || room == 0 {
                work.queue.push_front(item);
                break;
            }
            line = line.saturating_sub(words);
            match item {
                Item::Pieces { file, next, end } if (end - next) * PIECE > room => {
                    let middle = next + room.div_ceil(PIECE);
                    work.queue.push_front(Item::Pieces { file, next: middle, end });
                    taken.push_back(Item::Pieces { file, next, end: middle });
                    break;
                }
                item => {
                    room = room.saturating_sub(self.bytes(&item));
                    taken.push_back(item);
                }
            }
        }
        taken
    }

    /// Returns unfinished items to the front of the queue.
    pub(super) fn return_items(&self, items: VecDeque<Item>) {
        let mut work = self.work();
        items.into_iter().rev().for_each(|item| work.queue.push_front(item));
    }

    /// Gives up one file and reports its failure.
    pub(super) fn give_up(&self, file: usize, failure: Failure) {
        let mut work = self.work();
        let Some(state) = work.states.get_mut(file) else { return };
        if !std::mem::replace(&mut state.is_done, true) {
            state.partial = None;
            drop(work);
            self.report.failed(failure);
        }
    }

    pub(super) fn is_done(&self, file: usize) -> bool {
        self.work().states.get(file).is_none_or(|state| state.is_done)
    }

    /// Handles an error of writing a local file. Gives up only this file, unless no other file could be written either.
    ///
    /// # Errors
    /// Returns an error if no file can be written.
    pub(super) fn cannot_write(&self, file: usize, error: &io::Error) -> Result<(), CopyError> {
        let name = self.files.get(file).map(|file| shown(&file.names)).unwrap_or_default();
        let failure = cannot_write(&name, error);
        match failure.code {
            ExitCode::Output => Err(CopyError::Fatal(failure)),
            _ => {
                self.give_up(file, failure);
                Ok(())
            }
        }
    }

    /// Creates a symbolic link. Reports a failure.
    pub(super) fn link(&self, names: &[Vec<u8>], target: &[u8]) {
        let Some((name, above)) = names.split_last() else { return };
        let made = self.root.directory(above.iter().map(Vec::as_slice), Some(0o777));
        if let Err(error) = made.and_then(|directory| destination::link(directory, name, target)) {
            self.report.failed(cannot_write(&shown(names), &error));
        }
    }

    /// Sets the attributes of a directory. Reports a failure.
    pub(super) fn finish_directory(&self, names: &[Vec<u8>], attributes: Attributes) {
        let directory = self.root.directory(names.iter().map(Vec::as_slice), None);
        if let Err(error) = directory.and_then(|directory| destination::finish_directory(&directory, attributes)) {
            self.report.failed(cannot_write(&shown(names), &error));
        }
    }
}
