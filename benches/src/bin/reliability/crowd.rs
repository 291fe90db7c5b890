//! The load test: thousands of connections at the same time, and thousands one after the other. The service closes the WebSockets
//! of the sessions repeatedly. Some readers are slow or stop, and some destinations do not read.
//!
//! Each end is a separate process, because a process has a limited number of descriptors: this process runs the programs, `far`
//! the service, `manager` the Session Manager with its agents, `client` the forwarder.

mod parts;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::load::{Broken, Pauses, Script};
use crate::program::{Manner, converse_from};
use crate::report::{say, write_between};
use crate::tunnel::SetupError;
use crate::usage::{Usage, mebibytes, queue_overflows};
use parts::Parts;
pub(crate) use parts::{FarArgs, ManagerArgs, far, manager};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of simultaneous connections of the first load
    #[arg(long, default_value_t = 10_000)]
    connections: u32,
    /// New connections per second of the second load
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Duration of the second load in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Number of sessions
    #[arg(long, default_value_t = 16)]
    sessions: u16,
    /// Number of closes by the service while the connections are open
    #[arg(long, default_value_t = 24)]
    recycles: u32,
    /// Write the table into this file
    #[arg(long)]
    write: Option<PathBuf>,
}

const HEAD: &str = "| load | connections, exact at both ends | lost | wrong | data | time | client's memory before → peak → after | descriptors |\n\
                    |---|---|---|---|---|---|---|---|";
/// A program that receives nothing for this time counts as hanging.
const PATIENCE: Duration = Duration::from_secs(300);
/// Time until connections have ended at both ends and their memory is freed.
const REST: Duration = Duration::from_secs(5);
/// Maximum growth of memory by the second load, in bytes. The allocator keeps the memory that many simultaneous connections needed.
const MAX_GROWTH: u64 = 32 << 20;

/// The results of a load's connections.
#[derive(Debug, Default)]
struct Counts {
    exact: AtomicU64,
    lost: AtomicU64,
    wrong: AtomicU64,
    bytes: AtomicU64,
    /// The reasons why connections were lost or wrong, with the number of connections.
    reasons: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    fn count(&self, script: &Script, outcome: &Result<(), Broken>) {
        match outcome {
            Ok(()) => {
                let (up, down) = script.bytes();
                self.bytes.fetch_add(up + down, Ordering::Relaxed);
                &self.exact
            }
            Err(broken @ (Broken::Reset | Broken::Unopened(_))) => {
                self.note(broken);
                &self.lost
            }
            Err(broken) => {
                self.note(broken);
                &self.wrong
            }
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, broken: &Broken) {
        *self.reasons.lock().unwrap_or_else(PoisonError::into_inner).entry(format!("{broken:?}")).or_default() += 1;
    }

    /// Prints a line for each reason, and the number of connections that found a listener's queue full.
    fn explain(&self, overflows: u64) {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in &*reasons {
            say(&format!("{count} times: {reason}"));
        }
        if !reasons.is_empty() && overflows > 0 {
            say(&format!("{overflows} times, a connection found the queue of a listener of this machine full"));
        }
    }
}

/// One row of the table.
struct Outcome {
    name: String,
    counts: Counts,
    /// Number of connections that were exact at the service.
    served: u64,
    time: Duration,
    before: Usage,
    busy: Usage,
    after: Usage,
}

impl Outcome {
    fn is_good(&self) -> bool {
        let [exact, lost, wrong] =
            [&self.counts.exact, &self.counts.lost, &self.counts.wrong].map(|count| count.load(Ordering::Relaxed));
        exact > 0
            && (lost, wrong, exact) == (0, 0, self.served)
            && self.after.descriptors <= self.before.descriptors + 2
    }

    fn line(&self) -> String {
        let [exact, lost, wrong, bytes] =
            [&self.counts.exact, &self.counts.lost, &self.counts.wrong, &self.counts.bytes]
                .map(|count| count.load(Ordering::Relaxed));
        format!(
            "| {} | {exact} of {} | {lost} | {wrong} | {:.0} MiB | {:.0} s | {:.0} → {:.0} → {:.0} MiB | {} → {} → {} |",
            self.name,
            self.served,
            mebibytes(bytes),
            self.time.as_secs_f64(),
            mebibytes(self.before.memory),
            mebibytes(self.busy.peak),
            mebibytes(self.after.memory),
            self.before.descriptors,
            self.busy.descriptors,
            self.after.descriptors,
        )
    }
}

/// Runs both loads. Returns whether no connection was lost and the client uses no more resources than before.
///
/// # Errors
/// Returns an error if the set-up fails.
pub(crate) async fn run(args: Args) -> Result<bool, SetupError> {
    let mut parts = Parts::start(args.sessions).await?;
    // The first connections start the sessions.
    load(&mut parts, "warm-up", 200, |parts, counts| Box::pin(crowd(parts, counts, 200, 0))).await?;
    let (connections, recycles) = (args.connections, args.recycles);
    let name = format!("{connections} connections over {} sessions, {recycles} recycles", args.sessions);
    let first = load(&mut parts, &name, connections.into(), move |parts, counts| {
        Box::pin(crowd(parts, counts, connections, recycles))
    });
    let first = first.await?;
    let (rate, seconds) = (args.rate, args.seconds);
    let name = format!("{rate} new connections a second for {seconds} s");
    let total = u64::from(rate) * u64::from(seconds);
    let second = load(&mut parts, &name, total, move |parts, counts| Box::pin(stream(parts, counts, rate, seconds)));
    let second = second.await?;
    let text = format!("{HEAD}\n{}\n{}\n", first.line(), second.line());
    say(&format!("\n{text}"));
    if let Some(file) = &args.write {
        write_between(file, "load", &text)?;
    }
    parts.stop().await;
    let grows = second.after.memory > first.after.memory + MAX_GROWTH;
    Ok(first.is_good() && second.is_good() && !grows)
}

type Running<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), SetupError>> + Send + 'a>>;

