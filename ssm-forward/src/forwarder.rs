//! A local socket whose connections are carried by sessions.

mod builder;
mod config;
mod connection;
mod relayed;

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ssm_proto::{SessionMode, SessionType};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::descriptors::{self, Shortage};
use crate::dialer::Dials;
use crate::listener::{Accepted, Listener};
use crate::pool::{Blueprint, Caller, Pool};
use crate::route::{RemoteStream, Route};
use crate::session::{Session, SessionNotice};
use crate::stats::ForwardStats;
use crate::unanswered::Unanswered;
use crate::{ForwardError, ForwardEvent, LocalAddr, SessionProvider, StartRequest};

pub use builder::ForwarderBuilder;
pub use config::ForwardConfig;
use connection::Connection;
use relayed::Relayed;

type OnEvent = Arc<dyn Fn(ForwardEvent) + Send + Sync>;

/// One local socket whose connections are carried by a pool of sessions.
///
/// If a program ends its sending side, it still receives the answer, but the destination does not see the end of the input: see
/// [`StreamSender::finish`](crate::StreamSender::finish) and [`ForwardConfig::linger`]. With [a relay](ForwardConfig::relay), the
/// destination sees it.
pub struct Forwarder {
    provider: Arc<dyn SessionProvider>,
    request: StartRequest,
    session: Option<Arc<Session>>,
    config: ForwardConfig,
    on_event: OnEvent,
    listener: Listener,
    local_addr: LocalAddr,
    stats: ForwardStats,
    /// If set, connections choose their destinations.
    dials: Option<Dials>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// Returns a builder for a forwarder that gets its sessions from `provider`.
    pub fn builder(provider: Arc<dyn SessionProvider>, request: StartRequest) -> ForwarderBuilder {
        ForwarderBuilder::new(provider, request)
    }

    /// Returns the listening address, with the actual port.
    pub fn local_addr(&self) -> LocalAddr {
        self.local_addr.clone()
    }

    /// Returns a handle to the statistics. Clones show the same values.
    pub fn stats(&self) -> ForwardStats {
        self.stats.clone()
    }

