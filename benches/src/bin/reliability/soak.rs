//! The soak test: the hourly closes of a day in a few minutes, under load, with sleeps, black holes and expired credentials.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use ssm_forward::{ForwardConfig, ForwardEvent, Forwarder, ListenAddr, PoolSize};
use ssm_local::{Faults, Local};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::load::{Broken, Script};
use crate::program::{Manner, converse};
use crate::report::{say, write_between};
use crate::service::Service;
use crate::tunnel::{SetupError, config, provider, request};
use crate::usage::{Usage, mebibytes};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of closes
    #[arg(long, default_value_t = 24)]
    cycles: u32,
    /// Seconds between closes
    #[arg(long, default_value_t = 8)]
    pace: u64,
    /// Write the figures into this file
    #[arg(long)]
    write: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientArgs {
    #[arg(long)]
    endpoint_url: String,
    #[arg(long)]
    to: SocketAddr,
    /// Number of sessions, with the usual linger; by default one session with a short linger
    #[arg(long)]
    sessions: Option<u16>,
}

/// A dead peer is detected within twice this time.
const LIVENESS: Duration = Duration::from_secs(1);
/// Longer than the detection of a dead peer.
const SLEEP: Duration = Duration::from_secs(4);
const CREDENTIALS_AWAY: Duration = Duration::from_secs(2);
/// The maximum tolerated stall in addition to the fault itself.
const MAX_STALL: Duration = Duration::from_secs(2);
/// Maximum growth of the memory.
const MAX_GROWTH: u64 = 8 << 20;

/// Runs the soak test. Returns whether all guarantees were met.
///
/// # Errors
/// Returns an error if the set-up fails.
pub(crate) async fn run(args: Args) -> Result<bool, SetupError> {
    let local = Local::builder().any_credentials().ports_only().start().await?;
    let service = Arc::new(Service::start().await?);
    let mut client = Client::start(&local, &service).await?;
    let watcher = Arc::new(Watcher::new());
    let (stop, stopped) = watch::channel(false);
    let mut programs = JoinSet::new();
    for number in 0..CONNECTIONS {
        programs.spawn(program(number, client.entrance, service.clone(), watcher.clone(), stopped.clone()));
    }
    let pace = Duration::from_secs(args.pace);
    sleep(pace).await;
    let mut memory_before = client.memory()?;
    for cycle in 1..=args.cycles {
        strike(cycle, &local, &client, &watcher).await?;
        sleep(pace).await;
        let (stall, memory) = (watcher.worst().as_secs_f32(), mebibytes(client.memory()?));
        say(&format!("{cycle} of {}: worst stall so far {stall:.2} s, memory {memory:.1} MiB", args.cycles));
        // After this cycle, each kind of fault has filled the buffers once.
        if cycle == WARM_UP {
            memory_before = client.memory()?;
        }
    }
    let memory_after = client.memory()?;
    stop.send_replace(true);
    let tallies = timeout(Duration::from_secs(60), programs.join_all()).await.map_err(|_| "connections hang")?;
    let figures = Figures {
        cycles: args.cycles,
        tally: tallies.into_iter().fold(Tally::default(), Tally::plus),
        worst: watcher.worst(),
        memory_before,
        memory_after,
    };
    client.stop().await?;
    local.shutdown().await;
    let text = figures.render();
    say(&format!("\n{text}"));
    if let Some(file) = &args.write {
        write_between(file, "soak", &text)?;
    }
    Ok(figures.are_good())
}

const CONNECTIONS: u64 = 8;
/// Number of cycles until each kind of fault has happened.
const WARM_UP: u32 = 8;

/// Runs one close of the service, in some cycles with an additional fault.
async fn strike(cycle: u32, local: &Local, client: &Client, watcher: &Watcher) -> Result<(), SetupError> {
    let every = |cycles: u32| cycle.is_multiple_of(cycles);
    if every(6) {
        // The path fails without an error.
        watcher.allow_stall(LIVENESS * 2);
        local.strike("black-hole".parse()?).await?;
    } else if every(4) {
        // A laptop sleeps. Meanwhile the service closes the connection, and the path to it does not work when the machine
        // wakes up.
        watcher.allow_stall(SLEEP + if every(8) { LIVENESS * 2 } else { Duration::ZERO });
        client.signal(Signal::STOP)?;
        local.strike(if every(8) { "black-hole" } else { "reset" }.parse()?).await?;
        sleep(SLEEP).await;
        client.signal(Signal::CONT)?;
    } else if every(3) {
        // The credentials work again only after a new login.
        watcher.allow_stall(CREDENTIALS_AWAY);
        let expired = format!("expired-credentials,operation=ResumeSession,for={}s", CREDENTIALS_AWAY.as_secs());
        local.set_faults(Faults::new().with(expired.parse()?)).await;
        local.strike("bye".parse()?).await?;
    } else {
        watcher.allow_stall(Duration::ZERO);
        local.strike("bye".parse()?).await?;
    }
    Ok(())
}

/// The results of a program's connections.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    exact: u64,
    lost: u64,
    wrong: u64,
    bytes: u64,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            exact: self.exact + other.exact,
            lost: self.lost + other.lost,
            wrong: self.wrong + other.wrong,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Opens one connection after the other; each lasts through several closes.
