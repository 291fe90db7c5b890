//! Sessions that run the scripts on the node.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use ssm_forward::{ForwardError, Output, Session, SessionStream, StreamSender};
use tokio::time::Instant;

use super::script;
use super::wire::{Decoder, Event};
use crate::args::{CpArgs, SessionArgs, Verbosity};
use crate::connect::{self, Source, start_request, stopped};
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::session_commands::{command_line, words_of};
use crate::shutdown::{Shutdown, StopCause, interrupted};
use crate::silence::Silence;
use crate::{exact_output, untrusted};

/// The target of a copy. Starts the sessions.
pub(super) struct Node {
    source: Source,
    options: SessionArgs,
    manager: Mutex<Option<LocalManager>>,
    quiet: bool,
    /// Whether a session was started before. Only the first one waits for the node to be connected.
    began: AtomicBool,
    /// Sessions that are terminated at the end of the copy, if they still exist.
    sessions: Mutex<Vec<Weak<Session>>>,
}

/// The error of an operation on the node.
#[derive(Debug)]
pub(super) enum CopyError {
    /// The session was lost. A new session may succeed.
    Lost(Failure),
    /// A new session would not help.
    Fatal(Failure),
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        let (CopyError::Lost(failure) | CopyError::Fatal(failure)) = error;
        failure
    }
}

/// Maximum number of bytes in one read of a session.
const READ_SIZE: usize = 128 << 10;
/// Maximum size of the kept standard error of a script, in bytes.
const MAX_STDERR: usize = 16 << 10;

impl Node {
    /// Finds the target.
    ///
    /// # Errors
    /// Returns an error if there are no credentials, if there is no such node, or if the command was stopped.
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

    /// Terminates all sessions and stops the local Session Manager of `--local`.
    pub(super) async fn close(&self) {
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        let open: Vec<_> = sessions.iter().filter_map(Weak::upgrade).collect();
        let ends = open.into_iter().map(|session| tokio::spawn(async move { session.terminate().await }));
        for end in ends.collect::<Vec<_>>() {
            let _ = end.await;
        }
        // Also waits until the dropped sessions are terminated.
        connect::terminations().finished().await;
        let manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner).take();
        connect::stop(manager).await;
    }

    /// Starts a session. `separate` requests a separate stream for standard error.
    async fn start_session(&self, document: &str, command: String, separate: bool) -> Result<Arc<Session>, CopyError> {
        let offered = if separate { vec![("separateOutputStream", "true".to_owned())] } else { Vec::new() };
        let request = start_request(Some(document), vec![("command", command)], offered, &self.options);
        let session = if self.began.swap(true, Ordering::Relaxed) {
            Box::pin(self.source.start(request)).await.map_err(|error| {
                let again = match &error {
                    ForwardError::Provider(error) => error.is_retryable(),
                    _ => true,
                };
                let failure = Failure::from(error);
                if again { CopyError::Lost(failure) } else { CopyError::Fatal(failure) }
            })?
        } else {
            let patience = self.options.wait_connected.unwrap_or_default();
            Box::pin(self.source.first(request, patience, self.quiet)).await.map_err(CopyError::Fatal)?
        };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        Ok(session)
    }

    /// Runs the script that `words` returns for a new mark.
    pub(super) async fn run(&self, words: impl FnOnce(&str) -> Vec<String>) -> Result<ScriptOutput, CopyError> {
        let mark = exact_output::mark();
        let line = command_line(&words(&mark)).map_err(CopyError::Fatal)?;
        let session = self.start_session("AWS-StartNonInteractiveCommand", line, true).await?;
        let stream = session.open_stream().await.map_err(|error| lost(&session, &error.to_string()))?;
        let (decoder, silence) = (Decoder::new(&mark), Silence::new(Instant::now()));
        Ok(ScriptOutput { session, stream, silence, decoder, pieces: Vec::new(), stderr: Vec::new() })
    }

    /// Starts the script that receives files.
    pub(super) async fn request_session(&self) -> Result<RequestSession, CopyError> {
        let mark = exact_output::mark();
        let line = command_line(&words_of(&[script::receive(&mark)])).map_err(CopyError::Fatal)?;
        let session = self.start_session("AWS-StartInteractiveCommand", line, false).await?;
        let stream = session.open_stream().await.map_err(|error| lost(&session, &error.to_string()))?;
        let sender = stream.sender();
        let mut session =
            RequestSession { session, stream, sender, mark, requests: 0, buffer: Vec::new(), is_exact: false };
        session.begin().await?;
        Ok(session)
    }
}

