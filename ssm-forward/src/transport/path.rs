//! Checks the path to a host, step by step, to find out where it fails.

use std::net::IpAddr;

use http::Uri;
use tokio::net::lookup_host;
use url::Url;

use super::route::{Place, Route};
use super::steps::{Deadline, RESOLVE};
use super::{TransportError, TransportOptions, tcp};

/// The result of checking the path to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkPath {
    /// `host:port`.
    pub authority: String,
    /// The proxy on the path, as `host:port`. With a proxy, the proxy resolves the name.
    pub proxy: Option<String>,
    /// The addresses of the name.
    pub addresses: Vec<IpAddr>,
    /// Whether TLS is required.
    pub tls: bool,
    /// Where the path fails. `None` if the host was reached.
    pub problem: Option<PathProblem>,
}

/// Where a path fails.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathProblem {
    /// The step that failed.
    pub step: PathStep,
    /// The cause, in one line.
    pub cause: String,
}

/// A step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathStep {
    /// The name has no address.
    Name,
    /// No address accepts a TCP connection.
    Connect,
    /// The proxy, or the path behind it.
    Proxy,
    /// TLS: the certificate is not trusted, or the host does not support TLS.
    Tls,
}

/// Checks the path to the host of `url` (`https`, `http`, `wss` or `ws`): its name, TCP, a proxy, TLS. Sends no request to the
/// host.
///
/// # Errors
/// Returns an error if the URL has no host, or another scheme.
pub async fn look_along(url: &Url, options: &TransportOptions) -> Result<NetworkPath, TransportError> {
    let text = url.as_str();
    let text = text.strip_prefix("ws").map_or_else(|| text.to_owned(), |rest| format!("http{rest}"));
    let uri: Uri = text.parse().map_err(|error| TransportError::StreamUrl(format!("{url}: {error}")))?;
    let place = Place::of(&uri);
    let proxy = options.proxies.to(&place)?.map(|proxy| proxy.to_string());
    let mut path =
        NetworkPath { authority: place.to_string(), proxy, addresses: Vec::new(), tls: place.secure, problem: None };
    path.problem = path.walk(&place, options).await.err();
    Ok(path)
}

impl NetworkPath {
    async fn walk(&mut self, place: &Place, options: &TransportOptions) -> Result<(), PathProblem> {
        let deadline = Deadline::within(options.connect_timeout);
        let (host, port) = (place.host.as_str(), place.port);
        let problem = |step| move |cause: String| PathProblem { step, cause };
        if self.proxy.is_none() {
            self.addresses = addresses(host, port, deadline).await.map_err(problem(PathStep::Name))?;
            tcp::connect(host, port, deadline).await.map_err(problem(PathStep::Connect))?;
        }
        let route = Route { proxies: &options.proxies, ca_bundle: options.ca_bundle.as_deref(), deadline };
        let step = if self.proxy.is_some() { PathStep::Proxy } else { PathStep::Tls };
        route.open(place).await.map(drop).map_err(|error| PathProblem { step, cause: error.to_string() })
    }
}

async fn addresses(host: &str, port: u16, deadline: Deadline) -> Result<Vec<IpAddr>, String> {
    let found = deadline.step(RESOLVE, lookup_host((host, port))).await;
    let found = found.map_err(|late| format!("the name server did not answer within {late}"))?;
    let addresses: Vec<_> = found.map_err(|error| error.to_string())?.map(|address| address.ip()).collect();
    if addresses.is_empty() { Err("the name has no address".into()) } else { Ok(addresses) }
}
