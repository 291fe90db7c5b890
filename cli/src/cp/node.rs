//! The node's side of a copy: sessions that run the scripts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use ssm_forward::{ForwardError, Output, Session, SessionStream, StreamSender};

use super::script;
use super::wire::{Decoder, Event};
use crate::args::{CpArgs, SessionArgs, Verbosity};
use crate::connect::{self, Source, start_request, stopped};
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::session_commands::{command_line, words_of};
use crate::shutdown::{Shutdown, StopCause, interrupted};
use crate::{exact_output, untrusted};

/// Where the sessions of a copy come from.
pub(super) struct Node {
    source: Source,
    options: SessionArgs,
    manager: Mutex<Option<LocalManager>>,
    quiet: bool,
    began: AtomicBool,
    /// To be terminated at the end, if they live.
    sessions: Mutex<Vec<Weak<Session>>>,
}

/// Why something on the node did not come to its end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The session is gone: another one may do better.
    Lost(Failure),
    /// Another one would not do better.
    Fatal(Failure),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Lost(failure) | Trouble::Fatal(failure)) = trouble;
        failure
    }
}

/// Bytes that are taken from a session at once.
const READ_SIZE: usize = 128 << 10;
/// Bytes of complaints that are kept.
const MAX_COMPLAINTS: usize = 16 << 10;

impl Node {
    /// Finds the target.
    ///
    /// # Errors
    /// No credentials, no such node, or it was stopped.
    pub(super) async fn find(
        target: &str,
        args: &CpArgs,
        verbosity: Verbosity,
        shutdown: &Shutdown,
    ) -> Result<Self, Failure> {
        let target = if target.is_empty() { local::DEFAULT_TARGET } else { target };
        let manager = match args.aws.local {
            true => Some(LocalManager::start(connect::local_options(target)).await?),
            false => None,
        };
        let (options, quiet) = (args.session(), verbosity.quiet);
        let found = tokio::select! {
            found = Box::pin(Source::find(target, &args.aws, &options, manager.as_ref(), quiet)) => found,
            cause = shutdown.requested() => Err(stopped(cause)),
            () = interrupted() => Err(stopped(StopCause::Interrupt)),
        };
        match found {
            Ok(source) => {
                let manager = Mutex::new(manager);
                Ok(Self { source, options, manager, quiet, began: AtomicBool::new(false), sessions: Mutex::default() })
            }
            Err(failure) => {
                connect::stop(manager).await;
                Err(failure)
            }
        }
    }

    /// Ends all sessions.
    pub(super) async fn close(&self) {
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        let living: Vec<_> = sessions.iter().filter_map(Weak::upgrade).collect();
        let ends = living.into_iter().map(|session| tokio::spawn(async move { session.terminate().await }));
        for end in ends.collect::<Vec<_>>() {
            let _ = end.await;
        }
        // And those that were dropped.
        connect::terminations().finished().await;
        let manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner).take();
        connect::stop(manager).await;
    }

    async fn session(&self, document: &str, command: String, separate: bool) -> Result<Arc<Session>, Trouble> {
        let offered = if separate { vec![("separateOutputStream", "true".to_owned())] } else { Vec::new() };
        let request = start_request(Some(document), vec![("command", command)], offered, &self.options);
        let session = if self.began.swap(true, Ordering::Relaxed) {
            Box::pin(self.source.start(request)).await.map_err(|error| {
                let again = match &error {
                    ForwardError::Provider(error) => error.is_retryable(),
                    _ => true,
                };
                let failure = Failure::from(error);
                if again { Trouble::Lost(failure) } else { Trouble::Fatal(failure) }
            })?
        } else {
            let patience = self.options.wait_connected.unwrap_or_default();
            Box::pin(self.source.first(request, patience, self.quiet)).await.map_err(Trouble::Fatal)?
        };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Runs the script that `words` makes with a mark.
    pub(super) async fn run(&self, words: impl FnOnce(&str) -> Vec<String>) -> Result<Saying, Trouble> {
        let mark = exact_output::mark();
        let line = command_line(&words(&mark)).map_err(Trouble::Fatal)?;
        let session = self.session("AWS-StartNonInteractiveCommand", line, true).await?;
        let stream = session.open_stream().await.map_err(|error| lost(&session, &error.to_string()))?;
        let decoder = Decoder::new(&mark);
        Ok(Saying { session, stream, decoder, pieces: Vec::new(), complaints: Vec::new() })
    }

    /// Starts the script that takes files.
    pub(super) async fn taker(&self) -> Result<Taker, Trouble> {
        let mark = exact_output::mark();
        let line = command_line(&words_of(&[script::take(&mark)])).map_err(Trouble::Fatal)?;
        let session = self.session("AWS-StartInteractiveCommand", line, false).await?;
        let stream = session.open_stream().await.map_err(|error| lost(&session, &error.to_string()))?;
        let sender = stream.sender();
        let mut taker = Taker { session, stream, sender, mark, said: Vec::new(), is_exact: false };
        taker.begin().await?;
        Ok(taker)
    }
}

