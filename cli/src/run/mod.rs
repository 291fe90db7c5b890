//! `run`: runs a command on this machine. Its tunnels are ready before the command starts and are closed when it has ended.

mod child;
mod ends;
mod enter;
#[cfg(target_os = "linux")]
mod namespace;
mod program;
mod signals;
mod words;

use std::ffi::OsString;
use std::sync::Arc;

use rustix::process::Signal;
use ssm_forward::AwsProvider;

use crate::args::{EnvStyle, OutputFormat, RunArgs, TunnelArgs, Verbosity};
use crate::config;
use crate::exit_code::{ExitCode, Failure};
use crate::hosts::{self, Name};
use crate::output::{Reporter, Style};
use crate::plan::Planned;
use crate::shutdown::{Shutdown, StopCause};
use crate::tunnels::{Ended, Tunnels, command};
use child::Child;
use ends::End;
use enter::Entry;
use program::Program;
use signals::SignalPassing;

pub(crate) use enter::become_command;

/// Runs the command and returns its exit code.
///
/// # Errors
/// Returns an error if the command does not exist, the configuration is invalid, or the signal handlers cannot be installed.
/// Failures of the tunnels are reported through the output.
pub(crate) async fn run(args: RunArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let folders = std::env::var_os("PATH");
    let program = match args.command.first() {
        Some(name) => Program::find(name, folders.as_deref())?,
        None => Program::shell(folders.as_deref())?,
    };
    // A tunnel of the configuration, or the tunnel that the command line describes.
    let (name, mut tunnel) = match config::of_forward(&args.tunnel)? {
        Some(named) => (Some(named.name), named.args),
        None => (None, args.tunnel),
    };
    // The command must be able to connect immediately.
    tunnel.wait_ready = true;
    let shutdown = Shutdown::new();
    let signals = SignalPassing::install(&shutdown).map_err(Failure::internal)?;
    let style =
        Style { format: OutputFormat::Text, quiet: verbosity.quiet, logging: verbosity.verbose > 0, beside: true };
    let RunArgs { command: words, env, real_names, .. } = args;
    let task = Task { name, tunnel: &tunnel, words, env, real_names, program, shutdown: &shutdown, signals };
    command(&tunnel, style, &shutdown, async |aws, planned, reporter| task.run(aws, planned, reporter).await).await
}

/// One run of a command with its tunnels.
struct Task<'a> {
    /// The name of the tunnel, if it comes from the configuration.
    name: Option<String>,
    tunnel: &'a TunnelArgs,
    /// The command's words, with placeholders. Empty for the user's shell.
    words: Vec<OsString>,
    env: EnvStyle,
    real_names: bool,
    program: Program,
    shutdown: &'a Shutdown,
    signals: SignalPassing,
}

impl Task<'_> {
    async fn run(
        self,
        aws: &Arc<AwsProvider>,
        mut planned: Vec<Planned>,
        reporter: &Reporter,
    ) -> Result<ExitCode, Ended> {
        let names = if self.real_names { self.real_names(&mut planned)? } else { Vec::new() };
        let tunnels = Tunnels::bind(self.tunnel, aws, planned, reporter).await?;
        let mut ends: Vec<_> = tunnels.iter().map(|tunnel| End::of(tunnel, &names)).collect();
        let ports: Vec<_> = tunnels.iter().map(|tunnel| tunnel.spec().remote.port).collect();
        ends::distinguish(&mut ends, &ports);
        if let (Some(name), [end]) = (&self.name, ends.as_mut_slice()) {
            end.name = ends::as_name(name);
        }
        let words = self.words.iter().skip(1).map(|word| words::fill(word, &ends));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let tunnel = self.tunnel;
        let mut variables = ends::variables(&ends, self.env, tunnel.iam_auth.as_deref(), tunnel.kubeconfig.as_deref());
        variables.extend(ends::without_proxy(&names, |name| std::env::var(name).ok()));
        let ready = tunnels.ready();
        let mut serving = std::pin::pin!(tunnels.run(self.shutdown));
        tokio::select! {
            ended = &mut serving => return ended.map(|_| self.stopped()),
            () = ready => {}
        }
        if self.shutdown.cause().is_some() {
            return serving.await.map(|_| self.stopped());
        }
        let entry = Entry::new(self.words.is_empty(), names);
        let started = Child::start(&self.program, &words, &variables, &entry);
        let mut child = match started {
            Ok(child) => child,
            Err(failure) => {
                self.shutdown.stop(StopCause::Failed);
                serving.await?;
                return Err(failure.into());
            }
        };
        self.signals.pass_to(child.handle());
        tokio::select! {
            code = child.ended() => {
                self.shutdown.stop(StopCause::CommandEnded);
                // The outcome is the command's, so errors of ending the sessions are ignored.
                drop(serving.await);
                Ok(code)
            }
            ended = &mut serving => {
                child.handle().send(Signal::TERM);
                let code = child.ended().await;
                ended.map(|_| code)
            }
        }
    }

    /// Assigns a loopback address to each remote host, on which its tunnels will listen. Returns the names with their addresses.
    fn real_names(&self, planned: &mut [Planned]) -> Result<Vec<Name>, Failure> {
        enter::check()?;
        hosts::assign(planned, "--real-names")
    }

    /// Returns the exit code if `run` was stopped before the command started.
    fn stopped(&self) -> ExitCode {
        self.shutdown.cause().map_or(ExitCode::Ok, StopCause::exit_code)
    }
}
