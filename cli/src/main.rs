//! The command `aws-ssm-forward`: parses its arguments, calls the libraries, and ends with a documented exit code.

mod args;
mod client_hint;
mod client_line;
mod completion;
mod config;
mod connect;
mod console;
mod demo;
mod exact;
mod exec_input;
mod exit_code;
mod figures;
mod forward;
mod iam_auth;
mod kubeconfig;
mod local;
mod logging;
mod ls;
mod output;
mod outputs;
mod outside;
mod parent;
mod plan;
mod plugin;
mod policy;
mod port_holder;
mod remote;
mod shutdown;
mod spec;
mod stdio;
mod targets;
mod terminal;
mod terminal_session;
mod token;
mod tunnels;
mod writer;

use std::io::Write as _;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use args::{Cli, Command, PluginAction};
use exit_code::{ExitCode, Failure};

fn main() -> ExitCode {
    logging::tell_panics_in_one_line();
    keep_freed_memory();
    raise_file_limit();
    let result = if plugin::is_invoked_as_plugin() {
        plugin::run()
    } else {
        completion::answer();
        let cli = args::parse();
        logging::init(cli.verbosity);
        block_on(dispatch(cli))
    };
    let code = result.unwrap_or_else(|failure| {
        if failure.code != ExitCode::ReaderGone {
            console::note(&format!("error: {}", failure.shown()));
        }
        failure.code
    });
    logging::finish();
    console::flush();
    code
}

/// glibc gives memory back as soon as 128 KiB at the end of a heap are free, and a fast download fetches it again page by page, a
/// tenth of its CPU time. Once a larger piece was freed the bound is twice its size: mallopt(3), M_MMAP_THRESHOLD.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 20)));
}

/// Many systems let a program open 1024 files unless it asks for more, which it may: that limit is for programs that use
/// select(2). Each connection is one file.
fn raise_file_limit() {
    // More brings nothing, and programs that are started from here may close them one by one.
    const ENOUGH: u64 = 65_536;
    /// What macOS takes where it says that there is no limit.
    const MACOS: u64 = 10_240;
    let limit = getrlimit(Resource::Nofile);
    for wanted in [ENOUGH, MACOS] {
        let wanted = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        if limit.current.is_none_or(|current| current >= wanted) {
            return;
        }
        if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).is_ok() {
            return;
        }
    }
}

/// Runs a command on a runtime of its own.
///
/// # Errors
/// The command's error, or no runtime can be created.
fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::internal)?;
    let result = runtime.block_on(async {
        let result = command.await;
        // Sessions whose start was abandoned are terminated before the process ends.
        ssm_forward::settle().await;
        result
    });
    // A task that still blocks must not keep the process running.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Forward(args) => forward::run(&args, cli.verbosity).await,
        Command::Config { action } => config::command::run(&action),
        Command::Shell(args) => remote::shell(&args, cli.verbosity).await,
        Command::Exec(args) => remote::exec(&args, cli.verbosity).await,
        Command::SshProxy(args) => remote::ssh_proxy(&args, cli.verbosity).await,
        Command::Ls(args) => ls::run(&args).await,
        Command::Token(args) => token::run(&args).await,
        Command::Policy(args) => policy::run(&args).await,
        Command::Plugin { action } => {
            let done = match action {
                PluginAction::Install { dir, copy } => plugin::install::install(dir.as_deref(), copy)?,
                PluginAction::Uninstall { dir } => plugin::install::uninstall(dir.as_deref())?,
            };
            let _ = writeln!(std::io::stdout(), "{done}");
            Ok(ExitCode::Ok)
        }
        Command::Local(args) => local::run(*args).await,
        Command::Demo(args) => demo::run(&args, cli.verbosity).await,
        Command::Completions { shell } => {
            completion::print(shell).map_err(Failure::internal)?;
            Ok(ExitCode::Ok)
        }
    }
}
