//! Standard output and standard error, for everything except a session's data. A thread of its own writes to each, so
//! that a stopped terminal (Ctrl-S) or a pipe that nobody reads never blocks other tasks.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::terminal;

/// Maximum number of queued bytes for a slow reader. Everything beyond it is dropped and counted.
const QUEUE: usize = 1 << 20;
/// Time limit for writing the last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Console> = LazyLock::new(|| Console::start(write_stdout));
static STDERR: LazyLock<Console> = LazyLock::new(|| Console::start(write_stderr));

/// Writes this text to standard output unchanged.
pub(crate) fn say(text: impl Into<String>) {
    STDOUT.push(text.into());
}

/// Writes this line to standard error.
pub(crate) fn note(line: &str) {
    STDERR.push(format!("{line}\n"));
}

/// Writes lines, including their line ends, to standard error.
pub(crate) fn log(lines: String) {
    STDERR.push(lines);
}

/// Waits, with a time limit, until everything so far is written.
pub(crate) fn flush() {
    let began = Instant::now();
    let written = [&STDOUT, &STDERR].map(|console| console.written());
    for written in written {
        let _ = written.recv_timeout(LAST_WORDS.saturating_sub(began.elapsed()));
    }
}

fn write_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn write_stderr(text: &str) -> io::Result<()> {
    terminal::Stderr.write_all(text.as_bytes())
}

/// One of the two.
struct Console {
    queue: Sender<Item>,
    backlog: Arc<Backlog>,
}

#[derive(Default)]
struct Backlog {
    /// Bytes in the queue.
    bytes: AtomicUsize,
    /// Number of texts that did not fit, since this was last reported.
    dropped: AtomicU64,
}

enum Item {
    Text(String),
    /// Answered once everything before is written.
    Flush(Sender<()>),
}

impl Console {
    fn start(write: fn(&str) -> io::Result<()>) -> Self {
        let (queue, items) = channel();
        let backlog = Arc::new(Backlog::default());
        let behind = backlog.clone();
        std::thread::spawn(move || write_all(&items, &behind, write));
        Self { queue, backlog }
    }

    fn push(&self, text: String) {
        let length = text.len();
        if self.backlog.bytes.fetch_add(length, Ordering::Relaxed) > QUEUE {
            self.backlog.bytes.fetch_sub(length, Ordering::Relaxed);
            self.backlog.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            // The thread lives as long as the process.
            let _ = self.queue.send(Item::Text(text));
        }
    }

    /// Receives once everything so far is written.
    fn written(&self) -> Receiver<()> {
        let (done, written) = channel();
        let _ = self.queue.send(Item::Flush(done));
        written
    }
}

/// If writing fails, there is no reader, so the error is ignored.
fn write_all(items: &Receiver<Item>, backlog: &Backlog, write: fn(&str) -> io::Result<()>) {
    for item in items {
        match item {
            Item::Text(text) => {
                let _ = write(&text);
                backlog.bytes.fetch_sub(text.len(), Ordering::Relaxed);
                if let dropped @ 1.. = backlog.dropped.swap(0, Ordering::Relaxed) {
                    note(&format!("warning: {dropped} lines were dropped: nobody read the output"));
                }
            }
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static READER: Mutex<()> = Mutex::new(());
    static WRITTEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[test]
    fn nobody_waits_for_who_does_not_read_and_what_is_dropped_is_counted() {
        let console = Console::start(|text| {
            let _reads = READER.lock().unwrap();
            WRITTEN.lock().unwrap().push(text.to_owned());
            Ok(())
        });
        let asleep = READER.lock().unwrap();
        let line = "x".repeat(1 << 10);
        let pushed = 3 * (QUEUE >> 10);
        (0..pushed).for_each(|_| console.push(line.clone()));
        let dropped = usize::try_from(console.backlog.dropped.load(Ordering::Relaxed)).unwrap();
        assert!(console.written().recv_timeout(Duration::from_millis(10)).is_err(), "it did not wait for the reader");
        drop(asleep);
        console.written().recv().unwrap();
        let written = WRITTEN.lock().unwrap().len();
        assert!((pushed / 3..=pushed / 3 + 2).contains(&written), "{written} of {pushed}");
        assert_eq!(written + dropped, pushed);
        assert_eq!(console.backlog.dropped.load(Ordering::Relaxed), 0, "it was told");
    }
}
