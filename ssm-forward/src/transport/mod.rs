//! The WebSocket of the data channel. This is the only module that uses the WebSocket crate.

mod path;
mod proxy;
mod route;
pub(crate) mod sigv4;
mod socket;
mod steps;
mod stream_url;
mod tcp;
pub(crate) mod tls;

#[cfg(test)]
pub(crate) mod tests;

pub use path::{NetworkPath, PathProblem, PathStep, look_along};
pub use proxy::Proxies;
pub(crate) use proxy::Proxy;
pub(crate) use route::{Place, Route};
pub(crate) use socket::Socket;
pub(crate) use steps::Deadline;
pub(crate) use stream_url::region_of;
pub use stream_url::{StreamEndpoint, StreamUrl, StreamUrlPolicy};

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, Stream};
use http::HeaderMap;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// How the WebSocket is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TransportOptions {
    /// Timeout for all steps together: resolving the name, TCP, a proxy, TLS and the upgrade. Each step also has a timeout of 10 s.
    /// Default: 20 s.
    pub connect_timeout: Duration,
    /// Which hosts are reached through a proxy. Default: the configuration in the environment.
    pub proxies: Proxies,
    /// A PEM file with trusted roots in addition to the system's. Default: the file that `AWS_CA_BUNDLE` names, if any.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(20),
            proxies: Proxies::from_env(),
            ca_bundle: std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()).map(PathBuf::from),
        }
    }
}

/// A received message.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A binary message.
    Binary(Bytes),
    /// The answer to a ping. It proves that sent data arrives.
    Pong,
    /// Another message, which only shows that the peer is active.
    Sign,
}

/// Why the WebSocket could not be opened, or ended. Each message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The token must not be sent to the host of the URL.
    #[error("{0}")]
    StreamUrl(String),
    /// The host cannot be reached.
    #[error("cannot reach {host}: {cause}")]
    Unreachable {
        /// The host, or the proxy through which it is reached.
        host: String,
        /// The system's error.
        cause: String,
    },
    /// A proxy was reached, but refuses the connection.
    #[error("the proxy {proxy} {cause}")]
    Proxy {
        /// The host and port of the proxy, and where it is configured. Without the login.
        proxy: String,
        /// What the proxy did, as the predicate of a sentence.
        cause: String,
    },
    /// The configuration cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// The upgrade was refused.
    #[error("{host} refused the data channel with HTTP {status}{}", refusal_hint(*status))]
    Refused {
        /// The host that refused.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// The WebSocket was closed by the service.
    #[error("closed by the service: {0}")]
    Closed(String),
    /// The WebSocket failed.
    #[error("the connection to the service broke: {0}")]
    Broken(String),
    /// No answer to pings was received within the timeout.
    #[error("no answer to pings for {0} s")]
    Silent(u64),
}

impl TransportError {
    /// Whether another attempt, with a fresh token, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::StreamUrl(_) | Self::Configuration(_) => false,
            Self::Refused { status, .. } => !matches!(status, 400 | 404 | 410),
            Self::Unreachable { .. } | Self::Proxy { .. } | Self::Closed(_) | Self::Broken(_) | Self::Silent(_) => true,
        }
    }

    /// Whether the upgrade was refused because of the caller's identity.
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 403, .. })
    }

    pub(crate) fn silent(silence: Duration) -> Self {
        Self::Silent(silence.as_secs())
    }
}

/// Size of the read buffer, in bytes. The WebSocket clears this much memory before each read. With 128 KiB, this took a large part
/// of the time per message at the agent's pace; with this size it is negligible. With half of this size, fast downloads are slower.
const READ_BUFFER: usize = 32 << 10;
/// Number of bytes that are collected before a system call.
const WRITE_BUFFER: usize = 128 << 10;
/// Maximum number of bytes that are buffered if the kernel does not accept them. When this buffer is full, the driver waits.
const MAX_WRITE_BUFFER: usize = 1 << 20;
/// Maximum length of a message, in bytes. It is larger than a message with the largest payload that is accepted.
const MAX_MESSAGE: usize = 2 << 20;

/// An open WebSocket, polled by one task that reads and writes without one blocking the other.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: WebSocketStream<Socket>,
    /// Whether a message arrived that is larger than one read.
    had_large_message: bool,
}

/// Opens a WebSocket, with the headers of the signature in the upgrade request.
///
/// # Errors
/// Returns in one line which step failed. The whole call is limited by [`TransportOptions::connect_timeout`].
pub(crate) async fn connect(
    url: &StreamUrl,
    headers: HeaderMap,
    options: &TransportOptions,
) -> Result<Transport, TransportError> {
    let deadline = Deadline::within(options.connect_timeout);
    let route = Route { proxies: &options.proxies, ca_bundle: options.ca_bundle.as_deref(), deadline };
    let socket = route.open(&url.place()).await?;
    let upgraded = deadline.step(steps::UPGRADE, upgrade(url, headers, socket)).await;
    upgraded.unwrap_or_else(|late| {
        let cause = format!("the upgrade to a WebSocket was not answered within {late}");
        Err(TransportError::Unreachable { host: url.host(), cause })
    })
}

