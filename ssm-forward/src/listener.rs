//! The sockets to which local programs connect: a TCP port or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::LocalAddr;
use crate::descriptors;
use crate::entrance::{Handed, HandedIn};
use crate::half_closed::Program;
use crate::relay::RelayStream;

/// The address on which to listen for local programs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenAddr {
    /// A TCP address. Port 0 means any free port.
    Tcp(SocketAddr),
    /// A Unix socket that only the user can access. A stale socket file is replaced.
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

/// A socket that already listens, for example because systemd has opened it.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenListener {
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// A Unix socket. Its file is not removed; that is the task of the program that opened the socket.
    Unix(std::os::unix::net::UnixListener),
}

impl OpenListener {
    /// Duplicates the handle. Both refer to the same socket.
    ///
    /// # Errors
    /// Returns an error if the process cannot open more files.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// The file that this listener created, which is removed on drop.
        own: Option<FileId>,
    },
    /// There is no listening socket: connections are passed through an [`Entrance`](crate::Entrance).
    HandedIn(HandedIn),
}

/// Maximum number of TCP connections that wait until they are accepted; the system may allow less (`net.core.somaxconn`). The usual
/// value of 128 is too small: if the queue is full, Linux makes a connecting program wait for a second, and resets some of the
/// connections that it has established by a SYN cookie in the meantime. For Unix sockets, tokio requests the maximum.
const QUEUE: u32 = 65_535;

/// Listens on a TCP address. The queue of connections that are not accepted yet is as long as the system allows. The address can be
/// used although connections of an earlier listener are in TIME_WAIT. Must be called within a tokio runtime.
///
/// # Errors
/// Returns an error if the address is in use, if it is not an address of this machine, or if the process cannot open more sockets.
pub fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

