//! Tests a program that uses Session Manager, without AWS: starts a local Session Manager inside this process, runs the program
//! with the environment variables that select it, and then prints the sessions of the program.
//!
//! ```text
//! cargo run -p ssm-local --example embed_emulator -- aws ssm describe-instance-information
//! cargo run -p ssm-local --example embed_emulator -- your-tool connect web
//! ```
//!
//! A test of your own contains the same calls in its test function.

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use ssm_local::{Faults, Local, LocalTarget};
use tokio::process::Command;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        return Err("usage: embed_emulator PROGRAM [ARGUMENT]...".into());
    };
    let local = Local::builder()
        .target(LocalTarget::new("i-0123456789abcdef0").tag("Name", "web"))
        // A private name that only the managed node can resolve.
        .host("db.internal", [Ipv4Addr::LOCALHOST])
        // Every WebSocket is closed after two seconds. A correct client does not lose a byte.
        .faults(Faults::new().seed(7).with("bye,every=2s".parse()?))
        .start()
        .await?;

    let status = Command::new(program).args(arguments).envs(local.environment()).status().await?;

    for session in local.sessions() {
        println!("{session:?}");
    }
    local.shutdown().await;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
