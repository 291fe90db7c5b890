//! The scenarios. Each begins with a fresh Session Manager and a fresh client.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Profile;
use super::client::{Client, Kind, Running};
use super::limit;
use super::place::Place;
use super::traffic::{Bulk, Direction, PATIENCE, echo, first_bytes, round_trips, round_trips_on};
use crate::Result;
use crate::report::quantile;

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scenario {
    /// Time from exec until ready.
    Startup,
    /// Memory when idle, and with this number of idle connections.
    Memory(usize),
    /// This number of simultaneous connections repeatedly request and receive a byte.
    Active(usize),
    /// Round trip of one byte, on an open connection and on a new one.
    Latency,
    /// This number of connections transfer bytes as fast as possible.
    Throughput(Direction, usize),
    /// Round trip of one byte beside a busy connection.
    Busy(Direction),
    /// Three downloads beside one whose program reads slowly.
    SlowReader,
    /// Time to the first byte while a destination and a program do not read.
    Stuck,
    /// This number of sessions, with one download each.
    Sessions(usize),
}

/// The name and the value of a figure.
type Samples = Vec<(String, f64)>;

/// Payload per message of the local agent without an artificial limit, in bytes, as in `ssm-local`.
const FAST_PAYLOAD: usize = 32 << 10;
/// Payload per message of clients and of the real agent, in bytes.
const PAYLOAD: usize = 1024;
const CONNECTIONS: usize = 1000;
/// The slow reader's chunk in bytes, and its pause after each chunk: 0.6 MB/s.
const SLOW: (usize, Duration) = (64 << 10, Duration::from_millis(100));

/// Stop-and-go traffic takes longer to measure than other traffic.
const SLOW_TIME: Duration = Duration::from_secs(4);

