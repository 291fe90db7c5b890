//! `ssm-bench`: compares the command `aws-ssm-forward` with other clients, and measures the parts of the forwarding
//! path.

mod budgets;
mod compare;
mod curves;
mod machine;
mod plot;
mod ratios;
mod readme;
mod report;
mod svg;
mod table;
mod targets;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Any error; its text is for the user.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// Compares the command aws-ssm-forward with other clients, and measures the parts of the forwarding path.
#[derive(Debug, Parser)]
#[command(name = "ssm-bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run clients in turn against a local Session Manager, and compare them.
    Compare(compare::Args),
    /// Count the instructions of the parts under valgrind, and compare them with the budgets.
    Budgets(budgets::Args),
    /// Count the instructions per message for many streams and many sessions.
    Curves(curves::Args),
    /// Print the table of a comparison again, and draw its plots.
    Show(report::ShowArgs),
    /// Write the figures of a comparison into the README.
    Readme(readme::Args),
    /// Run the Session Manager that `compare` starts.
    #[command(hide = true)]
    Serve(compare::ServeArgs),
    /// Run the plain relay that `compare` starts.
    #[command(hide = true)]
    Hop(compare::HopArgs),
    /// Run the limit program that `compare` starts.
    #[command(hide = true)]
    Limit(compare::LimitArgs),
    /// Run one part; `budgets` and `curves` run this under valgrind.
    #[command(hide = true)]
    Part(budgets::PartArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Compare(args) => block_on(compare::run(args)),
        Command::Budgets(args) => budgets::run(&args),
        Command::Curves(args) => curves::run(&args),
        Command::Show(args) => report::show(&args),
        Command::Readme(args) => readme::run(&args),
        Command::Serve(args) => block_on(compare::serve(args)),
        Command::Hop(args) => block_on(compare::hop(args)),
        Command::Limit(args) => block_on(compare::limit(args)),
        Command::Part(args) => budgets::run_part(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Prints a line on standard output.
fn say(text: &str) {
    // A reader that has closed standard output is not an error.
    let _ = writeln!(std::io::stdout(), "{text}");
}
