//! The destination of the tunnel: one port that sends, receives or echoes, depending on the connection's first byte.
//! Both ends know the transferred bytes, so each end can check the bytes that it receives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::Result;

/// Requests an endless download.
pub(super) const DOWNLOAD: u8 = b'D';
/// Requests an endless download of text like a database dump.
pub(super) const DUMP: u8 = b'T';
/// Announces an upload that the destination does not read.
pub(super) const STUCK: u8 = b'S';
/// Announces an endless upload.
pub(super) const UPLOAD: u8 = b'U';
/// Requests an echo of every byte, including this one.
pub(super) const ECHO: u8 = b'E';

/// Size of reads and writes.
pub(super) const CHUNK: usize = 64 << 10;

/// A running destination. Dropping it ends its connections.
#[derive(Debug)]
pub(super) struct Destination {
    address: SocketAddr,
    counters: Arc<Counters>,
    server: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    corrupt: AtomicBool,
}

impl Destination {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let counters = Arc::<Counters>::default();
        let server = tokio::spawn(accept(listener, counters.clone()));
        Ok(Self { address, counters, server })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of bytes received by uploads.
    pub(super) fn received(&self) -> u64 {
        self.counters.received.load(Ordering::Relaxed)
    }

    /// Whether an upload delivered wrong bytes.
    pub(super) fn is_corrupt(&self) -> bool {
        self.counters.corrupt.load(Ordering::Relaxed)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, counters: Arc<Counters>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            let counters = counters.clone();
            // The disconnect of a client is not a failure.
            connections.spawn(async move { drop(serve(stream, &counters).await) });
        }
    }
}

async fn serve(mut stream: TcpStream, counters: &Counters) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        DOWNLOAD => send(&mut stream, Known::noise()).await,
        DUMP => send(&mut stream, Known::dump()).await,
        STUCK => std::future::pending().await,
        UPLOAD => {
            let mut buffer = vec![0; CHUNK];
            let mut known = Known::noise();
            loop {
                let Some(got) = receive(&mut stream, &mut buffer, &mut known).await? else {
                    counters.corrupt.store(true, Ordering::Relaxed);
                    return Ok(());
                };
                counters.received.fetch_add(got, Ordering::Relaxed);
            }
        }
        first => {
            stream.write_u8(first).await?;
            let mut buffer = vec![0; 4096];
            loop {
                let length = stream.read(&mut buffer).await?;
                match buffer.get(..length) {
                    Some(bytes) if length > 0 => stream.write_all(bytes).await?,
                    _ => return Ok(()),
                }
            }
        }
    }
}

/// Sends the known bytes until the other side disconnects.
pub(super) async fn send(stream: &mut TcpStream, mut known: Known) -> std::io::Result<()> {
    loop {
        stream.write_all(known.next(CHUNK)).await?;
    }
}

/// Receives once. Returns `None` if the bytes differ from the sent bytes.
pub(super) async fn receive(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    known: &mut Known,
) -> std::io::Result<Option<u64>> {
    let length = stream.read(buffer).await?;
    if length == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let same = buffer.get(..length) == Some(known.next(length));
    Ok(same.then_some(length as u64))
}

/// Bytes that both ends know. Their period is not a multiple of any message size.
#[derive(Debug)]
pub(super) struct Known {
    bytes: &'static [u8],
    offset: usize,
}

const PERIOD: usize = 1_000_003;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; PERIOD];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    bytes.extend_from_within(..CHUNK);
    bytes
});

static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut bytes = Vec::new();
    for id in 1.. {
        let mut word = || std::iter::repeat_with(|| rng.lowercase()).take(6).collect::<String>();
        let (name, city) = (word(), word());
        let (day, cents) = (rng.u32(1..=28), rng.u32(..1_000_000));
        let row = format!("INSERT INTO `orders` VALUES ({id},'{name}','{city}','2024-03-{day:02}',{cents},NULL);\n");
        bytes.extend_from_slice(row.as_bytes());
        if bytes.len() >= PERIOD {
            break;
        }
    }
    bytes.truncate(PERIOD);
    bytes.extend_from_within(..CHUNK);
    bytes
});

impl Known {
    /// Pseudo-random bytes.
    pub(super) fn noise() -> Self {
        Self { bytes: &NOISE, offset: 0 }
    }

    /// Text like a database dump.
    pub(super) fn dump() -> Self {
        Self { bytes: &TEXT, offset: 0 }
    }

    /// Returns the next `length` bytes, at most [`CHUNK`].
    pub(super) fn next(&mut self, length: usize) -> &'static [u8] {
        let bytes = self.bytes.get(self.offset..self.offset + length.min(CHUNK)).unwrap_or_default();
        self.offset = (self.offset + bytes.len()) % PERIOD;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_bytes_do_not_depend_on_how_they_are_cut() {
        let (mut whole, mut cut) = (Known::noise(), Known::noise());
        let long: Vec<u8> = (0..40).flat_map(|_| whole.next(CHUNK)).copied().collect();
        let mut short = Vec::new();
        while short.len() < long.len() {
            short.extend_from_slice(cut.next(997));
        }
        assert_eq!(long, short[..long.len()]);
        assert_ne!(long[..CHUNK], long[CHUNK..2 * CHUNK]);
    }
}
