//! Every fault with every kind of traffic.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::ForwardEvent;
use ssm_local::{Faults, Profile};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cases::{CASES, Case, Expect, ONE_AT_A_TIME};
use crate::load::{Broken, Script, converse};
use crate::report::{say, write_between};
use crate::tunnel::{SetupError, Tunnel, config};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A few faults with a fast agent only
    #[arg(long)]
    quick: bool,
    /// Only faults whose text contains this
    #[arg(long)]
    only: Option<String>,
    /// Cells at the same time
    #[arg(long, default_value_t = 6)]
    parallel: usize,
    /// Put the table into this file
    #[arg(long)]
    write: Option<PathBuf>,
}

/// A dead peer is noticed within twice this.
const LIVENESS: Duration = Duration::from_secs(1);
/// What takes longer hangs. Fifty connections one after the other take two to three minutes.
const CELL_LIMIT: Duration = Duration::from_secs(300);
/// After a fault, a new connection works within so long.
const RECOVERY: Duration = Duration::from_secs(45);

/// Runs the cells; says whether none failed.
///
/// # Errors
/// If the set-up fails.
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

/// The traffic of one cell.
#[derive(Clone, Copy, Debug)]
enum Load {
    Upload,
    Download,
    Idle,
    Crowd,
}

impl Load {
    const ALL: [Self; 4] = [Self::Upload, Self::Download, Self::Idle, Self::Crowd];

    fn scripts(self, profile: Profile, case: &Case) -> Vec<Script> {
        // A real agent carries some 600 kB/s.
        let burst = if profile == Profile::Real { 32 << 10 } else { 192 << 10 };
        let seed = fastrand::u64(..);
        let bulk = Script { seed, rounds: 1, up: 64, down: 64, burst, pause: 80 };
        let (rounds, pause) = if case.faults.contains(&ONE_AT_A_TIME) { (2, 1) } else { (16, 150) };
        match self {
            Self::Upload => vec![Script { up: burst * 30, ..bulk }],
            Self::Download => vec![Script { down: burst * 30, ..bulk }],
            Self::Idle => vec![Script { rounds: 2, pause: 2600, ..bulk }],
            Self::Crowd => (0..50)
                .map(|number| Script { seed: seed.wrapping_add(number), rounds, up: 700, down: 900, pause, ..bulk })
                .collect(),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Idle => "idle",
            Self::Crowd => "50 connections",
        })
    }
}

/// How a cell came out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Every byte arrived, of every connection.
    Exact,
    /// So many connections were reset, and knew it; the others got every byte.
    Reset(usize),
    Fail(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("ok"),
            Self::Reset(_) => f.write_str("reset"),
            Self::Fail(why) => write!(f, "FAIL: {why}"),
        }
    }
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
    let tunnel = Arc::new(Tunnel::open(profile, before, config(LIVENESS)).await?);
    if let Some(faults) = after {
        tunnel.local.set_faults(faults).await;
    }
    let scripts = load.scripts(profile, case);
    let mut programs = JoinSet::new();
    for script in scripts.clone() {
        let entrance = tunnel.entrance;
        programs.spawn(async move { (script.seed, converse(entrance, script, &|_| {}).await) });
    }
    let ends = programs.join_all().await;
    recover(&tunnel).await?;
    tunnel.local.set_faults(Faults::new()).await;
    settle(&tunnel).await?;
    let outcome = judge(case, &tunnel, &scripts, &ends).await;
    if let Some(tunnel) = Arc::into_inner(tunnel) {
        tunnel.close().await?;
    }
    Ok(outcome)
}

/// Soon after whatever happened, a new connection works.
async fn recover(tunnel: &Tunnel) -> Result<(), SetupError> {
    let began = Instant::now();
    loop {
        let seed = fastrand::u64(..);
        let script = Script { seed, rounds: 2, up: 3000, down: 3000, burst: 3000, pause: 0 };
        match timeout(RECOVERY, converse(tunnel.entrance, script, &|_| {})).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Broken::Reset)) if began.elapsed() < RECOVERY && !tunnel.has_ended() => {}
            other => return Err(format!("a new connection does not work: {other:?}").into()),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Without faults, no connection stays open and no outage goes on.
