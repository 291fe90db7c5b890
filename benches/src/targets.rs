//! The project's performance targets, and whether they are met. Most targets compare values of one measurement, so
//! that they depend little on the machine's speed and load.

use crate::report::Report;
use crate::table::{aligned, figure};

/// One target.
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
    pub(crate) value: Option<f64>,
}

/// Whether a figure must be small or large.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// The verdict on a missed target.
pub(crate) const MISS: &str = "MISS";

impl Target {
    pub(crate) fn verdict(&self) -> &'static str {
        let meets = |value: f64, limit| match self.bound {
            Bound::AtLeast(_) => value >= limit,
            Bound::AtMost(_) => value <= limit,
        };
        let (Bound::AtLeast(limit) | Bound::AtMost(limit)) = self.bound;
        match self.value {
            None => "not measured",
            Some(value) if meets(value, limit) => "pass",
            Some(_) => MISS,
        }
    }

    pub(crate) fn wanted(&self) -> String {
        match self.bound {
            Bound::AtLeast(limit) => format!(">= {}", figure(limit)),
            Bound::AtMost(limit) => format!("<= {}", figure(limit)),
        }
    }
}

/// All targets, with the measured values.
pub(crate) fn of(report: &Report) -> Vec<Target> {
    let ours = report.client("ours").unwrap_or_default();
    let part = |metric| report.get("", ours, metric).map(|summary| summary.median);
    let fast = |metric| report.get("fast", ours, metric).map(|summary| summary.median);
    let against = |kind, metric| {
        let other = report.get("fast", report.client(kind)?, metric)?.median;
        Some(fast(metric)? / other)
    };
    let real = |metric| report.get("real", ours, metric).map(|summary| summary.median);
    let official = |profile, metric| {
        let official = report.get(profile, report.client("plugin")?, metric)?.median;
        Some(report.get(profile, ours, metric)?.median / official)
    };
    let relayed = |metric| report.get("real", report.relayed()?, metric).map(|summary| summary.median);
    let relayed_official =
        |metric| Some(relayed(metric)? / report.get("real", report.client("plugin")?, metric)?.median);
    let eight = |kind, direction: &str| {
        let limit = report.get("fast", report.client(kind)?, &format!("{direction}-1"))?.median;
        Some(report.get("fast", ours, &format!("{direction}-8"))?.median / limit)
    };
    let sessions = |count: u32, metric| Some(real(metric)? / (f64::from(count) * real("sessions-1")?));
    let added = fast("ping-p50").zip(report.client("tcp").and_then(|tcp| report.get("fast", tcp, "ping-p50")));
    let added = added.map(|(with, without)| with - without.median);
    use Bound::{AtLeast, AtMost};
    let target = |what, unit, bound, value| Target { what, unit, bound, value };
    vec![
        target("encode 1 KiB / its SHA-256", "x", AtMost(1.10), part("encode-ratio")),
        target("decode 1 KiB / its SHA-256", "x", AtMost(1.10), part("decode-ratio")),
        target("acknowledgement there and back / its digests", "x", AtMost(1.25), part("ack-ratio")),
        target("download, 1 connection", "MB/s", AtLeast(100.0), fast("download-1")),
        target("upload, 1 connection", "MB/s", AtLeast(100.0), fast("upload-1")),
        target("download / limit program", "x", AtLeast(0.5), against("limit", "download-1")),
        target("upload / limit program", "x", AtLeast(0.5), against("limit", "upload-1")),
        target("download, 8 connections / limit program", "x", AtLeast(0.5), eight("limit", "download")),
        target("upload, 8 connections / limit program", "x", AtLeast(0.5), eight("limit", "upload")),
        target("CPU, upload / official client", "x", AtMost(1.0 / 40.0), official("fast", "cpu-upload")),
        target(
            "CPU, download at the agent's pace / official client",
            "x",
            AtMost(0.25),
            official("real", "cpu-download"),
        ),
        target("round trip beside an upload at the agent's pace", "ms", AtMost(30.0), real("busy-upload-p50")),
        target("4 sessions at the agent's pace / 4 times one", "x", AtLeast(0.9), sessions(4, "sessions-4")),
        target("16 sessions at the agent's pace / 16 times one", "x", AtLeast(0.9), sessions(16, "sessions-16")),
        target("--relay: download / official client", "x", AtLeast(10.0), relayed_official("download-1")),
        target("--relay: download of text / official client", "x", AtLeast(30.0), relayed_official("dump-1")),
        target(
            "--relay: download, 8 connections / official client",
            "x",
            AtLeast(10.0),
            relayed_official("download-8"),
        ),
        target(
            "--relay: connect beside stuck connections / usual",
            "x",
            AtMost(2.0),
            relayed("stuck-p50").zip(relayed("connect-p50")).map(|(beside, usual)| beside / usual),
        ),
        target(
            "--relay: round trip added to the tunnel's",
            "ms",
            AtMost(0.3),
            relayed("ping-p50").zip(real("ping-p50")).map(|(with, without)| with - without),
        ),
        target(
            "--relay: CPU, download / without it",
            "x",
            AtMost(1.0),
            relayed("cpu-download").zip(real("cpu-download")).map(|(with, without)| with / without),
        ),
        target("download / aws-ssm-bridge", "x", AtLeast(3.0), against("bridge", "download-1")),
        target("upload / aws-ssm-bridge", "x", AtLeast(3.0), against("bridge", "upload-1")),
        target("round trip added to TCP's", "ms", AtMost(0.1), added),
        target("connect to first byte", "ms", AtMost(0.3), fast("connect-p50")),
        target("memory, idle", "MiB", AtMost(15.0), fast("rss-idle")),
        target("memory, 1000 idle connections", "MiB", AtMost(30.0), fast("rss-1000")),
        target("worst round trip of 1000 active connections", "ms", AtMost(1000.0), fast("active-worst")),
        target("exec to ready", "ms", AtMost(20.0), fast("ready")),
        target("shipped binary", "MB", AtMost(15.0), part("dist-size")),
    ]
}

/// Formats the targets as a table.
pub(crate) fn table(report: &Report) -> String {
    let mut rows = vec![["target", "wanted", "measured", "", ""].map(str::to_owned).to_vec()];
    for target in of(report) {
        let value = target.value.map_or_else(|| "-".into(), figure);
        rows.push(vec![target.what.into(), target.wanted(), value, target.unit.into(), target.verdict().into()]);
    }
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_on_its_good_side() {
        let verdict = |bound, value| Target { what: "", unit: "", bound, value }.verdict();
        assert_eq!(verdict(Bound::AtMost(1.25), Some(1.2)), "pass");
        assert_eq!(verdict(Bound::AtMost(1.25), Some(1.3)), "MISS");
        assert_eq!(verdict(Bound::AtLeast(100.0), Some(99.0)), "MISS");
        assert_eq!(verdict(Bound::AtLeast(100.0), Some(101.0)), "pass");
        assert_eq!(verdict(Bound::AtLeast(100.0), None), "not measured");
    }
}