fn lost(session: &Session, error: &str) -> CopyError {
    let reason = session.close_reason().map_or_else(|| error.to_owned(), |reason| reason.to_string());
    CopyError::Lost(Failure::new(ExitCode::SessionLost, "session_ended", reason))
}

fn refused(text: impl Into<String>) -> CopyError {
    CopyError::Fatal(failed(text))
}

/// The failure for something that could not be copied.
pub(super) fn failed(text: impl Into<String>) -> Failure {
    Failure::new(ExitCode::NotCopied, "copy", text)
}

fn lacks(tool: &str) -> CopyError {
    refused(format!("the node lacks {tool}"))
}

/// The output of a script, and its session.
pub(super) struct ScriptOutput {
    session: Arc<Session>,
    stream: SessionStream,
    silence: Silence,
    decoder: Decoder,
    /// Scratch buffer of `read`.
    pieces: Vec<(Output, Bytes)>,
    stderr: Vec<u8>,
}

impl ScriptOutput {
    /// Returns the next part of the output.
    ///
    /// # Errors
    /// Returns an error if the node lacks a tool, if the output is invalid, or if the session ended.
    pub(super) async fn next(&mut self) -> Result<Event, CopyError> {
        loop {
            match self.decoder.next() {
                Some(Event::Missing(tool)) => return Err(lacks(&tool)),
                Some(event) => return Ok(event),
                None if self.decoder.is_invalid() => return Err(refused("the node sent an unexpected answer")),
                None => {}
            }
            if !self.read().await? {
                return Err(self.end_error());
            }
        }
    }

    async fn read(&mut self) -> Result<bool, CopyError> {
        let read = tokio::select! {
            read = self.stream.read_outputs(&mut self.pieces, READ_SIZE) => read,
            () = self.silence.detected(&self.session) => {
                return Err(lost(&self.session, "no output since the session was reconnected; the agent may have stopped reading it"));
            }
        };
        for (output, bytes) in self.pieces.drain(..) {
            match output {
                Output::Stderr if self.stderr.len() < MAX_STDERR => self.stderr.extend_from_slice(&bytes),
                Output::Stderr => {}
                _ => self.decoder.feed(bytes),
            }
        }
        read.map_err(|error| lost(&self.session, &error.to_string()))
    }

    fn end_error(&self) -> CopyError {
        let stderr = String::from_utf8_lossy(&self.stderr);
        let noise = self.decoder.noise();
        let said = [stderr.trim(), &noise].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        if self.session.exit_code().is_some() && !said.is_empty() {
            return refused(format!("the copy did not start; the node said: {said}"));
        }
        lost(&self.session, "the session ended before the copy did")
    }

    /// Waits until the script ends, and returns its reason why it could not read `path`, if there is one.
    pub(super) async fn read_error(&mut self, path: &[u8]) -> Option<String> {
        const MOMENT: Duration = Duration::from_secs(5);
        let rest = async { while matches!(self.read().await, Ok(true)) {} };
        let _ = tokio::time::timeout(MOMENT, rest).await;
        let stderr = String::from_utf8_lossy(&self.stderr);
        let path = String::from_utf8_lossy(path);
        let counts = |line: &&str| line.contains(" records ") || line.contains(" copied");
        let line = stderr.lines().find(|line| line.contains(&*path));
        let line = line.or_else(|| stderr.lines().rfind(|line| !counts(line)))?;
        line.rsplit_once(": ").map(|(_, reason)| untrusted::line(reason))
    }

