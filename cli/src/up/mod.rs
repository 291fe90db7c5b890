//! `up`: many tunnels of the configuration in one process, each restarted on its own; other commands speak to it over a
//! socket.

mod commands;
mod conflicts;
mod control;
mod detach;
mod manager;
mod place;
mod providers;
mod serve;
mod status;
mod systemd;
mod view;
mod worker;

use std::io::{IsTerminal as _, stderr, stdin, stdout};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

pub(crate) use commands::{down, logs, reload, restart, status};

use crate::args::{OutputFormat, UpArgs, Verbosity};
use crate::config::{Config, Tunnel};
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::figures::{self, Metrics};
use crate::local::{self, LocalManager};
use crate::output::{Log, Output, Reporter, Screen, Style, Subjects};
use crate::shutdown::Shutdown;
use control::{Process, Socket};
use manager::Manager;
use place::Place;
use providers::Providers;
pub(crate) use status::Phase;

/// What the tunnels of a process share.
struct Shared {
    providers: Providers,
    reporter: Reporter,
    subjects: Arc<Subjects>,
}

/// How long the tunnels may take to end after the command was asked to stop.
const GRACE: Duration = Duration::from_secs(6);

/// Runs the command.
///
/// # Errors
/// The configuration is wrong, two tunnels contradict each other, or one is open already.
pub(crate) async fn run(args: &UpArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let tunnels = selected(args)?;
    if args.detach {
        return detach::run(args, verbosity, &tunnels).await;
    }
    if args.detached {
        // The terminal's end is not this process's.
        let _ = rustix::process::setsid();
    }
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let place = Place::open()?;
    let socket = claim(&place, &tunnels).await?;
    let metrics = match args.events.metrics {
        Some(address) => Some(Metrics::bind(address).await?),
        None => None,
    };
    let manager = match args.aws.local {
        true => {
            let options = connect::local_options(local::DEFAULT_TARGET);
            Some(LocalManager::start(local::Options { ports_only: true, ..options }).await?)
        }
        false => None,
    };
    // Several tunnels have no common line with a spinner.
    let style = Style { format: args.events.output, quiet: verbosity.quiet, logging: true, beside: false };
    let log = Arc::new(Log::default());
    let views = !args.detached && !args.plain && fits_the_view(args, verbosity);
    let screen = if args.detached || views { Screen::Hidden } else { Screen::Lines };
    let output = Output::logged(style, log.clone(), screen, shutdown.clone());
    let shared = Arc::new(Shared {
        providers: Providers::new(manager),
        reporter: output.reporter().clone(),
        subjects: output.subjects().clone(),
    });
    let mut serving = JoinSet::new();
    if views {
        // Questions come before the view. A failure is told by the tunnel that needs the credentials.
        for tunnel in &tunnels {
            let _ = shared.providers.get(&tunnel.args.aws).await;
        }
    }
    let manager = Arc::new(Manager::start(shared.clone(), tunnels));
    let viewing = views.then(|| tokio::spawn(view::show(manager.clone(), log.clone(), shutdown.clone())));
    let looking = manager.clone();
    serving.spawn(figures::tell(move || looking.figures(), output.reporter().clone()));
    if let Some(metrics) = metrics {
        let looking = manager.clone();
        serving.spawn(metrics.serve(move || looking.named_figures()));
    }
    serving.spawn(systemd::notify(manager.clone()));
    let selection = (args.names.clone(), args.config.config.clone(), args.given.clone());
    let select = move || Config::load(selection.1.as_deref())?.select(&selection.0, &selection.2);
    serving.spawn(serve::serve(socket, manager.clone(), log, Box::new(select), shutdown.clone()));
    shutdown.requested().await;
    systemd::stopping();
    let _ = tokio::time::timeout(GRACE, manager.close(&[])).await;
    if let Some(viewing) = viewing {
        let _ = viewing.await;
    }
    serving.shutdown().await;
    drop(manager);
    output.close(None).await;
    if let Some(mut shared) = Arc::into_inner(shared) {
        shared.providers.close().await;
    }
    Ok(ExitCode::Ok)
}

/// Whether there is a terminal for the live view, and nothing else that wants to write on it.
fn fits_the_view(args: &UpArgs, verbosity: Verbosity) -> bool {
    let is_terminal = stdin().is_terminal() && stdout().is_terminal() && stderr().is_terminal();
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    is_terminal && !is_dumb && args.events.output == OutputFormat::Text && !verbosity.quiet && verbosity.verbose == 0
}

/// The tunnels that the command line names.
fn selected(args: &UpArgs) -> Result<Vec<Tunnel>, Failure> {
    let tunnels = Config::load(args.config.config.as_deref())?.select(&args.names, &args.given)?;
    conflicts::check(&tunnels)?;
    Ok(tunnels)
}

/// Makes sure that nobody else has these tunnels open, or their addresses, and listens for other commands.
async fn claim(place: &Place, tunnels: &[Tunnel]) -> Result<Socket, Failure> {
    let locking = place.clone();
    let _lock = tokio::task::spawn_blocking(move || locking.lock()).await.map_err(Failure::internal)?;
    conflicts::check_others(tunnels, &Process::all(place).await?)?;
    conflicts::check_free(tunnels)?;
    let path = place.socket(std::process::id());
    Socket::bind(&path).map_err(|error| {
        let text = format!("cannot listen on the control socket {}: {error}", path.display());
        Failure::new(ExitCode::Config, "control", text)
    })
}
