//! A lane: one session after the other, each answering requests in their order.
use std::collections::VecDeque;
use std::fs::File as LocalFile;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{Copy, File, Job, is_full, refused};
use crate::cp::digest;
use crate::cp::lanes::Losses;
use crate::cp::local::cannot_read;
use crate::cp::node::{Answer, Taker, Trouble, failed};
use crate::cp::script::PIECE;
use crate::exit_code::{ExitCode, Failure};

/// Works off the queue, one session after the other.
pub(super) async fn lane(copy: Arc<Copy>, mut first: Option<Taker>) -> Result<(), Trouble> {
    let mut losses = Losses::default();
    loop {
        let mut lane = Lane { copy: &copy, pending: VecDeque::new(), bytes: 0, moved: false };
        let ended = lane.run(first.take()).await;
        if lane.moved {
            losses.forget();
        }
        lane.pending.drain(..).rev().for_each(|pending| copy.put_back(Some(pending.job)));
        match ended {
            Ok(()) => return Ok(()),
            Err(trouble) => losses.bear(trouble).await?,
        }
    }
}

/// One session, and what it has not answered.
struct Lane<'a> {
    copy: &'a Arc<Copy>,
    pending: VecDeque<Pending>,
    /// That were posted and not answered.
    bytes: u64,
    moved: bool,
}

struct Pending {
    job: Job,
    length: u64,
    answers: usize,
    error: Option<String>,
}

/// Bytes that may wait for their answers: enough that the node never waits.
const WINDOW: u64 = 2 * PIECE;

