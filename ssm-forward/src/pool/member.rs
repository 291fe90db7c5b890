//! A member of the pool. It keeps a session, and starts a new one when the session is lost (restart).
//!
//! ```text
//!  Starting ── ready ──► Serving ── lost, in use ──► Waiting ── delay over ──► Starting
//!      └── temporary error ──► Waiting  └── lost, not in use ──► Asleep ── new connection ──► Starting
//! ```
//!
//! With [`PoolSize::Auto`], only the last member does this. If there are others, a member whose session cannot be started, or was
//! lost while unused, is removed.

use std::sync::Arc;
use std::time::Duration;

use ssm_proto::SessionStats;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::state::{Number, SharedPool};
use super::{Blueprint, PoolSize};
use crate::session::Session;
use crate::{CloseReason, ForwardError, ForwardEvent, ProbeError, ProviderErrorKind, await_target};

/// If the service closes the pool's first session with a text within this time, and the session never carried data, the agent
/// refused the session: the host is unknown, or the port does not answer.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Number of messages that each end sends for the handshake.
const HANDSHAKE_MESSAGES: u64 = 2;
/// After a session that lasted this long, the next one is started immediately.
const STABLE: Duration = Duration::from_secs(30);

/// A member of the pool; see the module.
pub(super) struct Member {
    blueprint: Arc<Blueprint>,
    shared: Arc<SharedPool>,
    number: Number,
    retire: Arc<Notify>,
    /// Whether this is the pool's first member. If its first session fails, the error is returned, and there is no retry.
    is_first: bool,
    /// Number of attempts since the last session that was in use.
    attempt: u32,
    /// The time since which there has been no session.
    outage: Option<Instant>,
}

impl Member {
    pub(super) fn new(blueprint: Arc<Blueprint>, shared: Arc<SharedPool>) -> Self {
        let (number, retire) = shared.join();
        Self { blueprint, shared, number, retire, is_first: number == 0, attempt: 0, outage: None }
    }

    /// Starts the pool's first session.
    ///
    /// # Errors
    /// Returns an error if the session could not be started.
    pub(super) async fn start_first(&self) -> Result<Arc<Session>, ForwardError> {
        let session = match &self.blueprint.first {
            Some(session) => session.clone(),
            None => self.start_awaiting_target().await?,
        };
        self.shared.ready(self.number, session.clone());
        Ok(session)
    }

    /// Keeps a session until the member is retired, or until the other members suffice.
    ///
    /// # Errors
    /// Returns an error if a session is lost, and a new one cannot be started or the configuration forbids it.
    pub(super) async fn run(mut self) -> Result<(), ForwardError> {
        let shared = self.shared.clone();
        let mut current = self.shared.lock().session(self.number);
        loop {
            let session = match current.take() {
                Some(session) => session,
                None => tokio::select! {
                    session = self.restart() => match session? {
                        Some(session) => session,
                        None => return Ok(()),
                    },
                    () = shared.closing() => return Ok(()),
                },
            };
            let began = Instant::now();
            let mut connected = session.watch_connected();
            let reason = loop {
                tokio::select! {
                    reason = session.closed() => break Some(reason),
                    // Connections that arrived in the meantime wait for this session.
                    Ok(()) = connected.changed() => shared.connectivity_changed(),
                    () = self.retire.notified() => if shared.lock().is_retiring(self.number) { break None },
                    () = shared.closing() => break None,
                }
            };
            let in_use = self.shared.gone(self.number);
            session.terminate().await;
            let Some(reason) = reason else { return Ok(()) };
            tokio::select! {
                continues = self.handle_end(&session, &reason, began, in_use) => if !continues? { return Ok(()) },
                () = shared.closing() => return Ok(()),
            }
        }
    }

    /// Reports the end of a session, and waits until a new one is needed. Returns `false` if the other members suffice. `in_use`:
    /// the pool counted connections on the session.
    async fn handle_end(
        &mut self,
        session: &Session,
        reason: &CloseReason,
        began: Instant,
        in_use: bool,
    ) -> Result<bool, ForwardError> {
        let refused = self.is_first
            && self.attempt == 0
            && matches!(reason, CloseReason::Closed(text) if !text.trim().is_empty())
            && is_unused(&session.stats())
            && began.elapsed() < REFUSED_WITHIN;
        if !self.blueprint.pool.restart || refused {
            return Err(ForwardError::SessionEnded(reason.clone()));
        }
        let (connections, in_use) = match (self.blueprint.carries_pipes, session.cut_streams()) {
            (true, _) => (0, in_use),
            (false, cut) => (cut, cut > 0),
        };
        let (session_id, reason) = (session.id().to_owned(), reason.to_string());
        self.emit(ForwardEvent::SessionLost { session_id, reason: reason.clone(), connections });
        self.outage.get_or_insert_with(Instant::now);
        if began.elapsed() > STABLE {
            self.attempt = 0;
        }
        if !in_use {
            if self.shared.leave_if_spare(self.number) {
                return Ok(false);
            }
            self.shared.set_asleep(self.number, true);
            self.shared.wanted().await;
            self.shared.set_asleep(self.number, false);
        }
        self.wait(reason).await;
        Ok(true)
    }

