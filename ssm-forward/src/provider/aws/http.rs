//! The HTTP client of the SDK and of the signed calls. It reaches hosts in the same way as the data channel, through the same
//! proxies and with the same trusted roots. It does not follow redirects, because AWS's APIs have none.

use std::error::Error;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::{HeaderValue, PROXY_AUTHORIZATION};
use ::http::{Request, StatusCode, Uri};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tower_service::Service;
use url::{Host, Url};

use super::CONNECT_TIMEOUT;
use super::bounded::bounded;
use super::errors::invalid;
use super::settings::CaBundle;
use crate::ProviderError;
use crate::transport::tls::read_ca_bundle;
use crate::transport::{Deadline, Place, Proxies, Proxy, Route, Socket, TransportError};

/// Idle time after which a connection is closed, because a NAT may have dropped it silently, or the network may have changed.
const IDLE: Duration = Duration::from_secs(5);
/// Maximum length of the head of an answer, in bytes. It can be exceeded by the length of one more read.
const MAX_HEAD: usize = 64 << 10;
/// Maximum number of headers of an answer.
const MAX_HEADERS: usize = 100;

/// Creates a client for any host.
///
/// # Errors
/// Returns an error if the CA bundle cannot be used.
pub(super) fn client(ca_bundle: Option<&CaBundle>) -> Result<SharedHttpClient, ProviderError> {
    if let Some(CaBundle { path, named_by }) = ca_bundle {
        read_ca_bundle(path).map_err(|cause| invalid(format!("{named_by}: {cause}")))?;
    }
    let dialer = Dialer { proxies: Proxies::from_env(), ca_bundle: ca_bundle.map(|bundle| bundle.path.clone()) };
    let pool = Pool::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http1_max_buf_size(MAX_HEAD)
        .http1_max_headers(MAX_HEADERS)
        .build(dialer.clone());
    Ok(SharedHttpClient::new(Client { pool, proxies: dialer.proxies }))
}

/// Whether `endpoint` is on this machine.
pub(super) fn is_loopback(endpoint: &str) -> bool {
    let url = Url::parse(endpoint).ok();
    match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The HTTP client. All services share its connections.
#[derive(Clone, Debug)]
struct Client {
    pool: Pool<Dialer, SdkBody>,
    proxies: Proxies,
}

impl HttpClient for Client {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let limit = settings.connect_timeout().zip(settings.read_timeout()).map(|(connect, read)| connect + read);
        SharedHttpConnector::new(Connector { client: self.clone(), limit })
    }
}

#[derive(Debug)]
struct Connector {
    client: Client,
    /// Timeout until the head of the answer.
    limit: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, limit) = (self.client.clone(), self.limit);
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let answer = client.ask(request);
            match limit {
                Some(limit) => {
                    timeout(limit, answer).await.unwrap_or_else(|late| Err(ConnectorError::timeout(late.into())))
                }
                None => answer.await,
            }
        })
    }
}

impl Client {
    async fn ask(&self, mut request: Request<SdkBody>) -> Result<HttpResponse, ConnectorError> {
        let proxy = proxy_of_requests(&self.proxies, request.uri()).map_err(connector_error)?;
        if let Some(mut login) =
            proxy.as_ref().and_then(|proxy| HeaderValue::try_from(proxy.authorization()?.expose()).ok())
        {
            login.set_sensitive(true);
            request.headers_mut().insert(PROXY_AUTHORIZATION, login);
        }
        let response = self.pool.request(request).await.map_err(connector_error)?;
        match proxy {
            Some(proxy) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(connector_error(proxy.refused_login()))
            }
            _ => HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                .map(bounded)
                .map_err(|error| ConnectorError::other(error.into(), None)),
        }
    }
}

/// Converts an error for the SDK, which repeats calls after network errors. A proxy's refusal or a wrong configuration is not
/// reported as a network error, because repeating would not help.
fn connector_error(error: impl Error + Send + Sync + 'static) -> ConnectorError {
    match transport_error(&error) {
        Some(TransportError::Proxy { .. } | TransportError::Configuration(_)) => {
            ConnectorError::other(error.into(), None)
        }
        _ => ConnectorError::io(error.into()),
    }
}

/// Returns why a connection could not be opened, if that is the cause of `error`.
pub(super) fn transport_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TransportError> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// Returns the proxy to which requests to `uri` are sent directly. Without TLS no tunnel is needed, and some proxies allow none.
fn proxy_of_requests(proxies: &Proxies, uri: &Uri) -> Result<Option<Proxy>, TransportError> {
    match uri.scheme_str() {
        Some("https") => Ok(None),
        _ => Ok(proxies.to(&Place::of(uri))?.filter(Proxy::takes_requests)),
    }
}

/// Opens connections for the pool.
#[derive(Clone, Debug)]
struct Dialer {
    proxies: Proxies,
    ca_bundle: Option<PathBuf>,
}

impl Dialer {
    async fn dial(&self, uri: &Uri) -> Result<Api, TransportError> {
        let deadline = Deadline::within(CONNECT_TIMEOUT);
        let route = Route { proxies: &self.proxies, ca_bundle: self.ca_bundle.as_deref(), deadline };
        match proxy_of_requests(&self.proxies, uri)? {
            Some(proxy) => Ok(Api { socket: route.open_proxy(&proxy).await?, is_proxied: true }),
            None => Ok(Api { socket: route.open(&Place::of(uri)).await?, is_proxied: false }),
        }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Api>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TransportError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(&uri).await.map(TokioIo::new) })
    }
}

/// A connection that carries requests.
#[derive(Debug)]
struct Api {
    socket: Socket,
    /// Whether requests are sent directly to a proxy.
    is_proxied: bool,
}

impl Connection for Api {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

impl AsyncRead for Api {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Api {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for (endpoint, loopback) in [
            ("http://127.0.0.1:4566", true),
            ("http://localhost:1", true),
            ("https://[::1]/", true),
            ("https://ssm.eu-west-1.amazonaws.com", false),
            ("http://localhost.example", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_loopback(endpoint), loopback, "{endpoint}");
        }
    }
}
