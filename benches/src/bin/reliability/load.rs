//! The traffic of connections: scripts in which every byte is known, checked at both ends.

use std::io::{self, ErrorKind};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// The script of one connection. In each round the program sends `up` bytes, then the service sends `down` bytes.
/// The program closes its sending side before the last answer; the service closes the connection after the last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// Seed of all bytes; it also identifies the connection.
    pub(crate) seed: u64,
    pub(crate) rounds: u32,
    pub(crate) up: u32,
    pub(crate) down: u32,
    /// The sender pauses after this many bytes.
    pub(crate) burst: u32,
    /// The pause in milliseconds, also between rounds.
    pub(crate) pause: u32,
    /// Time at the start in which the service does not read, in milliseconds.
    pub(crate) deaf: u32,
}

/// The length of an encoded script, which is sent first, in bytes.
pub(crate) const HEADER: usize = 32;

impl Script {
    /// Returns the number of bytes of a whole connection, for each direction.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let rounds = u64::from(self.rounds);
        (HEADER as u64 + rounds * u64::from(self.up), rounds * u64::from(self.down))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [self.rounds, self.up, self.down, self.burst, self.pause, self.deaf];
        let numbers = numbers.iter().flat_map(|number| number.to_be_bytes());
        self.seed.to_be_bytes().into_iter().chain(numbers).collect()
    }

    pub(crate) async fn read_from(stream: &mut TcpStream) -> io::Result<Self> {
        Ok(Self {
            seed: stream.read_u64().await?,
            rounds: stream.read_u32().await?,
            up: stream.read_u32().await?,
            down: stream.read_u32().await?,
            burst: stream.read_u32().await?,
            pause: stream.read_u32().await?,
            deaf: stream.read_u32().await?,
        })
    }

    pub(crate) fn pause(&self) -> Duration {
        Duration::from_millis(self.pause.into())
    }
}

/// The reason why a connection did not complete its script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The program could not connect; contains the system's error.
    Unopened(String),
    /// The connection was reset, so the program knows that data is missing.
    Reset,
    /// A normal end arrived before all data.
    CutShort(String),
    /// Other bytes arrived than those that were sent.
    Wrong(String),
}

impl Broken {
    pub(crate) fn io(error: &io::Error) -> Self {
        match error.kind() {
            // A broken pipe only follows a normal end; a reset is reported as a reset.
            ErrorKind::BrokenPipe => Self::CutShort("a clean end while sending".into()),
            _ => Self::Reset,
        }
    }
}

/// Callback with the number of bytes that were just transferred.
pub(crate) type Progress<'a> = &'a (dyn Fn(usize) + Sync);

/// Pauses of the reading end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pauses {
    /// Number of bytes after which the reader pauses; 0 means never.
    pub(crate) every: usize,
    /// Duration of a pause.
    pub(crate) time: Duration,
}

/// Sends this number of bytes of the pattern, with the script's pauses.
pub(crate) async fn send(
    stream: &mut TcpStream,
    pattern: &mut Pattern,
    length: u32,
    script: &Script,
    progress: Progress<'_>,
) -> Result<(), Broken> {
    let (mut left, mut burst) = (length as usize, script.burst as usize);
    while left > 0 {
        let piece = pattern.take(left.min(burst));
        stream.write_all(piece).await.map_err(|error| Broken::io(&error))?;
        progress(piece.len());
        left -= piece.len();
        burst -= piece.len();
        if burst == 0 {
            burst = script.burst as usize;
            sleep(script.pause()).await;
        }
    }
    Ok(())
}

/// Reads this number of bytes, and compares them with the pattern.
pub(crate) async fn expect(
    stream: &mut TcpStream,
    pattern: &mut Pattern,
    length: u32,
    pauses: Pauses,
    progress: Progress<'_>,
) -> Result<(), Broken> {
    let (mut buffer, mut left, mut since_pause) = (vec![0; 64 << 10], length as usize, 0);
    while left > 0 {
        let limit = left.min(buffer.len());
        let got = stream.read(buffer.get_mut(..limit).unwrap_or_default()).await.map_err(|error| Broken::io(&error))?;
        if got == 0 {
            return Err(Broken::CutShort(format!("a clean end {left} bytes too early")));
        }
        if !pattern.matches(buffer.get(..got).unwrap_or_default()) {
            return Err(Broken::Wrong(format!("wrong bytes, {left} before the end")));
        }
        progress(got);
        left -= got;
        since_pause += got;
        if pauses.every > 0 && since_pause >= pauses.every {
            since_pause = 0;
            sleep(pauses.time).await;
        }
    }
    Ok(())
}

/// Bytes derived from a seed, in pieces of any size.
pub(crate) struct Pattern {
    seed: u64,
    blocks: u64,
    block: Box<[u8; BLOCK]>,
    used: usize,
}

const BLOCK: usize = 4096;

impl Pattern {
    pub(crate) fn up(script: &Script) -> Self {
        Self::new(script.seed.wrapping_mul(2))
    }

    pub(crate) fn down(script: &Script) -> Self {
        Self::new(script.seed.wrapping_mul(2).wrapping_add(1))
    }

    fn new(seed: u64) -> Self {
        Self { seed, blocks: 0, block: Box::new([0; BLOCK]), used: BLOCK }
    }

    /// Returns the next bytes, at least one and at most `max`.
    pub(crate) fn take(&mut self, max: usize) -> &[u8] {
        if self.used == BLOCK {
            // The seeds of adjacent blocks and connections must be far apart.
            let mut rng = Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.blocks));
            rng.fill(&mut *self.block);
            self.blocks += 1;
            self.used = 0;
        }
        let from = self.used;
        self.used = BLOCK.min(from + max);
        self.block.get(from..self.used).unwrap_or_default()
    }

    /// Whether `bytes` are the next bytes of the pattern.
    fn matches(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.take(bytes.len());
            let Some((first, rest)) = bytes.split_at_checked(expected.len()) else { return false };
            if first != expected {
                return false;
            }
            bytes = rest;
        }
        true
    }
}
