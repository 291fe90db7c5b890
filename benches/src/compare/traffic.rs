//! The local programs: they download, upload and request bytes, only through the client's port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::destination::{CHUNK, DOWNLOAD, DUMP, ECHO, Known, STUCK, UPLOAD, receive, send};
use crate::Result;

/// Timeout of every wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A slow reader's receive buffer, in bytes.
const SMALL_BUFFER: u32 = 128 << 10;

/// The direction of the bulk data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Download,
    /// A download of text that compresses well.
    Dump,
    Upload,
}

/// Connections that transfer bytes until they are dropped.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    tasks: JoinSet<std::io::Result<()>>,
    moved: Arc<AtomicU64>,
    corrupt: Arc<AtomicBool>,
}

impl Bulk {
    /// Adds one connection.
    pub(super) fn add(&mut self, address: SocketAddr, direction: Direction) {
        let (moved, corrupt) = (self.moved.clone(), self.corrupt.clone());
        match direction {
            Direction::Download => drop(self.tasks.spawn(async move {
                let stream = connect(address).await?;
                download(stream, (DOWNLOAD, Known::noise()), (CHUNK, Duration::ZERO), moved, corrupt).await
            })),
            Direction::Dump => drop(self.tasks.spawn(async move {
                let stream = connect(address).await?;
                download(stream, (DUMP, Known::dump()), (CHUNK, Duration::ZERO), moved, corrupt).await
            })),
            Direction::Upload => drop(self.tasks.spawn(async move {
                let mut stream = connect(address).await?;
                stream.write_u8(UPLOAD).await?;
                send(&mut stream, Known::noise()).await
            })),
        }
    }

    /// Adds a download that reads a chunk, then sleeps. It is not counted.
    pub(super) fn add_slow(&mut self, address: SocketAddr, chunk: usize, pause: Duration) {
        let corrupt = self.corrupt.clone();
        self.tasks.spawn(async move {
            let socket = TcpSocket::new_v4()?;
            // The default buffer grows to megabytes, and reopens its window in steps for which a slow reader needs
            // seconds.
            socket.set_recv_buffer_size(SMALL_BUFFER)?;
            let stream = socket.connect(address).await?;
            download(stream, (DOWNLOAD, Known::noise()), (chunk, pause), Arc::default(), corrupt).await
        });
    }

    /// Adds an upload whose destination does not read, and a download whose program does not.
    pub(super) fn add_stuck(&mut self, address: SocketAddr) {
        self.tasks.spawn(async move {
            let mut stream = connect(address).await?;
            stream.write_u8(STUCK).await?;
            send(&mut stream, Known::noise()).await
        });
        self.tasks.spawn(async move {
            let mut stream = connect(address).await?;
            stream.write_u8(DOWNLOAD).await?;
            std::future::pending().await
        });
    }

    /// Number of bytes received by downloads.
    pub(super) fn downloaded(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Checks that all connections are open and have delivered the right bytes.
    pub(super) fn check(&mut self) -> Result<()> {
        if self.corrupt.load(Ordering::Relaxed) {
            return Err("the received data differs from the sent data".into());
        }
        match self.tasks.try_join_next() {
            Some(ended) => Err(format!("a connection ended: {ended:?}").into()),
            None => Ok(()),
        }
    }
}

async fn download(
    mut stream: TcpStream,
    (kind, mut known): (u8, Known),
    (chunk, pause): (usize, Duration),
    moved: Arc<AtomicU64>,
    corrupt: Arc<AtomicBool>,
) -> std::io::Result<()> {
    stream.write_u8(kind).await?;
    let mut buffer = vec![0; chunk];
    loop {
        let Some(got) = receive(&mut stream, &mut buffer, &mut known).await? else {
            corrupt.store(true, Ordering::Relaxed);
            return Ok(());
        };
        moved.fetch_add(got, Ordering::Relaxed);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a connection to the echo server, and waits until its first byte is received.
pub(super) async fn echo(address: SocketAddr) -> Result<TcpStream> {
    let open = async {
        let mut stream = connect(address).await?;
        ask(&mut stream).await?;
        Ok(stream)
    };
    timeout(PATIENCE, open).await.map_err(|_| "the echo does not answer")?
}

async fn ask(stream: &mut TcpStream) -> Result<()> {
    stream.write_u8(ECHO).await?;
    match stream.read_u8().await? {
        ECHO => Ok(()),
        other => Err(format!("the echo of {ECHO} is {other}").into()),
    }
}

/// Round-trip times of one byte, measured for `time`, at least once; shortest first.
pub(super) async fn round_trips(address: SocketAddr, time: Duration) -> Result<Vec<Duration>> {
    round_trips_on(echo(address).await?, time).await
}

/// Round-trip times on an open connection.
pub(super) async fn round_trips_on(mut stream: TcpStream, time: Duration) -> Result<Vec<Duration>> {
    let mut laps = Laps::new(time);
    while laps.again() {
        timeout(PATIENCE, ask(&mut stream)).await.map_err(|_| "the echo does not answer")??;
    }
    Ok(laps.sorted())
}

/// Times from opening a connection until its first byte is received.
pub(super) async fn first_bytes(address: SocketAddr, time: Duration) -> Result<Vec<Duration>> {
    let mut laps = Laps::new(time);
    while laps.again() {
        drop(echo(address).await?);
    }
    Ok(laps.sorted())
}

/// The durations of several actions in series.
struct Laps {
    end: Instant,
    starts: Vec<Instant>,
}

impl Laps {
    fn new(time: Duration) -> Self {
        Self { end: Instant::now() + time, starts: Vec::new() }
    }

    /// Ends the current lap, if any. Returns whether another one follows; there is at least one lap.
    fn again(&mut self) -> bool {
        let now = Instant::now();
        self.starts.push(now);
        self.starts.len() == 1 || now < self.end
    }

    fn sorted(self) -> Vec<Duration> {
        let mut times: Vec<Duration> =
            self.starts.iter().zip(self.starts.iter().skip(1)).map(|(from, to)| *to - *from).collect();
        times.sort_unstable();
        times
    }
}
