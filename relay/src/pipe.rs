//! A pipe's socket: the agent connects each session to this program.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use mio::net::TcpStream;
use ssm_proto::relay::{Greeting, Link, PipeId};

/// Maximum number of bytes per read.
const READ: usize = 64 << 10;
/// Maximum number of chunks per write.
const SLICES: usize = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe {
    stream: TcpStream,
    /// Before both ends have proved that they know the secret.
    greeting: Option<Greeting>,
    id: Option<PipeId>,
    /// The other end is no client but a program that copies to a client.
    is_feed: bool,
    out: VecDeque<Bytes>,
    pub(crate) since: Instant,
}

impl Pipe {
    pub(crate) fn new(stream: TcpStream, greeting: Greeting, since: Instant) -> Self {
        let mut pipe = Self { stream, greeting: Some(greeting), id: None, is_feed: false, out: VecDeque::new(), since };
        pipe.greet();
        pipe
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Its number, once the greeting is complete.
    pub(crate) fn id(&self) -> Option<PipeId> {
        self.id
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.out.push_back(bytes);
    }

    fn greet(&mut self) {
        if let Some(bytes) = self.greeting.as_mut().and_then(Greeting::poll_transmit) {
            self.out.push_back(bytes);
        }
    }

    /// Reads everything that is available.
    ///
    /// # Errors
    /// The pipe cannot be used any more. If the link itself is broken, this is in `broken`.
    pub(crate) fn read(&mut self, now: Instant, link: &mut Link, broken: &mut bool) -> io::Result<()> {
        let mut buffer = [0; READ];
        loop {
            let length = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            match self.id {
                Some(_) if self.is_feed => return Err(io::ErrorKind::InvalidData.into()),
                Some(id) => *broken |= link.handle_input(now, id, bytes).is_err(),
                None => *broken |= self.read_greeting(now, link, bytes)?,
            }
        }
    }

    /// Returns whether the link is broken.
    fn read_greeting(&mut self, now: Instant, link: &mut Link, bytes: &[u8]) -> io::Result<bool> {
        let Some(greeting) = &mut self.greeting else { return Ok(false) };
        greeting.handle_input(bytes).map_err(io::Error::other)?;
        self.greet();
        let Some(greeting) = self.greeting.take_if(|greeting| greeting.is_done()) else { return Ok(false) };
        let feed = greeting.feed();
        let rest = greeting.into_rest();
        let id = match feed {
            // It proves nothing, so nothing that it sends may reach the link.
            Some(_) if !rest.is_empty() => return Err(io::ErrorKind::InvalidData.into()),
            Some(feed) => link.add_feed(now, feed),
            None => link.add_pipe(),
        };
        let id = id.ok_or_else(|| io::Error::other("too many pipes"))?;
        (self.id, self.is_feed) = (Some(id), feed.is_some());
        Ok(link.handle_input(now, id, &rest).is_err())
    }

    /// Writes as much as the socket takes.
    ///
    /// # Errors
    /// The pipe cannot be used any more.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        write_all(&mut self.stream, &mut self.out)
    }
}

/// Writes as much as a socket takes.
pub(crate) fn write_all(stream: &mut TcpStream, out: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !out.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let used = slices.iter_mut().zip(out.iter()).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count();
        let mut written = match stream.write_vectored(slices.get(..used).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        while let Some(first) = out.front_mut().filter(|_| written > 0) {
            let part = written.min(first.len());
            first.advance(part);
            written -= part;
            if first.is_empty() {
                out.pop_front();
            }
        }
    }
    Ok(())
}
