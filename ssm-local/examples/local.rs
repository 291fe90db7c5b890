//! Runs a local Session Manager until Ctrl-C: `cargo run -p ssm-local --example local`.

use std::io::{self, Write};

use ssm_local::{Local, LocalTarget};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = LocalTarget::new("i-0123456789abcdef0").tag("Name", "example");
    let local = Local::builder().target(target).start().await?;
    for (name, value) in local.environment() {
        writeln!(io::stdout(), "export {name}={value}")?;
    }
    tokio::signal::ctrl_c().await?;
    local.shutdown().await;
    Ok(())
}
