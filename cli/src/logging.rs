//! The log on stderr, and the panic hook.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::Verbosity;
use crate::{console, untrusted};

/// The crates whose log is shown. The logs of other crates are not shown at any level: an HTTP client's trace would
/// contain the session's token.
const OURS: [&str; 4] = ["aws_ssm_forward", "ssm_forward", "ssm_local", "ssm_proto"];

/// Sends the log to stderr.
pub(crate) fn init(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity { quiet: true, .. } => LevelFilter::OFF,
        Verbosity { verbose: 0, .. } => LevelFilter::WARN,
        Verbosity { verbose: 1, .. } => LevelFilter::INFO,
        Verbosity { verbose: 2, .. } => LevelFilter::DEBUG,
        Verbosity { .. } => LevelFilter::TRACE,
    };
    let ours = Targets::new().with_targets(OURS.map(|target| (target, level)));
    let ansi = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_writer(ToConsole).with_ansi(ansi);
    tracing_subscriber::registry().with(lines).with(ours).init();
}

/// Reports the suppressed lines that were not reported yet, because no other line of the same place followed.
pub(crate) fn finish() {
    let mut places = LINES.places.lock().unwrap_or_else(PoisonError::into_inner);
    let suppressed: u64 = places.values_mut().map(|place| std::mem::take(&mut place.suppressed)).sum();
    if suppressed > 0 {
        console::note(&format!("{suppressed} more lines of the log were suppressed"));
    }
}

static LINES: LazyLock<Lines> = LazyLock::new(Lines::default);

/// Limits the number of lines per second for each place in the code, because a peer can cause any number of lines.
#[derive(Debug, Default)]
struct Lines {
    places: Mutex<HashMap<Identifier, Place>>,
}

/// The state of a place in the code that writes lines.
#[derive(Debug)]
struct Place {
    /// Start of the current window.
    since: Instant,
    /// Number of lines in the current window.
    lines: u64,
    /// Number of lines that were suppressed since the last report.
    suppressed: u64,
}

/// Length of the window in which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Maximum number of warnings and errors of one place per second.
const MOST_WARNINGS: u64 = 10;
/// Maximum number of other lines of one place per second. They are written only if the user has requested them with `-v`.
const MOST: u64 = 100;

impl Lines {
    /// Decides whether a line is written. Returns `None` if its place has reached the limit; otherwise the text to write before
    /// the line, which is empty or reports suppressed lines.
    fn admit(&self, from: &Metadata<'_>, now: Instant) -> Option<String> {
        let most = if *from.level() <= Level::WARN { MOST_WARNINGS } else { MOST };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(from.callsite()).or_insert(Place { since: now, lines: 0, suppressed: 0 });
        let is_new_window = now >= place.since + WINDOW;
        if is_new_window {
            (place.since, place.lines) = (now, 0);
        } else if place.lines >= most {
            place.suppressed += 1;
            return None;
        }
        place.lines += 1;
        let mut before = String::new();
        if let suppressed @ 1.. = std::mem::take(&mut place.suppressed) {
            let _ = writeln!(before, "{suppressed} more lines like the next one were suppressed");
        }
        Some(before)
    }
}

/// Writes the lines that [`Lines`] admits.
#[derive(Debug)]
struct ToConsole;

impl MakeWriter<'_> for ToConsole {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Some(String::new()))
    }

    fn make_writer_for(&self, from: &Metadata<'_>) -> Line {
        Line(LINES.admit(from, Instant::now()))
    }
}

/// Writes one line, after the text it contains. With `None`, the line is dropped.
struct Line(Option<String>);

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(before) = self.0.take() {
            console::log(before + &untrusted::log_line(&String::from_utf8_lossy(line)));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Installs a panic hook that restores the terminal and reports the panic in one line. With `RUST_BACKTRACE`, the standard hook
/// reports the panic.
pub(crate) fn install_panic_hook() {
    let detailed = std::env::var_os("RUST_BACKTRACE").map(|_| std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        crate::terminal::restore();
        if let Some(detailed) = &detailed {
            return detailed(panic);
        }
        let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let payload = untrusted::line(panic.payload_as_str().unwrap_or("panicked"));
        console::note(&format!("error: internal error{place}: {payload}; please report it"));
        console::flush();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_gets_so_many_lines_a_second_and_the_rest_is_counted() {
        let (lines, start) = (Lines::default(), Instant::now());
        let metadata = metadata();
        let admitted =
            |at: Duration| (0..1000).filter_map(|_| lines.admit(metadata, start + at)).collect::<Vec<String>>();
        let first = admitted(Duration::ZERO);
        assert_eq!(first.len(), 10);
        assert!(first.iter().all(String::is_empty), "{first:?}");
        assert!(admitted(Duration::from_millis(999)).is_empty());
        let next = admitted(WINDOW);
        assert_eq!(next.len(), 10);
        assert_eq!(next[0], "1990 more lines like the next one were suppressed\n");
        assert!(next[1..].iter().all(String::is_empty), "{next:?}");
    }

    /// Returns the metadata of a warning.
    fn metadata() -> &'static Metadata<'static> {
        use tracing::Callsite as _;
        static WARNING: tracing::callsite::DefaultCallsite = tracing::callsite::DefaultCallsite::new(&METADATA);
        static METADATA: Metadata<'static> = tracing::metadata! {
            name: "warning",
            target: "test",
            level: Level::WARN,
            fields: &[],
            callsite: &WARNING,
            kind: tracing::metadata::Kind::EVENT
        };
        WARNING.metadata()
    }
}
