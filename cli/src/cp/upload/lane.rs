//! A lane of an upload: one session after the other. The node answers the requests of a session in order.
use std::collections::VecDeque;
use std::fs::File as LocalFile;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{Copy, File, Job, is_full, refused};
use crate::cp::digest;
use crate::cp::lanes::Losses;
use crate::cp::local::cannot_read;
use crate::cp::node::{Answer, CopyError, RequestSession, failed};
use crate::cp::script::PIECE;
use crate::exit_code::{ExitCode, Failure};

/// Processes the queue until it is empty, over one session after the other.
pub(super) async fn lane(copy: Arc<Copy>, mut first: Option<RequestSession>) -> Result<(), CopyError> {
    let mut losses = Losses::default();
    loop {
        let mut lane = Lane { copy: &copy, pending: VecDeque::new(), unconfirmed: None, bytes: 0, progressed: false };
        let ended = lane.run(first.take()).await;
        if lane.progressed {
            losses.reset();
        }
        let unanswered = lane.pending.drain(..).rev().filter_map(|pending| pending.job);
        let unconfirmed = lane.unconfirmed.take().map(|answered| answered.job);
        unanswered.chain(unconfirmed).for_each(|job| copy.put_back(Some(job)));
        match ended {
            Ok(()) => return Ok(()),
            Err(error) => losses.wait_for_retry(error).await?,
        }
    }
}

/// One session and its unanswered requests.
struct Lane<'a> {
    copy: &'a Arc<Copy>,
    /// Jobs whose requests were sent and not fully answered.
    pending: VecDeque<Pending>,
    /// The last fully answered job, until the answer of the next request confirms it. The agent can process a message twice
    /// (AGENT-8). Then the file has wrong bytes, and the last bytes of the job's data remain unread. The script reads them as the
    /// next request and exits, so the session ends without another answer, and the job is repeated.
    unconfirmed: Option<Answered>,
    /// Bytes of file data in flight.
    bytes: u64,
    /// Whether a job was completed.
    progressed: bool,
}

/// The requests of a job that wait for answers.
struct Pending {
    /// The job; `None` for an empty request, which confirms the job before it.
    job: Option<Job>,
    length: u64,
    /// Number of answers to wait for.
    answers: usize,
    /// The first error among the answers.
    error: Option<String>,
}

/// A job with its answer.
struct Answered {
    job: Job,
    length: u64,
    answer: Answer,
}

impl Answered {
    /// Whether the answer needs no confirmation.
    fn is_final(&self) -> bool {
        self.answer.is_err() || !self.job.writes()
    }
}

/// Maximum number of bytes in flight. Large enough that the node never waits for the next request.
const WINDOW: u64 = 2 * PIECE;

impl Lane<'_> {
    async fn run(&mut self, first: Option<RequestSession>) -> Result<(), CopyError> {
        // Starts no session if the other lanes have taken all jobs.
        if first.is_none() && self.copy.until(|work| self.copy.peek(work)).await {
            return Ok(());
        }
        let mut session = match first {
            Some(session) => session,
            None => self.copy.node.request_session().await?,
        };
        loop {
            let has_space = self.pending.len() < session.window() && self.bytes < WINDOW;
            let job = match has_space {
                true if self.pending.is_empty() && self.unconfirmed.is_none() => {
                    self.copy.until(|work| self.copy.take(work)).await
                }
                true => self.copy.take(&mut self.copy.work()).flatten(),
                false => None,
            };
            match job {
                Some(job) => self.send(&mut session, job).await?,
                None if has_space && self.needs_confirmation() => self.send_empty(&mut session).await?,
                None if self.pending.is_empty() => break,
                None => self.answer(&mut session).await?,
            }
        }
        session.end().await;
        Ok(())
    }

    /// Sends the requests of a job. The job is added to `pending` first, so that it returns to the queue if the session is lost.
    async fn send(&mut self, session: &mut RequestSession, job: Job) -> Result<(), CopyError> {
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
        self.pending.push_back(Pending { job: Some(job), length, answers: requests.len(), error: None });
        let last = requests.len().saturating_sub(1);
        for (number, request) in requests.iter().enumerate() {
            session.send(request, if number == last { data.clone() } else { Bytes::new() }).await?;
        }
        Ok(())
    }

    /// Whether no request follows the last job, so that no answer would confirm it.
    fn needs_confirmation(&self) -> bool {
        match self.pending.back() {
            Some(last) => last.job.as_ref().is_some_and(Job::writes),
            None => self.unconfirmed.is_some(),
        }
    }

    async fn send_empty(&mut self, session: &mut RequestSession) -> Result<(), CopyError> {
        self.pending.push_back(Pending { job: None, length: 0, answers: 1, error: None });
        session.send("e x x", Bytes::new()).await
    }

    /// Returns the requests of a job and the data that follows the last one; `None` if there is nothing to do.
    async fn prepare(&self, job: Job) -> Result<Option<(Vec<String>, Bytes)>, Failure> {
        let number = job.file();
        let Some(file) = self.copy.files.get(number) else { return Ok(None) };
        let write = |index: u64, data: &Bytes| format!("w {} x {index} {}", file.part, data.len());
        match job {
            Job::Small(_) => {
                let data = self.read(file, 0).await?;
                // The file grew after it was listed.
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

    /// Returns the local digest of a file.
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

    async fn answer(&mut self, session: &mut RequestSession) -> Result<(), CopyError> {
        let answer = session.answer().await?;
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
        if let Some(before) = self.unconfirmed.take() {
            self.complete(before)?;
        }
        let Some(job) = job else { return Ok(()) };
        let answered = Answered { job, length, answer: error.map_or(answer, Err) };
        if answered.is_final() {
            return self.complete(answered);
        }
        self.unconfirmed = Some(answered);
        Ok(())
    }

    fn complete(&mut self, Answered { job, length, answer }: Answered) -> Result<(), CopyError> {
        self.progressed = true;
        let done = self.done(&job, length, answer);
        self.copy.put_back(None);
        done
    }

    fn done(&self, job: &Job, length: u64, answer: Answer) -> Result<(), CopyError> {
        let number = job.file();
        let Some(file) = self.copy.files.get(number) else { return Ok(()) };
        match (job, answer) {
            (Job::Finish(_), Ok(theirs)) => {
                let mut work = self.copy.work();
                let Some(state) = work.states.get_mut(number) else { return Ok(()) };
                state.is_done = true;
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
                return Err(CopyError::Fatal(failure));
            }
            (_, Err(why)) => self.copy.give_up(number, refused(&file.shown, &why)),
        }
        Ok(())
    }
}

/// The failure for a file whose digests differ.
fn differs(file: &File) -> Failure {
    failed(format!("{}: changed while it was copied; copy it again", file.shown))
}
