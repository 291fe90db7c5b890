//! The command's output: lines of text for the user, or JSON events for programs.
//!
//! A separate thread writes the output, so that a stopped terminal (Ctrl-S) or a pipe without a reader never stops the tunnel.

mod json;
mod log;
mod text;

pub(crate) use log::{Log, names_one_of};
pub(crate) use text::awaiting;
use text::{Sink, TextWriter};

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use ssm_forward::ForwardEvent;
use tokio::sync::oneshot;

use crate::args::OutputFormat;
use crate::console;
use crate::exit_code::Failure;
use crate::figures::Figures;
use crate::shutdown::{Shutdown, StopCause};
use crate::spec::ForwardSpec;

/// The style of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Text or JSON.
    pub(crate) format: OutputFormat,
    /// Whether only errors are written.
    pub(crate) quiet: bool,
    /// Whether the log goes to the same terminal. Then there is no spinner.
    pub(crate) logging: bool,
    /// Whether another program uses the terminal once all forwards are ready. Then only warnings and errors are written, and no
    /// result.
    pub(crate) beside: bool,
}

/// What the output needs to know about a forward.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// The tunnel's name in the configuration file, if there is one.
    pub(crate) name: Option<String>,
    /// The managed node.
    pub(crate) target: String,
    /// The `-L`.
    pub(crate) spec: ForwardSpec,
}

/// The forwards that the output describes, by index. They may change while lines are written.
#[derive(Debug, Default)]
pub(crate) struct Subjects(RwLock<Arc<Vec<Subject>>>);

impl Subjects {
    /// Sets the forward of an index. New indexes must follow the existing ones without gaps.
    pub(crate) fn put(&self, index: usize, subject: Subject) {
        let mut subjects = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let subjects = Arc::make_mut(&mut subjects);
        match subjects.get_mut(index) {
            Some(place) => *place = subject,
            None => subjects.push(subject),
        }
    }

    /// Returns the current forwards.
    fn current(&self) -> Arc<Vec<Subject>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is written to the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Screen {
    /// Everything, as lines.
    Lines,
    /// Nothing: there is no terminal, or something else is drawn there.
    Hidden,
}

/// Handle that queues notices for the output. Clones share the queue. No call blocks.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    notices: Sender<Notice>,
    backlog: Arc<Backlog>,
}

/// The state of the queue: its length, and what was dropped.
#[derive(Debug, Default)]
struct Backlog {
    /// Number of queued notices.
    waiting: AtomicUsize,
    /// Number of dropped notices since the last report of it.
    dropped: AtomicU64,
    /// Whether the warning about dropped notices was logged.
    warned: AtomicBool,
}

/// A notice for the output.
#[derive(Debug)]
enum Notice {
    Event { at: SystemTime, forward: usize, event: ForwardEvent },
    Warning { at: SystemTime, text: String },
    Found { at: SystemTime, forward: usize, text: String },
    Client { at: SystemTime, forward: usize, command: String },
    Failure { at: SystemTime, forward: Option<usize>, failure: Failure },
    Retrying { at: SystemTime, forward: usize, failure: Failure, delay: Duration },
    Figures { at: SystemTime, forwards: Vec<Figures> },
    Dropped { at: SystemTime, count: u64 },
    End,
}

/// Returns the text about dropped events.
fn dropped(count: u64) -> String {
    let plural = if count == 1 { " was" } else { "s were" };
    format!("{count} event{plural} not reported: the output was not read for a while")
}

impl Reporter {
    /// Reports an event of the forward with this index.
    pub(crate) fn event(&self, forward: usize, event: ForwardEvent) {
        self.send(Notice::Event { at: SystemTime::now(), forward, event });
    }

    /// Reports the address to which a name was resolved.
    pub(crate) fn found(&self, forward: usize, text: String) {
        self.send(Notice::Found { at: SystemTime::now(), forward, text });
    }

    /// Reports the command line of the service's client, ready to paste.
    pub(crate) fn client(&self, forward: usize, command: String) {
        self.send(Notice::Client { at: SystemTime::now(), forward, command });
    }

    /// Reports a warning.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.send(Notice::Warning { at: SystemTime::now(), text: text.into() });
    }

    /// Reports the live figures of each forward. They are only valid for the present moment, so they are not queued for a slow
    /// reader.
    pub(crate) fn figures(&self, forwards: Vec<Figures>) {
        if self.backlog.waiting.load(Ordering::Relaxed) == 0 {
            self.send(Notice::Figures { at: SystemTime::now(), forwards });
        }
    }

    /// Reports why the command ends. The notice is queued even if the queue is full.
    pub(crate) fn fail(&self, forward: Option<usize>, failure: &Failure) {
        self.queue(Notice::Failure { at: SystemTime::now(), forward, failure: failure.clone() });
    }

    /// Reports that a forward failed and is tried again after `delay`.
    pub(crate) fn retrying(&self, forward: usize, failure: Failure, delay: Duration) {
        self.send(Notice::Retrying { at: SystemTime::now(), forward, failure, delay });
    }

    fn send(&self, notice: Notice) {
        if self.backlog.waiting.load(Ordering::Relaxed) < QUEUE {
            return self.queue(notice);
        }
        self.backlog.dropped.fetch_add(1, Ordering::Relaxed);
        // Logged once, because a script may intentionally read only up to the ready line.
        if !self.backlog.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("events are not reported: the reader of the output is too slow, or has ended");
        }
    }

    fn queue(&self, notice: Notice) {
        self.backlog.waiting.fetch_add(1, Ordering::Relaxed);
        // If the thread has ended, there is no reader either.
        let _ = self.notices.send(notice);
    }
}

