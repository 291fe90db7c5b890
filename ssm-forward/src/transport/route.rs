//! The route to a host: directly or through a proxy, and with TLS if the URL requires it. The API's calls and the data channel use
//! the same routes.

use std::fmt;
use std::path::Path;

use http::Uri;

use super::proxy::{Proxies, Proxy};
use super::socket::Socket;
use super::steps::Deadline;
use super::{TransportError, tcp, tls};

/// The destination of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The host. An IPv6 address has no brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether TLS is used.
    pub(super) secure: bool,
}

/// Displays `host:port`, as in a URL.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Place {
    /// Returns the destination of an HTTP request's URL.
    pub(crate) fn of(uri: &Uri) -> Self {
        let secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self { host, port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }), secure }
    }
}

/// How hosts are reached: through which proxies, with which trusted roots, and until when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    pub(crate) proxies: &'a Proxies,
    pub(crate) ca_bundle: Option<&'a Path>,
    pub(crate) deadline: Deadline,
}

impl Route<'_> {
    /// Opens a connection to `place` that is ready for data.
    ///
    /// # Errors
    /// Returns which hop failed, and why.
    pub(crate) async fn open(&self, place: &Place) -> Result<Socket, TransportError> {
        let proxy = self.proxies.to(place)?;
        let (socket, through) = match &proxy {
            Some(proxy) => {
                tracing::info!(to = %place, %proxy, "connecting through a proxy");
                (self.tunnel(proxy, place).await?, format!(" through the proxy {proxy}"))
            }
            None => {
                tracing::info!(to = %place, "connecting");
                (self.connect(place).await?, String::new())
            }
        };
        if !place.secure {
            return Ok(socket);
        }
        let failed = |cause| TransportError::Unreachable { host: format!("{place}{through}"), cause };
        self.encrypt(socket, &place.host).await.map_err(failed)
    }

    /// Opens a connection to the proxy itself.
    ///
    /// # Errors
    /// Returns an error if the proxy cannot be reached. The message contains the proxy and where it is configured.
    pub(crate) async fn open_proxy(&self, proxy: &Proxy) -> Result<Socket, TransportError> {
        let place = proxy.place();
        let failed = |cause| TransportError::Unreachable { host: format!("the proxy {proxy}"), cause };
        let tcp = tcp::connect(&place.host, place.port, self.deadline).await.map_err(failed)?;
        let socket = Socket::Tcp(tcp);
        if place.secure { self.encrypt(socket, &place.host).await.map_err(failed) } else { Ok(socket) }
    }

    async fn tunnel(&self, proxy: &Proxy, place: &Place) -> Result<Socket, TransportError> {
        let socket = self.open_proxy(proxy).await?;
        proxy.tunnel(socket, place, self.deadline).await
    }

    async fn connect(&self, place: &Place) -> Result<Socket, TransportError> {
        let connected = tcp::connect(&place.host, place.port, self.deadline).await;
        connected.map(Socket::Tcp).map_err(|cause| TransportError::Unreachable { host: place.to_string(), cause })
    }

    async fn encrypt(&self, socket: Socket, host: &str) -> Result<Socket, String> {
        tls::connect(socket, host, self.ca_bundle, self.deadline).await.map(|tls| Socket::Tls(Box::new(tls)))
    }
}