async fn settle(tunnel: &Tunnel) -> Result<(), SetupError> {
    let began = Instant::now();
    while tunnel.stats.snapshot().connections_open > 0 || is_away(&tunnel.events()) {
        if began.elapsed() > RECOVERY {
            return Err("a connection is left open though its program is gone, or an outage has no end".into());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Whether the last outage that was told is still going on.
fn is_away(events: &[ForwardEvent]) -> bool {
    let last = events.iter().rev().find_map(|event| match event {
        ForwardEvent::Reconnecting { .. } => Some(true),
        ForwardEvent::Reconnected { .. } | ForwardEvent::SessionLost { .. } => Some(false),
        _ => None,
    });
    last.unwrap_or(false)
}

type Ends = [(u64, Result<(), Broken>)];

/// Compares what both ends of each connection saw with what the fault may do, and with what the forwarder told.
async fn judge(case: &Case, tunnel: &Tunnel, scripts: &[Script], ends: &Ends) -> Outcome {
    let mut resets = 0;
    for (seed, program) in ends {
        let service = tunnel.service.outcome(*seed);
        match (program, service) {
            (Ok(()), Some(Ok(()))) => {}
            (Ok(()), other) => return Outcome::Fail(format!("the program got an end, the service {other:?}")),
            (Err(Broken::Reset), Some(Err(Broken::Wrong(what)))) => return Outcome::Fail(format!("service: {what}")),
            (Err(Broken::Reset), _) => resets += 1,
            (Err(broken), _) => return Outcome::Fail(format!("{broken:?}")),
        }
    }
    if let Err(lie) = check_events(&tunnel.events(), scripts, resets) {
        return Outcome::Fail(format!("events: {lie}"));
    }
    match (resets, case.expect) {
        (0, _) => Outcome::Exact,
        (_, Expect::Reset) => Outcome::Reset(resets),
        (_, Expect::Exact) => Outcome::Fail(format!("{resets} connections reset: {:?}", errors(&tunnel.events()))),
    }
}

fn errors(events: &[ForwardEvent]) -> Vec<String> {
    let mut told: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ForwardEvent::ConnectionClosed { error, .. } => error.clone(),
            ForwardEvent::SessionLost { reason, .. } => Some(format!("session lost: {reason}")),
            _ => None,
        })
        .collect();
    told.dedup();
    told
}

/// What is told is what happened: each connection's end and its bytes, each outage's end, each loss.
fn check_events(events: &[ForwardEvent], scripts: &[Script], resets: usize) -> Result<(), String> {
    let (mut opened, mut failed, mut lost, mut away) = (0, 0, 0, false);
    let mut whole = Vec::new();
    for event in events {
        match event {
            ForwardEvent::ConnectionOpened { .. } => opened += 1,
            ForwardEvent::ConnectionClosed { error: Some(_), .. } => failed += 1,
            ForwardEvent::ConnectionClosed { bytes_up, bytes_down, .. } => whole.push((*bytes_up, *bytes_down)),
            ForwardEvent::Reconnecting { .. } => away = true,
            ForwardEvent::Reconnected { .. } if !away => return Err("reconnected without having been away".into()),
            ForwardEvent::Reconnected { .. } => away = false,
            ForwardEvent::SessionLost { connections, .. } => {
                away = false;
                lost += connections;
            }
            _ => {}
        }
    }
    let mut expected = scripts.len() - resets;
    for script in scripts {
        match whole.iter().position(|bytes| *bytes == script.bytes()) {
            Some(at) => _ = whole.swap_remove(at),
            None if expected < scripts.len() => expected += 1,
            None => return Err(format!("no connection is said to have carried {:?} bytes", script.bytes())),
        }
    }
    match () {
        () if opened != events.iter().filter(|e| matches!(e, ForwardEvent::ConnectionClosed { .. })).count() => {
            Err("not as many connections closed as opened".into())
        }
        () if failed < resets => Err(format!("{resets} connections were reset, {failed} are said to have failed")),
        () if failed < lost => Err(format!("{lost} connections are said to be lost, {failed} failed")),
        () => Ok(()),
    }
}

fn name(case: &Case) -> String {
    if case.faults.is_empty() { "none".into() } else { case.faults.join(" ") }
}

/// A Markdown table.
fn render(cases: &[&Case], table: &[[Vec<Outcome>; Load::ALL.len()]]) -> String {
    let heads: Vec<_> = Load::ALL.iter().map(ToString::to_string).collect();
    let mut text = format!("| faults | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for (case, row) in cases.iter().zip(table) {
        let faults: Vec<_> = case.faults.iter().map(|fault| format!("`{fault}`")).collect();
        let faults = if faults.is_empty() { "none".into() } else { faults.join(" ") };
        let cells: Vec<_> = row.iter().map(|outcomes| render_cell(outcomes)).collect();
        text += &format!("| {faults} | {} |\n", cells.join(" | "));
    }
    text
}

/// The worst of a cell's outcomes.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(up: u64, down: u64, error: Option<&str>) -> [ForwardEvent; 2] {
        [
            ForwardEvent::ConnectionOpened { connection: 1, peer: None },
            ForwardEvent::ConnectionClosed {
                connection: 1,
                bytes_up: up,
                bytes_down: down,
                refused: false,
                error: error.map(str::to_owned),
            },
        ]
    }

    #[test]
    fn events_that_do_not_fit_what_happened_are_lies() {
        let script = Script { seed: 1, rounds: 2, up: 10, down: 20, burst: 10, pause: 0 };
        let (up, down) = script.bytes();
        assert_eq!(check_events(&closed(up, down, None), &[script], 0), Ok(()));
        assert!(check_events(&closed(up, down - 1, None), &[script], 0).is_err());
        assert_eq!(check_events(&closed(up, 3, Some("gone")), &[script], 1), Ok(()));
        assert!(check_events(&closed(up, down, None), &[script], 1).is_err());
        assert!(check_events(&closed(up, down, None)[..1], &[script], 0).is_err());
        let back = ForwardEvent::Reconnected { outage: Duration::ZERO };
        assert!(check_events(&[back], &[], 0).is_err());
    }
}