async fn upgrade(url: &StreamUrl, headers: HeaderMap, socket: Socket) -> Result<Transport, TransportError> {
    let unreachable = |cause: String| TransportError::Unreachable { host: url.host(), cause };
    let mut request = url.as_url().as_str().into_client_request().map_err(|error| unreachable(error.to_string()))?;
    request.headers_mut().extend(headers);
    let config = WebSocketConfig::default()
        .write_buffer_size(WRITE_BUFFER)
        .read_buffer_size(READ_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    match tokio_tungstenite::client_async_with_config(request, socket, Some(config)).await {
        Ok((socket, _)) => Ok(Transport { socket, had_large_message: false }),
        Err(WsError::Http(response)) => {
            Err(TransportError::Refused { host: url.host(), status: response.status().as_u16() })
        }
        Err(WsError::Io(error)) => Err(unreachable(lost(&error).unwrap_or_else(|| error.to_string()))),
        Err(error) => Err(unreachable(format!("it is not a WebSocket server: {error}"))),
    }
}

impl Transport {
    /// Returns our address and the peer's address of the underlying connection. The peer is the service or a proxy.
    pub(crate) fn path(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.socket.get_ref().path()
    }

    /// Returns the next message. Every kind of end is an error, because a data channel never ends by closing the WebSocket.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, TransportError>> {
        Pin::new(&mut self.socket).poll_next(cx).map(|message| match message {
            Some(Ok(Message::Binary(message))) => Ok(Incoming::Binary(self.detached(message))),
            // Both official ends accept messages in text and in binary frames.
            Some(Ok(Message::Text(message))) => Ok(Incoming::Binary(self.detached(message.into()))),
            Some(Ok(Message::Pong(_))) => Ok(Incoming::Pong),
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Ok(Incoming::Sign),
            Some(Ok(Message::Close(Some(frame)))) => {
                Err(TransportError::Closed(format!("{} {}", u16::from(frame.code), frame.reason)))
            }
            Some(Ok(Message::Close(None))) => Err(TransportError::Closed("without a reason".into())),
            Some(Err(error)) => Err(broken(error)),
            None => Err(TransportError::Broken(HUNG_UP.into())),
        })
    }

    /// Returns a message that keeps only little additional memory alive. Short messages are slices of the read buffer. After a
    /// large message, its memory is used for further reads. From then on short messages are copied, because each of them could keep
    /// that memory alive.
    fn detached(&mut self, message: Bytes) -> Bytes {
        let is_large = message.len() > READ_BUFFER;
        self.had_large_message |= is_large;
        if self.had_large_message && !is_large { Bytes::copy_from_slice(&message) } else { message }
    }

    /// Whether [`Transport::start_send`] may be called.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, TransportError> {
        poll(Pin::new(&mut self.socket).poll_ready(cx))
    }

    /// Queues a binary message. [`Transport::poll_flush`] sends queued messages.
    pub(crate) fn start_send(&mut self, message: Bytes) -> Result<(), TransportError> {
        Pin::new(&mut self.socket).start_send(Message::Binary(message)).map_err(broken)
    }

    /// Queues a text message.
    pub(crate) fn send_text(&mut self, text: String) -> Result<(), TransportError> {
        Pin::new(&mut self.socket).start_send(Message::text(text)).map_err(broken)
    }

    /// Queues a ping.
    pub(crate) fn start_ping(&mut self) -> Result<(), TransportError> {
        Pin::new(&mut self.socket).start_send(Message::Ping(Bytes::from_static(b"keepalive"))).map_err(broken)
    }

    /// Sends queued messages.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, TransportError> {
        poll(Pin::new(&mut self.socket).poll_flush(cx))
    }

    /// Closes the WebSocket.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.socket).poll_close(cx).map(|_| ())
    }
}

fn poll(outcome: Poll<Result<(), WsError>>) -> Result<Poll<()>, TransportError> {
    match outcome {
        Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
        Poll::Ready(Err(error)) => Err(broken(error)),
        Poll::Pending => Ok(Poll::Pending),
    }
}

fn broken(error: WsError) -> TransportError {
    TransportError::Broken(match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => "it is closed".into(),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => HUNG_UP.into(),
        WsError::Io(error) => lost(&error).unwrap_or_else(|| error.to_string()),
        other => other.to_string(),
    })
}

const HUNG_UP: &str = "the service closed the connection without a reason";

/// Returns how a connection was lost, as text.
fn lost(error: &std::io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Some("reset by the service".into()),
        ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Some(HUNG_UP.into()),
        ErrorKind::TimedOut => Some("TCP timeout, the other end does not respond".into()),
        _ => None,
    }
}

fn refusal_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "; the credentials need ssmmessages:OpenDataChannel, and this machine's clock must be correct",
        404 | 410 => "; the session does not exist any more",
        500.. => "; the service failed",
        _ => "",
    }
}
