//! A plain TCP relay in a separate process: the minimum cost of a program between two sockets.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

use super::destination::CHUNK;
use super::process::until_terminated;
use crate::{Result, say};

/// Arguments of `hop`.
#[derive(Debug, clap::Args)]
pub(crate) struct HopArgs {
    /// The address to which connections are relayed.
    #[arg(long)]
    to: SocketAddr,
}

/// Runs the relay process.
pub(crate) async fn hop(args: HopArgs) -> Result<()> {
    super::allow_many_files();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    say(&format!("Port {} opened", listener.local_addr()?.port()));
    tokio::select! {
        ended = until_terminated() => ended,
        failed = serve(listener, args.to) => failed,
    }
}

async fn serve(listener: TcpListener, to: SocketAddr) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move { drop(join(client, to).await) });
    }
}

async fn join(mut client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut server, CHUNK, CHUNK).await.map(drop)
}
