//! `up -d`: starts an `up` process in the background, and waits until its tunnels are open.

use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::commands::table;
use super::conflicts;
use super::control::Process;
use super::folder::ControlFolder;
use super::status::{Phase, ProcessStatus};
use crate::args::{UpArgs, Verbosity};
use crate::config::Tunnel;
use crate::console;
use crate::exit_code::{ExitCode, Failure};

/// Interval at which the state of the other process is requested.
const TICK: Duration = Duration::from_millis(100);

/// Runs the command. If the other process ends early, prints its errors and returns its exit code.
///
/// # Errors
/// Returns an error if a tunnel is already open or the process cannot be started.
pub(super) async fn run(args: &UpArgs, verbosity: Verbosity, tunnels: &[Tunnel]) -> Result<ExitCode, Failure> {
    let folder = ControlFolder::open()?;
    conflicts::check_others(tunnels, &Process::all(&folder).await?)?;
    let mut output = tempfile::tempfile().map_err(Failure::internal)?;
    let errors = output.try_clone().map_err(Failure::internal)?;
    let mut child = start(args, errors).map_err(Failure::internal)?;
    let status = loop {
        if let Some(ended) = child.try_wait().map_err(Failure::internal)? {
            let mut text = String::new();
            let _ = output.rewind().and_then(|()| output.read_to_string(&mut text));
            console::log(text);
            return Ok(ExitCode::Remote(ended.code().map_or_else(|| ExitCode::Internal.number().into(), i64::from)));
        }
        let processes = Process::all(&folder).await?;
        let own = processes.into_iter().map(|process| process.status).find(|status| status.pid == child.id());
        if let Some(status) = own.filter(|own| own.tunnels.iter().all(|tunnel| tunnel.state != Phase::Starting)) {
            break status;
        }
        tokio::time::sleep(TICK).await;
    };
    Ok(report(&status, verbosity))
}

fn start(args: &UpArgs, errors: std::fs::File) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["up", "--detached"]).args(&args.given);
    if let Some(metrics) = args.events.metrics {
        command.arg(format!("--metrics={metrics}"));
    }
    if args.hosts.hosts {
        command.arg("--hosts");
    }
    command.arg("--").args(&args.names);
    // The process detaches itself from the terminal; see `leave_the_terminal`.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn()
}

/// Called in the background process: starts a new session (`setsid`) without a terminal, so that Ctrl-C and the end of the terminal
/// do not affect the process.
///
/// # Errors
/// Returns an error if the process is the leader of a process group, because a shell with job control started it instead of `up -d`.
pub(super) fn leave_the_terminal() -> Result<(), Failure> {
    rustix::process::setsid().map_err(|error| Failure::internal(format!("cannot leave the terminal: {error}")))?;
    Ok(())
}

fn report(status: &ProcessStatus, verbosity: Verbosity) -> ExitCode {
    let tunnels: Vec<_> = status.tunnels.iter().collect();
    if !verbosity.quiet {
        console::say(table(&tunnels));
    }
    let failed: Vec<_> = tunnels.iter().filter(|tunnel| !tunnel.state.is_open()).map(|tunnel| &*tunnel.name).collect();
    if failed.is_empty() {
        return ExitCode::Ok;
    }
    let (names, pid) = (failed.join(", "), status.pid);
    console::note(&format!("warning: not open yet: {names}; process {pid} will try again; `logs` shows the reason"));
    ExitCode::Channel
}
