//! A session: one data channel to one agent, and its streams.

mod config;
mod connection;
mod driver;
mod pace;
mod path_watch;
mod pulse;
mod resume;
mod shared;
mod stall;
mod stream;
mod termination;
mod upstream;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ssm_proto::{Clock, Identity, SessionMode, SessionStats, SessionType, StreamId, TerminalSize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument as _;

pub use config::{Liveness, Pacing, SessionConfig};
pub use resume::RetryPolicy;
pub(crate) use stall::{Stall, StalledEnd};
pub use stream::{SessionStream, StreamSender};
pub use termination::Terminations;

use crate::{CloseReason, ForwardError, SessionProvider, SessionTicket, StartRequest, StreamError};
use resume::ChannelDialer;
use shared::SharedSession;
use termination::{Granted, TIMEOUT};

/// A report of a session to its owner; see [`Session::start`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionNotice {
    /// The WebSocket is lost and is being reconnected.
    Reconnecting {
        /// The cause of the loss.
        cause: String,
        /// The attempt's number, from 1 since the WebSocket was lost.
        attempt: u32,
        /// Delay before this attempt.
        delay: Duration,
    },
    /// The WebSocket is connected again. No data was lost.
    Reconnected {
        /// Duration of the outage.
        outage: Duration,
    },
    /// The agent is connected but does not begin the handshake, probably because another client used the session before. A shell
    /// without a handshake that has no output for some time looks the same. Only reported if
    /// [`ClientConfig::inherited`](ssm_proto::ClientConfig::inherited) is set.
    SeemsUsed,
    /// A text from the agent.
    Message(String),
}

/// How long an agent that carries one connection at a time may take to detect that the destination does not accept it.
const SINGLE_PROBE: Duration = Duration::from_secs(1);

/// A running session. Dropping it ends the session; the API call is made in the background. [`Session::terminate`] waits for the
/// call, and [`Terminations`] for all calls in the background.
pub struct Session {
    id: String,
    shared: Arc<SharedSession>,
    // This field is before `granted`, so that it is dropped first. Otherwise the service would close the session when it is told to
    // terminate it, and that would become the reason of the end.
    driver: Driver,
    granted: tokio::sync::Mutex<Granted>,
}

/// The task that drives a session. Dropping it ends the data channel.
struct Driver {
    task: JoinHandle<()>,
    shared: Arc<SharedSession>,
}

