//! What connections carry: scripts whose every byte is known, checked at both ends.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// What one connection does: in each round the client sends `up` bytes, then the server `down` bytes. Before the last answer
/// the client ends its sending side, after it the server ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// All bytes follow from it; it also names the connection.
    pub(crate) seed: u64,
    pub(crate) rounds: u32,
    pub(crate) up: u32,
    pub(crate) down: u32,
    /// Who sends pauses after so many bytes.
    pub(crate) burst: u32,
    /// The pause, in milliseconds; also between rounds.
    pub(crate) pause: u32,
}

/// A script as it goes over the wire, first of all.
const HEADER: usize = 28;

impl Script {
    /// Bytes of a whole connection, each way.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let rounds = u64::from(self.rounds);
        (HEADER as u64 + rounds * u64::from(self.up), rounds * u64::from(self.down))
    }

    fn encode(&self) -> Vec<u8> {
        let numbers = [self.rounds, self.up, self.down, self.burst, self.pause];
        let numbers = numbers.iter().flat_map(|number| number.to_be_bytes());
        self.seed.to_be_bytes().into_iter().chain(numbers).collect()
    }

    async fn read_from(stream: &mut TcpStream) -> io::Result<Self> {
        Ok(Self {
            seed: stream.read_u64().await?,
            rounds: stream.read_u32().await?,
            up: stream.read_u32().await?,
            down: stream.read_u32().await?,
            burst: stream.read_u32().await?,
            pause: stream.read_u32().await?,
        })
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(self.pause.into())
    }
}

/// Why a connection did not carry its script to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It was reset, and so said that it is not whole.
    Reset,
    /// A clean end came too early.
    CutShort(String),
    /// Bytes that were not sent.
    Wrong(String),
}

impl Broken {
    fn io(error: &io::Error) -> Self {
        match error.kind() {
            // A pipe breaks only behind a clean end: a reset is told as one.
            ErrorKind::BrokenPipe => Self::CutShort("a clean end while sending".into()),
            _ => Self::Reset,
        }
    }
}

/// Called with the number of bytes that just passed.
pub(crate) type Progress<'a> = &'a (dyn Fn(usize) + Sync);

/// The client's part of a script, over a new connection.
pub(crate) async fn converse(to: SocketAddr, script: Script, progress: Progress<'_>) -> Result<(), Broken> {
    let mut stream = TcpStream::connect(to).await.map_err(|error| Broken::io(&error))?;
    stream.write_all(&script.encode()).await.map_err(|error| Broken::io(&error))?;
    let (mut up, mut down) = (Pattern::up(&script), Pattern::down(&script));
    for round in 1..=script.rounds {
        send(&mut stream, &mut up, script.up, &script, progress).await?;
        if round == script.rounds {
            stream.shutdown().await.map_err(|error| Broken::io(&error))?;
        }
        expect(&mut stream, &mut down, script.down, progress).await?;
        if round < script.rounds {
            sleep(script.pause()).await;
        }
    }
    match stream.read(&mut [0]).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(Broken::Wrong("bytes after the last".into())),
        Err(error) => Err(Broken::io(&error)),
    }
}

async fn send(
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

async fn expect(
    stream: &mut TcpStream,
    pattern: &mut Pattern,
    length: u32,
    progress: Progress<'_>,
) -> Result<(), Broken> {
    let (mut buffer, mut left) = (vec![0; 64 << 10], length as usize);
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
    }
    Ok(())
}

/// The private service: follows scripts, and remembers how each connection went at its end.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    outcomes: Arc<Mutex<BTreeMap<u64, Result<(), Broken>>>>,
    task: JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let outcomes: Arc<Mutex<BTreeMap<_, _>>> = Arc::default();
        let kept = outcomes.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let kept = kept.clone();
                connections.spawn(async move {
                    // Noted before the end of the connection shows at the other side.
                    if let Some((seed, outcome)) = serve(&mut stream).await {
                        kept.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, outcome);
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, outcomes, task })
    }

    /// How the connection with this seed went, once it is over; each can be asked for once.
    pub(crate) fn outcome(&self, seed: u64) -> Option<Result<(), Broken>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).remove(&seed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: &mut TcpStream) -> Option<(u64, Result<(), Broken>)> {
    let script = Script::read_from(stream).await.ok()?;
    let (mut up, mut down) = (Pattern::up(&script), Pattern::down(&script));
    for _ in 0..script.rounds {
        let round = async {
            expect(stream, &mut up, script.up, &|_| {}).await?;
            send(stream, &mut down, script.down, &script, &|_| {}).await
        };
        if let Err(broken) = round.await {
            return Some((script.seed, Err(broken)));
        }
    }
    Some((script.seed, Ok(())))
}

/// Bytes that follow from a seed, in whichever pieces they are taken.
struct Pattern {
    seed: u64,
    blocks: u64,
    block: Box<[u8; BLOCK]>,
    used: usize,
}

const BLOCK: usize = 4096;

impl Pattern {
    fn up(script: &Script) -> Self {
        Self::new(script.seed.wrapping_mul(2))
    }

    fn down(script: &Script) -> Self {
        Self::new(script.seed.wrapping_mul(2).wrapping_add(1))
    }

    fn new(seed: u64) -> Self {
        Self { seed, blocks: 0, block: Box::new([0; BLOCK]), used: BLOCK }
    }

    /// The next bytes, at least one and at most `max`.
    fn take(&mut self, max: usize) -> &[u8] {
        if self.used == BLOCK {
            // Seeds of neighbouring blocks and connections must not be neighbours themselves.
            let mut rng = Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.blocks));
            rng.fill(&mut *self.block);
            self.blocks += 1;
            self.used = 0;
        }
        let from = self.used;
        self.used = BLOCK.min(from + max);
        self.block.get(from..self.used).unwrap_or_default()
    }

    /// Whether these are the next bytes.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Script {
        Script { seed: 7, rounds: 3, up: 10_000, down: 5000, burst: 4000, pause: 0 }
    }

    #[tokio::test]
    async fn a_whole_script_is_exact_at_both_ends() {
        let service = Service::start().await.unwrap();
        assert_eq!(converse(service.address, script(), &|_| {}).await, Ok(()));
        assert_eq!(service.outcome(7), Some(Ok(())));
    }

    #[tokio::test]
    async fn a_wrong_byte_a_clean_end_and_a_reset_are_told_apart() {
        for (answer, linger, wanted) in [
            (vec![0; 5000], None, "Wrong"),
            (Pattern::down(&script()).take(100).to_vec(), None, "CutShort"),
            (Pattern::down(&script()).take(100).to_vec(), Some(Duration::ZERO), "Reset"),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let liar = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut vec![0; HEADER + 10_000]).await.unwrap();
                stream.write_all(&answer).await.unwrap();
                socket2::SockRef::from(&stream).set_linger(linger).unwrap();
            });
            let broken = converse(address, script(), &|_| {}).await.unwrap_err();
            assert!(format!("{broken:?}").starts_with(wanted), "{broken:?}");
            liar.await.unwrap();
        }
    }
}
