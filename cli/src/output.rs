//! The command's output: lines for people, or JSON events for programs.
//!
//! A thread of its own writes it, so that a stopped terminal (Ctrl-S) or a pipe that nobody reads never stops the
//! tunnel.

mod json;
mod text;

pub(crate) use text::awaiting;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
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
    /// The reader.
    pub(crate) format: OutputFormat,
    /// Errors only.
    pub(crate) quiet: bool,
    /// The log goes to the same terminal, so there is no spinner.
    pub(crate) logging: bool,
    /// Another program has the terminal once all are ready: only warnings and errors are told then, and no result.
    pub(crate) beside: bool,
}

/// What the output needs to know about a forward.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// The managed node.
    pub(crate) target: String,
    /// Its `-L`.
    pub(crate) spec: ForwardSpec,
}

/// Takes what is to be told. Clones go to the same place; none of the calls blocks.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    notices: Sender<Notice>,
    backlog: Arc<Backlog>,
}

/// The queue for a slow reader, and what was dropped.
#[derive(Debug, Default)]
struct Backlog {
    waiting: AtomicUsize,
    /// Number of dropped notices, since this was last reported.
    dropped: AtomicU64,
    /// Whether it was reported that something could not be written.
    complained: AtomicBool,
}

/// Something to report.
#[derive(Debug)]
enum Notice {
    Event { at: SystemTime, forward: usize, event: ForwardEvent },
    Warning { at: SystemTime, text: String },
    Found { at: SystemTime, forward: usize, text: String },
    Client { at: SystemTime, forward: usize, command: String },
    Failure { at: SystemTime, forward: Option<usize>, failure: Failure },
    Figures { at: SystemTime, forwards: Vec<Figures> },
    Dropped { at: SystemTime, count: u64 },
    End,
}

/// The text about dropped events.
fn dropped(count: u64) -> String {
    let plural = if count == 1 { " was" } else { "s were" };
    format!("{count} event{plural} not reported: nobody read the output for a while")
}

impl Reporter {
    /// Reports an event of the forward with this index.
    pub(crate) fn event(&self, forward: usize, event: ForwardEvent) {
        self.send(Notice::Event { at: SystemTime::now(), forward, event });
    }

    /// Reports what a name was resolved to.
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

    /// Reports the live figures of each forward. They are only for the present moment: a slow reader does not get old
    /// ones.
    pub(crate) fn figures(&self, forwards: Vec<Figures>) {
        if self.backlog.waiting.load(Ordering::Relaxed) == 0 {
            self.send(Notice::Figures { at: SystemTime::now(), forwards });
        }
    }

    /// Reports why the command ends, even if the queue is full.
    pub(crate) fn fail(&self, forward: Option<usize>, failure: &Failure) {
        self.queue(Notice::Failure { at: SystemTime::now(), forward, failure: failure.clone() });
    }

    fn send(&self, notice: Notice) {
        if self.backlog.waiting.load(Ordering::Relaxed) < QUEUE {
            return self.queue(notice);
        }
        self.backlog.dropped.fetch_add(1, Ordering::Relaxed);
        // Only once: a script may read up to the ready line and no further.
        if !self.backlog.complained.swap(true, Ordering::Relaxed) {
            tracing::warn!("events are not reported: the reader of the output is too slow, or gone");
        }
    }

    fn queue(&self, notice: Notice) {
        self.backlog.waiting.fetch_add(1, Ordering::Relaxed);
        // If the thread is gone, so is the reader.
        let _ = self.notices.send(notice);
    }
}

/// The writing thread.
#[derive(Debug)]
pub(crate) struct Output {
    reporter: Reporter,
    done: oneshot::Receiver<()>,
    quiet: bool,
}

/// Maximum number of queued notices for a slow reader. Beyond it they are dropped.
const QUEUE: usize = 4096;

/// Time limit for the last lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Output {
    /// Starts the thread. It calls `shutdown` when stdout is closed.
    pub(crate) fn start(style: Style, subjects: Vec<Subject>, shutdown: Shutdown) -> Self {
        let (notices, receiver) = channel();
        let (finished, done) = oneshot::channel();
        let backlog = Arc::new(Backlog::default());
        let behind = backlog.clone();
        std::thread::spawn(move || {
            write_all(style, &subjects, &receiver, &behind, &shutdown);
            let _ = finished.send(());
        });
        Self { reporter: Reporter { notices, backlog }, done, quiet: style.quiet }
    }

    /// The reporter.
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Writes what is left, within a second. If the output is blocked, the reason for the end is written to standard
    /// error.
    pub(crate) async fn close(self, failure: Option<&Failure>) {
        self.reporter.queue(Notice::End);
        if tokio::time::timeout(CLOSE_TIMEOUT, self.done).await.is_ok() {
            return;
        }
        if let Some(failure) = failure {
            console::note(&format!("error: {failure}"));
        }
        let Backlog { waiting, dropped: more, .. } = &*self.reporter.backlog;
        // The last one is the end itself.
        let waiting = waiting.load(Ordering::Relaxed).saturating_sub(1) as u64;
        if !self.quiet {
            console::note(&format!("warning: {}", dropped(waiting + more.load(Ordering::Relaxed))));
        }
    }
}

fn write_all(style: Style, subjects: &[Subject], notices: &Receiver<Notice>, backlog: &Backlog, shutdown: &Shutdown) {
    let mut text = text::TextWriter::new(style, subjects);
    let mut json = json::JsonWriter::default();
    let mut write = |notice: &Notice| {
        let written = match style.format {
            OutputFormat::Json => json.write(&mut io::stdout().lock(), subjects, notice),
            OutputFormat::Text => Ok(()),
        };
        if written.and_then(|()| text.write(notice)).is_err() {
            shutdown.stop(StopCause::OutputClosed);
        }
    };
    for notice in notices {
        let is_end = matches!(notice, Notice::End);
        write(&notice);
        backlog.waiting.fetch_sub(1, Ordering::Relaxed);
        // Earlier drops were reported just now, or will be soon.
        if let count @ 1.. = backlog.dropped.swap(0, Ordering::Relaxed) {
            write(&Notice::Dropped { at: SystemTime::now(), count });
        }
        if is_end {
            break;
        }
    }
    text.finish();
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
