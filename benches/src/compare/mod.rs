//! `compare`: clients take turns with the same work against a local Session Manager.

mod client;
mod destination;
mod hop;
mod limit;
mod place;
mod process;
mod relay;
mod scenario;
mod traffic;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::report::{Failure, Report, Settings};
use crate::{Result, machine, plot, ratios, say, table, targets};
use client::{Client, Kind};
use place::Place;
use scenario::Scenario;

pub(crate) use hop::{HopArgs, hop};
pub(crate) use limit::limit;
pub(crate) use place::serve;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A client: ours, plugin, bridge, limit, hops or tcp, optionally followed by a colon and a program, and by further
    /// arguments separated by spaces.
    ///
    /// `ours` is the command of this build, `plugin` the same through the interface of AWS's session-manager-plugin,
    /// `plugin:PATH` any program with that interface, `bridge` what benches/bridge builds, `limit` a bare WebSocket
    /// with the digests and acknowledgements, `hops` two plain TCP relays, `tcp` no tunnel. The other clients are
    /// compared with the first one.
    #[arg(short, long = "client", value_name = "CLIENT", default_values = ["ours", "limit", "tcp"])]
    clients: Vec<String>,
    /// How the local Session Manager's agent behaves, and the network path to it.
    #[arg(short, long = "profile", value_enum, default_values_t = [Profile::Fast, Profile::Real, Profile::Aws])]
    profiles: Vec<Profile>,
    /// Run only scenarios whose names begin with this text: startup, memory, latency, download, dump, upload, busy,
    /// active, slow, stuck, sessions.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Number of repetitions.
    #[arg(short, long, default_value_t = 5, conflicts_with = "quick")]
    repetitions: usize,
    /// Duration of each measurement in seconds.
    #[arg(short, long, default_value_t = 2.0, conflicts_with = "quick")]
    seconds: f64,
    /// Run for about a minute: three short repetitions, without the slow scenarios.
    #[arg(long)]
    quick: bool,
    /// Delay between client and Session Manager in each direction; at least 20 ms with the profile aws.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_ms: u64,
    /// A fault during the measurements, as described in docs/faults.md: `drop,probability=0.001`. May be given several
    /// times.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<String>,
    /// The release binary, whose size is reported.
    #[arg(long, value_name = "PATH", default_value = "target/dist/aws-ssm-forward")]
    dist: PathBuf,
    /// The file for the samples.
    #[arg(long, value_name = "FILE", default_value = "compare.json")]
    json: PathBuf,
    /// Draw the plots into this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// How the agent behaves.
    #[arg(long, value_enum)]
    profile: Profile,
    /// Allow sessions to run commands; only the credentials of the environment are accepted.
    #[arg(long)]
    commands: bool,
    /// The faults.
    #[arg(long = "fault")]
    faults: Vec<String>,
}

/// Arguments of `limit`.
#[derive(Debug, clap::Args)]
pub(crate) struct LimitArgs {
    /// Bytes per message.
    #[arg(long)]
    payload: usize,
    /// Duration of each measurement.
    #[arg(long)]
    millis: u64,
}

/// Adverse conditions of the network path.
#[derive(Debug)]
struct Surroundings {
    /// Delay between client and Session Manager in each direction.
    delay: Duration,
    faults: Vec<String>,
}

/// How the local agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// No artificial limits.
    Fast,
    /// The real agent's pace: 1024 bytes, then a millisecond of sleep.
    Real,
    /// The conditions of a user in AWS: the real agent's pace, 20 ms in each direction, and for our client the rate
    /// limit that it uses with AWS.
    Aws,
}

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Real => "real",
            Self::Aws => "aws",
        }
    }

    fn of_agent(self) -> ssm_local::Profile {
        match self {
            Self::Fast => ssm_local::Profile::Fast,
            Self::Real | Self::Aws => ssm_local::Profile::Real,
        }
    }

    /// Delay between client and Session Manager in each direction.
    fn delay(self) -> Duration {
        match self {
            Self::Fast | Self::Real => Duration::ZERO,
            Self::Aws => Duration::from_millis(20),
        }
    }

    /// Arguments for the behaviour that our client has by default with AWS, but not with a local Session Manager.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Fast | Self::Real => &[],
            Self::Aws => &["--message-rate", "900"],
        }
    }
}