fn lost(session: &Session, error: &str) -> Trouble {
    let reason = session.close_reason().map_or_else(|| error.to_owned(), |reason| reason.to_string());
    Trouble::Lost(Failure::new(ExitCode::SessionLost, "session_ended", reason))
}

fn refused(text: impl Into<String>) -> Trouble {
    Trouble::Fatal(failed(text))
}

/// Something could not be copied.
pub(super) fn failed(text: impl Into<String>) -> Failure {
    Failure::new(ExitCode::NotCopied, "copy", text)
}

fn lacks(tool: &str) -> Trouble {
    refused(format!("the node lacks {tool}"))
}

/// A script that says something.
pub(super) struct Saying {
    session: Arc<Session>,
    stream: SessionStream,
    decoder: Decoder,
    pieces: Vec<(Output, Bytes)>,
    complaints: Vec<u8>,
}

impl Saying {
    /// What it says next.
    pub(super) async fn next(&mut self) -> Result<Event, Trouble> {
        loop {
            match self.decoder.next() {
                Some(Event::Missing(tool)) => return Err(lacks(&tool)),
                Some(event) => return Ok(event),
                None if self.decoder.is_wrong() => return Err(refused("the node sent an unexpected answer")),
                None => {}
            }
            if !self.read().await? {
                return Err(self.ended());
            }
        }
    }

    async fn read(&mut self) -> Result<bool, Trouble> {
        let read = self.stream.read_outputs(&mut self.pieces, READ_SIZE).await;
        for (output, bytes) in self.pieces.drain(..) {
            match output {
                Output::Stderr if self.complaints.len() < MAX_COMPLAINTS => self.complaints.extend_from_slice(&bytes),
                Output::Stderr => {}
                _ => self.decoder.feed(bytes),
            }
        }
        read.map_err(|error| lost(&self.session, &error.to_string()))
    }

    fn ended(&self) -> Trouble {
        let said = String::from_utf8_lossy(&self.complaints);
        let noise = self.decoder.noise();
        let said = [said.trim(), &noise].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        if self.session.exit_code().is_some() && !said.is_empty() {
            return refused(format!("the copy did not start; the node said: {said}"));
        }
        lost(&self.session, "the session ended before the copy did")
    }

    /// Why the node could not read `path`, once it has said all.
    pub(super) async fn complaint(&mut self, path: &[u8]) -> Option<String> {
        const MOMENT: Duration = Duration::from_secs(5);
        let rest = async { while matches!(self.read().await, Ok(true)) {} };
        let _ = tokio::time::timeout(MOMENT, rest).await;
        let said = String::from_utf8_lossy(&self.complaints);
        let path = String::from_utf8_lossy(path);
        let counts = |line: &&str| line.contains(" records ") || line.contains(" copied");
        let line = said.lines().find(|line| line.contains(&*path));
        let line = line.or_else(|| said.lines().rfind(|line| !counts(line)))?;
        line.rsplit_once(": ").map(|(_, reason)| untrusted::line(reason))
    }

    /// Ends the session.
    pub(super) async fn end(self) {
        self.session.terminate().await;
    }
}

/// A script that takes files, and answers in order.
pub(super) struct Taker {
    session: Arc<Session>,
    stream: SessionStream,
    sender: StreamSender,
    /// Precedes what the script says first, and each request.
    mark: String,
    /// Of a line that is not complete.
    said: Vec<u8>,
    is_exact: bool,
}

