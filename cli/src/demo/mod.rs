//! The `demo` command: port forwarding without AWS. It starts a local Session Manager, a private web service that only the agent
//! can reach, and a tunnel to this service. Then it measures the tunnel.

mod client;
mod data;
mod service;

use std::io::{IsTerminal, stderr};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ssm_forward::{ForwardEvent, Forwarder, ListenAddr, SessionProvider, StartRequest, StatsSnapshot};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::args::{DemoArgs, Verbosity};
use crate::console;
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::shutdown::{Shutdown, StopCause};
use client::{Client, Transfer};
use data::Seeded;
use service::{OpenTunnel, Service, Tunnel};

/// The name of the service, which only the agent resolves.
const PRIVATE_NAME: &str = "private-web.internal";

/// Number of requests for measuring the round-trip time.
const ROUND_TRIPS: usize = 200;

/// Time limit for ending the session.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the demo.
///
/// # Errors
/// Returns an error if a part of the demo fails, or if the received data differs from the sent data.
pub(crate) async fn run(args: &DemoArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let (listener, address) = service::listen().await.map_err(Failure::internal)?;
    let tunnel = Arc::new(Tunnel::new(local::DEFAULT_TARGET, format!("{PRIVATE_NAME}:{}", address.port())));
    let _service = Service::start(listener, tunnel.clone());
    let manager = LocalManager::start(local::Options {
        profile: args.profile,
        ports_only: true,
        hosts: vec![(PRIVATE_NAME.into(), address.ip())],
        ..local::Options::default()
    })
    .await?;
    let result = match manager.provider().await {
        Ok(provider) => with_tunnel(args, verbosity, Arc::new(provider), address, &tunnel, &shutdown).await,
        Err(failure) => Err(failure),
    };
    manager.shutdown().await;
    result
}

async fn with_tunnel(
    args: &DemoArgs,
    verbosity: Verbosity,
    provider: Arc<dyn SessionProvider>,
    service: SocketAddr,
    tunnel: &Tunnel,
    shutdown: &Shutdown,
) -> Result<ExitCode, Failure> {
    let screen = Screen { quiet: verbosity.quiet };
    let (events, mut ready) = mpsc::unbounded_channel();
    let forwarder = Forwarder::builder(provider, start_request(service))
        .on_event(move |event| {
            let _ = events.send(event);
        })
        .bind(ListenAddr::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.port)))
        .await?;
    let (local, stats) = (forwarder.local_addr().to_string(), forwarder.stats());
    let stop = shutdown.clone();
    let mut running = tokio::spawn(forwarder.run(async move {
        stop.requested().await;
    }));
    let work = async {
        let (session_id, agent_version) = wait_until_ready(&mut ready).await?;
        screen
            .note(&format!("Forwarding {local} -> {} through {} (session {session_id})", tunnel.remote, tunnel.target));
        let _ = tunnel.open.set(OpenTunnel { local: local.clone(), session_id, agent_version, stats: stats.clone() });
        let figures = measure(&local, args.size, &screen).await?;
        screen.result(&summary(args.size, &figures, &stats.snapshot()));
        Ok(())
    };
    let mut result = tokio::select! {
        biased;
        cause = shutdown.requested() => Ok(cause.exit_code()),
        result = work => result.map(|()| ExitCode::Ok),
        ended = &mut running => return Err(why_it_ended(ended)),
    };
    if !args.once && result.is_ok() && shutdown.cause().is_none() {
        screen.result(&format!("Open http://{local}/ in a browser. Ctrl-C ends the demo."));
        result = tokio::select! {
            biased;
            _ = shutdown.requested() => Ok(ExitCode::Ok),
            ended = &mut running => return Err(why_it_ended(ended)),
        };
    }
    shutdown.stop(StopCause::Failed);
    end(running).await;
    result
}

fn start_request(service: SocketAddr) -> StartRequest {
    let parameters = [("host", PRIVATE_NAME.to_owned()), ("portNumber", service.port().to_string())];
    StartRequest {
        target: local::DEFAULT_TARGET.into(),
        document: Some("AWS-StartPortForwardingSessionToRemoteHost".into()),
        parameters: parameters.into_iter().map(|(key, value)| (key.to_owned(), vec![value])).collect(),
        reason: Some("demo".into()),
        ..StartRequest::default()
    }
}

/// Waits until the forwarder is ready. Returns the session's id and the agent's version.
async fn wait_until_ready(events: &mut mpsc::UnboundedReceiver<ForwardEvent>) -> Result<(String, String), Failure> {
    while let Some(event) = events.recv().await {
        if let ForwardEvent::Ready { session_id, agent_version, .. } = event {
            return Ok((session_id, agent_version));
        }
    }
    // The forwarder has ended. Its task returns the reason.
    std::future::pending().await
}

type Ended = Result<Result<(), ssm_forward::ForwardError>, tokio::task::JoinError>;

