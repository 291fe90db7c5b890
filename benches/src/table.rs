//! Plain text tables.

use crate::plot::short;
use crate::report::{Report, Summary};

/// A displayed figure: its key, its name, its unit, and whether more is better.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
}

const fn metric(key: &'static str, name: &'static str, unit: &'static str, more_is_better: bool) -> Metric {
    Metric { key, name, unit, more_is_better }
}

/// All figures of measurements with a local agent, in display order.
pub(crate) const METRICS: &[Metric] = &[
    metric("download-1", "download, 1 connection", "MB/s", true),
    metric("download-8", "download, 8 connections", "MB/s", true),
    metric("download-64", "download, 64 connections", "MB/s", true),
    metric("dump-1", "download of text, 1 connection", "MB/s", true),
    metric("upload-1", "upload, 1 connection", "MB/s", true),
    metric("upload-8", "upload, 8 connections", "MB/s", true),
    metric("upload-64", "upload, 64 connections", "MB/s", true),
    metric("ping-p50", "round trip of 1 byte, median", "ms", false),
    metric("ping-p99", "round trip of 1 byte, p99", "ms", false),
    metric("connect-p50", "connect to first byte, median", "ms", false),
    metric("connect-p99", "connect to first byte, p99", "ms", false),
    metric("busy-download-p50", "round trip beside a download, median", "ms", false),
    metric("busy-download-p99", "round trip beside a download, p99", "ms", false),
    metric("busy-upload-p50", "round trip beside an upload, median", "ms", false),
    metric("busy-upload-p99", "round trip beside an upload, p99", "ms", false),
    metric("active-p50", "round trip, 1000 active connections, median", "ms", false),
    metric("active-worst", "round trip, 1000 active connections, worst", "ms", false),
    metric("slow-reader", "3 downloads beside a reader of 0.6 MB/s", "MB/s", true),
    metric("stuck-p50", "connect to first byte beside stuck connections, median", "ms", false),
    metric("stuck-p99", "connect to first byte beside stuck connections, p99", "ms", false),
    metric("ready", "exec to ready", "ms", false),
    metric("api", "of it, StartSession alone", "ms", false),
    metric("cpu-download", "CPU per 100 MB, download", "s", false),
    metric("cpu-dump", "CPU per 100 MB, download of text", "s", false),
    metric("cpu-upload", "CPU per 100 MB, upload", "s", false),
    metric("rss-idle", "memory, idle", "MiB", false),
    metric("anonymous-idle", "of it, not of the program's file", "MiB", false),
    metric("rss-1000", "memory, 1000 idle connections", "MiB", false),
    metric("rss-slow-reader", "memory, beside that slow reader", "MiB", false),
    metric("sessions-1", "1 session, 1 download", "MB/s", true),
    metric("sessions-2", "2 sessions, 2 downloads", "MB/s", true),
    metric("sessions-4", "4 sessions, 4 downloads", "MB/s", true),
    metric("sessions-8", "8 sessions, 8 downloads", "MB/s", true),
    metric("sessions-16", "16 sessions, 16 downloads", "MB/s", true),
];

/// The description of a profile.
pub(crate) fn profile_title(profile: &str) -> &'static str {
    match profile {
        "fast" => "without an artificial limit (--profile fast)",
        "real" => "at the real agent's pace (--profile real)",
        "aws" => "as in AWS: the agent's pace, 900 messages a second, 20 ms each way (--profile aws)",
        _ => "parts",
    }
}

/// The table of the whole comparison: for each profile, a row for each figure and a column for each client.
pub(crate) fn of(report: &Report) -> String {
    let settings = &report.settings;
    let mut text = format!(
        "{}\n{} x {} s, median (least - most), then the ratio to {}; delay {} ms each way\n",
        report.machine,
        settings.repetitions,
        settings.seconds,
        report.clients.first().map_or_else(String::new, |client| short(client)),
        settings.delay_ms,
    );
    for profile in ["fast", "real", "aws"] {
        let rows: Vec<Vec<String>> = METRICS.iter().filter_map(|metric| row(report, profile, metric)).collect();
        if rows.is_empty() {
            continue;
        }
        text.push_str(&format!("\n{}\n", profile_title(profile)));
        let mut header = vec![String::new(), String::new()];
        header.extend(report.clients.iter().map(|client| short(client)));
        text.push_str(&aligned(&[vec![header], rows].concat()));
    }
    for failure in &report.failures {
        text.push_str(&format!(
            "FAILED {} {} {}: {}\n",
            failure.profile,
            failure.scenario,
            short(&failure.client),
            failure.error
        ));
    }
    text
}

fn row(report: &Report, profile: &str, metric: &Metric) -> Option<Vec<String>> {
    let values: Vec<Option<Summary>> =
        report.clients.iter().map(|client| report.get(profile, client, metric.key)).collect();
    values.iter().flatten().next()?;
    let baseline = values.first().copied().flatten();
    let mut cells = vec![metric.name.to_owned(), metric.unit.to_owned()];
    for (at, value) in values.iter().enumerate() {
        cells.push(match (value, baseline) {
            (None, _) => "-".into(),
            (Some(value), Some(baseline)) if at > 0 => {
                format!("{}  x{}", spread(value), figure(value.median / baseline.median))
            }
            (Some(value), _) => spread(value),
        });
    }
    Some(cells)
}

fn spread(value: &Summary) -> String {
    format!("{} ({} - {})", figure(value.median), figure(value.least), figure(value.most))
}

/// Formats a value with three significant digits.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 0.1 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Formats rows with columns as wide as their widest cell; the first column is aligned left, the others right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_that_count() {
        let figures: Vec<String> = [0.0, 0.0123, 0.5, 12.34, 1234.5].into_iter().map(figure).collect();
        assert_eq!(figures, ["0", "0.012", "0.50", "12.3", "1234"]);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".into(), "10".into()], vec!["bcd".into(), "5".into()]];
        assert_eq!(aligned(&rows), "a    10\nbcd   5\n");
    }
}
