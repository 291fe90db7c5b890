//! Standard output and standard error, for everything except a session's data. A dedicated thread writes to each of them, so
//! that a stopped terminal (Ctrl-S) or a pipe without a reader never blocks other tasks.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::terminal;

/// Queue limit in bytes, for a slow reader. Lines beyond this limit are dropped and counted.
const QUEUE: usize = 1 << 20;
/// Timeout of [`flush`].
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Console> = LazyLock::new(|| Console::start(write_stdout));
static STDERR: LazyLock<Console> = LazyLock::new(|| Console::start(write_stderr));

/// Writes `text` to standard output, without adding a line end.
pub(crate) fn say(text: impl Into<String>) {
    STDOUT.push(text.into());
}

/// Writes `line` and a line end to standard error.
pub(crate) fn note(line: &str) {
    STDERR.push(format!("{line}\n"));
}

/// Writes lines, including their line ends, to standard error.
pub(crate) fn log(lines: String) {
    STDERR.push(lines);
}

/// Waits until everything that is queued is written, at most [`FLUSH_TIMEOUT`].
pub(crate) fn flush() {
    let began = Instant::now();
    let written = [&STDOUT, &STDERR].map(|console| console.written());
    for written in written {
        let _ = written.recv_timeout(FLUSH_TIMEOUT.saturating_sub(began.elapsed()));
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

/// The queue of standard output or of standard error. Its thread writes the queued items.
struct Console {
    queue: Sender<Item>,
    backlog: Arc<Backlog>,
}

#[derive(Default)]
struct Backlog {
    /// Number of bytes in the queue.
    bytes: AtomicUsize,
    /// Number of texts that were dropped since the last report.
    dropped: AtomicU64,
}

enum Item {
    Text(String),
    /// The thread sends an answer when it has written everything before this item.
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
            // Sending cannot fail, because the thread runs as long as the process.
            let _ = self.queue.send(Item::Text(text));
        }
    }

    /// Returns a receiver that gets a message when everything that is queued is written.
    fn written(&self) -> Receiver<()> {
        let (done, written) = channel();
        let _ = self.queue.send(Item::Flush(done));
        written
    }
}

/// The loop of the writer thread. An error of writing means that the output has no reader, so the error is ignored.
fn write_all(items: &Receiver<Item>, backlog: &Backlog, write: fn(&str) -> io::Result<()>) {
    for item in items {
        match item {
            Item::Text(text) => {
                let _ = write(&text);
                backlog.bytes.fetch_sub(text.len(), Ordering::Relaxed);
                if let dropped @ 1.. = backlog.dropped.swap(0, Ordering::Relaxed) {
                    note(&format!("warning: {dropped} lines were dropped, because the output was not read"));
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
        assert_eq!(console.backlog.dropped.load(Ordering::Relaxed), 0, "the dropped lines were reported");
    }
}