/// What the script answers: a result, or why not.
pub(super) type Answer = Result<String, String>;

impl Taker {
    /// How many requests may wait for their answers. Some versions of `head` read more than they are asked to: then nothing may
    /// follow a request before its answer.
    pub(super) fn window(&self) -> usize {
        const SMALL_FILES: usize = 48;
        if self.is_exact { SMALL_FILES } else { 1 }
    }

    async fn begin(&mut self) -> Result<(), Trouble> {
        const MAX_NOISE: usize = 64 << 10;
        loop {
            let at = self.said.windows(self.mark.len()).position(|window| window == self.mark.as_bytes());
            if let Some(at) = at {
                self.said.drain(..at + self.mark.len());
                break;
            }
            if !self.read().await? || self.said.len() > MAX_NOISE {
                let noise = String::from_utf8_lossy(&self.said).split_whitespace().collect::<Vec<_>>().join(" ");
                return Err(match noise.as_str() {
                    "" => lost(&self.session, "the session ended before the copy began"),
                    noise => refused(format!("the copy did not start; the node said: {noise}")),
                });
            }
        }
        let line = self.line().await?;
        match line.trim_end().strip_prefix("\u{fffd}\u{5}") {
            Some(tool) => Err(lacks(tool)),
            None => {
                self.is_exact = line == "1";
                Ok(())
            }
        }
    }

    async fn read(&mut self) -> Result<bool, Trouble> {
        let chunk = self.stream.read_chunk().await.map_err(|error| lost(&self.session, &error.to_string()))?;
        self.said.extend_from_slice(chunk.as_deref().unwrap_or_default());
        Ok(chunk.is_some())
    }

    async fn line(&mut self) -> Result<String, Trouble> {
        const MAX_LINE: usize = 64 << 10;
        loop {
            if let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.said.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(line.get(..end).unwrap_or_default()).into_owned());
            }
            if self.said.len() > MAX_LINE {
                return Err(refused("the node sent an unexpected answer"));
            }
            if !self.read().await? {
                return Err(lost(&self.session, "the session ended before the copy did"));
            }
        }
    }

    /// Asks for something, with these bytes after it.
    pub(super) async fn post(&self, request: &str, mut bytes: Bytes) -> Result<(), Trouble> {
        const CHUNK: usize = 64 << 10;
        let mut chunk = Bytes::from(format!("{} {request}\n", self.mark));
        loop {
            self.sender.write_chunk(chunk).await.map_err(|error| lost(&self.session, &error.to_string()))?;
            if bytes.is_empty() {
                return Ok(());
            }
            chunk = bytes.split_to(CHUNK.min(bytes.len()));
        }
    }

    /// The next answer.
    pub(super) async fn answer(&mut self) -> Result<Answer, Trouble> {
        let line = self.line().await?;
        match (line.strip_prefix('='), line.strip_prefix('!')) {
            (Some(result), _) => Ok(Ok(result.to_owned())),
            (_, Some(why)) => Ok(Err(reason(why))),
            _ => Err(refused(format!("the node sent an unexpected answer: {line}"))),
        }
    }

    /// Ends the session.
    pub(super) async fn end(self) {
        self.session.terminate().await;
    }
}

/// What a tool said: the reason behind the names, without what `dd` counts.
fn reason(said: &str) -> String {
    let said = said.strip_suffix(" ;;").unwrap_or(said);
    let counted = said.find(" records in").and_then(|end| said.get(..end));
    let said = counted.map_or(said, |before| before.rsplit_once(' ').map_or("", |(before, _)| before));
    untrusted::line(said.rsplit_once(": ").map_or(said, |(_, reason)| reason).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_quoted_without_names_and_counts() {
        for (said, told) in [
            (
                "dd: error writing './.a b': No space left on device 1+0 records in 0+0 records out ;;",
                "No space left on device",
            ),
            ("differs ;;", "differs"),
            ("0+0 records in 0+0 records out ;;", ""),
            ("mkdir: can't create directory './x': Permission denied ;;", "Permission denied"),
        ] {
            assert_eq!(reason(said), told);
        }
    }
}
