//! The cost of a hostile service: a client in a separate process is flooded over a WebSocket with each kind of message.

mod kind;
mod peer;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{Session, SessionConfig, SessionTicket, StartRequest, TicketProvider};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::report::{say, write_between};
use crate::tunnel::{SetupError, provider, request};
use crate::usage::{Usage, mebibytes};
use kind::Kind;
use peer::Peer;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Duration of each flood in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Write the table into this file
    #[arg(long)]
    write: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientArgs {
    /// URL of the data channel
    #[arg(long)]
    stream_url: Option<String>,
    /// URL of an API with an endless answer
    #[arg(long)]
    endpoint_url: Option<String>,
}

/// Maximum memory that a flood may need in addition to the client's memory before, in bytes.
const MOST_MEMORY: u64 = 64 << 20;
/// Time after a flood until memory is measured again.
const REST: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// One row of the table.
struct Outcome {
    name: &'static str,
    sent: u64,
    bytes: u64,
    before: Usage,
    flooded: Usage,
    after: Usage,
}

/// Runs all floods. Returns whether the client's memory stayed within the limit.
///
/// # Errors
/// Returns an error if the set-up fails.
pub(crate) async fn run(args: Args) -> Result<bool, SetupError> {
    let mut outcomes = Vec::new();
    for kind in Kind::ALL {
        let outcome = flood(kind, Duration::from_secs(args.seconds)).await?;
        say(&outcome.line());
        outcomes.push(outcome);
    }
    let endless = endless_answer().await?;
    say(&endless.line());
    outcomes.push(endless);
    let lines: Vec<String> = outcomes.iter().map(Outcome::line).collect();
    let text = format!("{HEAD}\n{}\n", lines.join("\n"));
    say(&format!("\n{text}"));
    if let Some(file) = &args.write {
        write_between(file, "flood", &text)?;
    }
    Ok(outcomes.iter().all(Outcome::is_good))
}

const HEAD: &str = "| flood | messages | data | CPU time | per message | memory before | at its peak | 1 s after |\n\
                    |---|---|---|---|---|---|---|---|";

impl Outcome {
    fn is_good(&self) -> bool {
        self.flooded.peak < self.before.memory + MOST_MEMORY && self.after.memory < self.before.memory + MOST_MEMORY
    }

    fn line(&self) -> String {
        let cpu = self.flooded.cpu.saturating_sub(self.before.cpu);
        let each = match self.sent {
            0 => String::new(),
            sent => format!("{:.1} µs", cpu.as_secs_f64() * 1e6 / sent as f64),
        };
        format!(
            "| {} | {} | {:.0} MiB | {:.2} s | {each} | {:.1} MiB | {:.1} MiB | {:.1} MiB |",
            self.name,
            self.sent,
            mebibytes(self.bytes),
            cpu.as_secs_f64(),
            mebibytes(self.before.memory),
            mebibytes(self.flooded.peak),
            mebibytes(self.after.memory),
        )
    }
}

async fn flood(kind: Kind, time: Duration) -> Result<Outcome, SetupError> {
    let peer = Peer::listen().await?;
    let mut client = Client::start(&["--stream-url", &peer.stream_url()])?;
    let mut ready = timeout(PATIENCE, peer.shake_hands()).await.map_err(|_| "no handshake")??;
    client.line().await?;
    let before = client.usage()?;
    let (sent, bytes) = ready.flood(kind, time).await;
    let flooded = client.usage()?;
    sleep(REST).await;
    let after = client.usage()?;
    Ok(Outcome { name: kind.name(), sent, bytes, before, flooded, after })
}

/// Runs a client whose StartSession answer has one gibibyte.
async fn endless_answer() -> Result<Outcome, SetupError> {
    let (address, sent) = peer::endless_api().await?;
    let mut client = Client::start(&["--endpoint-url", &format!("http://{address}")])?;
    client.line().await?;
    let before = client.usage()?;
    client.line().await?;
    let flooded = client.usage()?;
    sleep(REST).await;
    let after = client.usage()?;
    let bytes = sent.load(std::sync::atomic::Ordering::Relaxed);
    Ok(Outcome { name: "an API answer of 1 GiB", sent: 0, bytes, before, flooded, after })
}

/// The process that is flooded.
struct Client {
    process: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Client {
    fn start(args: &[&str]) -> Result<Self, SetupError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("flooded").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        Ok(Self { process, lines: BufReader::new(stdout).lines() })
    }

    async fn line(&mut self) -> Result<String, SetupError> {
        let line = timeout(PATIENCE, self.lines.next_line()).await.map_err(|_| "the client prints nothing")??;
        line.ok_or_else(|| "the client ended".into())
    }

    fn usage(&self) -> Result<Usage, SetupError> {
        Usage::of(self.process.id().ok_or("the client ended")?)
    }
}

/// The flooded process. Prints a line when it is ready, and runs until its parent ends it.
///
/// # Errors
/// Returns the error that ends the process.
pub(crate) async fn client(args: ClientArgs) -> Result<(), SetupError> {
    let to = ([127, 0, 0, 1], 1).into();
    if let Some(endpoint_url) = args.endpoint_url {
        let provider = provider(&endpoint_url).await?;
        say("ready");
        let refused = ssm_forward::SessionProvider::start(&provider, &request(to)).await.err();
        say(&format!("{refused:?}"));
        return std::future::pending().await;
    }
    let ticket = SessionTicket {
        session_id: "s-1".into(),
        stream_url: args.stream_url.ok_or("no URL")?,
        token: "t".into(),
        target: None,
    };
    let provider = Arc::new(TicketProvider::new(ticket, None));
    let session = Session::start(provider, &StartRequest::default(), SessionConfig::default(), |_| {}, |_| {}).await?;
    // The stream has no reader.
    let stream = session.open_stream().await?;
    say("ready");
    session.closed().await;
    drop(stream);
    std::future::pending().await
}
