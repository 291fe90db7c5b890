//! The command `aws-ssm-forward`: parses its arguments, calls the libraries, and ends with a documented exit code.

mod args;
mod demo;
mod exit_code;
mod forward;
mod local;
mod logging;
mod output;
mod plugin;
mod port_holder;
mod shutdown;
mod spec;

use std::io::Write as _;
use std::time::Duration;

use clap::CommandFactory as _;

use args::{Cli, Command};
use exit_code::{ExitCode, Failure};

fn main() -> ExitCode {
    logging::tell_panics_in_one_line();
    if plugin::is_invoked_as_plugin() {
        return fail(&Failure::new(
            ExitCode::Usage,
            "usage",
            "running as session-manager-plugin is not supported; use aws-ssm-forward forward",
        ));
    }
    let cli = args::parse();
    logging::init(cli.verbosity);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::internal(error)),
    };
    let result = runtime.block_on(dispatch(cli));
    // A task that still blocks must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.unwrap_or_else(|failure| fail(&failure))
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Forward(args) => forward::run(&args, cli.verbosity).await,
        Command::Local(args) => local::run(args).await,
        Command::Demo(args) => demo::run(&args, cli.verbosity).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "aws-ssm-forward", &mut std::io::stdout());
            Ok(ExitCode::Ok)
        }
    }
}

fn fail(failure: &Failure) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {failure}");
    failure.code
}