fn why_it_ended(ended: Ended) -> Failure {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) => Failure::internal("the tunnel ended by itself"),
        Err(error) => Failure::internal(error),
    }
}

async fn end(running: JoinHandle<Result<(), ssm_forward::ForwardError>>) {
    let _ = timeout(GRACE, running).await;
}

/// The measured values.
struct Figures {
    down: Duration,
    up: Duration,
    /// In ascending order.
    round_trips: Vec<Duration>,
}

async fn measure(local: &str, size: u64, screen: &Screen) -> Result<Figures, Failure> {
    let failed = |what: &'static str| {
        move |why: String| Failure::new(ExitCode::Channel, "transfer", format!("the {what} failed: {why}"))
    };
    let mut client = Client::connect(local).await.map_err(failed("connection"))?;
    let round_trips = client.round_trips(ROUND_TRIPS).await.map_err(failed("round trip"))?;
    let (seed, moved) = (fastrand::u64(..), Arc::new(AtomicU64::new(0)));
    let expected = tokio::task::spawn_blocking(move || Seeded::new(seed, size).digest());
    let down = screen.watch("Downloading", size, &moved, client.download(seed, size, &moved)).await;
    let down = down.map_err(failed("download"))?;
    moved.store(0, Ordering::Relaxed);
    let up = screen.watch("Uploading", size, &moved, client.upload(seed, size, &moved)).await;
    let up = up.map_err(failed("upload"))?;
    let expected = expected.await.map_err(Failure::internal)?;
    verify("downloaded", &down, &expected)?;
    verify("uploaded", &up, &expected)?;
    Ok(Figures { down: down.elapsed, up: up.elapsed, round_trips })
}

fn verify(what: &str, transfer: &Transfer, expected: &str) -> Result<(), Failure> {
    if transfer.sha256 == expected {
        return Ok(());
    }
    let message = format!("the {what} data is damaged: its SHA-256 is {}, expected {expected}", transfer.sha256);
    Err(Failure::new(ExitCode::Mismatch, "mismatch", message))
}

fn summary(size: u64, figures: &Figures, stats: &StatsSnapshot) -> String {
    let transfer = |elapsed: Duration| {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let rate = size as f64 / seconds / 1e6;
        format!("{:>11} in {seconds:.2} s   {rate:.1} MB/s   SHA-256 verified", HumanBytes(size).to_string())
    };
    let percentile = |percent: usize| {
        let rank = figures.round_trips.len().saturating_sub(1) * percent / 100;
        figures.round_trips.get(rank).map_or(0.0, |round_trip| round_trip.as_secs_f64() * 1e3)
    };
    format!(
        "\n  download    {}\n  upload      {}\n  round trip   p50 {:.2} ms, p99 {:.2} ms   {ROUND_TRIPS} requests, one after the other\n  \
         messages     {} sent, {} received, {} retransmitted\n",
        transfer(figures.down),
        transfer(figures.up),
        percentile(50),
        percentile(99),
        stats.messages_sent,
        stats.messages_received,
        stats.retransmissions,
    )
}

/// Output for the user: results on stdout, progress on stderr.
struct Screen {
    quiet: bool,
}

impl Screen {
    fn result(&self, text: &str) {
        if !self.quiet {
            console::say(format!("{text}\n"));
        }
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            console::note(text);
        }
    }

    /// Shows the progress of a transfer: as a bar on a terminal, otherwise as one line.
    async fn watch<T>(&self, what: &'static str, size: u64, moved: &AtomicU64, transfer: impl Future<Output = T>) -> T {
        if self.quiet || !stderr().is_terminal() {
            self.note(&format!("{what} {}", HumanBytes(size)));
            return transfer.await;
        }
        let bar = ProgressBar::new(size).with_message(what);
        let template = "  {msg:11} {wide_bar:.cyan/dim} {bytes:>10} of {total_bytes}  {bytes_per_sec:>12}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        let follow = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                bar.set_position(moved.load(Ordering::Relaxed));
            }
        };
        let result = tokio::select! {
            result = transfer => result,
            () = follow => unreachable!("the loop never ends"),
        };
        bar.finish_and_clear();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_transfer_has_its_own_exit_code() {
        let transfer = Transfer { elapsed: Duration::ZERO, sha256: "ab".into() };
        assert!(verify("downloaded", &transfer, "ab").is_ok());
        assert_eq!(verify("downloaded", &transfer, "cd").unwrap_err().code, ExitCode::Mismatch);
    }

    #[test]
    fn the_summary_tells_rates_and_percentiles() {
        let figures = Figures {
            down: Duration::from_secs(1),
            up: Duration::from_secs(2),
            round_trips: (1..=200).map(Duration::from_millis).collect(),
        };
        let summary = summary(100 << 20, &figures, &StatsSnapshot::default());
        assert!(summary.contains("104.9 MB/s") && summary.contains("52.4 MB/s"), "{summary}");
        assert!(summary.contains("p50 100.00 ms, p99 198.00 ms"), "{summary}");
    }
}
