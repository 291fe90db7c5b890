//! A complete tunnel in one process and without AWS: a server, a local Session Manager, a forwarder, and a client.
//!
//! ```text
//! cargo run -p ssm-forward --example loopback
//! ```

#![expect(clippy::print_stdout, reason = "the output is the purpose of the example")]

use std::error::Error;
use std::sync::Arc;

use ssm_forward::{AwsConfig, AwsCredentials, AwsProvider, Forwarder, ListenAddr, LocalAddr, StartRequest};
use ssm_local::Local;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The private server. It sends a greeting and closes the connection.
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let port = server.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = server.accept().await {
            let _ = connection.write_all(b"hello from the private server\n").await;
        }
    });

    // The managed node is this machine. With AWS, omit this and use `AwsConfig::default()`.
    let local = Local::builder().fixed_credentials("AKIAEXAMPLE", "example").ports_only().start().await?;
    let config = AwsConfig {
        region: Some("us-east-1".into()),
        endpoint_url: Some(local.endpoint_url()),
        credentials: Some(AwsCredentials {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_access_key: "example".into(),
            session_token: None,
        }),
        ..AwsConfig::default()
    };
    let provider = Arc::new(AwsProvider::new(config).await?);

    let request = StartRequest::to_port("i-0123456789abcdef0", port);
    // Port 0 means any free port. The socket accepts connections from now on; they wait for the session.
    let forwarder = Forwarder::builder(provider, request).bind(ListenAddr::Tcp("127.0.0.1:0".parse()?)).await?;
    let LocalAddr::Tcp(address) = forwarder.local_addr() else { return Err("not a TCP socket".into()) };
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(forwarder.run(async { drop(stopped.await) }));

    let mut answer = String::new();
    TcpStream::connect(address).await?.read_to_string(&mut answer).await?;
    println!("through the tunnel at {address}: {}", answer.trim_end());

    // `run` terminates the session before it returns.
    let _ = stop.send(());
    running.await??;
    local.shutdown().await;
    Ok(())
}
