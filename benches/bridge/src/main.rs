//! `bench-bridge TARGET HOST PORT`: a tunnel with the crate aws-ssm-bridge. It prints its listening port in the official
//! client's format.

use std::sync::Arc;

use aws_ssm_bridge::documents::PortForwardingToRemoteHost;
use aws_ssm_bridge::{
    EndpointPolicy, PortForwardConfig, PortForwarder, SessionBuilder, ShutdownSignal, install_signal_handlers,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, host, port] = arguments.as_slice() else { return Err("bench-bridge TARGET HOST PORT".into()) };
    let shutdown = ShutdownSignal::new();
    install_signal_handlers(shutdown.clone());
    let session = SessionBuilder::new(target)
        .document(PortForwardingToRemoteHost::new(host, port.parse()?))
        .endpoint_policy(EndpointPolicy::AllowAny)
        .start()
        .await?;
    let session = Arc::new(session);
    session.wait_ready().await?;
    // The default limit of 100 connections is too small for the measurements.
    let config = PortForwardConfig { max_connections: 10_000, ..Default::default() };
    let forwarder = PortForwarder::bind(config).await?;
    println!("Port {} opened for sessionId {}.", forwarder.local_addr().port(), session.id());
    forwarder.forward(session.clone(), shutdown).await?;
    session.terminate().await?;
    Ok(())
}
