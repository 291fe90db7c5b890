//! Copies the data of one local connection in both directions, through one stream.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::StreamError;
use crate::half_closed::Program;
use crate::listener::LocalStream;
use crate::route::{RemoteStream, Sender};

/// Maximum number of bytes per read from a local program.
const READ_SIZE: usize = 64 << 10;
/// Maximum number of bytes taken from the stream for a local program. The rest still counts as unread, so the receive
/// buffer stays effective.
const WRITE_SIZE: usize = 128 << 10;
/// Maximum number of chunks per write.
const WRITE_CHUNKS: usize = 64;
/// After the far side has ended: how long to continue reading from a local program that still sends. Closing
/// immediately would reset the connection and destroy data that the program has not read yet.
const LINGERING_CLOSE: Duration = Duration::from_secs(2);

/// Bytes of one connection in each direction, updated as they pass.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) up: AtomicU64,
    pub(crate) down: AtomicU64,
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PumpError {
    #[error("local program: {0}")]
    Local(io::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Copies data until both directions are complete. In all other cases the local program sees a reset, never a clean
/// end.
pub(crate) async fn pump(
    mut local: LocalStream,
    stream: RemoteStream,
    count: &(dyn Fn(Direction, u64) + Sync),
) -> Result<(), PumpError> {
    let outcome = {
        let program = local.program();
        let (mut read, mut write) = local.split();
        let outcome = both_ways(&mut read, &mut write, program, stream, count).await;
        if outcome.is_ok() {
            let _ = timeout(LINGERING_CLOSE, discard(&mut read)).await;
        }
        outcome
    };
    if outcome.is_ok() {
        local.finish();
    }
    outcome
}

/// The direction of data.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Up,
    Down,
}

type Count<'a> = &'a (dyn Fn(Direction, u64) + Sync);

async fn both_ways(
    read: &mut (dyn AsyncRead + Send + Unpin),
    write: &mut (dyn AsyncWrite + Send + Unpin),
    program: Program,
    mut stream: RemoteStream,
    count: Count<'_>,
) -> Result<(), PumpError> {
    if stream.half_closes() {
        return each_way(read, write, program, stream, count).await;
    }
    let sender = stream.sender();
    let up = async {
        match send(read, &sender, count).await {
            // It may still wait for an answer.
            Ok(()) => {
                program.gone().await;
                Ok(())
            }
            // The far side is over. Its data still counts; data to it does not.
            Err(PumpError::Stream(_)) => std::future::pending().await,
            Err(local) => Err(local),
        }
    };
    tokio::select! {
        biased;
        outcome = receive(&mut stream, write, count) => outcome,
        outcome = up => outcome.map(|()| stream.abandon()),
    }
}

/// Moves bytes where each direction ends by itself.
async fn each_way(
    read: &mut (dyn AsyncRead + Send + Unpin),
    write: &mut (dyn AsyncWrite + Send + Unpin),
    program: Program,
    mut stream: RemoteStream,
    count: Count<'_>,
) -> Result<(), PumpError> {
    let sender = stream.sender();
    let down_over = Notify::new();
    let up = async {
        match send(read, &sender, count).await {
            Ok(()) => {}
            // What the far side sent before still counts, and a failure of its direction says more than this one.
            Err(error @ PumpError::Stream(_)) => {
                down_over.notified().await;
                return Err(error);
            }
            Err(local) => return Err(local),
        }
        tokio::select! {
            () = down_over.notified() => {}
            // Nobody waits for the answer any more.
            () = program.gone() => {}
        }
        Ok(())
    };
    let down = async {
        if let Err(error) = receive(&mut stream, write, count).await {
            return error;
        }
        down_over.notify_one();
        std::future::pending().await
    };
    tokio::select! {
        biased;
        error = down => Err(error),
        outcome = up => outcome.map(|()| stream.abandon()),
    }
}

/// Local program → stream, until the program ends its sending side.
async fn send(read: &mut (dyn AsyncRead + Send + Unpin), sender: &Sender, count: Count<'_>) -> Result<(), PumpError> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < READ_SIZE / 4 {
            buffer.reserve(READ_SIZE);
        }
        let length = read.read_buf(&mut buffer).await.map_err(PumpError::Local)?;
        if length == 0 {
            sender.finish();
            return Ok(());
        }
        sender.write_chunk(buffer.split().freeze()).await?;
        count(Direction::Up, length as u64);
    }
}

/// Stream → local program, until the far side ends the stream.
async fn receive(
    stream: &mut RemoteStream,
    write: &mut (dyn AsyncWrite + Send + Unpin),
    count: Count<'_>,
) -> Result<(), PumpError> {
    let mut chunks = Vec::with_capacity(WRITE_CHUNKS);
    while stream.read_chunks(&mut chunks, WRITE_SIZE).await? {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        write_chunks(write, &mut chunks).await.map_err(PumpError::Local)?;
        count(Direction::Down, bytes as u64);
    }
    // The program may be gone already; it got everything.
    let _ = write.shutdown().await;
    Ok(())
}

/// Writes all chunks with as few calls as the socket allows.
async fn write_chunks(write: &mut (dyn AsyncWrite + Send + Unpin), chunks: &mut Vec<Bytes>) -> io::Result<()> {
    let mut first = 0;
    while let Some(rest) = chunks.get_mut(first..).filter(|rest| !rest.is_empty()) {
        let mut slices = [IoSlice::new(&[]); WRITE_CHUNKS];
        let used = slices.iter_mut().zip(rest.iter()).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count();
        let mut written = write.write_vectored(slices.get(..used).unwrap_or_default()).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        for chunk in rest {
            let take = written.min(chunk.len());
            chunk.advance(take);
            written -= take;
            if !chunk.is_empty() {
                break;
            }
            first += 1;
        }
    }
    chunks.clear();
    Ok(())
}

async fn discard(read: &mut (dyn AsyncRead + Send + Unpin)) {
    let mut buffer = [0; 4096];
    while matches!(read.read(&mut buffer).await, Ok(length) if length > 0) {}
}

impl Traffic {
    pub(crate) fn add(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }
}
