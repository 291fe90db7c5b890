//! Keeps a pipe to the relay in each session of the pool, and opens connections over all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ssm_proto::relay::{Destination, GRACE, Presence, RelaySecret};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::Instrument as _;

use super::feeds::Feeds;
use super::pipe;
use super::shared::SharedLink;
use super::stream::RelayStream;
use crate::StreamError;
use crate::pool::{Demand, Pool};

/// Interval of the check whether more sessions would help.
const TICK: Duration = Duration::from_millis(500);
/// Maximum time for the relay to receive the message that it is not needed any longer.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// All pipes to one relay, and the connections that they carry.
pub(crate) struct Pipes {
    shared: Arc<SharedLink>,
    pool: Arc<Pool>,
    secret: RelaySecret,
    feeds: Option<Feeds>,
    /// Whether the relay was told to end. After that, its end is not a failure.
    leaving: AtomicBool,
}

impl std::fmt::Debug for Pipes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipes").field("leaving", &self.leaving).finish_non_exhaustive()
    }
}

/// Why the pipes cannot be used any longer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PipesEnd {
    /// The relay ended, or is not the one that was started.
    Gone(String),
    /// There was no session for so long that the relay must have ended.
    Expired,
}

impl Pipes {
    pub(crate) fn new(pool: Arc<Pool>, secret: RelaySecret, feeds: Option<Feeds>) -> Self {
        Self { shared: Arc::new(SharedLink::new(Instant::now())), pool, secret, feeds, leaving: AtomicBool::new(false) }
    }

    /// Opens a connection. The connection may have to wait for a pipe.
    ///
    /// # Errors
    /// Returns an error if there are too many connections, or if the relay has ended.
    pub(crate) fn open(&self, to: Destination) -> Result<RelayStream, StreamError> {
        let stream = RelayStream::open(&self.shared, to);
        self.shared.changed.notify_waiters();
        stream
    }

    /// Completes when there is a pipe.
    pub(crate) async fn ready(&self) {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if self.shared.lock().link.stats().pipes > 0 {
                return;
            }
            changed.await;
        }
    }

    /// Tells the relay that it is not needed any longer. After that, [`Pipes::run`] never completes.
    pub(crate) async fn say_bye(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.feeds.iter().for_each(Feeds::leave);
        self.shared.act(|state, _| state.link.say_bye());
        self.shared.changed.notify_waiters();
        let gone = async {
            loop {
                let mut changed = std::pin::pin!(self.shared.changed.notified());
                changed.as_mut().enable();
                if self.shared.lock().link.stats().pipes == 0 && self.feeds.as_ref().is_none_or(Feeds::have_ended) {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout(GOODBYE_TIMEOUT, gone).await;
    }

    /// Completes when no session of a feed exists any longer. [`Pipes::run`] must have been dropped.
    pub(crate) async fn feeds_ended(&self) {
        if let Some(feeds) = &self.feeds {
            feeds.ended().await;
        }
    }

    /// Whether [`Pipes::say_bye`] was called.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Keeps the pipes until the relay has ended, or has had no pipe for too long. Then all connections end.
    pub(crate) async fn run(&self) -> PipesEnd {
        let mut feeds = std::pin::pin!(async {
            match &self.feeds {
                Some(feeds) => feeds.keep(&self.shared, &self.pool).await,
                None => std::future::pending().await,
            }
        });
        let end = tokio::select! {
            end = self.keep() => {
                if self.is_leaving() {
                    feeds.await;
                    return std::future::pending().await;
                }
                end
            }
            why = &mut feeds => PipesEnd::Gone(why),
        };
        if self.is_leaving() {
            return std::future::pending().await;
        }
        self.shared.end(match &end {
            PipesEnd::Gone(why) => format!("the relay is gone: {why}"),
            PipesEnd::Expired => format!("there was no session for {} s", GRACE.as_secs()),
        });
        end
    }

    async fn keep(&self) -> PipesEnd {
        let mut pipes = JoinSet::new();
        let mut served = BTreeSet::new();
        let mut demands: Vec<Demand> = Vec::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut grows = false;
        let mut presence = Presence::default();
        loop {
            let of_pool = self.pool.changed();
            let mut of_link = std::pin::pin!(self.shared.changed.notified());
            of_link.as_mut().enable();
            for session in self.pool.connected() {
                if !self.is_leaving() && served.insert(session.id().to_owned()) {
                    let (shared, secret) = (self.shared.clone(), self.secret.clone());
                    let run = async move {
                        let began = Instant::now();
                        let error = pipe::run(shared, session.clone(), secret).await;
                        if session.close_reason().is_none() {
                            sleep(error.delay()).await;
                        }
                        (session.id().to_owned(), began, error)
                    };
                    pipes.spawn(run.in_current_span());
                }
            }
            let (stats, alone) = {
                let state = self.shared.lock();
                (state.link.stats(), state.link.alone_since())
            };
            if stats.pipes > 0 {
                presence.opened();
            }
            if alone.is_some_and(|since| since.elapsed() >= GRACE) {
                return PipesEnd::Expired;
            }
            self.pool.use_all(stats.connections > 0);
            let wanted = match (stats.connections, stats.pipes) {
                (0, _) => 0,
                (_, 0) => 1,
                (_, pipes) => {
                    if grows {
                        pipes
                    } else {
                        0
                    }
                }
            };
            demands.truncate(wanted);
            while demands.len() < wanted {
                demands.push(self.pool.demand());
            }
            tokio::select! {
                Some(Ok((id, began, error))) = pipes.join_next() => {
                    tracing::debug!(session = id, %error, "a pipe has ended");
                    let living = self.shared.lock().link.stats().pipes;
                    if error.report_to(&mut presence, began, living) {
                        return PipesEnd::Gone(error.to_string());
                    }
                    served.remove(&id);
                }
                () = of_pool => {}
                () = of_link => {}
                _ = ticks.tick() => grows = self.pool.is_busy(),
                never = self.shared.tick() => match never {},
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Blueprint;
    use crate::{PoolConfig, SessionConfig, SessionTicket, StartRequest, TicketProvider};

    /// Returns pipes without a session. Their link has had no pipe for so long that the relay has ended.
    fn expired() -> Pipes {
        let ticket = SessionTicket {
            session_id: "s".into(),
            token: "t".into(),
            stream_url: "ws://127.0.0.1".into(),
            target: None,
        };
        let pool = Pool::new(Blueprint {
            first: None,
            provider: Arc::new(TicketProvider::new(ticket, None)),
            request: StartRequest::default(),
            session: SessionConfig::default(),
            pool: PoolConfig::default(),
            wait_connected: Duration::ZERO,
            wait_ready: false,
            carries_pipes: true,
            on_event: Arc::new(|_| {}),
        });
        let mut pipes = Pipes::new(Arc::new(pool), RelaySecret::new([0; 32]), None);
        pipes.shared = Arc::new(SharedLink::new(Instant::now() - GRACE));
        pipes
    }

    #[tokio::test]
    async fn nothing_is_a_failure_after_goodbye() {
        assert_eq!(expired().run().await, PipesEnd::Expired);
        let pipes = expired();
        pipes.say_bye().await;
        tokio::select! {
            biased;
            end = pipes.run() => panic!("{end:?}"),
            () = std::future::ready(()) => {}
        }
    }
}
