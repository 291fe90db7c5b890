//! Forwards a free local port to a host that a managed node can reach, until Ctrl-C:
//!
//! ```text
//! cargo run -p ssm-forward --example forward -- i-0123456789abcdef0 db.internal 3306
//! ```
//!
//! The API and the credentials come from the environment, as in every AWS tool. `aws-ssm-forward local` prints variables with which
//! you can try this without AWS.

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::sync::Arc;

use ssm_forward::{AwsConfig, AwsProvider, ForwardEvent, Forwarder, ListenAddr, StartRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, host, port] = arguments.as_slice() else { return Err("usage: forward TARGET HOST PORT".into()) };
    let request = StartRequest::to_remote_host(target, host, port.parse()?);
    let provider = Arc::new(AwsProvider::new(AwsConfig::default()).await?);
    let forwarder = Forwarder::builder(provider, request)
        .on_event(|event| match event {
            ForwardEvent::Ready { local, session_id, .. } => println!("{local} is ready, in session {session_id}"),
            ForwardEvent::Reconnecting { cause, .. } => println!("reconnecting: {cause}"),
            _ => {}
        })
        .bind(ListenAddr::Tcp("127.0.0.1:0".parse()?))
        .await?;
    // The session is terminated at the API before this returns.
    Ok(forwarder.run(async { drop(tokio::signal::ctrl_c().await) }).await?)
}
