//! From a URL to a byte stream: TCP, a proxy's tunnel, TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{StreamUrl, TransportError, TransportOptions, tls};

/// After this time without a connection, the next address of a host is tried in parallel to the previous ones (RFC
/// 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// One address of several gets so long.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel asks after so much silence whether the peer still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A connection, encrypted or not.
#[derive(Debug)]
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(super) fn path(&self) -> Option<(SocketAddr, SocketAddr)> {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        tcp.local_addr().ok().zip(tcp.peer_addr().ok())
    }
}

/// Connects to the URL's host, through a proxy if there is one on the way.
pub(super) async fn open(url: &StreamUrl, options: &TransportOptions) -> Result<Socket, TransportError> {
    let tcp = match options.proxies.to(url) {
        Some(proxy) => {
            let (host, port) = proxy.address()?;
            tracing::info!(to = url.authority(), proxy = format!("{host}:{port}"), "connecting through a proxy");
            let mut tcp = connect(host, port).await?;
            proxy.tunnel(&mut tcp, &url.authority()).await?;
            tcp
        }
        None => {
            tracing::info!(to = url.authority(), "connecting");
            connect(&url.host(), url.port()).await?
        }
    };
    if url.is_secure() { encrypt(tcp, url, options).await } else { Ok(Socket::Plain(tcp)) }
}

async fn encrypt(tcp: TcpStream, url: &StreamUrl, options: &TransportOptions) -> Result<Socket, TransportError> {
    let failed = |cause: String| TransportError::Unreachable { host: url.host(), cause };
    let name = ServerName::try_from(url.host()).map_err(|error| failed(error.to_string()))?;
    let config = tls::client_config(options.ca_bundle.as_deref()).map_err(failed)?;
    let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
        let unknown = error.to_string().contains("UnknownIssuer");
        let hint =
            if unknown { "; set AWS_CA_BUNDLE to the CA certificate of the proxy that inspects TLS" } else { "" };
        failed(format!("TLS: {error}{hint}"))
    })?;
    Ok(Socket::Tls(Box::new(stream)))
}

/// Tries the host's addresses in their order, each a little after the one before; the first that answers wins.
async fn connect(host: &str, port: u16) -> Result<TcpStream, TransportError> {
    let failed = |cause: String| TransportError::Unreachable { host: format!("{host}:{port}"), cause };
    let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| failed(error.to_string()))?;
    let mut attempts = FuturesUnordered::new();
    let mut cause = "its name has no address".to_owned();
    loop {
        match addresses.next() {
            Some(address) => attempts.push(attempt(address)),
            None if attempts.is_empty() => return Err(failed(cause)),
            None => {}
        }
        match timeout(NEXT_ADDRESS, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => cause = error.to_string(),
            Ok(None) | Err(_) => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let no_answer = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{} does not answer", address.ip()));
    let stream = timeout(ADDRESS_TIMEOUT, TcpStream::connect(address)).await.map_err(no_answer)??;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))?;
    Ok(stream)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
