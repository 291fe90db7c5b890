//! `up`: many tunnels of the configuration in one process. Each tunnel is restarted on its own. Other commands control the process
//! over a socket.

mod commands;
mod conflicts;
mod control;
mod detach;
mod folder;
mod manager;
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

pub(crate) use commands::{down, logs, open_tunnels, reload, restart, status};

use crate::args::{OutputFormat, UpArgs, Verbosity};
use crate::config::{Config, Tunnel};
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::figures::{self, Metrics};
use crate::hosts::HostsFile;
use crate::local::{self, LocalManager};
use crate::output::{Log, Output, Reporter, Screen, Style, Subjects};
use crate::relay;
use crate::shutdown::Shutdown;
use control::{Process, Socket};
use folder::ControlFolder;
use manager::Manager;
use providers::Providers;
use serve::Server;
pub(crate) use status::Phase;

/// The state that the tunnels of a process share.
struct UpContext {
    providers: Providers,
    reporter: Reporter,
    subjects: Arc<Subjects>,
    /// The hosts file, with `--hosts`.
    hosts: Option<HostsFile>,
}

/// Time limit for closing the tunnels after a stop was requested.
const GRACE: Duration = Duration::from_secs(6);

/// Runs the command.
///
/// # Errors
/// Returns an error if the configuration is invalid, two tunnels conflict with each other, or a tunnel is already open.
pub(crate) async fn run(args: &UpArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    if args.detached {
        detach::leave_the_terminal()?;
    }
    let tunnels = selected(args)?;
    if args.detach {
        return detach::run(args, verbosity, &tunnels).await;
    }
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let folder = ControlFolder::open()?;
    let options = || {
        let with_relay = tunnels.iter().any(|tunnel| relay::config(&tunnel.args.relay).is_some());
        connect::local_options_for_ports(local::DEFAULT_TARGET, with_relay)
    };
    let views = !args.detached && !args.plain && fits_the_view(args, verbosity);
    let mut providers = Providers::new(LocalManager::start_if(args.aws.local, options).await?, views);
    let prepared = tokio::select! {
        prepared = prepare(args, &tunnels, &folder, views.then_some(&providers)) => prepared,
        cause = shutdown.requested() => {
            providers.close().await;
            return Ok(cause.exit_code());
        }
    };
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            providers.close().await;
            return Err(failure);
        }
    };
    // Logging is on, because a single progress line cannot show several tunnels.
    let style = Style { format: args.events.output, quiet: verbosity.quiet, logging: true, beside: false };
    let log = Arc::new(Log::default());
    let screen = if args.detached || views { Screen::Hidden } else { Screen::Lines };
    let output = Output::logged(style, log.clone(), screen, shutdown.clone());
    let (reporter, subjects) = (output.reporter().clone(), output.subjects().clone());
    let shared = Arc::new(UpContext { providers, reporter, subjects, hosts: prepared.hosts });
    let manager = Arc::new(Manager::start(shared.clone(), tunnels));
    let viewing = views.then(|| tokio::spawn(view::show(manager.clone(), log.clone(), shutdown.clone())));
    let mut serving = JoinSet::new();
    let looking = manager.clone();
    let reporter = output.reporter().clone();
    serving.spawn(figures::report_rates(move || looking.figures(), move |figures| reporter.figures(figures)));
    if let Some(metrics) = prepared.metrics {
        let looking = manager.clone();
        serving.spawn(metrics.serve(move || looking.named_figures()));
    }
    serving.spawn(systemd::notify(manager.clone()));
    let selection = (args.names.clone(), args.config.config.clone(), args.given.clone());
    let select = Box::new(move || Config::load(selection.1.as_deref())?.select(&selection.0, &selection.2));
    let server = Server { manager: manager.clone(), log, select, folder, shutdown: shutdown.clone() };
    serving.spawn(serve::serve(prepared.socket, server));
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
        if let Some(hosts) = shared.hosts {
            hosts.close().await;
        }
    }
    Ok(ExitCode::Ok)
}

/// The resources that are opened before the tunnels.
struct Prepared {
    metrics: Option<Metrics>,
    hosts: Option<HostsFile>,
    socket: Socket,
}

/// Checks that the tunnels can be opened, obtains credentials from the providers in `asking`, and opens the control socket.
async fn prepare(
    args: &UpArgs,
    tunnels: &[Tunnel],
    folder: &ControlFolder,
    asking: Option<&Providers>,
) -> Result<Prepared, Failure> {
    conflicts::check_passed(tunnels, args.hosts.hosts)?;
    // The check comes before any prompt for the user. It is repeated below, with the lock.
    check(folder, tunnels, args.hosts.hosts).await?;
    let metrics = match args.events.metrics {
        Some(address) => Some(Metrics::bind(address).await?),
        None => None,
    };
    let hosts = match args.hosts.hosts {
        true => Some(HostsFile::open().await?),
        false => None,
    };
    if let Some(providers) = asking {
        // Prompts must come before the live view. A failure is reported later, by the tunnel that needs the credentials.
        for tunnel in tunnels {
            let _ = providers.get(&tunnel.args.aws).await;
        }
    }
    let _lock = folder.lock().await?;
    check(folder, tunnels, args.hosts.hosts).await?;
    // As soon as the socket exists, other commands send requests and wait for answers.
    let path = folder.socket(std::process::id());
    let socket = Socket::bind(&path).map_err(|error| {
        let text = format!("cannot listen on the control socket {}: {error}", path.display());
        Failure::new(ExitCode::Config, "control", text)
    })?;
    Ok(Prepared { metrics, hosts, socket })
}

/// Checks that no other process has these tunnels open or uses their addresses.
async fn check(folder: &ControlFolder, tunnels: &[Tunnel], hosts: bool) -> Result<(), Failure> {
    conflicts::check_others(tunnels, &Process::all(folder).await?)?;
    conflicts::check_free(tunnels, hosts)
}

/// Whether a terminal is available for the live view, and no option requests other output on it.
fn fits_the_view(args: &UpArgs, verbosity: Verbosity) -> bool {
    let is_terminal = stdin().is_terminal() && stdout().is_terminal() && stderr().is_terminal();
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    is_terminal && !is_dumb && args.events.output == OutputFormat::Text && !verbosity.quiet && verbosity.verbose == 0
}

/// Returns the tunnels that the command line selects.
fn selected(args: &UpArgs) -> Result<Vec<Tunnel>, Failure> {
    let tunnels = Config::load(args.config.config.as_deref())?.select(&args.names, &args.given)?;
    conflicts::check(&tunnels, args.hosts.hosts)?;
    Ok(tunnels)
}
