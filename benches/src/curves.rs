//! `curves`: the cost of a message with many streams, and with many sessions.

use std::path::PathBuf;

use ssm_bench::work::{Part, SESSIONS, STREAMS};

use crate::budgets::Counter;
use crate::plot::{Chart, Line, charts};
use crate::report::Summary;
use crate::table::aligned;
use crate::{Result, say};

/// Arguments of `curves`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Draw the curves into this file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Maximum number of streams; counting ten thousand takes minutes.
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
}

const STREAM_COUNTS: [usize; 5] = [1, 10, 100, 1000, 10_000];
const SESSION_COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Minimum number of messages that are counted. Each stream sends the same number.
const MESSAGES: usize = 640;

/// Counts the instructions, prints and draws them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let counter = Counter::new()?;
    let streams: Vec<usize> = STREAM_COUNTS.into_iter().filter(|count| *count <= args.streams).collect();
    let streams = curve(&counter, STREAMS, &streams, "Busy streams of one session", "streams")?;
    let sessions = curve(&counter, SESSIONS, &SESSION_COUNTS, "Sessions, each with a busy stream", "sessions")?;
    if let Some(file) = &args.plot {
        std::fs::write(
            file,
            charts("Instructions per message of 1 KiB, both sides, beyond the digests", &[streams, sessions]),
        )?;
    }
    Ok(())
}

fn curve(counter: &Counter, part: Part, sizes: &[usize], title: &str, below: &str) -> Result<Chart> {
    let mut rows = vec![vec![title.to_owned(), "instructions per message".to_owned()]];
    let mut points = Vec::new();
    for (at, &size) in sizes.iter().enumerate() {
        let count = size * MESSAGES.div_ceil(size);
        let instructions = counter.beyond_digests(part, size, count)?;
        rows.push(vec![size.to_string(), format!("{instructions:.0}")]);
        points.push((at, Summary { median: instructions, least: instructions, most: instructions }));
    }
    say(&aligned(&rows));
    Ok(Chart {
        title: title.into(),
        below: below.into(),
        ticks: sizes.iter().map(ToString::to_string).collect(),
        series: vec![Line { name: String::new(), colour: 0, points }],
    })
}
