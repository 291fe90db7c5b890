//! Runs every fault with every kind of traffic.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::ForwardEvent;
use ssm_local::{Faults, Profile};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cases::{CASES, Case, ONE_AT_A_TIME};
use crate::judge::{Outcome, judge};
use crate::load::{Broken, Script};
use crate::program::{Manner, converse};
use crate::report::{say, write_between};
use crate::traffic::{Load, Program};
use crate::tunnel::{SetupError, Tunnel, config, relayed};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only a few faults, and only with a fast agent
    #[arg(long)]
    quick: bool,
    /// Run only faults whose text contains this
    #[arg(long)]
    only: Option<String>,
    /// Number of parallel cells
    #[arg(long, default_value_t = 6)]
    parallel: usize,
    /// Write the table into this file
    #[arg(long)]
    write: Option<PathBuf>,
}

/// A dead peer is detected within twice this time.
const LIVENESS: Duration = Duration::from_secs(1);
/// Time after which a cell counts as hanging. Fifty connections one after the other take two to three minutes.
const CELL_LIMIT: Duration = Duration::from_secs(300);
/// Time within which a new connection must work after a fault.
const RECOVERY: Duration = Duration::from_secs(45);

/// Runs the cells. Returns whether all succeeded.
///
/// # Errors
/// Returns an error if the set-up fails.
pub(crate) async fn run(args: Args) -> Result<bool, SetupError> {
    let profiles: &[Profile] = if args.quick { &[Profile::Fast] } else { &[Profile::Fast, Profile::Real] };
    let wanted = |case: &&'static Case| {
        (!args.quick || case.quick) && args.only.as_ref().is_none_or(|text| name(case).contains(text.as_str()))
    };
    let cases: Vec<_> = CASES.iter().filter(wanted).collect();
    let places = Arc::new(Semaphore::new(args.parallel.max(1)));
    let mut cells = JoinSet::new();
    for (row, case) in cases.iter().copied().enumerate() {
        for (column, load) in Load::ALL.into_iter().enumerate() {
            for profile in profiles.iter().copied() {
                let places = places.clone();
                cells.spawn(async move {
                    let _place = places.acquire_owned().await;
                    let began = Instant::now();
                    let limited = timeout(CELL_LIMIT, cell(case, load, profile)).await;
                    let outcome = limited.unwrap_or_else(|_| Outcome::Fail("hangs".into()));
                    (row, column, profile, outcome, began.elapsed())
                });
            }
        }
    }
    let mut table = vec![[const { Vec::new() }; Load::ALL.len()]; cases.len()];
    let mut failed = 0;
    while let Some(done) = cells.join_next().await {
        let (row, column, profile, outcome, took) = done?;
        let (Some(case), Some(load)) = (cases.get(row), Load::ALL.get(column)) else { continue };
        say(&format!("{profile:?} agent, {load}, {}: {outcome} ({:.1} s)", name(case), took.as_secs_f32()));
        failed += usize::from(matches!(outcome, Outcome::Fail(_)));
        if let Some(cell) = table.get_mut(row).and_then(|row| row.get_mut(column)) {
            cell.push(outcome);
        }
    }
    let text = render(&cases, &table);
    say(&format!("\n{text}"));
    say(&format!("{} cells, {failed} failed", table.len() * Load::ALL.len() * profiles.len()));
    if let Some(file) = &args.write {
        write_between(file, "matrix", &text)?;
    }
    Ok(failed == 0)
}

async fn cell(case: &Case, load: Load, profile: Profile) -> Outcome {
    match try_cell(case, load, profile).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Fail(error.to_string()),
    }
}

