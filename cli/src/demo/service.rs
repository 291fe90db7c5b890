//! The private web service: a page with live figures of the tunnel, and endpoints for downloads, uploads and single bytes.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use ssm_forward::{ForwardStats, StatsSnapshot};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::data::{Seeded, hex};

const PAGE: &str = include_str!("page.html");

/// Maximum size of the data of a digest request, in bytes.
const MAX_DIGEST: u64 = 1 << 30;

/// The data that the page shows about its tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    /// The managed node.
    pub(super) target: &'static str,
    /// The service's address, with the name that the agent knows.
    pub(super) remote: String,
    /// Set when the tunnel is open.
    pub(super) open: OnceLock<OpenTunnel>,
    since: Instant,
}

/// An open tunnel.
#[derive(Debug)]
pub(super) struct OpenTunnel {
    pub(super) local: String,
    pub(super) session_id: String,
    pub(super) agent_version: String,
    pub(super) stats: ForwardStats,
}

impl Tunnel {
    /// Creates the data of a tunnel to `remote` that is not open yet.
    pub(super) fn new(target: &'static str, remote: String) -> Self {
        Self { target, remote, open: OnceLock::new(), since: Instant::now() }
    }

    fn snapshot(&self) -> Snapshot<'_> {
        let open = self.open.get();
        Snapshot {
            target: self.target,
            remote: &self.remote,
            local: open.map(|open| open.local.as_str()),
            session_id: open.map(|open| open.session_id.as_str()),
            agent_version: open.map(|open| open.agent_version.as_str()),
            uptime_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            figures: open.map(|open| open.stats.snapshot()).unwrap_or_default(),
        }
    }
}

#[derive(serde::Serialize)]
struct Snapshot<'a> {
    target: &'a str,
    remote: &'a str,
    local: Option<&'a str>,
    session_id: Option<&'a str>,
    agent_version: Option<&'a str>,
    uptime_ms: u64,
    figures: StatsSnapshot,
}

/// A running private web service. It stops on drop.
#[derive(Debug)]
pub(super) struct Service {
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Pause after an error while accepting a connection.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Listens on a free port of the loopback interface. Connections are not accepted yet.
pub(super) async fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Service {
    /// Starts serving the connections of `listener`.
    pub(super) fn start(listener: TcpListener, tunnel: Arc<Tunnel>) -> Self {
        let accept = async move {
            let mut connections = JoinSet::new();
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(connections.spawn(serve(stream, tunnel.clone()))),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
                while connections.try_join_next().is_some() {}
            }
        };
        Self { task: tokio::spawn(accept) }
    }
}

async fn serve(stream: TcpStream, tunnel: Arc<Tunnel>) {
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request| {
        let tunnel = tunnel.clone();
        async move { Ok::<_, Infallible>(answer(request, &tunnel).await) }
    });
    if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
    {
        tracing::debug!(%error, "a connection to the private service ended");
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>, tunnel: &Tunnel) -> Answer {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, "/") => full("text/html; charset=utf-8", PAGE),
        (&Method::GET, "/ping") => full("text/plain", "."),
        (&Method::GET, "/stats.json") => json(&tunnel.snapshot()),
        (&Method::GET, "/data") => match seeded(request.uri().query()) {
            Some(data) => with_type("application/octet-stream", data.boxed()),
            None => refused(StatusCode::BAD_REQUEST, "expected ?bytes=N&seed=N\n"),
        },
        (&Method::GET, "/digest") => match seeded(request.uri().query()) {
            Some(data) if data.left() <= MAX_DIGEST => digest(data).await,
            _ => refused(StatusCode::BAD_REQUEST, "expected ?bytes=N&seed=N, at most 1 GiB\n"),
        },
        (&Method::POST, "/data") => receive(request.into_body()).await,
        _ => refused(StatusCode::NOT_FOUND, "not found\n"),
    }
}

async fn digest(data: Seeded) -> Answer {
    match tokio::task::spawn_blocking(|| data.digest()).await {
        Ok(sha256) => json(&serde_json::json!({ "sha256": sha256 })),
        Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR, "the digest failed\n"),
    }
}

async fn receive(mut body: Incoming) -> Answer {
    let (mut bytes, mut hasher) = (0, Sha256::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return refused(StatusCode::BAD_REQUEST, "the body is incomplete\n") };
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            hasher.update(data);
        }
    }
    json(&serde_json::json!({ "bytes": bytes, "sha256": hex(hasher) }))
}

/// Parses `bytes=N&seed=N`, in any order.
fn seeded(query: Option<&str>) -> Option<Seeded> {
    let number = |name: &str| {
        let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then(|| value.parse::<u64>().ok()))?
    };
    Some(Seeded::new(number("seed")?, number("bytes")?))
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => full("application/json", body),
        Err(_) => refused(StatusCode::INTERNAL_SERVER_ERROR, "no JSON\n"),
    }
}

fn full(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    with_type(content_type, Full::new(body.into()).boxed())
}

fn refused(status: StatusCode, why: &'static str) -> Answer {
    let mut answer = full("text/plain", why);
    *answer.status_mut() = status;
    answer
}

fn with_type(content_type: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_size_and_seed() {
        let size = |query| seeded(query).map(|data| data.left());
        assert_eq!(size(Some("bytes=10&seed=1")), Some(10));
        assert_eq!(size(Some("seed=1&bytes=10")), Some(10));
        for query in [None, Some(""), Some("bytes=10"), Some("bytes=x&seed=1"), Some("bytes=-1&seed=1")] {
            assert_eq!(size(query), None, "{query:?}");
        }
    }
}
