//! Tests the guarantees of the tunnel over real sockets: `matrix` runs every fault with every kind of traffic, `soak`
//! runs a day's closes of the service under load.

mod cases;
mod crowd;
mod flood;
mod judge;
mod load;
mod matrix;
mod program;
mod report;
mod service;
mod soak;
mod traffic;
mod tunnel;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Test the guarantees of the tunnel")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every fault with each kind of traffic
    Matrix(matrix::Args),
    /// Run many closes, sleeps and expired credentials under load
    Soak(soak::Args),
    /// Run thousands of connections over sessions whose WebSockets are closed repeatedly
    Load(crowd::Args),
    /// Run the service of `load`
    #[command(hide = true)]
    Far(crowd::FarArgs),
    /// Run the Session Manager of `load`
    #[command(hide = true)]
    Manager(crowd::ManagerArgs),
    /// Measure the cost of all floods that a hostile service can send
    Flood(flood::Args),
    /// Run the client that `flood` floods
    #[command(hide = true)]
    Flooded(flood::ClientArgs),
    /// Run only a forwarder; `soak` stops this process
    #[command(hide = true)]
    Client(soak::ClientArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Matrix(args) => matrix::run(args).await,
        Command::Soak(args) => soak::run(args).await,
        Command::Load(args) => crowd::run(args).await,
        Command::Far(args) => crowd::far(args).await.map(|()| true),
        Command::Manager(args) => crowd::manager(args).await.map(|()| true),
        Command::Flood(args) => flood::run(args).await,
        Command::Flooded(args) => flood::client(args).await.map(|()| true),
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
