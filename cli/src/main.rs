//! The command `aws-ssm-forward`: parses its arguments, calls the libraries, and ends with a documented exit code.

mod activation;
mod args;
mod client_hint;
mod client_line;
mod completion;
mod config;
mod connect;
mod console;
mod cp;
mod demo;
mod descriptor_limit;
mod doctor;
mod exact_output;
mod exec_input;
mod exit_code;
mod figures;
mod forward;
mod hosts;
mod iam_auth;
mod kubeconfig;
mod local;
mod logging;
mod ls;
mod man;
mod output;
mod parent_process;
mod plan;
mod plugin;
mod policy;
mod port_holder;
#[cfg(test)]
mod random_text;
mod relay;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
mod run;
mod session_commands;
mod session_outputs;
mod shutdown;
mod silence;
mod socks;
mod spec;
mod stdio;
mod suggestion;
mod targets;
mod terminal;
mod terminal_session;
mod token;
mod tunnels;
mod untrusted;
mod up;
mod writer;

use std::io::Write as _;
use std::time::Duration;

use args::{Cli, Command, PluginAction};
use exit_code::{ExitCode, Failure};

fn main() -> ExitCode {
    logging::install_panic_hook();
    if let Some(result) = run::become_command() {
        return result.map_or_else(report, |()| ExitCode::Ok);
    }
    if let Some(result) = hosts::become_writer() {
        return result.map_or_else(report, |()| ExitCode::Ok);
    }
    activation::prepare();
    keep_freed_memory();
    descriptor_limit::raise();
    let result = if plugin::is_invoked_as_plugin() {
        plugin::run()
    } else {
        completion::answer();
        let cli = args::parse();
        logging::init(cli.verbosity);
        block_on(dispatch(cli))
    };
    let code = result.unwrap_or_else(report);
    logging::finish();
    console::flush();
    code
}

/// Prints the error with which the process ends, and returns the exit code.
fn report(failure: Failure) -> ExitCode {
    if failure.code != ExitCode::ReaderGone {
        console::note(&format!("error: {}", failure.shown()));
        console::flush();
    }
    failure.code
}

/// Makes glibc keep freed memory. By default glibc returns memory to the system as soon as 128 KiB at the end of a heap are free. A
/// fast download then requests the memory again page by page, which takes a tenth of its CPU time. After a larger block was freed,
/// the threshold is twice the size of this block; see `M_MMAP_THRESHOLD` in mallopt(3).
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 20)));
}

/// Creates a runtime and runs a command on it.
///
/// # Errors
/// Returns the command's error, or an error if the runtime cannot be created.
fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::internal)?;
    let result = runtime.block_on(async {
        let result = command.await;
        // Sessions whose start was cancelled must be terminated before the process exits.
        connect::terminations().finished().await;
        result
    });
    // A task that blocks, such as a read from standard input, must not keep the process running.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Forward(args) => forward::run(&args, cli.verbosity).await,
        Command::Up(args) => up::run(&args, cli.verbosity).await,
        Command::Status(args) => up::status(&args).await,
        Command::Logs(args) => up::logs(&args).await,
        Command::Down(args) => up::down(&args).await,
        Command::Restart(args) => up::restart(&args).await,
        Command::Reload => up::reload().await,
        Command::Config { action } => config::command::run(&action),
        Command::Run(args) => run::run(*args, cli.verbosity).await,
        Command::Socks(args) => socks::run(&args, cli.verbosity).await,
        Command::Shell(args) => session_commands::shell(&args, cli.verbosity).await,
        Command::Exec(args) => session_commands::exec(&args, cli.verbosity).await,
        Command::Cp(args) => cp::run(&args, cli.verbosity).await,
        Command::SshProxy(args) => session_commands::ssh_proxy(&args, cli.verbosity).await,
        Command::Ls(args) => ls::run(&args).await,
        Command::Token(args) => token::run(&args).await,
        Command::Policy(args) => policy::run(&args).await,
        Command::Doctor(args) => doctor::run(&args, cli.verbosity).await,
        Command::Relay { action } => relay::run(*action).await,
        Command::Plugin { action } => {
            let done = match action {
                PluginAction::Install { alias: true, .. } => plugin::alias::install()?,
                PluginAction::Uninstall { alias: true, .. } => plugin::alias::uninstall()?,
                PluginAction::Install { dir, copy, .. } => plugin::install::install(dir.as_deref(), copy)?,
                PluginAction::Uninstall { dir, .. } => plugin::install::uninstall(dir.as_deref())?,
            };
            let _ = writeln!(std::io::stdout(), "{done}");
            Ok(ExitCode::Ok)
        }
        Command::Local(args) => local::run(*args).await,
        Command::Demo(args) => demo::run(&args, cli.verbosity).await,
        Command::Man { folder } => man::write(&folder),
        Command::Completions { shell } => {
            completion::print(shell).map_err(Failure::internal)?;
            Ok(ExitCode::Ok)
        }
    }
}