    /// Starts a session and serves connections until `shutdown` completes. The forwarder's sessions are terminated in every case,
    /// even if the future is dropped.
    ///
    /// # Errors
    /// At the start: the first session could not be started. If the target may not be connected yet, set
    /// [`ForwardConfig::wait_connected`].
    ///
    /// Later: a session was lost, and [`PoolConfig::restart`](crate::PoolConfig::restart) is off, or a new session cannot be
    /// started because of an error that is not temporary, such as [`AccessDenied`](crate::ProviderErrorKind::AccessDenied). The
    /// start is repeated without limit after [`ForwardError::Transport`], [`NotResumed`](ForwardError::NotResumed),
    /// [`TimedOut`](ForwardError::TimedOut), [`SessionEnded`](ForwardError::SessionEnded), and a
    /// [`Provider`](ForwardError::Provider) error that [is retryable](crate::ProviderError::is_retryable) or concerns the
    /// credentials. With [`ForwardConfig::lazy`], a failed start never ends the forwarder.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ForwardError> {
        let outcome = match self.config.lazy {
            None => self.run_inner(None, shutdown).await,
            Some(idle) => self.run_lazily(idle, shutdown).await,
        };
        // This includes sessions that were granted but not used, for example one that was started to place a relay.
        self.config.session.terminations.finished().await;
        let reason = match &outcome {
            Ok(()) => "stopped".to_owned(),
            Err(error) => error.to_string(),
        };
        (self.on_event)(ForwardEvent::Closed { reason });
        outcome
    }

    /// Keeps sessions only while there are connections.
    async fn run_lazily(&self, idle: Duration, shutdown: impl Future<Output = ()> + Send) -> Result<(), ForwardError> {
        tokio::pin!(shutdown);
        let mut cause = None;
        loop {
            self.emit(ForwardEvent::Waiting { cause: cause.take() });
            let first = tokio::select! {
                first = self.accept() => first,
                () = &mut shutdown => return Ok(()),
            };
            let mut is_over = false;
            let until = async {
                tokio::select! {
                    () = &mut shutdown => is_over = true,
                    () = self.stats.unused_for(idle) => {}
                }
            };
            let ended = self.run_inner(Some(first), until).await;
            if is_over {
                return ended;
            }
            cause = ended.err().map(|error| error.to_string());
        }
    }

    /// Waits for the next connection, and retries after errors.
    async fn accept(&self) -> Accepted {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Keeps sessions until `shutdown` completes, or until they are permanently lost. `first` is a connection that already waits.
    async fn run_inner(
        &self,
        first: Option<Accepted>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ForwardError> {
        let since = Instant::now();
        self.emit(ForwardEvent::Starting { target: self.request.target.clone() });
        let mut shutdown = std::pin::pin!(shutdown);
        let mut first = first;
        if let Some(relay) = &self.config.relay {
            match self.run_relayed(relay, since, &mut first, shutdown.as_mut()).await {
                Relayed::Ended(outcome) => return outcome,
                Relayed::NoRelay(why) if self.dials.is_some() => return Err(ForwardError::NoRelay { why }),
                Relayed::NoRelay(why) => {
                    let target = &self.request.target;
                    let text = format!("no relay on {target}: {why}; the tunnel works without it");
                    self.emit(ForwardEvent::Warning { text });
                }
            }
        }
        self.run_plain(since, first, shutdown).await
    }

    async fn run_plain(
        &self,
        since: Instant,
        first: Option<Accepted>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ForwardError> {
        let pool = Arc::new(Pool::new(self.blueprint()));
        self.stats.attach(pool.totals());
        let (ready, is_ready) = oneshot::channel();
        let on_ready = |session: &Session| {
            self.emit_ready(since, session.id().to_owned(), session.agent_version());
            if self.config.keep_alive && session.mode() != Some(SessionMode::Mux) {
                let version = session.agent_version();
                let text = format!(
                    "the node's SSM agent {version} does not support keep-alives: the session may time out when idle"
                );
                self.emit(ForwardEvent::Warning { text });
            }
            if let Some(text) = other_destination(&self.request, session) {
                self.emit(ForwardEvent::Warning { text });
            }
            let _ = ready.send(());
        };
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            shutdown.await;
            let _ = stop.send(());
        };
        let serve = async {
            // Until the session is ready, new connections wait in the listener's backlog.
            let _ = is_ready.await;
            self.serve(Route::Pool(pool.clone()), first, stopped).await
        };
        tokio::select! {
            ended = pool.run(on_ready, shutdown) => ended,
            never = serve => match never {},
        }
    }

    fn emit_ready(&self, since: Instant, session_id: String, agent_version: String) {
        let (local, elapsed) = (self.local_addr.clone(), since.elapsed());
        self.emit(ForwardEvent::Ready { local, session_id, agent_version, elapsed });
    }

    fn blueprint(&self) -> Blueprint {
        let mut session = self.config.session.clone();
        session.start_timeout = self.config.connect_timeout;
        session.protocol.ports_only = true;
        session.protocol.max_payload = self.config.max_payload;
        session.protocol.mux.linger = self.config.linger;
        if self.config.keep_alive {
            session.protocol.mux.keep_alive = Some(KEEP_ALIVE);
        }
        Blueprint {
            first: self.session.clone(),
            provider: self.provider.clone(),
            request: self.request.clone(),
            session,
            pool: self.config.pool,
            wait_connected: self.config.wait_connected,
            wait_ready: self.config.wait_ready,
            carries_pipes: false,
            on_event: self.on_event.clone(),
        }
    }

    /// Serves `first`, and accepts connections until `stopped`. Never returns.
    async fn serve(&self, route: Route, first: Option<Accepted>, mut stopped: oneshot::Receiver<()>) -> Infallible {
        let mut connections = JoinSet::new();
        let unanswered = Arc::new(Unanswered::new(self.request.destination(), self.config.answer_patience));
        let mut shortage = Shortage::default();
        let mut first = first.map(Ok);
        let mut accepts = true;
        loop {
            let accepted = match first.take() {
                Some(first) => first,
                None => tokio::select! {
                    accepted = self.listener.accept(), if accepts => accepted,
                    _ = &mut stopped, if accepts => {
                        accepts = false;
                        continue;
                    }
                    Some(_) = connections.join_next() => continue,
                    else => std::future::pending().await,
                },
            };
            let is_last = match accepted {
                Ok(accepted) => {
                    let is_last = accepted.local.is_in_reserve();
                    let run = self.connection(unanswered.clone(), route.clone(), accepted);
                    connections.spawn(run.in_current_span());
                    is_last
                }
                Err(error) if descriptors::is_out_of_descriptors(&error) => true,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    false
                }
            };
            if is_last {
                self.wait_for_room(&mut connections, &mut shortage).await;
            }
        }
    }

    /// Waits until descriptors for another connection are free. In the meantime, new connections wait in the listener's backlog.
    async fn wait_for_room(&self, connections: &mut JoinSet<()>, shortage: &mut Shortage) {
        while !self.listener.has_room() {
            if let Some(text) = shortage.warning(self.stats.snapshot().connections_open) {
                self.emit(ForwardEvent::Warning { text });
            }
            // Other parts of this process may close files too, so the check is repeated even if no connection ends.
            tokio::select! {
                Some(_) = connections.join_next() => {}
                () = tokio::time::sleep(ACCEPT_PAUSE) => {}
            }
        }
    }

    /// Counts an accepted connection and returns the future that serves it.
    fn connection(
        &self,
        unanswered: Arc<Unanswered>,
        route: Route,
        mut accepted: Accepted,
    ) -> impl Future<Output = ()> + Send + 'static {
        let number = self.stats.opened();
        accepted.counted();
        let Accepted { local, peer, carrier, .. } = accepted;
        let connection = Connection { number, stats: self.stats.clone(), unanswered, on_event: self.on_event.clone() };
        tracing::info!(connection = number, peer = peer.map(tracing::field::display), "connection opened");
        self.emit(ForwardEvent::ConnectionOpened { connection: number, peer });
        let caller = Caller { connection: number, peer };
        async move {
            let stream = match carrier {
                Some(carrier) => Ok(RemoteStream::Relay(carrier)),
                None => route.open(caller).await,
            };
            connection.run(local, stream).await;
        }
    }

    fn emit(&self, event: ForwardEvent) {
        (self.on_event)(event);
    }
}

