//! What is left to do, and what is done with it.
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;

use super::{Copy, File, Item, Work, cannot_write, shown};
use crate::cp::landing::{self, Attributes, Landing, part_name};
use crate::cp::lanes::Losses;
use crate::cp::node::Trouble;
use crate::cp::place::RemotePath;
use crate::cp::script::{self, PIECE, word};
use crate::cp::wire::Event;
use crate::exit_code::{ExitCode, Failure};

impl Copy {
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that `file` is written to, with its name open.
    pub(super) fn landing(&self, file: usize) -> io::Result<Arc<Landing>> {
        let mut work = self.work();
        let (Some(state), Some(File { path, names, .. })) = (work.states.get_mut(file), self.files.get(file)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Some(landing) = &state.landing {
            return Ok(landing.clone());
        }
        let (name, above) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = self.root.directory(above.iter().map(Vec::as_slice), Some(0o777))?;
        let landing = Arc::new(Landing::open(directory, name, &self.identity(path))?);
        state.landing = Some(landing.clone());
        Ok(landing)
    }

    pub(super) fn identity(&self, path: &RemotePath) -> String {
        format!("{}\0{}", self.target, word(path.bytes()))
    }

    /// Whether a piece of an earlier attempt may be there.
    pub(super) fn has_part(&self, file: &File) -> bool {
        let Some((name, above)) = file.names.split_last() else { return false };
        let Ok(directory) = self.root.directory(above.iter().map(Vec::as_slice), None) else { return false };
        let part = part_name(&self.identity(&file.path), name);
        rustix::fs::statat(directory, part.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Fills the queue. What an earlier attempt left is compared, and only what is missing is queued.
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

    /// The runs of pieces that are not the node's.
    pub(super) async fn missing(self: &Arc<Self>, number: usize) -> Result<Vec<(u64, u64)>, Failure> {
        let Some(file) = self.files.get(number) else { return Ok(Vec::new()) };
        let pieces = file.pieces();
        let all = vec![(0, pieces)];
        // Whatever is wrong with it is told when it is written.
        let Ok(landing) = self.landing(number) else { return Ok(all) };
        let old = landing.old_pieces().min(pieces);
        let mut losses = Losses::default();
        let theirs = loop {
            match self.digests(file, old).await {
                Ok(digests) => break digests,
                Err(trouble) => losses.bear(trouble).await?,
            }
        };
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for index in 0..pieces {
            let their = theirs.get(usize::try_from(index).unwrap_or(usize::MAX));
            let length = file.length(index);
            let reading = landing.clone();
            let ours = spawn_blocking(move || reading.digest_of(index, length)).await.map_err(Failure::internal)?;
            match runs.last_mut() {
                _ if ours.is_ok_and(|ours| their == Some(&ours)) => self.report.kept(length),
                Some((_, end)) if *end == index => *end += 1,
                _ => runs.push((index, index + 1)),
            }
        }
        Ok(runs)
    }

    pub(super) async fn digests(&self, file: &File, count: u64) -> Result<Vec<String>, Trouble> {
        let operation = vec!["p".to_owned(), word(file.path.bytes()), "0".to_owned(), count.to_string()];
        let mut saying = self.node.run(|mark| script::give(mark, operation)).await?;
        let mut digests = Vec::new();
        loop {
            match saying.next().await? {
                Event::Line(digest) => digests.push(digest),
                Event::End => break,
                _ => {}
            }
        }
        saying.end().await;
        Ok(digests)
    }

    /// How many lanes pay.
    pub(super) fn lanes(&self, most: usize) -> usize {
        const BYTES: u64 = 8 << 20;
        const FILES: usize = 64;
        let work = self.work();
        let bytes: u64 = work.queue.iter().map(|item| self.bytes(item)).sum();
        let by_bytes = usize::try_from(bytes / BYTES).unwrap_or(usize::MAX);
        most.min(by_bytes.max(work.queue.len() / FILES).max(1))
    }

    pub(super) fn bytes(&self, item: &Item) -> u64 {
        match item {
            Item::Whole(file) => self.files.get(*file).map_or(0, |file| file.size),
            Item::Digest(_) => 0,
            Item::Pieces { next, end, .. } => (end - next) * PIECE,
        }
    }

    /// Takes a session's worth of the queue: less and less, so that all lanes end together, and not more than a command line holds.
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
            if work.states.get(file).is_some_and(|state| state.is_over) {
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

    /// What a lane did not do is next.
    pub(super) fn give_back(&self, items: VecDeque<Item>) {
        let mut work = self.work();
        items.into_iter().rev().for_each(|item| work.queue.push_front(item));
    }

    /// Gives up one file.
    pub(super) fn give_up(&self, file: usize, failure: Failure) {
        let mut work = self.work();
        let Some(state) = work.states.get_mut(file) else { return };
        if !std::mem::replace(&mut state.is_over, true) {
            state.landing = None;
            drop(work);
            self.report.failed(failure);
        }
    }

    pub(super) fn is_over(&self, file: usize) -> bool {
        self.work().states.get(file).is_none_or(|state| state.is_over)
    }

    /// A local file could not be written: only that one, unless there is no room for any.
    pub(super) fn cannot_write(&self, file: usize, error: &io::Error) -> Result<(), Trouble> {
        let name = self.files.get(file).map(|file| shown(&file.names)).unwrap_or_default();
        let failure = cannot_write(&name, error);
        match failure.code {
            ExitCode::Output => Err(Trouble::Fatal(failure)),
            _ => {
                self.give_up(file, failure);
                Ok(())
            }
        }
    }

    pub(super) fn link(&self, names: &[Vec<u8>], target: &[u8]) {
        let Some((name, above)) = names.split_last() else { return };
        let made = self.root.directory(above.iter().map(Vec::as_slice), Some(0o777));
        if let Err(error) = made.and_then(|directory| landing::link(directory, name, target)) {
            self.report.failed(cannot_write(&shown(names), &error));
        }
    }

    pub(super) fn finish_directory(&self, names: &[Vec<u8>], attributes: Attributes) {
        let directory = self.root.directory(names.iter().map(Vec::as_slice), None);
        if let Err(error) = directory.and_then(|directory| landing::finish_directory(&directory, attributes)) {
            self.report.failed(cannot_write(&shown(names), &error));
        }
    }
}
