//! One connection to a destination.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::time::Duration;

use bytes::Bytes;
use mio::net::TcpStream;
use ssm_proto::relay::{
    BlockDecoder, BlockEncoder, Compressor, ConnectionId, ConnectionState, Link, MAX_BLOCK, ResetReason,
};

use crate::pipe::write_all;

/// Maximum number of bytes that are decoded ahead of writing.
const WRITE_SIZE: usize = 128 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Target {
    stream: TcpStream,
    id: ConnectionId,
    encoder: BlockEncoder,
    decoder: BlockDecoder,
    /// From the client, not yet decoded.
    encoded: Bytes,
    /// From the client, not yet written.
    out: VecDeque<Bytes>,
    /// From the destination, not yet taken by the link.
    pending: Option<Bytes>,
    /// The socket may have something to read.
    pub(crate) readable: bool,
    read_over: bool,
    write_over: bool,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    GoesOn,
    Over,
}

impl Target {
    pub(crate) fn new(stream: TcpStream, id: ConnectionId) -> Self {
        // Until both directions ended in order, the destination sees any end as a reset.
        reset_on_close(&stream, true);
        Self {
            stream,
            id,
            encoder: BlockEncoder::default(),
            decoder: BlockDecoder::default(),
            encoded: Bytes::new(),
            out: VecDeque::new(),
            pending: None,
            readable: true,
            read_over: false,
            write_over: false,
        }
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    /// Moves as much data as possible in both directions.
    pub(crate) fn work(&mut self, link: &mut Link, compressor: &mut Compressor) -> Progress {
        match link.state(self.id) {
            None | Some(ConnectionState::Reset(ResetReason::Reset)) => return self.over(link),
            // Data that the client sent before is still delivered; nobody reads the answer.
            Some(ConnectionState::Reset(ResetReason::Abandoned)) => self.read_over = true,
            Some(_) => {}
        }
        if self.write(link, compressor).is_err() || self.read(link, compressor).is_err() {
            return self.over(link);
        }
        if self.read_over && self.write_over {
            reset_on_close(&self.stream, false);
            link.abandon(self.id);
            return Progress::Over;
        }
        Progress::GoesOn
    }

    /// Ends the connection immediately.
    fn over(&self, link: &mut Link) -> Progress {
        link.release(self.id);
        Progress::Over
    }

    /// Client → destination.
    fn write(&mut self, link: &mut Link, compressor: &mut Compressor) -> io::Result<()> {
        loop {
            write_all(&mut self.stream, &mut self.out)?;
            if !self.out.is_empty() {
                return Ok(());
            }
            self.decode(link, compressor)?;
            if self.out.is_empty() {
                break;
            }
        }
        if link.is_at_end(self.id) && !self.write_over {
            if !self.decoder.is_at_end() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.stream.shutdown(Shutdown::Write)?;
            self.write_over = true;
        }
        Ok(())
    }

    /// Decodes data from the client, as much as is written at once.
    fn decode(&mut self, link: &mut Link, compressor: &mut Compressor) -> io::Result<()> {
        let mut decoded = 0;
        while decoded < WRITE_SIZE {
            match self.decoder.decode(compressor, &mut self.encoded).map_err(io::Error::other)? {
                Some(piece) => {
                    decoded += piece.len();
                    self.out.push_back(piece);
                }
                None => match link.read(self.id) {
                    Some(chunk) => self.encoded = chunk,
                    None => break,
                },
            }
        }
        Ok(())
    }

    /// Destination → client.
    fn read(&mut self, link: &mut Link, compressor: &mut Compressor) -> io::Result<()> {
        if let Some(chunk) = self.pending.take() {
            self.send(link, chunk);
        }
        let mut buffer = [0; MAX_BLOCK];
        while self.readable && self.pending.is_none() && !self.read_over {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.read_over = true;
                    link.finish(self.id);
                }
                Ok(length) => {
                    let chunk = self.encoder.encode(compressor, buffer.get(..length).unwrap_or_default());
                    self.send(link, chunk);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&mut self, link: &mut Link, chunk: Bytes) {
        self.pending = link.write(self.id, chunk).err();
    }
}

fn reset_on_close(stream: &TcpStream, reset: bool) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, reset.then_some(Duration::ZERO));
}
