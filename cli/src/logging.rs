//! The log on stderr, and what is said of a panic.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::Verbosity;

/// Whose log is shown. Other crates' is not at any level: an HTTP client's trace would print the session's token.
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
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_writer(|| crate::terminal::Stderr).with_ansi(ansi);
    tracing_subscriber::registry().with(lines).with(ours).init();
}

/// A panic gives the terminal back and is told in one line; `RUST_BACKTRACE` asks for more.
pub(crate) fn tell_panics_in_one_line() {
    let detailed = std::env::var_os("RUST_BACKTRACE").map(|_| std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        crate::terminal::restore();
        if let Some(detailed) = &detailed {
            return detailed(panic);
        }
        let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let payload = panic.payload_as_str().unwrap_or("panicked").replace('\n', " ");
        eprintln!("error: internal error{place}: {payload}; please report it");
    }));
}
