//! What the project wants to reach, and whether it does. All within one comparison, so that a slow machine fails as
//! little as a busy one.

use crate::report::Report;
use crate::table::{aligned, figure};

/// One aim.
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
    /// What would be better still.
    pub(crate) stretch: Option<f64>,
    pub(crate) value: Option<f64>,
}

/// Which side of a figure is good.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// The verdict on what does not reach its aim.
pub(crate) const MISS: &str = "MISS";

impl Target {
    pub(crate) fn verdict(&self) -> &'static str {
        let meets = |value: f64, limit| match self.bound {
            Bound::AtLeast(_) => value >= limit,
            Bound::AtMost(_) => value <= limit,
        };
        let (Bound::AtLeast(limit) | Bound::AtMost(limit)) = self.bound;
        match (self.value, self.stretch) {
            (None, _) => "not measured",
            (Some(value), Some(stretch)) if meets(value, stretch) => "pass, and more",
            (Some(value), _) if meets(value, limit) => "pass",
            _ => MISS,
        }
    }

    pub(crate) fn wanted(&self) -> String {
        let stretch = self.stretch.map(|stretch| format!(" (better {})", figure(stretch))).unwrap_or_default();
        match self.bound {
            Bound::AtLeast(limit) => format!(">= {}{stretch}", figure(limit)),
            Bound::AtMost(limit) => format!("<= {}{stretch}", figure(limit)),
        }
    }
}

/// All of them, with what was measured.
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
    let eight = |kind, direction: &str| {
        let limit = report.get("fast", report.client(kind)?, &format!("{direction}-1"))?.median;
        Some(report.get("fast", ours, &format!("{direction}-8"))?.median / limit)
    };
    let sessions = |count: u32, metric| Some(real(metric)? / (f64::from(count) * real("sessions-1")?));
    let added = fast("ping-p50").zip(report.client("tcp").and_then(|tcp| report.get("fast", tcp, "ping-p50")));
    let added = added.map(|(with, without)| with - without.median);
    use Bound::{AtLeast, AtMost};
    let target = |what, unit, bound, stretch, value| Target { what, unit, bound, stretch, value };
    vec![
        target("encode 1 KiB / its SHA-256", "x", AtMost(1.25), Some(1.10), part("encode-ratio")),
        target("decode 1 KiB / its SHA-256", "x", AtMost(1.25), Some(1.10), part("decode-ratio")),
        target("acknowledgement there and back / its digests", "x", AtMost(1.25), None, part("ack-ratio")),
        target("download, 1 connection", "MB/s", AtLeast(100.0), None, fast("download-1")),
        target("upload, 1 connection", "MB/s", AtLeast(100.0), None, fast("upload-1")),
        target("download / limit program", "x", AtLeast(0.5), None, against("limit", "download-1")),
        target("upload / limit program", "x", AtLeast(0.5), None, against("limit", "upload-1")),
        target("download, 8 connections / limit program", "x", AtLeast(0.5), None, eight("limit", "download")),
        target("upload, 8 connections / limit program", "x", AtLeast(0.5), None, eight("limit", "upload")),
        target("CPU, upload / official client", "x", AtMost(1.0 / 40.0), None, official("fast", "cpu-upload")),
        target(
            "CPU, download at the agent's pace / official client",
            "x",
            AtMost(0.25),
            None,
            official("real", "cpu-download"),
        ),
        target("round trip beside an upload at the agent's pace", "ms", AtMost(30.0), None, real("busy-upload-p50")),
        target("4 sessions at the agent's pace / 4 times one", "x", AtLeast(0.9), None, sessions(4, "sessions-4")),
        target("16 sessions at the agent's pace / 16 times one", "x", AtLeast(0.9), None, sessions(16, "sessions-16")),
        target("download / aws-ssm-bridge", "x", AtLeast(3.0), None, against("bridge", "download-1")),
        target("upload / aws-ssm-bridge", "x", AtLeast(3.0), None, against("bridge", "upload-1")),
        target("round trip added to TCP's", "ms", AtMost(0.3), Some(0.1), added),
        target("connect to first byte", "ms", AtMost(0.3), None, fast("connect-p50")),
        target("memory, idle", "MiB", AtMost(15.0), None, fast("rss-idle")),
        target("memory, 1000 idle connections", "MiB", AtMost(30.0), None, fast("rss-1000")),
        target("worst round trip of 1000 active connections", "ms", AtMost(1000.0), None, fast("active-worst")),
        target("exec to ready", "ms", AtMost(50.0), Some(20.0), fast("ready")),
        target("shipped binary", "MB", AtMost(15.0), None, part("dist-size")),
    ]
}

/// As a table.
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
        let verdict = |bound, stretch, value| Target { what: "", unit: "", bound, stretch, value }.verdict();
        assert_eq!(verdict(Bound::AtMost(1.25), Some(1.1), Some(1.2)), "pass");
        assert_eq!(verdict(Bound::AtMost(1.25), Some(1.1), Some(1.0)), "pass, and more");
        assert_eq!(verdict(Bound::AtMost(1.25), None, Some(1.3)), "MISS");
        assert_eq!(verdict(Bound::AtLeast(100.0), None, Some(99.0)), "MISS");
        assert_eq!(verdict(Bound::AtLeast(100.0), None, Some(101.0)), "pass");
        assert_eq!(verdict(Bound::AtLeast(100.0), None, None), "not measured");
    }
}