/// Returns a warning if the session's host or port differs from the offered one. This happens if the document does not accept the
/// offered value, because then its own value applies.
fn other_destination(request: &StartRequest, session: &Session) -> Option<String> {
    let Some(SessionType::Port(properties)) = session.session_type() else { return None };
    let offered = |name: &str| request.offered.get(name)?.first().map(String::as_str);
    let given = |own: &Option<String>| own.clone().filter(|own| !own.is_empty());
    let host = given(&properties.host).unwrap_or_else(|| "localhost".into());
    let differs = |name: &str, own: &str, offered: &str| format!("its {name} is {own}, not {offered}");
    let other_host = offered("host").filter(|offered| *offered != host && !(is_node(offered) && is_node(&host)));
    let port = given(&properties.port_number);
    let other_port = offered("portNumber").zip(port).filter(|(offered, own)| offered != own);
    let differences: Vec<String> = [
        other_host.map(|offered| differs("host", &host, offered)),
        other_port.map(|(offered, own)| differs("portNumber", &own, offered)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let document = request.document.as_deref().unwrap_or_default();
    let text = || format!("the document {document} decides where connections go: {}", differences.join(", "));
    (!differences.is_empty()).then(text)
}

/// Whether `host` means the node itself when the node resolves it.
fn is_node(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Interval of keep-alives. It is well below the shortest idle timeout of a session, which is one minute.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Delay after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl From<SessionNotice> for ForwardEvent {
    fn from(notice: SessionNotice) -> Self {
        match notice {
            SessionNotice::Reconnecting { cause, attempt, delay } => Self::Reconnecting { cause, attempt, delay },
            SessionNotice::Reconnected { outage } => Self::Reconnected { outage },
            SessionNotice::Message(text) => Self::Message { text },
            SessionNotice::SeemsUsed => Self::Warning { text: "the session was used by another client before".into() },
        }
    }
}
