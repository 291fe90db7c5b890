//! The plots of a comparison.

use std::path::Path;

use crate::Result;
use crate::report::{Report, Summary};
use crate::svg::{Anchor, COLOURS, Svg};
use crate::table::{METRICS, Metric, figure, profile_title};

/// Draws the figures: `performance.svg`, and `performance-sessions.svg` if the scenario "sessions" was measured.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("performance.svg"), bars(report))?;
    if let Some(chart) = sessions(report) {
        std::fs::write(folder.join("performance-sessions.svg"), charts("More sessions, more throughput", &[chart]))?;
    }
    Ok(())
}

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 24.0;
const GAP: f64 = 32.0;
const COLUMN: f64 = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;

/// The figures that are drawn, two in a row. Plain TCP and the relays are drawn only for times, because their bars are much longer
/// than the others for throughput.
const PANELS: &[(&str, &[[&str; 2]])] = &[
    (
        "fast",
        &[
            ["download-1", "upload-1"],
            ["ping-p50", "connect-p50"],
            ["busy-download-p50", "busy-upload-p50"],
            ["cpu-download", "cpu-upload"],
            ["rss-idle", "rss-1000"],
            ["ready", "connect-p99"],
            ["slow-reader", "rss-slow-reader"],
        ],
    ),
    ("aws", &[["download-1", "upload-1"], ["download-8", "upload-8"], ["ping-p50", "busy-upload-p50"]]),
];

fn bars(report: &Report) -> String {
    let mut svg = Svg::new(WIDTH, "Throughput, latency and cost of a tunnel through Session Manager, by client");
    let mut y = MARGIN;
    for (profile, rows) in PANELS {
        if !report.series.iter().any(|series| series.profile == *profile) {
            continue;
        }
        y += 14.0;
        svg.text("title", Anchor::Start, MARGIN, y, &sentence(profile_title(profile)));
        y += 12.0;
        for keys in *rows {
            let heights = [(0.0, keys[0]), (COLUMN + GAP, keys[1])].map(|(x, key)| {
                let metric = METRICS.iter().find(|metric| metric.key == key);
                metric.map_or(0.0, |metric| panel(&mut svg, report, profile, metric, MARGIN + x, y))
            });
            y += heights[0].max(heights[1]);
        }
        y += 10.0;
    }
    svg.text(
        "small",
        Anchor::Start,
        MARGIN,
        y + 12.0,
        &format!("{}. Thin lines: minimum to maximum of {} runs.", report.machine, report.settings.repetitions),
    );
    svg.finish()
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

const LABELS: f64 = 128.0;
const VALUES: f64 = 58.0;
const ROW: f64 = 19.0;

/// Draws one figure of all clients. Returns the height of the drawing.
fn panel(svg: &mut Svg, report: &Report, profile: &str, metric: &Metric, x: f64, y: f64) -> f64 {
    let shown: Vec<(usize, &str, Summary)> = report
        .clients
        .iter()
        .enumerate()
        .filter(|(_, client)| !matches!(client.as_str(), "hops" | "tcp") || metric.unit == "ms")
        .filter_map(|(at, client)| Some((at, client.as_str(), report.get(profile, client, metric.key)?)))
        .collect();
    if shown.is_empty() {
        return 0.0;
    }
    let most = shown.iter().map(|(_, _, value)| value.most).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (COLUMN - LABELS - VALUES) / most;
    svg.text("name", Anchor::Start, x, y + 18.0, &sentence(metric.name));
    let better = if metric.more_is_better { "more is better" } else { "less is better" };
    svg.text("small", Anchor::End, x + COLUMN, y + 18.0, &format!("{}, {better}", metric.unit));
    let mut top = y + 27.0;
    for (at, client, value) in &shown {
        let middle = top + ROW / 2.0;
        svg.text(if *at == 0 { "strong" } else { "" }, Anchor::End, x + LABELS - 8.0, middle + 4.0, &short(client));
        let bar = (value.median * scale).max(1.5);
        svg.rect(&format!("c{}", at % COLOURS), x + LABELS, top + 3.0, bar, ROW - 6.0);
        let spread = [value.least, value.most].map(|end| (x + LABELS + end * scale, middle));
        svg.line("spread", &spread);
        svg.text(
            "",
            Anchor::Start,
            x + LABELS + bar.max(value.most * scale) + 6.0,
            middle + 4.0,
            &figure(value.median),
        );
        top += ROW;
    }
    top - y + 8.0
}

/// The client's name in drawings and in the README.
pub(crate) fn short(client: &str) -> String {
    let (first, args) = client.split_once(' ').map_or((client, ""), |(first, args)| (first, args));
    let name = match first.split_once(':') {
        Some(("plugin", path)) => Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()),
        _ => None,
    };
    let name = name.unwrap_or_else(|| match first.split(':').next().unwrap_or(first) {
        "ours" => "aws-ssm-forward".into(),
        "plugin" => "the same as plugin".into(),
        "bridge" => "aws-ssm-bridge".into(),
        "limit" => "limit program".into(),
        "hops" => "two TCP relays".into(),
        "tcp" => "plain TCP".into(),
        other => other.to_owned(),
    });
    let name = if name == "session-manager-plugin" { "official client".into() } else { name };
    if args.is_empty() { name } else { format!("{name} {args}") }
}