impl Scenario {
    /// All scenarios that are meaningful in this profile.
    pub(super) fn all(profile: Profile, quick: bool) -> Vec<Self> {
        use Direction::{Download, Dump, Upload};
        let connections: &[usize] = if quick || profile == Profile::Aws { &[1, 8] } else { &[1, 8, 64] };
        let mut all = vec![Self::Startup, Self::Latency];
        for direction in [Download, Upload] {
            all.extend(connections.iter().map(|&count| Self::Throughput(direction, count)));
            all.push(Self::Busy(direction));
        }
        match profile {
            Profile::Fast => all.extend([Self::Memory(CONNECTIONS), Self::Active(CONNECTIONS), Self::SlowReader]),
            Profile::Real => {
                all.extend([Self::Throughput(Dump, 1), Self::Stuck]);
                let counts: &[usize] = if quick { &[1, 4] } else { &[1, 2, 4, 8, 16] };
                all.extend(counts.iter().map(|&count| Self::Sessions(count)));
            }
            Profile::Aws => all.push(Self::Sessions(1)),
        }
        all
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Startup => "startup".into(),
            Self::Memory(_) => "memory".into(),
            Self::Active(_) => "active".into(),
            Self::Latency => "latency".into(),
            Self::Throughput(direction, connections) => format!("{}-{connections}", word(direction)),
            Self::Busy(direction) => format!("busy-{}", word(direction)),
            Self::SlowReader => "slow-reader".into(),
            Self::Stuck => "stuck".into(),
            Self::Sessions(count) => format!("sessions-{count}"),
        }
    }

    /// Whether the scenario is meaningful for a client of this kind.
    pub(super) fn suits(self, client: &Client) -> bool {
        match client.kind {
            Kind::Limit => matches!(self, Self::Throughput(_, 1)),
            Kind::Hops | Kind::Tcp => {
                !matches!(self, Self::Startup | Self::Memory(_) | Self::Sessions(_) | Self::Stuck)
            }
            // The number of sessions is one of the client's arguments.
            Kind::Ours if client.has_relay() => !matches!(self, Self::Sessions(_)),
            // Without a relay, the stuck connections block their session.
            Kind::Ours | Kind::Plugin | Kind::Bridge => !matches!(self, Self::Stuck),
        }
    }

    /// Runs the scenario.
    pub(super) async fn run(self, client: &Client, profile: Profile, place: &Place, time: Duration) -> Result<Samples> {
        let sessions = if let Self::Sessions(count) = self { Some(count) } else { None };
        let running = client.start(place, profile, sessions).await?;
        let samples = self.with(&running, place, time).await;
        running.stop().await;
        samples
    }

    async fn with(self, running: &Running, place: &Place, time: Duration) -> Result<Samples> {
        let address = *running.addresses.first().ok_or("the client has no port")?;
        match self {
            Self::Startup => startup(running, place).await,
            Self::Stuck => stuck(address, time).await,
            Self::Memory(connections) => memory(running, connections).await,
            Self::Active(connections) => active(address, connections, time).await,
            Self::Latency => {
                let mut samples = quantiles("ping", &round_trips(address, time).await?);
                samples.extend(quantiles("connect", &first_bytes(address, time).await?));
                Ok(samples)
            }
            Self::Throughput(direction, connections) => {
                let bulk = bulk(running, direction, connections);
                let moved = moved(bulk, running, place, direction, time).await?;
                let mut samples = vec![(format!("{}-{connections}", word(direction)), moved.rate() / 1e6)];
                if let Some(cpu) = moved.cpu.filter(|_| connections == 1 && moved.bytes > 0.0) {
                    samples.push((format!("cpu-{}", word(direction)), cpu.as_secs_f64() * 1e8 / moved.bytes));
                }
                Ok(samples)
            }
            Self::Busy(direction) => {
                let mut bulk = bulk(running, direction, 1);
                wait_for_bytes(&mut bulk, place, direction).await?;
                sleep(time / 4).await;
                let times = round_trips(address, time).await?;
                bulk.check()?;
                Ok(quantiles(&format!("busy-{}", word(direction)), &times))
            }
            Self::SlowReader => {
                let mut bulk = bulk(running, Direction::Download, 3);
                bulk.add_slow(address, SLOW.0, SLOW.1);
                // Long enough to fill the tunnel's buffers for the slow reader.
                wait_for_bytes(&mut bulk, place, Direction::Download).await?;
                sleep(Duration::from_secs(1)).await;
                let moved = moved(bulk, running, place, Direction::Download, time.max(SLOW_TIME)).await?;
                let mut samples = vec![("slow-reader".into(), moved.rate() / 1e6)];
                samples.extend(running.resident().map(|bytes| ("rss-slow-reader".into(), mebibytes(bytes))));
                Ok(samples)
            }
            Self::Sessions(count) => {
                // After this time all sessions are established and known to be idle.
                sleep(Duration::from_secs(1)).await;
                let bulk = bulk(running, Direction::Download, count);
                let moved = moved(bulk, running, place, Direction::Download, time).await?;
                Ok(vec![(self.name(), moved.rate() / 1e6)])
            }
        }
    }

    /// The limit program's figures for the scenario.
    pub(super) async fn run_limit(self, profile: Profile, time: Duration) -> Result<Samples> {
        let Self::Throughput(direction, _) = self else { return Ok(Vec::new()) };
        let payload = if (profile, direction) == (Profile::Fast, Direction::Download) { FAST_PAYLOAD } else { PAYLOAD };
        let limit = limit::measure(payload, time).await?;
        let mut samples = vec![
            (format!("{}-1", word(direction)), limit.bytes_per_second / 1e6),
            (format!("cpu-{}", word(direction)), limit.cpu_per_byte * 1e8),
        ];
        if direction == Direction::Upload {
            let milliseconds = |q| quantile(&limit.round_trips, q) * 1e3;
            samples.extend([("ping-p50".into(), milliseconds(0.5)), ("ping-p99".into(), milliseconds(0.99))]);
        }
        Ok(samples)
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Download => "download",
        Direction::Dump => "dump",
        Direction::Upload => "upload",
    }
}

async fn startup(running: &Running, place: &Place) -> Result<Samples> {
    let mut samples: Samples =
        running.processes.iter().map(|process| ("ready".into(), process.ready.as_secs_f64() * 1e3)).collect();
    // An API that requires credentials is not called without them.
    if !place.commands {
        samples.push(("api".into(), place.start_session().await?.elapsed.as_secs_f64() * 1e3));
    }
    Ok(samples)
}

async fn stuck(address: SocketAddr, time: Duration) -> Result<Samples> {
    let mut bulk = Bulk::default();
    bulk.add_stuck(address);
    // Long enough to fill the tunnel's buffers for these connections.
    sleep(time.max(SLOW_TIME)).await;
    let times = first_bytes(address, time).await?;
    bulk.check()?;
    Ok(quantiles("stuck", &times))
}

