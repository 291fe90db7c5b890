//! Keeps a pipe to the relay through each session of the pool, and opens connections over all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ssm_proto::relay::{Destination, GRACE, RelaySecret};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::Instrument as _;

use super::pipe;
use super::shared::Shared;
use super::stream::RelayStream;
use crate::StreamError;
use crate::pool::{Demand, Pool};

/// How often it is seen whether more sessions would help.
const TICK: Duration = Duration::from_millis(500);
/// After a pipe that ended while its session goes on, the next one in that session.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the relay may take to hear that it is not needed any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// All pipes to one relay, and the connections that they carry.
pub(crate) struct Pipes {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    secret: RelaySecret,
    to: Destination,
}

/// Why there are no pipes any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PipesEnd {
    /// The relay ended, or is not what was started.
    Gone(String),
    /// There was no session for so long that the relay has ended by now.
    Expired,
}

impl Pipes {
    pub(crate) fn new(pool: Arc<Pool>, secret: RelaySecret, to: Destination) -> Self {
        Self { shared: Arc::new(Shared::new()), pool, secret, to }
    }

    /// Opens a connection. It may wait for a pipe.
    ///
    /// # Errors
    /// There are too many, or the relay is gone.
    pub(crate) fn open(&self) -> Result<RelayStream, StreamError> {
        let stream = RelayStream::open(&self.shared, self.to.clone());
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

    /// Tells the relay that it is not needed any more.
    pub(crate) async fn say_bye(&self) {
        self.shared.act(|state, _| state.link.say_bye());
        let gone = async {
            loop {
                let mut changed = std::pin::pin!(self.shared.changed.notified());
                changed.as_mut().enable();
                if self.shared.lock().link.stats().pipes == 0 {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout(FAREWELL, gone).await;
    }

    /// Keeps the pipes until the relay is gone or has had none for too long. All connections are over then.
    pub(crate) async fn run(&self) -> PipesEnd {
        let end = self.keep().await;
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
        loop {
            let of_pool = self.pool.changed();
            let mut of_link = std::pin::pin!(self.shared.changed.notified());
            of_link.as_mut().enable();
            for session in self.pool.connected() {
                if served.insert(session.id().to_owned()) {
                    let (shared, secret) = (self.shared.clone(), self.secret.clone());
                    let run = async move {
                        let error = pipe::run(shared, session.clone(), secret).await;
                        if session.close_reason().is_none() && !error.is_of_relay() {
                            sleep(AGAIN).await;
                        }
                        (session.id().to_owned(), error)
                    };
                    pipes.spawn(run.in_current_span());
                }
            }
            let (stats, alone) = {
                let state = self.shared.lock();
                (state.link.stats(), state.link.alone_since())
            };
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
                Some(Ok((id, error))) = pipes.join_next() => {
                    tracing::debug!(session = id, %error, "a pipe is over");
                    if error.is_of_relay() {
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