impl Lane<'_> {
    async fn run(&mut self, first: Option<Taker>) -> Result<(), Trouble> {
        // Nothing is left for a lane that is late.
        if first.is_none() && self.copy.until(|work| self.copy.peek(work)).await {
            return Ok(());
        }
        let mut taker = match first {
            Some(taker) => taker,
            None => self.copy.node.taker().await?,
        };
        loop {
            let has_room = self.pending.len() < taker.window() && self.bytes < WINDOW;
            let job = match has_room {
                true if self.pending.is_empty() => self.copy.until(|work| self.copy.take(work)).await,
                true => self.copy.take(&mut self.copy.work()).flatten(),
                false => None,
            };
            match job {
                Some(job) => self.post(&taker, job).await?,
                None if self.pending.is_empty() => break,
                None => self.answer(&mut taker).await?,
            }
        }
        taker.end().await;
        Ok(())
    }

    /// Begins a job. While it is not pending, it would be lost with the session.
    async fn post(&mut self, taker: &Taker, job: Job) -> Result<(), Trouble> {
        let prepared = self.prepare(job.clone()).await;
        let (requests, data) = match prepared {
            Ok(Some(prepared)) => prepared,
            Ok(None) => {
                self.copy.put_back(None);
                return Ok(());
            }
            Err(failure) => {
                self.copy.give_up(job.file(), failure);
                self.copy.put_back(None);
                return Ok(());
            }
        };
        let length = data.len() as u64;
        self.bytes += length;
        self.pending.push_back(Pending { job, length, answers: requests.len(), error: None });
        let last = requests.len().saturating_sub(1);
        for (number, request) in requests.iter().enumerate() {
            taker.post(request, if number == last { data.clone() } else { Bytes::new() }).await?;
        }
        Ok(())
    }

    /// The requests of a job, and what follows the last one; `None` if there is nothing to do.
    async fn prepare(&self, job: Job) -> Result<Option<(Vec<String>, Bytes)>, Failure> {
        let number = job.file();
        let Some(file) = self.copy.files.get(number) else { return Ok(None) };
        let write = |index: u64, data: &Bytes| format!("w {} x {index} {}", file.part, data.len());
        match job {
            Job::Small(_) => {
                let data = self.read(file, 0).await?;
                // It grew since it was listed.
                if data.len() as u64 == PIECE && !self.read(file, 1).await?.is_empty() {
                    return Err(differs(file));
                }
                if let Some(state) = self.copy.work().states.get_mut(number) {
                    (state.digest, state.length) = (Some(digest::of_bytes(&data)), data.len() as u64);
                }
                let open = format!("o {} x {}", file.part, data.len());
                let requests = if data.is_empty() { vec![open] } else { vec![open, write(0, &data)] };
                Ok(Some((requests, data)))
            }
            Job::Piece { index, .. } => {
                let data = self.read(file, index).await?;
                let is_new = self.copy.work().states.get(number).is_some_and(|state| state.is_new);
                if is_new && data.iter().all(|byte| *byte == 0) {
                    self.copy.arrived(number, data.len() as u64);
                    return Ok(None);
                }
                Ok(Some((vec![write(index, &data)], data)))
            }
            Job::Data { index, data, .. } => Ok(Some((vec![write(index, &data)], data))),
            Job::Finish(_) => {
                let digest = self.digest(number, file).await?;
                let length = self.copy.work().states.get(number).map_or(0, |state| state.length);
                let request = format!("f {} {} {} {digest} {length}", file.part, file.last, file.attributes);
                Ok(Some((vec![request], Bytes::new())))
            }
        }
    }

    async fn read(&self, file: &File, index: u64) -> Result<Bytes, Failure> {
        let Some(entry) = &file.entry else { return Ok(Bytes::new()) };
        let path = entry.path.clone();
        let read = spawn_blocking(move || digest::piece(&LocalFile::open(path)?, index)).await;
        let read = read.map_err(Failure::internal)?;
        read.map(Bytes::from).map_err(|error| cannot_read(&entry.path, &error))
    }

    /// The digest of what was to be copied.
    async fn digest(&self, number: usize, file: &File) -> Result<String, Failure> {
        let known = self.copy.work().states.get(number).and_then(|state| state.digest.clone());
        let (None, Some(entry)) = (&known, &file.entry) else { return Ok(known.unwrap_or_default()) };
        let path = entry.path.clone();
        let read = spawn_blocking(move || digest::of_file(&LocalFile::open(path)?)).await.map_err(Failure::internal)?;
        let digest = read.map_err(|error| cannot_read(&entry.path, &error))?;
        if let Some(state) = self.copy.work().states.get_mut(number) {
            (state.digest, state.length) = (Some(digest.clone()), entry.size);
        }
        Ok(digest)
    }

    async fn answer(&mut self, taker: &mut Taker) -> Result<(), Trouble> {
        let answer = taker.answer().await?;
        let Some(pending) = self.pending.front_mut() else { return Ok(()) };
        pending.answers -= 1;
        if let Err(why) = &answer {
            pending.error.get_or_insert_with(|| why.clone());
        }
        if pending.answers > 0 {
            return Ok(());
        }
        let Some(Pending { job, length, error, .. }) = self.pending.pop_front() else { return Ok(()) };
        self.bytes -= length;
        self.moved = true;
        let done = self.done(&job, length, error.map_or(answer, Err));
        self.copy.put_back(None);
        done
    }

    fn done(&self, job: &Job, length: u64, answer: Answer) -> Result<(), Trouble> {
        let number = job.file();
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        match (job, answer) {
            (Job::Finish(_), Ok(theirs)) => {
                let mut work = self.copy.work();
                let Some(state) = work.states.get_mut(number) else { return Ok(()) };
                state.is_over = true;
                if theirs == "-" || state.digest.as_deref() == Some(&theirs) {
                    self.copy.report.finished(&theirs);
                    return Ok(());
                }
                self.copy.report.failed(differs(file));
            }
            (_, Ok(_)) => self.copy.arrived(number, length),
            (Job::Finish(_), Err(why)) if why == "differs" => self.copy.give_up(number, differs(file)),
            (_, Err(why)) if is_full(&why) => {
                let failure = Failure { code: ExitCode::NotCopied, ..refused(&file.shown, &why) };
                return Err(Trouble::Fatal(failure));
            }
            (_, Err(why)) => self.copy.give_up(number, refused(&file.shown, &why)),
        }
        Ok(())
    }
}

/// The digests of both sides differ.
fn differs(file: &File) -> Failure {
    failed(format!("{}: changed while it was copied; copy it again", file.shown))
}
