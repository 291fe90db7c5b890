//! The results of a comparison: samples by profile, client and figure. They are stored in the JSON file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::{Result, plot, say, table, targets};

/// A whole comparison.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    /// The clients as given on the command line. The others are compared with the first one.
    pub(crate) clients: Vec<String>,
    /// The versions that clients report.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) series: Vec<Series>,
    pub(crate) failures: Vec<Failure>,
}

/// The settings of the measurement.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) repetitions: usize,
    pub(crate) seconds: f64,
    pub(crate) delay_ms: u64,
    pub(crate) command: String,
}

/// All samples of one figure of one client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    /// Empty for measurements without a local agent.
    pub(crate) profile: String,
    pub(crate) client: String,
    pub(crate) metric: String,
    pub(crate) samples: Vec<f64>,
}

/// A run that failed and returned no figure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) profile: String,
    pub(crate) client: String,
    pub(crate) scenario: String,
    pub(crate) error: String,
}

/// Median and spread of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Report {
    pub(crate) fn new(machine: Machine, settings: Settings, clients: Vec<String>) -> Self {
        Self { machine, settings, clients, versions: BTreeMap::new(), series: Vec::new(), failures: Vec::new() }
    }

    /// Adds one sample.
    pub(crate) fn add(&mut self, profile: &str, client: &str, metric: &str, value: f64) {
        let is_it =
            |series: &&mut Series| series.profile == profile && series.client == client && series.metric == metric;
        match self.series.iter_mut().find(is_it) {
            Some(series) => series.samples.push(value),
            None => self.series.push(Series {
                profile: profile.into(),
                client: client.into(),
                metric: metric.into(),
                samples: vec![value],
            }),
        }
    }

    /// Adds one sample of a measurement without a local agent. It is stored for the first client.
    pub(crate) fn add_part(&mut self, metric: &str, value: f64) {
        let client = self.clients.first().cloned().unwrap_or_default();
        self.add("", &client, metric, value);
    }

    /// Median and spread of a figure.
    pub(crate) fn get(&self, profile: &str, client: &str, metric: &str) -> Option<Summary> {
        let found = self
            .series
            .iter()
            .find(|series| series.profile == profile && series.client == client && series.metric == metric)?;
        Summary::of(&found.samples)
    }

    /// The first client whose name begins with `kind`.
    pub(crate) fn client(&self, kind: &str) -> Option<&str> {
        self.clients.iter().map(String::as_str).find(|label| label.split([' ', ':']).next() == Some(kind))
    }

    /// The first client of ours that uses a relay on the node.
    pub(crate) fn relayed(&self) -> Option<&str> {
        self.clients.iter().map(String::as_str).find(|label| label.split(' ').any(|word| word == "--relay"))
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?)
    }
}

impl Summary {
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (*sorted.get((sorted.len() - 1) / 2)?, *sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(low, high), least, most })
    }
}

/// Returns a quantile of sorted values, or NaN if `sorted` is empty.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index into a list, from 0 to its length"
)]
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The JSON file of a comparison.
    #[arg(value_name = "FILE", default_value = "compare.json")]
    json: PathBuf,
    /// Draw the plots into this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Prints a comparison again.
pub(crate) fn show(args: &ShowArgs) -> Result<()> {
    let report = Report::read(&args.json)?;
    say(&table::of(&report));
    say(&targets::table(&report));
    args.plots.as_ref().map_or(Ok(()), |folder| plot::draw(&report, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_the_middle_and_the_ends() {
        let of = |samples: &[f64]| Summary::of(samples).map(|s| (s.least, s.median, s.most));
        assert_eq!(of(&[3.0, 1.0, 10.0]), Some((1.0, 3.0, 10.0)));
        assert_eq!(of(&[4.0, 1.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn quantiles_are_samples() {
        let sorted: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&sorted, 1.0)), (50.0, 99.0, 100.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
