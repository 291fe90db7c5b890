//! The server of the port: HTTP calls of the API, and upgrades to data channels.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use ssm_proto::OpenDataChannel;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::broker::{Broker, BrokerSession, ClientSocket};
use crate::{api, control};

/// Timeout for a request's head, and for a data channel's first frame.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after the system failed to accept a connection, for example because of too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum size of a request in bytes.
const MAX_BODY: usize = 1 << 20;
/// Maximum size of a WebSocket message. It exceeds the size of a message with the maximum accepted payload.
const MAX_MESSAGE: usize = 2 << 20;
/// Maximum size of the buffer for data that the kernel does not accept immediately. When this buffer is full, the relay waits.
const MAX_WRITE_BUFFER: usize = 4 << 20;

/// Serves connections until the future is dropped.
pub(crate) async fn run(listener: TcpListener, broker: Arc<Broker>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, broker.clone()))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, broker: Arc<Broker>) {
    // Without this option, small messages wait for acknowledgements. A failure only makes them slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, broker.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(request: Request<Incoming>, broker: Arc<Broker>) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match (request.method(), request.uri().path()) {
        _ if !is_own_name(&request) => text(
            StatusCode::MISDIRECTED_REQUEST,
            "the Host header names another machine: connect by IP address or localhost",
        ),
        // Only browsers send an Origin header, for requests of web pages. Pages must have no access, because a session can be a
        // shell of this user.
        _ if request.headers().contains_key(ORIGIN) => text(StatusCode::FORBIDDEN, "web pages have no access"),
        (&Method::POST, "/") => call(request, &broker).await,
        (_, path) if control::is_for(path) => control(request, &broker).await,
        (&Method::GET, path) => match path.strip_prefix("/v1/data-channel/").map(|id| broker.session(id)) {
            Some(Some(session)) if !session.is_at(request.uri().query().unwrap_or_default()) => {
                text(StatusCode::GONE, "the session has another URL")
            }
            Some(Some(session)) if session.info().is_active() => open_data_channel(request, session),
            Some(Some(_)) => text(StatusCode::GONE, "the session has ended"),
            Some(None) => text(StatusCode::NOT_FOUND, "no such session"),
            None => text(StatusCode::NOT_FOUND, "the SSM API accepts POST /"),
        },
        _ => text(StatusCode::NOT_FOUND, "the SSM API accepts POST /"),
    };
    Ok(response)
}

/// Returns whether the request is addressed to this machine. A web page whose host name was made to resolve to this machine
/// (DNS rebinding) sends its own name.
fn is_own_name(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let named = request.uri().authority().cloned().or(host);
    named.is_some_and(|authority| {
        let host = authority.host();
        let behind = authority.as_str().strip_prefix(host);
        if !behind.is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
            return false;
        }
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
    })
}

async fn call(request: Request<Incoming>, broker: &Broker) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    match whole(body).await {
        Ok(body) => api::answer(broker, &head, &body).await.map(Full::new),
        Err(refusal) => refusal,
    }
}

async fn control(request: Request<Incoming>, broker: &Broker) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    match whole(body).await {
        Ok(body) => control::answer(broker, &head, &body).await.map(Full::new),
        Err(refusal) => refusal,
    }
}

async fn whole(body: Incoming) -> Result<Bytes, Response<Full<Bytes>>> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(text(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large"));
    }
    match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(text(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the request is incomplete")),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response
}

fn open_data_channel(mut request: Request<Incoming>, session: Arc<BrokerSession>) -> Response<Full<Bytes>> {
    let Some(accept) = accept_key(request.headers()) else {
        return text(StatusCode::BAD_REQUEST, "not a WebSocket upgrade");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match timeout(PATIENCE, async { admit(upgrade.await?, session).await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error, "data channel not opened"),
            Err(_) => tracing::debug!("data channel not opened: its first frame did not arrive"),
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Returns the `Sec-WebSocket-Accept` value; `None` if the request is not a WebSocket upgrade.
fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let is = |name, expected: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(',').any(|part| part.trim().eq_ignore_ascii_case(expected))
    };
    if !is(CONNECTION, "upgrade") || !is(UPGRADE, "websocket") || !is(SEC_WEBSOCKET_VERSION, "13") {
        return None;
    }
    let key = headers.get(SEC_WEBSOCKET_KEY)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
}

/// Accepts the WebSocket if its first frame contains the session's token; otherwise closes it with code 1008.
async fn admit(
    upgraded: Upgraded,
    session: Arc<BrokerSession>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut socket = websocket(upgraded).await?;
    let first = loop {
        match socket.next().await.ok_or("closed before its first frame")?? {
            Message::Text(text) => break text.to_string(),
            Message::Binary(bytes) => break String::from_utf8(bytes.into())?,
            _ => {}
        }
    };
    let refusal = match OpenDataChannel::from_json(&first) {
        Ok(open) if session.accepts(open.token_value.expose()) => {
            tracing::debug!(session_id = session.id, client_version = open.client_version, "token accepted");
            session.connect(socket).await;
            return Ok(());
        }
        Ok(_) => "the token is wrong or has expired".to_owned(),
        Err(error) => error,
    };
    let frame = CloseFrame { code: CloseCode::Policy, reason: refusal.as_str().into() };
    socket.close(Some(frame)).await?;
    while let Some(Ok(_)) = socket.next().await {}
    Err(refusal.into())
}

/// Creates the WebSocket over the bare TCP socket, with the bytes that were already read from it.
async fn websocket(upgraded: Upgraded) -> Result<ClientSocket, &'static str> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| "not a TCP connection")?;
    let config = WebSocketConfig::default()
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let stream = parts.io.into_inner();
    Ok(WebSocketStream::from_partially_read(stream, parts.read_buf.into(), Role::Server, Some(config)).await)
}