impl Listener {
    pub(crate) async fn bind(address: &ListenAddr) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(address) => bind_tcp(*address).map(Self::Tcp),
            ListenAddr::Unix(path) => {
                remove_if_stale(path).await?;
                let listener = bind_for_user_alone(path)?;
                let own = file_id(path);
                Ok(Self::Unix { listener, path: path.clone(), own })
            }
        }
    }

    pub(crate) fn of(open: OpenListener) -> io::Result<Self> {
        match open {
            OpenListener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            OpenListener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(Path::to_owned).unwrap_or_default();
                Ok(Self::Unix { listener: UnixListener::from_std(listener)?, path, own: None })
            }
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<LocalAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(LocalAddr::Tcp),
            Self::Unix { path, .. } => Ok(LocalAddr::Unix(path.clone())),
            Self::HandedIn(_) => Ok(LocalAddr::HandedIn),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                prepare(&stream);
                Ok(Accepted { local: LocalStream::Tcp(stream), peer: Some(peer), carrier: None, taken: None })
            }
            Self::Unix { listener, .. } => {
                let local = LocalStream::Unix(listener.accept().await?.0);
                Ok(Accepted { local, peer: None, carrier: None, taken: None })
            }
            Self::HandedIn(handed_in) => {
                let Handed { stream, carrier, taken } = handed_in.next().await;
                let peer = stream.peer_addr().ok();
                Ok(Accepted { local: LocalStream::Tcp(stream), peer, carrier, taken: Some(taken) })
            }
        }
    }

    /// Whether descriptors for another connection are free, not counting the ones that are reserved for sessions.
    pub(crate) fn has_room(&self) -> bool {
        !match self {
            Self::Tcp(listener) => descriptors::are_scarce(listener),
            Self::Unix { listener, .. } => descriptors::are_scarce(listener),
            // The part of the program that accepts the connections must check this.
            Self::HandedIn(_) => false,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another process may have replaced the file in the meantime.
        if let Self::Unix { path, own: Some(own), .. } = self
            && file_id(path) == Some(*own)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Device and inode. While a socket is open, its inode is not used for another file.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Creates a Unix socket to which no other user can connect at any time. A connection that another user made before the mode is set
/// would stay open. The mask applies to the whole process: for a moment, other files are created with fewer permissions, never with
/// more.
fn bind_for_user_alone(path: &Path) -> io::Result<UnixListener> {
    static MASKED: Mutex<()> = Mutex::new(());
    let _alone = MASKED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = umask(Mode::RWXG | Mode::RWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Removes a socket file on which no process listens, which a killed process has left behind. Other kinds of files refuse
/// connections too, so the type is checked.
async fn remove_if_stale(path: &PathBuf) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    match UnixStream::connect(path).await {
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// A new connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) local: LocalStream,
    /// The local program's address.
    pub(crate) peer: Option<SocketAddr>,
    /// The relay's connection that carries this one, if it exists already.
    pub(crate) carrier: Option<RelayStream>,
    /// The caller that passed the connection waits for this signal.
    taken: Option<oneshot::Sender<()>>,
}

impl Accepted {
    /// Notifies the caller that passed the connection that it is counted.
    pub(crate) fn counted(&mut self) {
        if let Some(taken) = self.taken.take() {
            let _ = taken.send(());
        }
    }
}

/// A local program's connection.
#[derive(Debug)]
pub(crate) enum LocalStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The halves of a [`LocalStream`].
pub(crate) type Halves<'a> = (Box<dyn AsyncRead + Send + Unpin + 'a>, Box<dyn AsyncWrite + Send + Unpin + 'a>);

impl LocalStream {
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

    /// Whether this connection uses a descriptor that is reserved for sessions.
    pub(crate) fn is_in_reserve(&self) -> bool {
        match self {
            Self::Tcp(stream) => descriptors::is_in_reserve(stream),
            Self::Unix(stream) => descriptors::is_in_reserve(stream),
        }
    }

    /// Returns the program at the other end, for [`Program::gone`].
    pub(crate) fn program(&self) -> Program {
        match self {
            Self::Tcp(stream) => Program::new(stream.peer_addr().ok().zip(stream.local_addr().ok())),
            Self::Unix(_) => Program::new(None),
        }
    }

    /// Closes the connection normally, because both directions are complete.
    pub(crate) fn finish(self) {
        if let Self::Tcp(stream) = self {
            reset_on_close(&stream, false);
        }
    }
}

/// Sets the options of a local program's socket. If the socket was already reset, it may reject them; the error of the next read is
/// more useful.
pub(crate) fn prepare(stream: &TcpStream) {
    reset_on_close(stream, true);
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "Nagle's algorithm cannot be switched off");
    }
}

/// Sets whether RST is sent when the socket is closed. It is set until the connection is complete, so that a program cannot mistake
/// an incomplete transfer for a complete one, even if this process is killed. A Unix socket has no RST; its program sees a reset
/// only if it had sent data that was not read.
fn reset_on_close(stream: &TcpStream, reset: bool) {
    if let Err(error) = SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER cannot be set");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// More connections than fit in the usual queue of 128.
    const BURST: u16 = 300;

    /// Connects `BURST` times, and sends a number in two pieces on each connection, before the first connection is accepted.
    async fn burst<S, F>(listener: &Listener, connect: impl Fn() -> F)
    where
        S: AsyncWrite + Unpin,
        F: Future<Output = io::Result<S>>,
    {
        let mut waiting = Vec::new();
        for number in 0..BURST {
            let connected = timeout(Duration::from_secs(20), connect()).await;
            let mut program = connected.expect("the queue has room").unwrap();
            program.write_u16(number).await.unwrap();
            program.write_u16(!number).await.unwrap();
            waiting.push(program);
        }
        let mut reads = JoinSet::new();
        for _ in 0..BURST {
            let mut accepted = listener.accept().await.unwrap();
            reads.spawn(async move {
                let (mut read, _write) = accepted.local.split();
                (read.read_u16().await.unwrap(), read.read_u16().await.unwrap())
            });
        }
        let mut numbers = reads.join_all().await;
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq((0..BURST).map(|number| (number, !number))));
    }

    #[tokio::test]
    async fn programs_that_connect_at_once_wait_until_they_are_accepted() {
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
        if allowed.trim().parse::<u16>().is_ok_and(|allowed| allowed < BURST) || cfg!(not(target_os = "linux")) {
            return;
        }
        let tcp = Listener::bind(&ListenAddr::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let LocalAddr::Tcp(address) = tcp.local_addr().unwrap() else { unreachable!() };
        burst(&tcp, || TcpStream::connect(address)).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let unix = Listener::bind(&ListenAddr::Unix(path.clone())).await.unwrap();
        burst(&unix, || UnixStream::connect(&path)).await;
    }

    #[tokio::test]
    async fn the_end_removes_only_the_own_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = ListenAddr::Unix(path.clone());
        let first = Listener::bind(&address).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&address).await.unwrap();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_unix_socket_is_never_open_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (done, seen) = (AtomicBool::new(false), AtomicU32::new(0));
        let before = umask(Mode::empty());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Ok(metadata) = std::fs::metadata(&path) {
                        seen.fetch_or(metadata.permissions().mode() & 0o777, Ordering::Relaxed);
                    }
                }
            });
            // On a busy machine, the other thread may run late.
            for round in 0..100_000 {
                drop(bind_for_user_alone(&path).unwrap());
                std::fs::remove_file(&path).unwrap();
                if round >= 500 && seen.load(Ordering::Relaxed) != 0 {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let seen = seen.into_inner();
        assert_eq!(umask(before), Mode::empty(), "the process's mask is as it was");
        assert!(seen & 0o600 == 0o600 && seen & 0o077 == 0, "{seen:o}");
    }
}
