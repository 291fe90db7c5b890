//! The connection of one stream to the destination.
//!
//! Like in the official agent, the end of one direction also ends the other one, so there is no half-close (MUX-8).

use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::shared::AgentStream;

/// Maximum number of bytes per read from the destination.
const READ_SIZE: usize = 64 << 10;
/// Maximum number of chunks per write.
const WRITE_CHUNKS: usize = 64;

/// Copies bytes in both directions until one end has finished. With `deaf`, nothing is copied.
pub(super) async fn serve(mut tcp: TcpStream, stream: &AgentStream, deaf: bool) {
    let (mut read, mut write) = tcp.split();
    tokio::select! {
        () = from_destination(&mut read, stream) => {}
        () = to_destination(stream, &mut write), if !deaf => {
            // The socket is shut down, not reset, so that the destination can still read the data that was delivered.
            let _ = write.shutdown().await;
        }
    }
    stream.finish();
}

async fn from_destination(read: &mut (impl AsyncReadExt + Unpin), stream: &AgentStream) {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < READ_SIZE / 4 {
            buffer.reserve(READ_SIZE);
        }
        match read.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if stream.write(buffer.split().freeze()).await => {}
            Ok(_) => return,
        }
    }
}

async fn to_destination(stream: &AgentStream, write: &mut (impl AsyncWrite + Unpin)) {
    let mut chunks = Vec::with_capacity(WRITE_CHUNKS);
    while stream.read(&mut chunks, WRITE_CHUNKS).await {
        if write_all(write, &mut chunks).await.is_err() {
            return;
        }
    }
}

/// Writes all chunks with as few calls as the socket allows.
async fn write_all(write: &mut (impl AsyncWrite + Unpin), chunks: &mut Vec<Bytes>) -> std::io::Result<()> {
    let mut first = 0;
    while let Some(rest) = chunks.get_mut(first..).filter(|rest| !rest.is_empty()) {
        let slices: Vec<IoSlice<'_>> = rest.iter().map(|chunk| IoSlice::new(chunk)).collect();
        let mut written = write.write_vectored(&slices).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
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
