//! The task that drives a session, over as many WebSockets as necessary.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::{Instant, sleep};

use super::connection::{Connection, Outcome};
use super::pace::Backoff;
use super::resume::ChannelDialer;
use super::shared::SharedSession;
use super::{SessionConfig, SessionNotice};
use crate::CloseReason;
use crate::transport::{Transport, TransportError};

/// The callback for a session's notices.
pub(super) type Notify = Box<dyn Fn(SessionNotice) + Send + Sync>;

/// Drives a session until it ends, over as many WebSockets as necessary.
pub(super) async fn run(
    shared: Arc<SharedSession>,
    first: Transport,
    mut dialer: ChannelDialer,
    config: SessionConfig,
    notify: Notify,
) {
    // If the driver panics, streams must not wait forever.
    let _end = EndOnDrop(shared.clone());
    let mut transport = first;
    shared.lock().set_connected(true);
    let mut backoff = Backoff::new(config.retry);
    let reason = loop {
        let (since, before) = (Instant::now(), shared.lock().progress());
        let connection = Connection::new(&shared, dialer.provider(), transport, config.liveness, &*notify);
        let cause = match connection.run().await {
            Outcome::Ended(reason) => break reason,
            Outcome::Lost(cause) => cause,
        };
        backoff.lost(since.elapsed(), shared.lock().progress() != before);
        match reconnect(&shared, &mut dialer, &*notify, cause, &mut backoff).await {
            Ok(next) => transport = next,
            Err(reason) => break reason,
        }
    };
    shared.end(reason);
}

struct EndOnDrop(Arc<SharedSession>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(CloseReason::Panicked);
    }
}

async fn reconnect(
    shared: &SharedSession,
    dialer: &mut ChannelDialer,
    notify: &(dyn Fn(SessionNotice) + Send + Sync),
    cause: TransportError,
    backoff: &mut Backoff,
) -> Result<Transport, CloseReason> {
    let since = Instant::now();
    let mut cause = cause.to_string();
    for attempt in 1.. {
        let delay = backoff.next();
        tracing::info!(cause, attempt, ?delay, "reconnecting");
        notify(SessionNotice::Reconnecting { cause: cause.clone(), attempt, delay });
        let resumed = tokio::select! {
            resumed = async { sleep(delay).await; dialer.resume().await } => resumed,
            () = terminating(shared) => return Err(CloseReason::Terminated),
        };
        match resumed {
            Ok(transport) => {
                let mut state = shared.lock();
                state.reconnects += 1;
                state.set_connected(true);
                drop(state);
                notify(SessionNotice::Reconnected { outage: since.elapsed() });
                return Ok(transport);
            }
            Err(error) if error.is_temporary() => cause = error.to_string(),
            Err(error) => return Err(CloseReason::Lost(error)),
        }
    }
    unreachable!("the attempts have no end")
}

async fn terminating(shared: &SharedSession) {
    poll_fn(|cx| {
        let mut state = shared.lock();
        if state.terminating || state.ended.is_some() {
            return Poll::Ready(());
        }
        state.set_driver(cx.waker());
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ssm_proto::{ClientConfig, Clock, Session};

    use super::*;
    use crate::session::Driver;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_driver_that_is_dropped_has_not_panicked() {
        for _ in 0..2000 {
            let clock = Clock { start: Instant::now().into_std(), unix: Duration::ZERO };
            let shared = Arc::new(SharedSession::new(Session::client(ClientConfig::default(), clock, 1)));
            let end = EndOnDrop(shared.clone());
            let run = async move {
                let _end = end;
                std::future::pending().await
            };
            drop(Driver { task: tokio::spawn(run), shared: shared.clone() });
            assert_eq!(shared.ended().await, CloseReason::Terminated);
        }
    }
}
