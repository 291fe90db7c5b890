//! Where local programs connect: a TCP port or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::LocalAddr;

/// Where to listen for local programs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenAddr {
    /// A TCP address; port 0 picks one.
    Tcp(SocketAddr),
    /// A Unix socket, made with access for the user alone. One that nobody listens on any more is replaced.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A bound socket. A Unix socket's file is removed on drop.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf },
}

impl Listener {
    pub(crate) async fn bind(address: &ListenAddr) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            ListenAddr::Unix(path) => {
                remove_if_stale(path).await?;
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
                Ok(Self::Unix { listener, path: path.clone() })
            }
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<LocalAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(LocalAddr::Tcp),
            Self::Unix { path, .. } => Ok(LocalAddr::Unix(path.clone())),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<(Local, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                reset_on_close(&stream, true);
                Ok((Local::Tcp(stream), Some(peer)))
            }
            Self::Unix { listener, .. } => Ok((Local::Unix(listener.accept().await?.0), None)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn remove_if_stale(path: &PathBuf) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// A local program's connection.
#[derive(Debug)]
pub(crate) enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The halves of a [`Local`].
pub(crate) type Halves<'a> = (Box<dyn AsyncRead + Send + Unpin + 'a>, Box<dyn AsyncWrite + Send + Unpin + 'a>);

impl Local {
    pub(crate) fn split(&mut self) -> Halves<'_> {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.split();
                (Box::new(read), Box::new(write))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.split();
                (Box::new(read), Box::new(write))
            }
        }
    }

    /// Who is at the other end, for [`Program::gone`].
    pub(crate) fn program(&self) -> Program {
        match self {
            Self::Tcp(stream) => Program(stream.peer_addr().ok().zip(stream.local_addr().ok())),
            Self::Unix(_) => Program(None),
        }
    }

    /// Both ends are done: closing is no reset any more.
    pub(crate) fn finish(self) {
        if let Self::Tcp(stream) = self {
            reset_on_close(&stream, false);
        }
    }
}

/// Whatever closes the socket before it is finished, the end of this process included, sends RST, so that no program takes
/// what it got for everything. A Unix socket has no such thing; its program sees a reset only if it had sent something that
/// was not read.
fn reset_on_close(stream: &TcpStream, reset: bool) {
    if let Err(error) = SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO)) {
        tracing::debug!(%error, "the way of closing a connection cannot be set");
    }
}

/// The local program at the other end of a connection: its address and ours, for TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program(Option<(SocketAddr, SocketAddr)>);

/// When to look, after the program ended its sending side. Each look reads the system's table of sockets.
const LOOKS: [Duration; 6] =
    [Duration::ZERO, millis(20), millis(80), millis(400), Duration::from_secs(2), Duration::from_secs(10)];

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Program {
    /// Completes when the program has closed its socket altogether. From the end of its sending side alone nobody can tell
    /// whether it still waits for an answer, but where the program runs on this machine, Linux lists its socket. Elsewhere
    /// this never completes.
    pub(crate) async fn gone(self) {
        if let Some((peer, ours)) = self.0.filter(|(peer, _)| peer.ip().is_loopback()) {
            for pause in LOOKS {
                tokio::time::sleep(pause).await;
                let table = if peer.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
                let Ok(sockets) = tokio::fs::read_to_string(table).await else { break };
                if !has_owner(&sockets, peer, ours) {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}

/// Whether some process still holds the socket from `local` to `remote`, by the text of `/proc/net/tcp`: the kernel keeps a
/// closed one for a while, without an inode.
fn has_owner(table: &str, local: SocketAddr, remote: SocketAddr) -> bool {
    let ends = [hex(local), hex(remote)];
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1..3)? == ends;
        fields.get(9).filter(|_| is_it).map(|inode| *inode != "0")
    };
    table.lines().skip(1).find_map(inode).unwrap_or(false)
}

/// An address as `/proc/net/tcp` has it: 32-bit words in the machine's order.
fn hex(address: SocketAddr) -> String {
    let octets = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    words.map(|word| format!("{word:08X}")).chain([format!(":{:04X}", address.port())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_an_inode_has_no_owner() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:C350 0100007F:0CEA 08 00000000:00000000 00:00000000 00000000     0        0 4712 1 0
   1: 0100007F:C351 0100007F:0CEA 05 00000000:00000000 03:000017B0 00000000     0        0 0 3 0";
        let ours: SocketAddr = "127.0.0.1:3306".parse().unwrap();
        let owned = |port| has_owner(table, SocketAddr::from(([127, 0, 0, 1], port)), ours);
        assert_eq!((owned(50000), owned(50001), owned(50002)), (true, false, false));
        assert_eq!(hex("[::1]:80".parse().unwrap()), "00000000000000000000000001000000:0050");
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_program_that_only_ended_its_sending_side_is_not_gone() {
        let listener = Listener::bind(&ListenAddr::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let LocalAddr::Tcp(address) = listener.local_addr().unwrap() else { panic!() };
        let mut program = TcpStream::connect(address).await.unwrap();
        let (local, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut program).await.unwrap();
        let gone = local.program().gone();
        tokio::pin!(gone);
        assert!(tokio::time::timeout(millis(50), &mut gone).await.is_err());
        drop(program);
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    }
}