async fn memory(running: &Running, connections: usize) -> Result<Samples> {
    let address = *running.addresses.first().ok_or("the client has no port")?;
    drop(echo(address).await?);
    sleep(SETTLE).await;
    let mut samples = Samples::new();
    samples.extend(running.resident().map(|bytes| ("rss-idle".into(), mebibytes(bytes))));
    samples.extend(running.anonymous().map(|bytes| ("anonymous-idle".into(), mebibytes(bytes))));
    let _open = open(address, connections).await?;
    sleep(SETTLE).await;
    samples.extend(running.resident().map(|bytes| (format!("rss-{connections}"), mebibytes(bytes))));
    Ok(samples)
}

/// Round trips of many active connections. The longest one of all connections shows stalls.
async fn active(address: SocketAddr, connections: usize, time: Duration) -> Result<Samples> {
    let mut asking: JoinSet<_> =
        open(address, connections).await?.into_iter().map(|stream| round_trips_on(stream, time)).collect();
    let mut times = Vec::new();
    while let Some(asked) = asking.join_next().await {
        times.extend(asked??);
    }
    times.sort_unstable();
    let worst = times.last().copied().unwrap_or_default();
    let mut samples = quantiles("active", &times);
    samples.push(("active-worst".into(), worst.as_secs_f64() * 1e3));
    Ok(samples)
}

async fn open(address: SocketAddr, connections: usize) -> Result<Vec<TcpStream>> {
    let mut opening = JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..connections {
        opening.spawn(echo(address));
        // The smallest queue limit of a listener.
        if opening.len() == 64
            && let Some(stream) = opening.join_next().await
        {
            open.push(stream??);
        }
    }
    while let Some(stream) = opening.join_next().await {
        open.push(stream??);
    }
    Ok(open)
}

/// Time after which memory that was needed only at the start has been freed.
const SETTLE: Duration = Duration::from_millis(300);

#[expect(clippy::cast_precision_loss, reason = "approximate figures for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Opens connections that are distributed over all ports of the client.
fn bulk(running: &Running, direction: Direction, connections: usize) -> Bulk {
    let mut bulk = Bulk::default();
    for address in running.addresses.iter().cycle().take(connections) {
        bulk.add(*address, direction);
    }
    bulk
}

/// Bytes transferred within a time.
struct Moved {
    bytes: f64,
    elapsed: Duration,
    cpu: Option<Duration>,
}

impl Moved {
    fn rate(&self) -> f64 {
        self.bytes / self.elapsed.as_secs_f64()
    }
}

/// Counts bytes at the receiving end, once they arrive steadily.
async fn moved(
    mut bulk: Bulk,
    running: &Running,
    place: &Place,
    direction: Direction,
    time: Duration,
) -> Result<Moved> {
    wait_for_bytes(&mut bulk, place, direction).await?;
    sleep(time / 4).await;
    let (bytes, began, cpu) = (arrived(&bulk, place, direction), Instant::now(), running.cpu());
    sleep(time).await;
    let (moved, elapsed) = (arrived(&bulk, place, direction) - bytes, began.elapsed());
    let cpu = running.cpu().zip(cpu).map(|(after, before)| after.saturating_sub(before));
    bulk.check()?;
    #[expect(clippy::cast_precision_loss, reason = "approximate figures for people")]
    let bytes = moved as f64;
    Ok(Moved { bytes, elapsed, cpu })
}

async fn wait_for_bytes(bulk: &mut Bulk, place: &Place, direction: Direction) -> Result<()> {
    let began = Instant::now();
    while arrived(bulk, place, direction) == 0 {
        bulk.check()?;
        if began.elapsed() > PATIENCE {
            return Err("no data arrives".into());
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn arrived(bulk: &Bulk, place: &Place, direction: Direction) -> u64 {
    match direction {
        Direction::Download | Direction::Dump => bulk.downloaded(),
        Direction::Upload => place.destination.received(),
    }
}

fn quantiles(name: &str, times: &[Duration]) -> Samples {
    let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    [("p50", 0.5), ("p99", 0.99)].map(|(suffix, q)| (format!("{name}-{suffix}"), quantile(&seconds, q) * 1e3)).to_vec()
}