async fn try_cell(case: &Case, load: Load, profile: Profile) -> Result<Outcome, SetupError> {
    let mut faults = Faults::new().seed(fastrand::u64(..));
    for fault in case.faults {
        faults = faults.with(fault.parse()?);
    }
    let (before, after) = if case.from_the_start { (faults, None) } else { (Faults::new(), Some(faults)) };
    let config = if case.relay { relayed(config(LIVENESS)) } else { config(LIVENESS) };
    let tunnel = Arc::new(Tunnel::open(profile, before, config).await?);
    if let Some(faults) = after {
        tunnel.local.set_faults(faults).await;
    }
    let mut programs = JoinSet::new();
    for program in load.programs(profile, case) {
        let (entrance, Program { script, manner }) = (tunnel.entrance, program);
        programs.spawn(async move { (program, converse(entrance, script, manner, &|_| {}).await) });
    }
    let ended = programs.join_all().await;
    recover(&tunnel).await?;
    tunnel.local.set_faults(Faults::new()).await;
    settle(&tunnel, case).await?;
    let outcome = judge(case, &tunnel, &ended).await;
    if let Some(tunnel) = Arc::into_inner(tunnel) {
        tunnel.close().await?;
    }
    Ok(outcome)
}

/// Checks that a new connection works soon after a fault.
async fn recover(tunnel: &Tunnel) -> Result<(), SetupError> {
    let began = Instant::now();
    loop {
        let seed = fastrand::u64(..);
        let script = Script { seed, rounds: 2, up: 3000, down: 3000, burst: 3000, pause: 0, deaf: 0 };
        match timeout(RECOVERY, converse(tunnel.entrance, script, Manner::PROMPT, &|_| {})).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Broken::Reset)) if began.elapsed() < RECOVERY && !tunnel.has_ended() => {}
            other => return Err(format!("a new connection does not work: {other:?}").into()),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Checks that, without faults, no connection stays open and no outage continues.
async fn settle(tunnel: &Tunnel, case: &Case) -> Result<(), SetupError> {
    // These agents connect to the destination before a program connects.
    let idle = usize::from(case.faults.contains(&ONE_AT_A_TIME));
    let began = Instant::now();
    loop {
        let (open, served) = (tunnel.stats.snapshot().connections_open, tunnel.service.open_connections());
        let away = is_away(&tunnel.events());
        if open == 0 && served <= idle && !away {
            return Ok(());
        }
        if began.elapsed() > RECOVERY {
            return Err(format!(
                "still open: {open} connections of ended programs, {served} at the service; an outage continues: {away}"
            )
            .into());
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the last reported outage continues.
fn is_away(events: &[ForwardEvent]) -> bool {
    let last = events.iter().rev().find_map(|event| match event {
        ForwardEvent::Reconnecting { .. } => Some(true),
        ForwardEvent::Reconnected { .. } | ForwardEvent::SessionLost { .. } => Some(false),
        _ => None,
    });
    last.unwrap_or(false)
}

fn name(case: &Case) -> String {
    let relay = case.relay.then_some("--relay");
    let faults = if case.faults.is_empty() { &["none"] } else { case.faults };
    relay.into_iter().chain(faults.iter().copied()).collect::<Vec<_>>().join(" ")
}

/// Formats the results as a Markdown table.
fn render(cases: &[&Case], table: &[[Vec<Outcome>; Load::ALL.len()]]) -> String {
    let heads: Vec<_> = Load::ALL.iter().map(ToString::to_string).collect();
    let mut text = format!("| faults | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for (case, row) in cases.iter().zip(table) {
        let faults: Vec<_> = case.faults.iter().map(|fault| format!("`{fault}`")).collect();
        let faults = if faults.is_empty() { "none".into() } else { faults.join(" ") };
        let faults = if case.relay { format!("with `--relay`: {faults}") } else { faults };
        let cells: Vec<_> = row.iter().map(|outcomes| render_cell(outcomes)).collect();
        text += &format!("| {faults} | {} |\n", cells.join(" | "));
    }
    text
}

/// Returns the worst of a cell's results.
fn render_cell(outcomes: &[Outcome]) -> String {
    let rank = |outcome: &&Outcome| match outcome {
        Outcome::Exact => 0,
        Outcome::Reset(_) => 1,
        Outcome::Fail(_) => 2,
    };
    match outcomes.iter().max_by_key(rank) {
        Some(Outcome::Fail(_)) => "FAIL".into(),
        Some(outcome) => outcome.to_string(),
        None => String::new(),
    }
}
