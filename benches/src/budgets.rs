//! `budgets`: instructions per run of each part, counted by valgrind. The counts are the same on every machine and do
//! not depend on its load.
//!
//! The instructions for the digests are subtracted, because the protocol requires the digests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};
use ssm_bench::work::{self, ACK_DIGEST, DIGEST, PARTS, Part};

use crate::table::aligned;
use crate::{Result, say};

/// Arguments of `budgets`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Store the counted instructions as the new budgets.
    #[arg(long)]
    update: bool,
    /// The file with the budgets.
    #[arg(long, value_name = "FILE", default_value = "benches/budgets.toml")]
    file: PathBuf,
}

/// Arguments of `part`.
#[derive(Debug, clap::Args)]
pub(crate) struct PartArgs {
    /// The part's name.
    name: String,
    /// The number of streams or sessions.
    size: usize,
    /// The number of runs.
    count: usize,
}

/// A part may exceed its budget by at most this fraction. The difference between compiler versions is smaller.
const TOLERANCE: f64 = 0.03;
/// For small parts, a difference of this many instructions is tolerated too.
const SLACK: f64 = 10.0;
/// Number of runs of a part. The set-up is measured separately and subtracted.
const COUNT: usize = 1000;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Budgets {
    /// For each part: instructions per run without the digests.
    instructions: BTreeMap<String, u64>,
}

/// Runs one part. The process with this function runs under valgrind.
pub(crate) fn run_part(args: &PartArgs) -> Result<()> {
    if work::run(&args.name, args.size, args.count) { Ok(()) } else { Err(format!("no part {}", args.name).into()) }
}

/// Counts the instructions and compares them with the budgets.
///
/// # Errors
/// Returns an error if a part exceeds its budget.
pub(crate) fn run(args: &Args) -> Result<()> {
    let budgets = if args.update { Budgets::default() } else { read(args)? };
    let counter = Counter::new()?;
    let mut counted = Budgets::default();
    let mut rows = vec![["part", "instructions", "budget", "", "beyond the digests, to"].map(str::to_owned).to_vec()];
    let mut over = Vec::new();
    for part in PARTS {
        let count = counter.beyond_digests(*part, 1, COUNT)?;
        let budget = budgets.instructions.get(part.name).copied();
        let verdict = match budget {
            Some(budget) if exceeds(count, budget) => {
                over.push(part.name);
                "OVER"
            }
            Some(_) => "ok",
            None => "new",
        };
        let shown = budget.map_or_else(|| "-".into(), |budget| budget.to_string());
        rows.push(vec![part.name.into(), format!("{count:.0}"), shown, verdict.into(), part.does.into()]);
        counted.instructions.insert(part.name.into(), whole(count));
    }
    say(&aligned(&rows));
    if args.update {
        std::fs::write(&args.file, format!("{HEAD}\n{}", toml::to_string(&counted)?))?;
        return Ok(());
    }
    if over.is_empty() {
        return Ok(());
    }
    Err(format!(
        "over the budget by more than {:.0} %: {}. If that is worth it, say why in the commit and run: \
         cargo run --release -p ssm-bench -- budgets --update",
        TOLERANCE * 100.0,
        over.join(", ")
    )
    .into())
}

const HEAD: &str = "\
# Instructions per run of each part of the forwarding path, without the SHA-256 digests that the protocol requires, on x86-64.
# `cargo run --release -p ssm-bench -- budgets` compares new counts with this file; `budgets --update` writes it.
";

fn read(args: &Args) -> Result<Budgets> {
    let text = std::fs::read_to_string(&args.file).map_err(|error| format!("{}: {error}", args.file.display()))?;
    Ok(toml::from_str(&text)?)
}

#[expect(clippy::cast_precision_loss, reason = "far below the range in which a float is exact")]
fn exceeds(count: f64, budget: u64) -> bool {
    count > (budget as f64).mul_add(1.0 + TOLERANCE, SLACK)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count, far below the limit")]
fn whole(count: f64) -> u64 {
    count.round().max(0.0) as u64
}

/// Counts instructions by running this program under valgrind.
pub(crate) struct Counter {
    folder: tempfile::TempDir,
    digest: f64,
    ack_digest: f64,
}

impl Counter {
    pub(crate) fn new() -> Result<Self> {
        let mut counter = Self { folder: tempfile::tempdir()?, digest: 0.0, ack_digest: 0.0 };
        counter.digest = counter.per_run(DIGEST, 1, COUNT)?;
        counter.ack_digest = counter.per_run(ACK_DIGEST, 1, COUNT)?;
        Ok(counter)
    }

    /// Instructions per run without the digests.
    pub(crate) fn beyond_digests(&self, part: Part, size: usize, count: usize) -> Result<f64> {
        let digests = f64::from(part.digests) * self.digest + f64::from(part.ack_digests) * self.ack_digest;
        Ok(self.per_run(part, size, count)? - digests)
    }

    /// Returns the instructions per run. Counts `count` and `2 * count` runs and uses the difference, because both
    /// include the set-up.
    #[expect(clippy::cast_precision_loss, reason = "far below the range in which a float is exact")]
    fn per_run(&self, part: Part, size: usize, count: usize) -> Result<f64> {
        let (once, twice) = (self.total(part, size, count)?, self.total(part, size, 2 * count)?);
        Ok((twice.saturating_sub(once)) as f64 / count as f64)
    }

    fn total(&self, part: Part, size: usize, count: usize) -> Result<u64> {
        let profile = self.folder.path().join("callgrind.out");
        let output = Command::new("valgrind")
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg(std::env::current_exe()?)
            .args(["part", part.name, &size.to_string(), &count.to_string()])
            .output()
            .map_err(|error| format!("cannot run valgrind: {error}; install it with: apt-get install valgrind"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
        collected.filter(|_| output.status.success()).ok_or_else(|| format!("valgrind failed: {said}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_percent_are_forgiven_and_ten_instructions() {
        assert!(!exceeds(1040.0, 1000));
        assert!(exceeds(1041.0, 1000));
        assert!(!exceeds(50.0, 40));
    }

    #[test]
    fn the_committed_budgets_name_every_part() {
        let budgets: Budgets = toml::from_str(include_str!("../budgets.toml")).unwrap();
        let parts: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
        assert!(budgets.instructions.keys().all(|name| parts.contains(&name.as_str())));
        assert_eq!(budgets.instructions.len(), parts.len());
    }
}