    /// Starts a session, and retries after temporary errors. Returns `None` if the other members suffice.
    async fn restart(&mut self) -> Result<Option<Arc<Session>>, ForwardError> {
        loop {
            match self.start(false).await {
                Ok(session) => {
                    self.make_available(&session);
                    return Ok(Some(session));
                }
                Err(error) if self.shared.leave_if_spare(self.number) => {
                    tracing::warn!(%error, "no further session");
                    if self.shared.growth_failed() {
                        let target = &self.blueprint.request.target;
                        let text = format!(
                            "no further session on {target} can be started, so connections share the existing ones: {error}"
                        );
                        self.emit(ForwardEvent::Warning { text });
                    }
                    return Ok(None);
                }
                Err(error) if is_temporary(&error) => self.wait(error.to_string()).await,
                // As long as other sessions work, a failure of this one must not end them.
                Err(error) if self.shared.lock().serves() => {
                    tracing::warn!(%error, "no further session");
                    self.shared.set_asleep(self.number, true);
                    sleep(super::RETRY.max).await;
                    self.shared.set_asleep(self.number, false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a new session available to connections, and reports why it was started.
    fn make_available(&mut self, session: &Arc<Session>) {
        let sessions = self.shared.ready(self.number, session.clone());
        let session_id = session.id().to_owned();
        match (self.outage.take(), self.blueprint.pool.size) {
            (Some(since), _) => self.emit(ForwardEvent::Restarted { session_id, outage: since.elapsed() }),
            (None, PoolSize::Auto { max }) => self.emit(ForwardEvent::SessionAdded { session_id, sessions, max }),
            (None, PoolSize::Fixed(_)) => {}
        }
    }

    async fn wait(&mut self, cause: String) {
        self.attempt += 1;
        let delay = super::RETRY.delay(self.attempt);
        self.emit(ForwardEvent::Restarting { cause, attempt: self.attempt, delay });
        sleep(delay).await;
    }

    async fn start_awaiting_target(&self) -> Result<Arc<Session>, ForwardError> {
        let (target, patience) = (&self.blueprint.request.target, self.blueprint.wait_connected);
        let waiting = |cause: &str| self.emit(ForwardEvent::AwaitingTarget { cause: cause.to_owned(), patience });
        await_target(target, patience, waiting, || self.start(true)).await
    }

    async fn start(&self, probe: bool) -> Result<Arc<Session>, ForwardError> {
        let deadline = Instant::now() + self.blueprint.session.start_timeout;
        let session = self.start_session().await?;
        if probe
            && self.blueprint.wait_ready
            && let Err(error) = self.probe(&session, deadline).await
        {
            session.terminate().await;
            return Err(error);
        }
        Ok(Arc::new(session))
    }

    /// Checks that the destination accepts a connection. If packets to the destination are dropped, there is no answer at all, so
    /// the deadline is needed.
    async fn probe(&self, session: &Session, deadline: Instant) -> Result<(), ForwardError> {
        let began = Instant::now();
        let source = match timeout_at(deadline, session.probe()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.into(),
            Err(_) => ProbeError::TimedOut(began.elapsed()),
        };
        Err(ForwardError::RemoteRefused { destination: self.blueprint.request.destination(), source })
    }

    async fn start_session(&self) -> Result<Session, ForwardError> {
        let Blueprint { provider, request, session, on_event, .. } = &*self.blueprint;
        let notice = on_event.clone();
        Session::start(
            provider.clone(),
            request,
            session.clone(),
            |id| on_event(ForwardEvent::SessionStarted { session_id: id.to_owned() }),
            move |told| notice(ForwardEvent::from(told)),
        )
        .await
    }

    fn emit(&self, event: ForwardEvent) {
        (self.blueprint.on_event)(event);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.leave(self.number);
    }
}

/// Whether only the handshake ever arrived at both ends.
fn is_unused(stats: &SessionStats) -> bool {
    let channel = &stats.channel;
    let acknowledged = channel.messages_sent.saturating_sub(channel.in_flight as u64);
    channel.messages_received.max(acknowledged) <= HANDSHAKE_MESSAGES
}

/// Whether a later start may succeed with the same configuration: the target or the network becomes available again, or the user
/// logs in again.
fn is_temporary(error: &ForwardError) -> bool {
    match error {
        ForwardError::Provider(error) => {
            error.is_retryable()
                || matches!(error.kind, ProviderErrorKind::Credentials | ProviderErrorKind::ExpiredCredentials)
        }
        ForwardError::Transport(_)
        | ForwardError::NotResumed(_)
        | ForwardError::TimedOut { .. }
        | ForwardError::SessionEnded(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_only_carried_an_upload_was_of_use() {
        let stats = |received, sent, in_flight| {
            let mut stats = SessionStats::default();
            stats.channel.messages_received = received;
            stats.channel.messages_sent = sent;
            stats.channel.in_flight = in_flight;
            stats
        };
        assert!(is_unused(&stats(2, 2, 0)));
        assert!(is_unused(&stats(2, 40, 39)), "the agent took nothing of it");
        assert!(!is_unused(&stats(2, 40, 20)));
        assert!(!is_unused(&stats(3, 2, 0)));
    }
}