async fn program(
    number: u64,
    entrance: SocketAddr,
    service: Arc<Service>,
    watcher: Arc<Watcher>,
    stopped: watch::Receiver<bool>,
) -> Tally {
    let mut tally = Tally::default();
    while !*stopped.borrow() {
        let script = script(number);
        let meter = Meter::new(watcher.clone());
        let outcome = converse(entrance, script, Manner::PROMPT, &|_| meter.moved()).await;
        match outcome {
            Ok(()) => {
                let (up, down) = script.bytes();
                tally.bytes += up + down;
                let seen = service_outcome(&service, script.seed).await;
                if seen == Some(Ok(())) { tally.exact += 1 } else { tally.wrong += 1 }
            }
            Err(Broken::Reset) => tally.lost += 1,
            Err(_) => tally.wrong += 1,
        }
    }
    tally
}

async fn service_outcome(service: &Service, seed: u64) -> Option<Result<(), Broken>> {
    for _ in 0..100 {
        if let Some(served) = service.served(seed) {
            return Some(served.end);
        }
        sleep(Duration::from_millis(10)).await;
    }
    None
}

/// Uploads, downloads and conversations of about twenty seconds each.
fn script(number: u64) -> Script {
    let seed = fastrand::u64(..);
    let bulk = Script { seed, rounds: 1, up: 64, down: 64, burst: 16 << 10, pause: 50, deaf: 0 };
    match number % 3 {
        0 => Script { up: 400 * (16 << 10), ..bulk },
        1 => Script { down: 400 * (16 << 10), ..bulk },
        _ => Script { rounds: 400, up: 500, down: 2000, ..bulk },
    }
}

/// The time until which no progress can be expected, and the worst stall after it.
#[derive(Debug)]
struct Watcher(Mutex<(Instant, Duration)>);

impl Watcher {
    fn new() -> Self {
        Self(Mutex::new((Instant::now(), Duration::ZERO)))
    }

    /// Does not count stalls within the duration of the fault, from now on.
    fn allow_stall(&self, fault: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Instant::now() + fault;
    }

    fn stalled(&self, since: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stall = since.max(state.0).elapsed();
        state.1 = state.1.max(stall);
    }

    fn worst(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// The time of one connection's last progress.
struct Meter {
    watcher: Arc<Watcher>,
    last: Mutex<Instant>,
}

impl Meter {
    fn new(watcher: Arc<Watcher>) -> Self {
        Self { watcher, last: Mutex::new(Instant::now()) }
    }

    fn moved(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.watcher.stalled(*last);
        *last = Instant::now();
    }
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    cycles: u32,
    tally: Tally,
    worst: Duration,
    memory_before: u64,
    memory_after: u64,
}

impl Figures {
    fn are_good(&self) -> bool {
        let Tally { exact, lost, wrong, .. } = self.tally;
        exact > 0
            && (lost, wrong) == (0, 0)
            && self.worst < MAX_STALL
            && self.memory_after < self.memory_before + MAX_GROWTH
    }

    fn render(&self) -> String {
        let Tally { exact, lost, wrong, bytes } = self.tally;
        format!(
            "| closes and the like | connections, exact at both ends | lost | wrong | data | worst stall beyond the fault \
             | client's memory, after a third → at the end |\n|---|---|---|---|---|---|---|\n\
             | {} | {exact} | {lost} | {wrong} | {:.0} MiB | {:.2} s | {:.1} → {:.1} MiB |\n",
            self.cycles,
            mebibytes(bytes),
            self.worst.as_secs_f32(),
            mebibytes(self.memory_before),
            mebibytes(self.memory_after),
        )
    }
}

/// The forwarder in a separate process, so that it can be stopped and its memory can be measured.
struct Client {
    process: Child,
    pid: Pid,
    entrance: SocketAddr,
}

impl Client {
    async fn start(local: &Local, service: &Service) -> Result<Self, SetupError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["client", "--endpoint-url", &local.endpoint_url(), "--to", &service.address.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = timeout(Duration::from_secs(60), lines.next_line()).await??.ok_or("the client ended at once")?;
        let id = i32::try_from(process.id().ok_or("the client ended at once")?)?;
        let pid = Pid::from_raw(id).ok_or("no process")?;
        Ok(Self { process, pid, entrance: first.parse()? })
    }

    fn signal(&self, signal: Signal) -> Result<(), SetupError> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Returns the resident memory of the process in bytes.
    fn memory(&self) -> Result<u64, SetupError> {
        Ok(Usage::of(self.process.id().ok_or("the client ended")?)?.memory)
    }

    async fn stop(&mut self) -> Result<(), SetupError> {
        self.signal(Signal::TERM)?;
        timeout(Duration::from_secs(10), self.process.wait()).await??;
        Ok(())
    }
}

fn of_sessions(sessions: Option<u16>) -> ForwardConfig {
    let mut config = config(LIVENESS);
    if let Some(sessions) = sessions {
        config.pool.size = PoolSize::Fixed(sessions.into());
        config.linger = ForwardConfig::default().linger;
    }
    config
}

/// The process that is stopped: forwards until its parent ends it.
///
/// # Errors
/// Returns the error that ends the process.
pub(crate) async fn client(args: ClientArgs) -> Result<(), SetupError> {
    let forwarder = Forwarder::builder(Arc::new(provider(&args.endpoint_url).await?), request(args.to))
        .config(of_sessions(args.sessions))
        .on_event(|event| match event {
            ForwardEvent::Ready { local, .. } => say(&local.to_string()),
            ForwardEvent::SessionLost { .. } => crate::report::say_error(&format!("{event:?}")),
            _ => {}
        })
        .bind(ListenAddr::Tcp((Ipv4Addr::LOCALHOST, 0).into()))
        .await?;
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    forwarder
        .run(async move {
            end.recv().await;
        })
        .await?;
    Ok(())
}
