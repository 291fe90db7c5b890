//! The queue of an upload, and the reader of standard input, which adds to it.
use std::io::{self, Read};
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Copy, Job, Work};
use crate::cp::digest;
use crate::cp::node::failed;
use crate::cp::script::PIECE;
use crate::exit_code::Failure;

impl Copy {
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of lanes that the queue is large enough for, at most `most`.
    pub(super) fn lanes(&self, most: usize) -> usize {
        const PIECES: usize = 2;
        const FILES: usize = 32;
        let work = self.work();
        let small = work.queue.iter().filter(|job| matches!(job, Job::Small(_))).count();
        most.min((work.queue.len() - small).div_ceil(PIECES) + small.div_ceil(FILES)).max(1)
    }

    /// Queues pieces of standard input in the background until its end. Returns the number of lanes, after the first `most` pieces
    /// at the latest.
    pub(super) async fn read_stdin(self: &Arc<Self>, file: usize, most: usize) -> Result<usize, Failure> {
        if self.work().states.get(file).is_none_or(|state| state.is_done) {
            return Ok(1);
        }
        self.work().is_open = true;
        let (pieces, mut coming) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
        // A thread instead of a blocking task: reading may block forever, and must not keep the process alive.
        std::thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            loop {
                let mut piece = Vec::new();
                let read = stdin.by_ref().take(PIECE).read_to_end(&mut piece);
                let is_end = !matches!(read, Ok(length) if length as u64 == PIECE);
                let sent = pieces.blocking_send(read.map(|_| piece.into()));
                if is_end || sent.is_err() {
                    return;
                }
            }
        });
        let (mut hasher, mut index) = (Sha256::new(), 0);
        while index < most as u64 {
            match coming.recv().await {
                Some(piece) => self.queue_data(file, index, piece, &mut hasher)?,
                None => {
                    self.close_stdin(file, hasher);
                    return Ok(usize::try_from(index).unwrap_or(1).max(1));
                }
            }
            index += 1;
        }
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(piece) = coming.recv().await {
                this.wait_for_space(2 * most).await;
                if let Err(failure) = this.queue_data(file, index, piece, &mut hasher) {
                    this.give_up(file, failure);
                    break;
                }
                index += 1;
            }
            this.close_stdin(file, hasher);
        });
        Ok(most)
    }

    pub(super) fn queue_data(
        &self,
        file: usize,
        index: u64,
        piece: io::Result<Bytes>,
        hasher: &mut Sha256,
    ) -> Result<(), Failure> {
        let data = piece.map_err(|error| failed(format!("standard input: {error}")))?;
        hasher.update(&data);
        self.report.expect(data.len() as u64);
        let mut work = self.work();
        if data.is_empty() {
            return Ok(());
        }
        if let Some(state) = work.states.get_mut(file) {
            state.missing += 1;
            state.length += data.len() as u64;
        }
        work.queue.push_back(Job::Data { file, index, data });
        self.changed.notify_waiters();
        Ok(())
    }

    pub(super) fn close_stdin(&self, file: usize, hasher: Sha256) {
        let mut work = self.work();
        work.is_open = false;
        if let Some(state) = work.states.get_mut(file) {
            state.digest = Some(digest::finish(hasher));
            if state.missing == 0 && !state.is_done {
                work.queue.push_front(Job::Finish(file));
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until the queue has fewer than `most` jobs.
    pub(super) async fn wait_for_space(&self, most: usize) {
        self.until(|work| (work.queue.len() < most).then_some(())).await;
    }

    /// Waits until `look` returns something.
    pub(super) async fn until<T>(&self, mut look: impl FnMut(&mut Work) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.work()) {
                return found;
            }
            changed.await;
        }
    }

    /// Returns the next job: `Some(None)` if there will be no more, `None` if there is none yet.
    pub(super) fn take(&self, work: &mut Work) -> Option<Option<Job>> {
        let next = loop {
            match work.queue.pop_front() {
                Some(job) if work.states.get(job.file()).is_some_and(|state| state.is_done) => {}
                next => break next,
            }
        };
        match next {
            Some(job) => {
                work.running += 1;
                self.changed.notify_waiters();
                Some(Some(job))
            }
            None if work.running == 0 && !work.is_open => Some(None),
            None => None,
        }
    }

    /// Records that a lane has finished a job, or returns the job to the front of the queue.
    pub(super) fn put_back(&self, job: Option<Job>) {
        let mut work = self.work();
        work.running = work.running.saturating_sub(1);
        work.queue.extend(job.clone());
        if job.is_some() {
            work.queue.rotate_right(1);
        }
        self.changed.notify_waiters();
    }

    /// Gives up one file and reports its failure.
    pub(super) fn give_up(&self, file: usize, failure: Failure) {
        let mut work = self.work();
        let Some(state) = work.states.get_mut(file) else { return };
        if !std::mem::replace(&mut state.is_done, true) {
            drop(work);
            self.report.failed(failure);
        }
    }

    /// Records that the node has a piece. After the last one, queues the finish of the file.
    pub(super) fn arrived(&self, file: usize, length: u64) {
        self.report.copied(length);
        let mut work = self.work();
        let Some(state) = work.states.get_mut(file) else { return };
        state.missing = state.missing.saturating_sub(1);
        let is_whole = state.missing == 0 && (state.digest.is_some() || !work.is_open);
        if is_whole {
            work.queue.push_front(Job::Finish(file));
            self.changed.notify_waiters();
        }
    }

    /// Returns whether nothing is left to do; `None` while that is not known.
    pub(super) fn peek(&self, work: &Work) -> Option<bool> {
        match work.queue.is_empty() {
            false => Some(false),
            true => (work.running == 0 && !work.is_open).then_some(true),
        }
    }
}