fn sessions(report: &Report) -> Option<Chart> {
    let counts = [1, 2, 4, 8, 16];
    let series: Vec<Line> = report
        .clients
        .iter()
        .enumerate()
        .map(|(colour, client)| Line {
            name: short(client),
            colour,
            points: counts
                .iter()
                .enumerate()
                .filter_map(|(at, count)| Some((at, report.get("real", client, &format!("sessions-{count}"))?)))
                .collect(),
        })
        .filter(|line| line.points.len() > 1)
        .collect();
    let ticks = counts.iter().map(ToString::to_string).collect();
    (!series.is_empty()).then(|| Chart {
        title: "Download in total, MB/s, at the real agent's pace".into(),
        below: "sessions, each with one busy connection".into(),
        ticks,
        series,
    })
}

/// A chart: lines over a few positions.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) below: String,
    /// The names of the positions.
    pub(crate) ticks: Vec<String>,
    pub(crate) series: Vec<Line>,
}

/// One line of a chart.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) colour: usize,
    /// Position and value.
    pub(crate) points: Vec<(usize, Summary)>,
}

const CHART_HEIGHT: f64 = 200.0;
const AXIS: f64 = 52.0;
/// Space beside the lines, for their names.
const NAMES: f64 = 140.0;
/// Distance between two names.
const LABEL: f64 = 15.0;

/// Draws charts side by side.
pub(crate) fn charts(title: &str, charts: &[Chart]) -> String {
    let mut svg = Svg::new(WIDTH, title);
    svg.text("title", Anchor::Start, MARGIN, MARGIN + 14.0, title);
    let count = u32::try_from(charts.len()).unwrap_or(1).max(1);
    let width = (WIDTH - 2.0 * MARGIN - GAP * f64::from(count - 1)) / f64::from(count);
    let mut x = MARGIN;
    for chart in charts {
        draw_chart(&mut svg, chart, x, MARGIN + 34.0, width);
        x += width + GAP;
    }
    svg.finish()
}

fn draw_chart(svg: &mut Svg, chart: &Chart, x: f64, y: f64, width: f64) {
    svg.text("name", Anchor::Start, x, y + 10.0, &chart.title);
    let (top, bottom) = (y + 26.0, y + 26.0 + CHART_HEIGHT);
    let named = chart.series.iter().any(|line| !line.name.is_empty());
    let (left, right) = (x + AXIS, x + width - if named { NAMES } else { 0.0 });
    let mut ends = Vec::new();
    let values = chart.series.iter().flat_map(|line| &line.points).map(|(_, value)| value.most);
    let step = nice_step(values.fold(f64::MIN_POSITIVE, f64::max) / 4.0);
    let most = step * 5.0;
    let height = |value: f64| bottom - value / most * CHART_HEIGHT;
    for tick in 0..=5 {
        let value = step * f64::from(tick);
        svg.line("axis", &[(left, height(value)), (right, height(value))]);
        svg.text("small", Anchor::End, left - 8.0, height(value) + 4.0, &round(value));
    }
    let places = u32::try_from(chart.ticks.len()).unwrap_or(2).max(2);
    let place = |at: usize| {
        left + 16.0 + (right - left - 32.0) * f64::from(u32::try_from(at).unwrap_or(0)) / f64::from(places - 1)
    };
    for (at, tick) in chart.ticks.iter().enumerate() {
        svg.text("small", Anchor::Middle, place(at), bottom + 18.0, tick);
    }
    svg.text("small", Anchor::Middle, f64::midpoint(left, right), bottom + 36.0, &chart.below);
    // The first line is the reference, so it is drawn over the others.
    for line in chart.series.iter().rev() {
        let colour = line.colour % COLOURS;
        let points: Vec<(f64, f64)> =
            line.points.iter().map(|(at, value)| (place(*at), height(value.median))).collect();
        for (at, value) in &line.points {
            svg.line("spread", &[(place(*at), height(value.least)), (place(*at), height(value.most))]);
        }
        svg.line(&format!("line l{colour}"), &points);
        for (x, y) in &points {
            svg.dot(&format!("c{colour}"), *x, *y);
        }
        ends.extend(points.last().map(|(_, y)| (*y, line.name.as_str())));
    }
    ends.reverse();
    ends.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut free = top;
    for (y, name) in ends {
        free = free.max(y) + LABEL;
        svg.text("strong", Anchor::Start, right, free - LABEL + 4.0, name);
    }
}

/// Returns the smallest value at least `value` that is 1, 2 or 5 times a power of ten.
fn nice_step(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= value).unwrap_or(value)
}

fn round(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        let steps: Vec<f64> = [0.7, 1.0, 1.7, 26.0].into_iter().map(nice_step).collect();
        assert_eq!(steps, [1.0, 1.0, 2.0, 50.0]);
        assert_eq!([round(2.5), round(100.0), round(0.0)], ["2.5", "100", "0"]);
    }

    #[test]
    fn clients_have_names_that_fit() {
        assert_eq!(short("ours"), "aws-ssm-forward");
        assert_eq!(short("ours:/x/y --sessions 8"), "aws-ssm-forward --sessions 8");
        assert_eq!(short("plugin:/usr/bin/session-manager-plugin"), "official client");
        assert_eq!(short("plugin:/opt/other"), "other");
    }

    #[test]
    fn panels_name_figures_that_exist() {
        for key in PANELS.iter().flat_map(|(_, rows)| *rows).flatten() {
            assert!(METRICS.iter().any(|metric| metric.key == *key), "{key}");
        }
    }
}
