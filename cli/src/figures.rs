//! Live figures of the forwards: rates that are computed from counters, and the Prometheus text of `--metrics`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ssm_forward::StatsSnapshot;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::exit_code::{ExitCode, Failure};

/// The figures of a forward at one time. The rates are those of the last sampling interval.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) now: StatsSnapshot,
    /// Bytes per second from local programs.
    pub(crate) up: f64,
    /// Bytes per second to local programs.
    pub(crate) down: f64,
    /// Messages sent per second, as counted by the rate limit.
    pub(crate) messages: f64,
}

/// Sampling interval.
const TICK: Duration = Duration::from_secs(1);

/// Pause after the system failed to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes a snapshot of each forward with `look` once a second and passes the figures to `report`. Never returns.
pub(crate) async fn report_rates(look: impl Fn() -> Vec<StatsSnapshot>, report: impl Fn(Vec<Figures>)) {
    let mut meters: Vec<Meter> = Vec::new();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let (snapshots, at) = (look(), Instant::now());
        meters.resize_with(snapshots.len(), || Meter::new(at));
        report(meters.iter_mut().zip(snapshots).map(|(meter, now)| meter.sample(now, at)).collect());
    }
}

/// The previous sample of a forward.
struct Meter {
    last: StatsSnapshot,
    at: Instant,
}

impl Meter {
    fn new(at: Instant) -> Self {
        Self { last: StatsSnapshot::default(), at }
    }

    fn sample(&mut self, now: StatsSnapshot, at: Instant) -> Figures {
        let seconds = at.saturating_duration_since(self.at).as_secs_f64().max(1e-3);
        let rate = |now: u64, last: u64| now.saturating_sub(last) as f64 / seconds;
        let figures = Figures {
            now,
            up: rate(now.bytes_up, self.last.bytes_up),
            down: rate(now.bytes_down, self.last.bytes_down),
            messages: rate(now.messages_sent, self.last.messages_sent),
        };
        (self.last, self.at) = (now, at);
        figures
    }
}

/// The listener of `--metrics`.
pub(crate) struct Metrics {
    listener: TcpListener,
}

impl Metrics {
    /// Listens on `address`.
    ///
    /// # Errors
    /// Returns an error if the listener cannot be opened.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(ExitCode::Listen, "listen", format!("cannot serve metrics on {address}: {error}"))
        })?;
        Ok(Self { listener })
    }

    /// Accepts connections and serves the metrics. `look` returns a snapshot of each forward, labelled with the text of its `-L`.
    pub(crate) async fn serve(self, look: impl Fn() -> Vec<(String, StatsSnapshot)> + Clone + Send + Sync + 'static) {
        let mut connections = JoinSet::new();
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                // The error can be temporary, for example when too many files are open.
                Err(error) => {
                    tracing::warn!(%error, "a connection for metrics could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let look = look.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, &look);
                async move { Ok::<_, Infallible>(answer) }
            });
            connections.spawn(async move {
                let http = hyper::server::conn::http1::Builder::new();
                if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a connection for metrics ended");
                }
            });
        }
    }
}

fn answer(request: &Request<Incoming>, look: &impl Fn() -> Vec<(String, StatsSnapshot)>) -> Response<Full<Bytes>> {
    if (request.method(), request.uri().path()) != (&Method::GET, "/metrics") {
        let mut answer = Response::new(Full::from("metrics are at /metrics\n"));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        return answer;
    }
    let mut answer = Response::new(Full::from(prometheus(&look())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// Name, type, help text, and the value in a snapshot.
type Metric = (&'static str, &'static str, &'static str, fn(&StatsSnapshot) -> f64);

const METRICS: [Metric; 14] = [
    ("connections_open", "gauge", "Connections open now.", |s| s.connections_open as f64),
    ("connections_total", "counter", "Connections that were accepted.", |s| s.connections_total as f64),
    ("bytes_up_total", "counter", "Bytes from local programs to the remote end.", |s| s.bytes_up as f64),
    ("bytes_down_total", "counter", "Bytes from the remote end to local programs.", |s| s.bytes_down as f64),
    ("messages_sent_total", "counter", "Numbered messages sent, without retransmissions.", |s| s.messages_sent as f64),
    ("messages_received_total", "counter", "Numbered messages received, without duplicates.", |s| {
        s.messages_received as f64
    }),
    ("retransmissions_total", "counter", "Messages retransmitted.", |s| s.retransmissions as f64),
    ("round_trip_seconds", "gauge", "Smoothed time from a message to its acknowledgement.", |s| {
        s.round_trip_us as f64 / 1e6
    }),
    ("reconnects_total", "counter", "Times that the WebSocket of a session was reopened.", |s| s.reconnects as f64),
    ("sessions", "gauge", "Sessions that are ready now. 0 means that the forward is down.", |s| s.sessions as f64),
    ("sessions_connected", "gauge", "Ready sessions whose WebSocket is connected.", |s| s.sessions_connected as f64),
    ("data_channel_age_seconds", "gauge", "Time since the oldest of these WebSockets was connected.", |s| {
        s.data_channel_age_s as f64
    }),
    ("session_age_seconds", "gauge", "Time since the oldest of these sessions was started.", |s| {
        s.session_age_s as f64
    }),
    ("message_budget", "gauge", "Current rate limit in messages per second.", |s| {
        s.message_budget.map_or(f64::INFINITY, |budget| budget as f64)
    }),
];

fn prometheus(snapshots: &[(String, StatsSnapshot)]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in METRICS {
        let _ = write!(text, "# HELP ssm_forward_{name} {help}\n# TYPE ssm_forward_{name} {kind}\n");
        for (spec, snapshot) in snapshots {
            let spec = spec.replace('\\', "\\\\").replace('"', "\\\"");
            let value = match value(snapshot) {
                f64::INFINITY => "+Inf".into(),
                value => value.to_string(),
            };
            let _ = writeln!(text, "ssm_forward_{name}{{forward=\"{spec}\"}} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_prometheus_text() {
        let mut snapshot = StatsSnapshot::default();
        snapshot.bytes_up = 5;
        snapshot.round_trip_us = 1500;
        let text = prometheus(&[("unix:/a\"b:80".into(), snapshot)]);
        assert!(text.contains("# TYPE ssm_forward_bytes_up_total counter\n"), "{text}");
        assert!(text.contains("ssm_forward_bytes_up_total{forward=\"unix:/a\\\"b:80\"} 5\n"), "{text}");
        assert!(text.contains("ssm_forward_message_budget{forward=\"unix:/a\\\"b:80\"} +Inf\n"), "{text}");
        assert!(text.contains("ssm_forward_round_trip_seconds{forward=\"unix:/a\\\"b:80\"} 0.0015\n"), "{text}");
    }
}