    /// Terminates the session.
    pub(super) async fn end(self) {
        self.session.terminate().await;
    }
}

/// A session with the script that receives files. It answers requests in order.
pub(super) struct RequestSession {
    session: Arc<Session>,
    stream: SessionStream,
    sender: StreamSender,
    /// The mark that precedes the first output of the script and, with the number of the request, each request.
    mark: String,
    /// Number of requests that were sent.
    requests: u64,
    /// Received bytes that were not yet parsed.
    buffer: Vec<u8>,
    /// Whether the script reads exactly the requested number of bytes.
    is_exact: bool,
}

/// An answer of the script: a result, or the reason of a failure.
pub(super) type Answer = Result<String, String>;

impl RequestSession {
    /// Maximum number of requests in flight. Some versions of `head` read more bytes than requested. With such a `head`, the next
    /// request has to wait for the answer.
    pub(super) fn window(&self) -> usize {
        const SMALL_FILES: usize = 48;
        if self.is_exact { SMALL_FILES } else { 1 }
    }

    async fn begin(&mut self) -> Result<(), CopyError> {
        const MAX_NOISE: usize = 64 << 10;
        loop {
            let at = self.buffer.windows(self.mark.len()).position(|window| window == self.mark.as_bytes());
            if let Some(at) = at {
                self.buffer.drain(..at + self.mark.len());
                break;
            }
            if !self.read().await? || self.buffer.len() > MAX_NOISE {
                let noise = String::from_utf8_lossy(&self.buffer).split_whitespace().collect::<Vec<_>>().join(" ");
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

    async fn read(&mut self) -> Result<bool, CopyError> {
        let chunk = self.stream.read_chunk().await.map_err(|error| lost(&self.session, &error.to_string()))?;
        self.buffer.extend_from_slice(chunk.as_deref().unwrap_or_default());
        Ok(chunk.is_some())
    }

    async fn line(&mut self) -> Result<String, CopyError> {
        const MAX_LINE: usize = 64 << 10;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(line.get(..end).unwrap_or_default()).into_owned());
            }
            if self.buffer.len() > MAX_LINE {
                return Err(refused("the node sent an unexpected answer"));
            }
            if !self.read().await? {
                return Err(lost(&self.session, "the session ended before the copy did"));
            }
        }
    }

    /// Sends a request, followed by `bytes`.
    pub(super) async fn send(&mut self, request: &str, mut bytes: Bytes) -> Result<(), CopyError> {
        const CHUNK: usize = 64 << 10;
        let mut chunk = Bytes::from(format!("{}.{} {request}\n", self.mark, self.requests));
        self.requests += 1;
        loop {
            self.sender.write_chunk(chunk).await.map_err(|error| lost(&self.session, &error.to_string()))?;
            if bytes.is_empty() {
                break;
            }
            chunk = bytes.split_to(CHUNK.min(bytes.len()));
        }
        if self.is_exact && request.starts_with("w ") {
            // Ends the data; see `t` in the script.
            let end = Bytes::from_static(b".");
            self.sender.write_chunk(end).await.map_err(|error| lost(&self.session, &error.to_string()))?;
        }
        Ok(())
    }

    /// Returns the next answer.
    pub(super) async fn answer(&mut self) -> Result<Answer, CopyError> {
        let line = self.line().await?;
        match (line.strip_prefix('='), line.strip_prefix('!')) {
            (Some(result), _) => Ok(Ok(result.to_owned())),
            (_, Some(why)) => Ok(Err(reason(why))),
            _ => Err(refused(format!("the node sent an unexpected answer: {line}"))),
        }
    }

    /// Terminates the session.
    pub(super) async fn end(self) {
        self.session.terminate().await;
    }
}

/// Returns the reason in a tool's error message, without file names and without the counts of `dd`.
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