/// Runs the comparison, prints its table and writes its samples.
pub(crate) async fn run(args: Args) -> Result<()> {
    allow_many_files();
    let mut clients = args.clients.iter().map(|text| text.parse()).collect::<Result<Vec<Client>>>()?;
    client::build_ours(&clients).await?;
    let (repetitions, seconds) = if args.quick { (3, 0.25) } else { (args.repetitions, args.seconds) };
    let surroundings = Surroundings { delay: Duration::from_millis(args.delay_ms), faults: args.faults };
    let settings = Settings { repetitions, seconds, delay_ms: args.delay_ms, command: command_line() };
    let mut report = Report::new(machine::Machine::of_this(), settings, args.clients.clone());
    for client in &clients {
        if let Some(version) = client.version().await {
            report.versions.insert(client.label.clone(), version);
        }
    }
    if let Ok(file) = std::fs::metadata(&args.dist) {
        report.add_part("dist-size", mega(file.len()));
    }
    let time = Duration::from_secs_f64(seconds);
    for repetition in 0..repetitions {
        progress(&format!("repetition {} of {repetitions}", repetition + 1));
        ratios::measure(&mut report);
        for &profile in &args.profiles {
            for scenario in Scenario::all(profile, args.quick) {
                if !args.only.is_empty() && !args.only.iter().any(|name| scenario.name().starts_with(name.as_str())) {
                    continue;
                }
                for client in &clients {
                    measure(&mut report, client, profile, scenario, time, &surroundings).await;
                }
            }
        }
        // The order of clients changes, so that no client is always the first or always follows the same client.
        clients.rotate_left(1);
    }
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?)?;
    say(&table::of(&report));
    say(&targets::table(&report));
    if let Some(folder) = &args.plots {
        plot::draw(&report, folder)?;
    }
    match report.failures.len() {
        0 => Ok(()),
        failures => Err(format!("{failures} measurements failed").into()),
    }
}

async fn measure(
    report: &mut Report,
    client: &Client,
    profile: Profile,
    scenario: Scenario,
    time: Duration,
    surroundings: &Surroundings,
) {
    if !scenario.suits(client) || (profile != Profile::Fast && !client.has_agent()) {
        return;
    }
    let began = Instant::now();
    let samples = match client.kind {
        Kind::Limit => scenario.run_limit(profile, time).await,
        _ => run_scenario(client, profile, scenario, time, surroundings).await,
    };
    progress(&format!(
        "  {} {} {}: {:.1} s",
        profile.name(),
        scenario.name(),
        client.label,
        began.elapsed().as_secs_f64()
    ));
    match samples {
        Ok(samples) => {
            for (metric, value) in samples {
                report.add(profile.name(), &client.label, &metric, value);
            }
        }
        Err(error) => {
            progress(&format!("    failed: {error}"));
            report.failures.push(Failure {
                profile: profile.name().into(),
                client: client.label.clone(),
                scenario: scenario.name(),
                error: error.to_string(),
            });
        }
    }
}

/// Runs one scenario once. Starts a new Session Manager and a new client for each run, so that runs do not influence
/// each other.
async fn run_scenario(
    client: &Client,
    profile: Profile,
    scenario: Scenario,
    time: Duration,
    surroundings: &Surroundings,
) -> Result<Vec<(String, f64)>> {
    let place = Place::start(profile, surroundings, client.has_relay()).await?;
    let samples = scenario.run(client, profile, &place, time).await;
    let corrupt = place.destination.is_corrupt();
    place.stop().await;
    if corrupt { Err("the received data differs from the sent data".into()) } else { samples }
}

/// Raises the limit of descriptors, because both ends of a thousand connections are in this process.
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Returns the command line, without the folders of this machine.
fn command_line() -> String {
    let args = std::env::args().skip(1).map(|arg| without_folders(&arg));
    let quoted = args.map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { arg });
    std::iter::once("ssm-bench".to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

/// Reduces absolute paths to file names, also after a colon and between spaces.
fn without_folders(arg: &str) -> String {
    let of_word = |word: &str| match word.split_once('/').zip(word.rsplit_once('/')) {
        Some(((before, _), (_, name))) if before.is_empty() || before.ends_with(':') => format!("{before}{name}"),
        _ => word.to_owned(),
    };
    arg.split(' ').map(of_word).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::cast_precision_loss, reason = "approximate figures for people")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_this_machine_are_nobodys_business() {
        assert_eq!(without_folders("bridge:/home/me/bench-bridge"), "bridge:bench-bridge");
        assert_eq!(without_folders("ours:/a/b --sessions 8"), "ours:b --sessions 8");
        assert_eq!(without_folders("/tmp/x.json"), "x.json");
        assert_eq!(without_folders("target/x"), "target/x");
        assert_eq!(without_folders("--quick"), "--quick");
    }
}
