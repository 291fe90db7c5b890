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
/// Maximum number of bytes that are taken from the stream per write to a local program. The rest still counts as unread, so that
/// the limit of the receive buffer stays effective.
const WRITE_SIZE: usize = 128 << 10;
/// Maximum number of chunks per write.
const WRITE_CHUNKS: usize = 64;
/// How long to continue reading from a local program that still sends after the remote side has ended. Closing immediately would
/// reset the connection and destroy data that the program has not read yet.
const LINGERING_CLOSE: Duration = Duration::from_secs(2);

/// Number of bytes of one connection in each direction, updated continuously.
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

/// Copies data until both directions are complete. In all other cases, the local program receives a reset, never a normal end.
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
            // The program may still wait for an answer.
            Ok(()) => {
                program.gone().await;
                Ok(())
            }
            // The remote side has ended. Data from it is still delivered; data to it can no longer be sent.
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

/// Copies data if each direction ends independently.
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
            // Data that the remote side sent before is still delivered. If its direction fails too, that error is more useful than
            // this one.
            Err(error @ PumpError::Stream(_)) => {
                down_over.notified().await;
                return Err(error);
            }
            Err(local) => return Err(local),
        }
        tokio::select! {
            () = down_over.notified() => {}
            // No program waits for the answer any longer.
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

/// Copies from the local program to the stream, until the program ends its sending side.
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

/// Copies from the stream to the local program, until the remote side ends the stream.
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
    // An error is ignored: the program may have closed its socket, but it has received everything.
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
