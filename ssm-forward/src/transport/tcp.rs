//! Resolves a name and opens a TCP connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::steps::{self, Deadline};

/// Delay after which the next address of a host is tried in parallel to the previous ones, if there is no connection yet (RFC
/// 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Maximum number of addresses of one name that are tried. No legitimate name has more.
const MAX_ADDRESSES: usize = 16;
/// Duration of silence after which the kernel probes the peer.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Tries the host's addresses in their order, each some time after the previous one. Returns the first connection.
///
/// # Errors
/// Returns only the cause, for a message that names the host.
pub(super) async fn connect(host: &str, port: u16, deadline: Deadline) -> Result<TcpStream, String> {
    first_of(resolve(host, port, deadline).await?, deadline).await
}

async fn first_of(addresses: Vec<SocketAddr>, deadline: Deadline) -> Result<TcpStream, String> {
    let mut addresses = addresses.into_iter().take(MAX_ADDRESSES);
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_so_many_addresses_of_a_name_are_tried() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (before, found) in [(MAX_ADDRESSES - 1, true), (MAX_ADDRESSES, false)] {
            let mut addresses = vec![closed; before];
            addresses.push(listener.local_addr().unwrap());
            let connected = first_of(addresses, Deadline::within(Duration::from_secs(20))).await;
            assert_eq!(connected.is_ok(), found, "{connected:?}");
        }
    }

    /// On Linux, a listener whose queue is full does not answer further connection attempts.
    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_has_its_time() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(address).unwrap();
        let error = first_of(vec![address], Deadline::within(Duration::from_secs(60))).await.unwrap_err();
        assert_eq!(error, format!("127.0.0.1 did not answer within {:.1} s", steps::ADDRESS.as_secs_f32()));
    }
}
