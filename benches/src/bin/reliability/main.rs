//! Tests the guarantees of the tunnel over real sockets: `matrix` tries every fault with every kind of traffic, `soak`
//! a day's closes of the service under load.

mod cases;
mod judge;
mod load;
mod matrix;
mod program;
mod report;
mod service;
mod soak;
mod traffic;
mod tunnel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Put what the tunnel promises to the test")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every fault with each kind of traffic
    Matrix(matrix::Args),
    /// Many closes, sleeps and expired credentials under load
    Soak(soak::Args),
    /// The process that `soak` stops: a forwarder alone
    #[command(hide = true)]
    Client(soak::ClientArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Matrix(args) => matrix::run(args).await,
        Command::Soak(args) => soak::run(args).await,
        Command::Client(args) => soak::client(args).await.map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::say_error(&error.to_string());
            ExitCode::from(2)
        }
    }
}
