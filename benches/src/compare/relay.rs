//! A path with delay: a TCP relay between client and Session Manager that delays data in each direction.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::Result;

/// Maximum number of chunks in transit, each at most 64 KiB.
const ON_THE_WAY: usize = 4096;

/// A running relay. It accepts no connections after it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Relay {
    pub(super) async fn start(to: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = same_length(to).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move { drop(join(client, to, address, delay).await) });
            }
        });
        Ok(Self { address, server })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Opens a listener whose address has as many characters as `other`, so that the address can replace `other` in an
/// answer without a change of the answer's length.
async fn same_length(other: SocketAddr) -> Result<TcpListener> {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        if listener.local_addr()?.to_string().len() == other.to_string().len() {
            return Ok(listener);
        }
    }
}

async fn join(client: TcpStream, to: SocketAddr, here: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::spawn(carry(client_reads, server_writes, delay, |chunk| chunk));
    // The API's answer contains the Session Manager's own address for the data channel. It is replaced by the relay's
    // address, because the direct path has no delay.
    let (from, to) = (to.to_string(), here.to_string());
    // A client may start several sessions over one connection.
    carry(server_reads, client_writes, delay, move |chunk| match chunk.starts_with(b"HTTP/") {
        true => replaced(&chunk, &from, &to),
        false => chunk,
    })
    .await;
    Ok(())
}

fn replaced(chunk: &Bytes, from: &str, to: &str) -> Bytes {
    match std::str::from_utf8(chunk) {
        Ok(text) => text.replace(from, to).into(),
        Err(_) => chunk.clone(),
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut change: impl FnMut(Bytes) -> Bytes,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(ON_THE_WAY);
    tokio::spawn(async move {
        while let Some((due, chunk)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    });
    loop {
        let mut buffer = BytesMut::with_capacity(64 << 10);
        match from.read_buf(&mut buffer).await {
            Ok(1..) => {}
            _ => return,
        }
        if sender.send((Instant::now() + delay, change(buffer.freeze()))).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_byte_takes_the_delay_each_way_and_the_address_is_the_relays_in_every_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let there = listener.local_addr().unwrap();
        let delay = Duration::from_millis(20);
        let relay = Relay::start(there, delay).await.unwrap();
        let service = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            while let Ok(byte) = stream.read_u8().await {
                stream.write_all(format!("HTTP/1.1 200 {}: {there}", char::from(byte)).as_bytes()).await.unwrap();
            }
        });
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        for asked in ['x', 'y'] {
            let began = Instant::now();
            client.write_u8(asked as u8).await.unwrap();
            let wanted = format!("HTTP/1.1 200 {asked}: {}", relay.address());
            let mut answer = vec![0; wanted.len()];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), wanted);
            assert!(began.elapsed() >= 2 * delay);
        }
        drop(client);
        service.await.unwrap();
    }
}
