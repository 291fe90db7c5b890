//! What the command tells, and to whom: lines for people, or JSON events for programs.
//!
//! A thread of its own does the writing, so that a terminal that is stopped (Ctrl-S) or a pipe that nobody reads never
//! stops the tunnel.

mod json;
mod text;

pub(crate) use text::awaiting;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use ssm_forward::ForwardEvent;
use tokio::sync::oneshot;

use crate::args::OutputFormat;
use crate::exit_code::Failure;
use crate::figures::Figures;
use crate::shutdown::{Shutdown, StopCause};
use crate::spec::ForwardSpec;

/// How the command tells things.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Who reads it.
    pub(crate) format: OutputFormat,
    /// Errors only.
    pub(crate) quiet: bool,
    /// The log goes to the same terminal: no spinner there.
    pub(crate) logging: bool,
}

/// What the lines of a forward need to know about it.
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
    notices: SyncSender<Notice>,
    /// Whether it was said that something could not be told.
    complained: Arc<AtomicBool>,
}

/// Something to tell.
#[derive(Debug)]
enum Notice {
    Event { at: SystemTime, forward: usize, event: ForwardEvent },
    Warning { at: SystemTime, text: String },
    Found { at: SystemTime, forward: usize, text: String },
    Client { at: SystemTime, forward: usize, command: String },
    Failure { at: SystemTime, forward: Option<usize>, failure: Failure },
    Figures { at: SystemTime, forwards: Vec<Figures> },
    End,
}

impl Reporter {
    /// Tells that something happened to the forward of this index.
    pub(crate) fn event(&self, forward: usize, event: ForwardEvent) {
        self.send(Notice::Event { at: SystemTime::now(), forward, event });
    }

    /// Tells what a name was found to mean.
    pub(crate) fn found(&self, forward: usize, text: String) {
        self.send(Notice::Found { at: SystemTime::now(), forward, text });
    }

    /// Tells how the service's client is started, ready to paste.
    pub(crate) fn client(&self, forward: usize, command: String) {
        self.send(Notice::Client { at: SystemTime::now(), forward, command });
    }

    /// Tells what the person should know.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.send(Notice::Warning { at: SystemTime::now(), text: text.into() });
    }

    /// Tells the live figures of each forward. They are for who looks now: a slow reader does not get old ones.
    pub(crate) fn figures(&self, forwards: Vec<Figures>) {
        let _ = self.notices.try_send(Notice::Figures { at: SystemTime::now(), forwards });
    }

    /// Tells why the command ends.
    pub(crate) fn fail(&self, forward: Option<usize>, failure: &Failure) {
        self.send(Notice::Failure { at: SystemTime::now(), forward, failure: failure.clone() });
    }

    fn send(&self, notice: Notice) {
        // Once: a script that reads up to the ready line and no further is to be expected.
        if self.notices.try_send(notice).is_err() && !self.complained.swap(true, Ordering::Relaxed) {
            tracing::warn!("events are not told: whoever reads the output is too slow, or gone");
        }
    }
}

/// The writing thread.
#[derive(Debug)]
pub(crate) struct Output {
    reporter: Reporter,
    done: oneshot::Receiver<()>,
}

/// Notices that wait for a slow reader; past it they are dropped rather than kept without end.
const QUEUE: usize = 4096;

/// How long the last lines may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Output {
    /// Starts to write; asks `shutdown` to stop when stdout is closed.
    pub(crate) fn start(style: Style, subjects: Vec<Subject>, shutdown: Shutdown) -> Self {
        let (notices, receiver) = sync_channel(QUEUE);
        let (finished, done) = oneshot::channel();
        std::thread::spawn(move || {
            write_all(style, &subjects, &receiver, &shutdown);
            let _ = finished.send(());
        });
        Self { reporter: Reporter { notices, complained: Arc::default() }, done }
    }

    /// Where to tell things.
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Writes what is left, within a second.
    pub(crate) async fn close(self) {
        self.reporter.send(Notice::End);
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.done).await;
    }
}

fn write_all(style: Style, subjects: &[Subject], notices: &Receiver<Notice>, shutdown: &Shutdown) {
    let mut text = text::TextWriter::new(style, subjects);
    let mut json = json::JsonWriter::default();
    for notice in notices {
        if matches!(notice, Notice::End) {
            break;
        }
        let written = match style.format {
            OutputFormat::Json => json.write(&mut io::stdout().lock(), subjects, &notice),
            OutputFormat::Text => Ok(()),
        };
        if written.and_then(|()| text.write(&notice)).is_err() {
            shutdown.stop(StopCause::OutputClosed);
        }
    }
    text.finish();
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn who_does_not_read_is_complained_about_once() {
        let mut log = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(log.try_clone().unwrap())).finish();
        let (notices, _nobody_reads) = sync_channel(1);
        let reporter = Reporter { notices, complained: Arc::default() };
        tracing::subscriber::with_default(subscriber, || (0..4).for_each(|_| reporter.clone().warn("x")));
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches("events are not told").count(), 1, "{text}");
    }
}
