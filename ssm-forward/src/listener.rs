//! Where local programs connect: a TCP port or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::LocalAddr;
use crate::descriptors;
use crate::program::Program;

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

    /// Whether there are descriptors for another connection, and some left for the sessions.
    pub(crate) fn has_room(&self) -> bool {
        !match self {
            Self::Tcp(listener) => descriptors::are_scarce(listener),
            Self::Unix { listener, .. } => descriptors::are_scarce(listener),
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

/// A socket that nobody listens on is what a process left behind that was killed. Other files refuse connections too.
async fn remove_if_stale(path: &PathBuf) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    match UnixStream::connect(path).await {
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
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

    /// Whether it took a descriptor that was meant for the sessions.
    pub(crate) fn is_of_reserve(&self) -> bool {
        match self {
            Self::Tcp(stream) => descriptors::is_of_reserve(stream),
            Self::Unix(stream) => descriptors::is_of_reserve(stream),
        }
    }

    /// Who is at the other end, for [`Program::gone`].
    pub(crate) fn program(&self) -> Program {
        match self {
            Self::Tcp(stream) => Program::new(stream.peer_addr().ok().zip(stream.local_addr().ok())),
            Self::Unix(_) => Program::new(None),
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