/// Handle to the writing thread.
#[derive(Debug)]
pub(crate) struct Output {
    reporter: Reporter,
    subjects: Arc<Subjects>,
    done: oneshot::Receiver<()>,
    quiet: bool,
}

/// Maximum number of queued notices. Further notices are dropped.
const QUEUE: usize = 4096;

/// Time limit for writing the remaining lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Output {
    /// Starts the thread. The thread calls `shutdown` when stdout is closed.
    pub(crate) fn start(style: Style, subjects: Vec<Subject>, shutdown: Shutdown) -> Self {
        let subjects = Arc::new(Subjects(RwLock::new(Arc::new(subjects))));
        let text = TextWriter::new(style, subjects.current(), Sink::Screen);
        Self::spawn(style, subjects, Some(text), None, shutdown)
    }

    /// Like [`Self::start`], but also writes the lines of text to `log`, and writes to the terminal only with [`Screen::Lines`].
    /// The forwards are added later.
    pub(crate) fn logged(style: Style, log: Arc<Log>, screen: Screen, shutdown: Shutdown) -> Self {
        let subjects = Arc::<Subjects>::default();
        let text = (screen == Screen::Lines).then(|| TextWriter::new(style, subjects.current(), Sink::Screen));
        let all = Style { format: OutputFormat::Text, quiet: false, logging: true, beside: false };
        let logging = TextWriter::new(all, subjects.current(), Sink::Log(log));
        Self::spawn(style, subjects, text, Some(logging), shutdown)
    }

    fn spawn(
        style: Style,
        subjects: Arc<Subjects>,
        text: Option<TextWriter>,
        log: Option<TextWriter>,
        shutdown: Shutdown,
    ) -> Self {
        let (notices, receiver) = channel();
        let (finished, done) = oneshot::channel();
        let backlog = Arc::new(Backlog::default());
        let (behind, seen) = (backlog.clone(), subjects.clone());
        std::thread::spawn(move || {
            let shows_json = style.format == OutputFormat::Json && text.is_some();
            let json = shows_json.then(json::JsonWriter::default);
            let writers = Writers { json, text, log, subjects: seen };
            write_all(writers, &receiver, &behind, &shutdown);
            let _ = finished.send(());
        });
        Self { reporter: Reporter { notices, backlog }, subjects, done, quiet: style.quiet }
    }

    /// Returns the forwards that the output describes.
    pub(crate) fn subjects(&self) -> &Arc<Subjects> {
        &self.subjects
    }

    /// Returns the reporter.
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Writes the remaining lines, for at most [`CLOSE_TIMEOUT`]. If the output is blocked, writes the reason of the end to
    /// standard error.
    pub(crate) async fn close(self, failure: Option<&Failure>) {
        self.reporter.queue(Notice::End);
        if tokio::time::timeout(CLOSE_TIMEOUT, self.done).await.is_ok() {
            return;
        }
        if let Some(failure) = failure {
            console::note(&format!("error: {failure}"));
        }
        let Backlog { waiting, dropped: more, .. } = &*self.reporter.backlog;
        // The last notice is `End`.
        let waiting = waiting.load(Ordering::Relaxed).saturating_sub(1) as u64;
        if !self.quiet {
            console::note(&format!("warning: {}", dropped(waiting + more.load(Ordering::Relaxed))));
        }
    }
}

/// The writers of the thread.
struct Writers {
    json: Option<json::JsonWriter>,
    text: Option<TextWriter>,
    log: Option<TextWriter>,
    subjects: Arc<Subjects>,
}

impl Writers {
    /// Writes a notice to all outputs.
    ///
    /// # Errors
    /// Returns an error if stdout is closed.
    fn write(&mut self, notice: &Notice) -> io::Result<()> {
        let subjects = self.subjects.current();
        if let Some(json) = &mut self.json {
            json.write(&mut io::stdout().lock(), &subjects, notice)?;
        }
        for text in [&mut self.log, &mut self.text].into_iter().flatten() {
            text.write(&subjects, notice)?;
        }
        Ok(())
    }
}

fn write_all(mut writers: Writers, notices: &Receiver<Notice>, backlog: &Backlog, shutdown: &Shutdown) {
    let mut write = |notice: &Notice| {
        if writers.write(notice).is_err() {
            shutdown.stop(StopCause::OutputClosed);
        }
    };
    for notice in notices {
        let is_end = matches!(notice, Notice::End);
        write(&notice);
        backlog.waiting.fetch_sub(1, Ordering::Relaxed);
        // Also reports the notices that were dropped in the meantime.
        if let count @ 1.. = backlog.dropped.swap(0, Ordering::Relaxed) {
            write(&Notice::Dropped { at: SystemTime::now(), count });
        }
        if is_end {
            break;
        }
    }
    if let Some(text) = &writers.text {
        text.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn who_does_not_read_is_complained_about_once_and_what_was_not_told_is_counted() {
        let mut log = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(log.try_clone().unwrap())).finish();
        let (notices, nobody_reads) = channel();
        let reporter = Reporter { notices, backlog: Arc::default() };
        tracing::subscriber::with_default(subscriber, || (0..QUEUE + 3).for_each(|_| reporter.clone().warn("x")));
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches("events are not reported").count(), 1, "{text}");
        assert_eq!(reporter.backlog.dropped.load(Ordering::Relaxed), 3);
        reporter.fail(None, &Failure::internal("why it ends is always told"));
        assert_eq!(nobody_reads.try_iter().count(), QUEUE + 1);
    }
}