async fn load(
    parts: &mut Parts,
    name: &str,
    total: u64,
    make: impl for<'a> FnOnce(&'a mut Parts, &'a Arc<Counts>) -> Running<'a>,
) -> Result<Outcome, SetupError> {
    let counts: Arc<Counts> = Arc::default();
    let (before, begin, overflows) = (parts.usage()?, Instant::now(), queue_overflows());
    parts.watch();
    make(parts, &counts).await?;
    let time = begin.elapsed();
    let busy = parts.most();
    let served = parts.served().await?;
    sleep(REST).await;
    let after = parts.usage()?;
    let counts = Arc::into_inner(counts).ok_or("a program still runs")?;
    counts.explain(queue_overflows() - overflows);
    let outcome = Outcome { name: name.to_owned(), counts, served, time, before, busy, after };
    say(&format!("{} ({total} connections)", outcome.line()));
    Ok(outcome)
}

/// The first load: simultaneous conversations, uploads and downloads. Some are read slowly, some are not read for a while.
async fn crowd(parts: &mut Parts, counts: &Arc<Counts>, connections: u32, recycles: u32) -> Result<(), SetupError> {
    let mut programs = JoinSet::new();
    for number in 0..connections {
        let (script, manner) = member(number);
        programs.spawn(program(parts.entrance, number, script, manner, counts.clone()));
        if number % 50 == 49 {
            // The queue of a listener is limited.
            sleep(Duration::from_millis(10)).await;
        }
    }
    for recycle in 0..recycles {
        sleep(Duration::from_secs(2)).await;
        parts.strike("bye").await?;
        say(&format!("recycle {} of {recycles}: {} connections are open", recycle + 1, programs.len()));
        while programs.try_join_next().is_some() {}
    }
    timeout(PATIENCE, programs.join_all()).await.map_err(|_| "connections hang")?;
    Ok(())
}

/// The second load: short new connections at a rate.
async fn stream(parts: &mut Parts, counts: &Arc<Counts>, rate: u32, seconds: u32) -> Result<(), SetupError> {
    let mut programs = JoinSet::new();
    let mut tick = interval(Duration::from_millis(10));
    // If this process gets no CPU time for a while, the load takes longer, but never opens thousands of connections at the same time.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0..rate * seconds {
        if number % (rate / 100).max(1) == 0 {
            tick.tick().await;
        }
        let script = Script { seed: fastrand::u64(..), rounds: 1, up: 300, down: 700, burst: 700, pause: 0, deaf: 0 };
        programs.spawn(program(parts.entrance, number, script, Manner::PROMPT, counts.clone()));
        while programs.try_join_next().is_some() {}
    }
    timeout(PATIENCE, programs.join_all()).await.map_err(|_| "connections hang")?;
    Ok(())
}

async fn program(entrance: SocketAddr, number: u32, script: Script, manner: Manner, counts: Arc<Counts>) {
    // Each address of this machine has its own ports.
    let from = Ipv4Addr::new(127, 0, 1, u8::try_from(number % 250 + 1).unwrap_or(1));
    let outcome = converse_from(Some(from), entrance, script, manner, &|_| {}).await;
    counts.count(&script, &outcome);
}

/// Returns the script of the program with this number.
fn member(number: u32) -> (Script, Manner) {
    let talk = Script { seed: fastrand::u64(..), rounds: 40, up: 200, down: 600, burst: 600, pause: 1000, deaf: 0 };
    let slow = |every, time| Manner::Whole(Pauses { every, time: Duration::from_millis(time) });
    match number {
        // A destination that does not read for a while.
        _ if number % 500 == 1 => {
            (Script { rounds: 1, up: 200_000, down: 64, pause: 0, deaf: 5000, ..talk }, Manner::PROMPT)
        }
        // A program that does not read for a while, and one that always reads slowly.
        _ if number % 500 == 2 => (Script { rounds: 1, up: 64, down: 400_000, pause: 0, ..talk }, slow(100_000, 5000)),
        _ if number % 100 == 3 => (Script { rounds: 1, up: 64, down: 100_000, pause: 0, ..talk }, slow(4000, 200)),
        _ if number % 10 == 4 => (Script { rounds: 1, up: 60_000, down: 64, burst: 2000, ..talk }, Manner::PROMPT),
        _ if number % 10 == 5 => (Script { rounds: 1, up: 64, down: 60_000, burst: 2000, ..talk }, Manner::PROMPT),
        _ => (talk, Manner::PROMPT),
    }
}
