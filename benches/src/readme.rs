//! `readme`: writes the figures of a comparison between the README's markers.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::plot::short;
use crate::report::{Report, Summary};
use crate::table::figure;
use crate::{Result, targets};

/// Arguments of `readme`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// JSON file of a comparison.
    #[arg(value_name = "FILE", default_value = "compare.json")]
    json: PathBuf,
    /// The file to change.
    #[arg(long, default_value = "README.md")]
    readme: PathBuf,
    /// The path of the plot, as written in the file.
    #[arg(long, default_value = "docs/performance.svg")]
    plot: String,
}

const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- /figures -->";

/// Replaces the section between the markers.
pub(crate) fn run(args: &Args) -> Result<()> {
    let report = Report::read(&args.json)?;
    let text = std::fs::read_to_string(&args.readme)?;
    let changed = replaced(&text, &section(&report, &args.plot))
        .ok_or_else(|| format!("{} has no line {BEGIN}", args.readme.display()))?;
    std::fs::write(&args.readme, changed)?;
    Ok(())
}

/// Returns `text` with `section` between the markers. The second marker is added if it is missing.
fn replaced(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let after = rest.split_once(END).map_or(rest, |(_, after)| after);
    Some(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

/// Rows of the table: name, profile, figure, unit.
const ROWS: &[(&str, &str, &str, &str)] = &[
    ("download, 1 connection", "fast", "download-1", "MB/s"),
    ("upload, 1 connection", "fast", "upload-1", "MB/s"),
    ("round trip of 1 byte, median", "fast", "ping-p50", "ms"),
    ("connect to first byte, median", "fast", "connect-p50", "ms"),
    ("CPU per 100 MB, download", "fast", "cpu-download", "s"),
    ("CPU per 100 MB, upload", "fast", "cpu-upload", "s"),
    ("memory, idle", "fast", "rss-idle", "MiB"),
    ("memory, 1000 idle connections", "fast", "rss-1000", "MiB"),
    ("longest wait of 1000 active connections", "fast", "active-worst", "ms"),
    ("exec to ready", "fast", "ready", "ms"),
    ("at the agent's pace: download, 1 connection", "real", "download-1", "MB/s"),
    ("at the agent's pace: download, 8 connections", "real", "download-8", "MB/s"),
    ("at the agent's pace: download of text", "real", "dump-1", "MB/s"),
    ("as in AWS: download, 1 connection", "aws", "download-1", "MB/s"),
    ("as in AWS: download, 8 connections", "aws", "download-8", "MB/s"),
    ("as in AWS: upload, 1 connection", "aws", "upload-1", "MB/s"),
    ("as in AWS: upload, 8 connections", "aws", "upload-8", "MB/s"),
    ("as in AWS: round trip of 1 byte, median", "aws", "ping-p50", "ms"),
    ("as in AWS: the same beside an upload", "aws", "busy-upload-p50", "ms"),
    ("as in AWS: connect to first byte, median", "aws", "connect-p50", "ms"),
];

fn section(report: &Report, plot: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "\n![Throughput, latency and cost of a tunnel, by client]({plot})\n");
    let _ = writeln!(text, "Measured on {}, over loopback with the local Session Manager:\n", report.machine);
    let _ = writeln!(text, "    {}\n", report.settings.command);
    let others: Vec<&String> = report.clients.iter().skip(1).collect();
    let names = others.iter().map(|client| format!(" {} |", short(client))).collect::<String>();
    let ours = report.clients.first().map(String::as_str).unwrap_or_default();
    let _ = writeln!(text, "| | {} |{names}", short(ours));
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(others.len()));
    for (name, profile, metric, unit) in ROWS {
        let Some(value) = report.get(profile, ours, metric) else { continue };
        let cells = others.iter().map(|client| cell(report.get(profile, client, metric), value)).collect::<String>();
        let _ = writeln!(text, "| {name} | {} {unit} |{cells}", figure(value.median));
    }
    let _ = writeln!(
        text,
        "\n\"As in AWS\" means the real agent's pace, a limit of 900 messages per second, and 20 ms in each direction between client and service."
    );
    let _ = writeln!(text);
    for line in in_words(report, ours) {
        let _ = writeln!(text, "- {line}");
    }
    let versions: Vec<String> =
        report.versions.iter().map(|(client, version)| format!("{}: {version}", short(client))).collect();
    let _ = writeln!(text, "\nMedians of {} runs. {}.\n", report.settings.repetitions, versions.join("; "));
    text
}

/// The cell of another client: its figure, and the ratio to our client's figure.
fn cell(value: Option<Summary>, ours: Summary) -> String {
    match value {
        Some(value) => format!(" {} (× {}) |", figure(value.median), figure(value.median / ours.median)),
        None => " |".into(),
    }
}

fn in_words(report: &Report, ours: &str) -> Vec<String> {
    let part = |metric| report.get("", ours, metric).map(|summary| figure(summary.median));
    let mut lines = Vec::new();
    if let (Some(encode), Some(decode)) = (part("encode-ratio"), part("decode-ratio")) {
        lines.push(format!(
            "Encoding a message of 1 KiB takes {encode} times as long as its SHA-256 alone, decoding {decode} times as long."
        ));
    }
    let added = targets::of(report).into_iter().find(|target| target.what.starts_with("round trip added"));
    if let Some(added) = added.and_then(|target| target.value) {
        lines.push(format!("The tunnel adds {} ms to a round trip.", figure(added)));
    }
    let missed: Vec<String> = targets::of(report)
        .into_iter()
        .filter_map(|target| {
            let value = target.value.filter(|_| target.verdict() == targets::MISS)?;
            Some(format!("{} ({} {}, target {})", target.what, figure(value), target.unit, target.wanted()))
        })
        .collect();
    if !missed.is_empty() {
        lines.push(format!("Missed targets: {}.", missed.join("; ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n";
        let once = replaced(text, "new\n").unwrap();
        assert_eq!(once, "a\n<!-- figures -->\nnew\n<!-- /figures -->\nb\n");
        assert_eq!(replaced(&once, "new\n").unwrap(), once);
        assert_eq!(replaced("a\n<!-- figures -->\nb", "n\n").unwrap(), "a\n<!-- figures -->\nn\n<!-- /figures -->\nb");
        assert_eq!(replaced("nothing", "n"), None);
    }
}