impl Driver {
    /// Ends the session immediately, without sending queued messages.
    fn stop(&self) {
        // The reason is set first: as soon as the task is aborted, another worker may drop it, which would count as a panic.
        self.shared.end(CloseReason::Terminated);
        self.task.abort();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Session {
    /// Starts a session: the API call, the WebSocket and the handshake, all within [`SessionConfig::start_timeout`].
    ///
    /// `on_granted` is called with the session's id as soon as it is known, by the task that awaits this future. `on_notice` is
    /// called for later events, by the task that transfers the session's data. Neither callback may block.
    ///
    /// # Errors
    /// Returns the error of the part that failed. If a session was already granted, it is terminated in the background: see
    /// [`Terminations`].
    pub async fn start(
        provider: Arc<dyn SessionProvider>,
        request: &StartRequest,
        config: SessionConfig,
        on_granted: impl FnOnce(&str),
        on_notice: impl Fn(SessionNotice) + Send + Sync + 'static,
    ) -> Result<Self, ForwardError> {
        config.protocol.check()?;
        let limit = config.start_timeout;
        timeout(limit, Self::start_unbounded(provider, request, config, on_granted, on_notice))
            .await
            .unwrap_or_else(|_| Err(ForwardError::TimedOut { target: request.target.clone(), limit }))
    }

    async fn start_unbounded(
        provider: Arc<dyn SessionProvider>,
        request: &StartRequest,
        mut config: SessionConfig,
        on_granted: impl FnOnce(&str),
        on_notice: impl Fn(SessionNotice) + Send + Sync + 'static,
    ) -> Result<Self, ForwardError> {
        let ticket = provider.start(request).await?;
        let terminations = config.terminations.clone();
        let granted = Granted::new(provider.clone(), ticket.session_id.clone(), terminations);
        on_granted(&ticket.session_id);
        let is_local = config.stream_url(&ticket.stream_url).is_ok_and(|url| url.is_loopback());
        config.protocol.channel.pace = config.pacing.pace(is_local);
        let target = ticket.target.clone().unwrap_or_else(|| request.target.clone());
        config.protocol.identity = Identity { session_id: ticket.session_id.clone(), target };
        let (id, shared, driver) = Self::open(provider, ticket, config, on_notice).await?;
        Ok(Self { id, shared, driver, granted: tokio::sync::Mutex::new(granted) })
    }

    async fn open(
        provider: Arc<dyn SessionProvider>,
        ticket: SessionTicket,
        config: SessionConfig,
        on_notice: impl Fn(SessionNotice) + Send + Sync + 'static,
    ) -> Result<(String, Arc<SharedSession>, Driver), ForwardError> {
        let id = ticket.session_id.clone();
        let clock =
            Clock { start: Instant::now(), unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() };
        let protocol = ssm_proto::Session::client(config.protocol.clone(), clock, fastrand::u64(..));
        let shared = Arc::new(SharedSession::new(protocol));
        let mut dialer = ChannelDialer::new(provider.clone(), ticket, config.clone());
        let transport = dialer.dial().await.map_err(ForwardError::from)?;
        let run = driver::run(shared.clone(), transport, dialer, config, Box::new(on_notice));
        let driver = Driver { task: tokio::spawn(run.in_current_span()), shared: shared.clone() };
        tokio::select! {
            biased;
            mode = shared.ready() => {
                let agent_version = shared.lock().protocol.agent_version().to_owned();
                tracing::info!(session_id = id, agent_version, ?mode, "the session is ready");
                Ok((id, shared, driver))
            }
            reason = shared.ended() => Err(reason.into()),
        }
    }

    /// Returns the session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the agent's version, as reported by the agent.
    pub fn agent_version(&self) -> String {
        self.shared.lock().protocol.agent_version().to_owned()
    }

    /// Returns how the session carries its data.
    pub fn mode(&self) -> Option<SessionMode> {
        self.shared.lock().mode
    }

    /// Returns what the session is used for: a port, a shell or a command.
    pub fn session_type(&self) -> Option<SessionType> {
        self.shared.lock().protocol.session_type().cloned()
    }

    /// Sets the size of the local terminal. Only shells and commands on a terminal use it. Before the session is ready, the latest
    /// size is stored.
    pub fn resize(&self, size: TerminalSize) {
        let mut state = self.shared.lock();
        state.protocol.resize(size);
        state.wake_driver();
    }

    /// Returns the exit code of the remote command, after the agent has sent it. Many sessions never send one.
    pub fn exit_code(&self) -> Option<i64> {
        self.shared.lock().exit_code
    }

    /// Returns the session's counters.
    pub fn stats(&self) -> SessionStats {
        self.shared.lock().protocol.stats()
    }

    /// Whether the WebSocket is connected. If not, it is being reconnected.
    pub fn is_connected(&self) -> bool {
        self.shared.lock().is_connected()
    }

    /// Returns how long the WebSocket has been connected. `None` if it is not connected. AWS closes a WebSocket after about an
    /// hour.
    pub fn connected_for(&self) -> Option<Duration> {
        self.shared.lock().connected_for()
    }

    /// Returns the time since the session was started.
    pub fn age(&self) -> Duration {
        self.shared.lock().age()
    }

    /// Returns whether one of the streams blocks all of them, and at which end.
    pub(crate) fn stall(&self) -> Option<Stall> {
        self.shared.lock().stall(tokio::time::Instant::now().into_std())
    }

    /// Returns the stream that causes a stall, as far as this end can determine it.
    pub(crate) fn culprit(&self, stall: Stall) -> Option<StreamId> {
        stall.culprit(&self.shared.lock().protocol)
    }

    /// Watches whether the WebSocket is connected.
    pub(crate) fn watch_connected(&self) -> watch::Receiver<bool> {
        self.shared.lock().watch_connected()
    }

    /// Returns the number of reconnects.
    pub fn reconnects(&self) -> u64 {
        self.shared.lock().reconnects
    }

    /// Opens a stream: a connection to the destination, or the one stream of a shell or a command. If the agent carries one
    /// connection at a time, waits until the previous one has ended.
    ///
    /// # Errors
    /// Returns an error if the session has ended.
    pub async fn open_stream(&self) -> Result<SessionStream, StreamError> {
        SessionStream::open(self.shared.clone()).await
    }

    /// Checks whether the destination accepts connections, with a connection that is closed immediately.
    ///
    /// An agent that carries one connection at a time connects to the destination when the session begins, and ends the session if
    /// that fails. With such an agent, a session that still exists after a second counts as a success.
    ///
    /// # Errors
    /// [`StreamError::Refused`] if the destination does not accept connections, or an error if the session has ended.
    pub async fn probe(&self) -> Result<(), StreamError> {
        if self.mode() != Some(SessionMode::Mux) {
            return match timeout(SINGLE_PROBE, self.closed()).await {
                Ok(reason) => Err(StreamError::SessionEnded(reason)),
                Err(_) => Ok(()),
            };
        }
        let mut stream = self.open_stream().await?;
        stream.close();
        while stream.read_chunk().await?.is_some() {}
        Ok(())
    }

    /// Returns why the session ended. `None` if it has not ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.lock().ended.clone()
    }

    /// Returns the number of streams that the end of the session cut off: they were open and had not received everything.
    pub(crate) fn cut_streams(&self) -> usize {
        self.shared.lock().cut_streams
    }

    /// Completes when the session has ended, and returns the reason.
    pub async fn closed(&self) -> CloseReason {
        self.shared.ended().await
    }

    /// Ends the session here and terminates it at the API, once. The duration is limited.
    pub async fn terminate(&self) {
        self.shared.terminate();
        if timeout(TIMEOUT, self.shared.ended()).await.is_err() {
            self.driver.stop();
        }
        self.granted.lock().await.terminate().await;
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}
