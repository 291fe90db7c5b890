//! From a name to a TCP connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::steps::{self, Deadline};

/// After this time without a connection, the next address of a host is tried in parallel to the previous ones (RFC
/// 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Maximum number of addresses of one name that are tried. No legitimate name has more.
const MAX_ADDRESSES: usize = 16;
/// The kernel probes the peer after this much silence.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Tries the host's addresses in their order, each a little after the previous one. The first that answers wins.
///
/// # Errors
/// Only the cause, for a message that names the host.
pub(super) async fn connect(host: &str, port: u16, deadline: Deadline) -> Result<TcpStream, String> {
    let mut addresses = resolve(host, port, deadline).await?.into_iter().take(MAX_ADDRESSES);
    let mut attempts = FuturesUnordered::new();
    let mut cause = "its name has no address".to_owned();
    loop {
        match addresses.next() {
            Some(address) => attempts.push(attempt(address, deadline)),
            None if attempts.is_empty() => return Err(cause),
            None => {}
        }
        match timeout(NEXT_ADDRESS, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => cause = error,
            Ok(None) | Err(_) => {}
        }
    }
}

async fn resolve(host: &str, port: u16, deadline: Deadline) -> Result<Vec<SocketAddr>, String> {
    let found = deadline.step(steps::RESOLVE, tokio::net::lookup_host((host, port))).await;
    let found = found.map_err(|late| format!("its name could not be looked up within {late}: DNS does not answer"))?;
    found.map(Iterator::collect).map_err(|error| error.to_string())
}

async fn attempt(address: SocketAddr, deadline: Deadline) -> Result<TcpStream, String> {
    let connected = deadline.step(steps::ADDRESS, TcpStream::connect(address)).await;
    let stream = connected.map_err(|late| format!("{} did not answer within {late}", address.ip()))?;
    let prepared = stream.and_then(|stream| prepare(&stream).map(|()| stream));
    prepared.map_err(|error| error.to_string())
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))
}
