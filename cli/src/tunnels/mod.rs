//! Tunnels: local listeners whose connections go through sessions. All commands open, run and end their tunnels with this module.

mod command;
mod tunnel;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{AwsProvider, ForwardStats};
use tokio::task::JoinSet;
use tracing::Span;

pub(crate) use command::{command, fail};
pub(crate) use tunnel::{Tracker, Tunnel, document, start_request};

use crate::args::TunnelArgs;
use crate::connect;
use crate::exit_code::Failure;
use crate::output::Reporter;
use crate::plan::Planned;
use crate::shutdown::{Shutdown, StopCause};

/// Time limit for ending the sessions after a stop was requested.
const GRACE: Duration = Duration::from_secs(5);

/// The failure that ended the command, and the index of the `-L` that caused it, if it was one of them.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) forward: Option<usize>,
    pub(crate) failure: Failure,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self { forward: None, failure }
    }
}

/// The tunnels of one command line. All of them listen; none has a session yet.
pub(crate) struct Tunnels {
    tunnels: Vec<Tunnel>,
    reporter: Reporter,
}

impl Tunnels {
    /// Opens all listeners.
    ///
    /// # Errors
    /// Returns an error if a listener cannot be opened or a file for a client cannot be written.
    pub(crate) async fn bind(
        args: &TunnelArgs,
        aws: &Arc<AwsProvider>,
        planned: Vec<Planned>,
        reporter: &Reporter,
    ) -> Result<Self, Ended> {
        let session = connect::session_config(aws, &args.aws.allow_stream_host, args.aws.stream_endpoint.clone())?;
        let mut tunnels = Vec::new();
        for (index, planned) in planned.into_iter().enumerate() {
            let tunnel = Tunnel::bind(index, args, &session, aws, planned, reporter).await;
            tunnels.push(tunnel.map_err(|failure| Ended { forward: Some(index), failure })?);
        }
        Ok(Self { tunnels, reporter: reporter.clone() })
    }

    /// Returns all tunnels.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.iter()
    }

    /// Returns the live figures of each tunnel, with the text of its `-L`.
    pub(crate) fn stats(&self) -> Vec<(String, ForwardStats)> {
        self.iter().map(|tunnel| (tunnel.spec().text.clone(), tunnel.stats())).collect()
    }

    /// Waits until all tunnels are ready.
    pub(crate) fn ready(&self) -> impl Future<Output = ()> + Send + use<> {
        let trackers = self.trackers();
        async move {
            for tracker in trackers {
                tracker.ready().await;
            }
        }
    }

    /// Serves until all tunnels have ended. The first failure, or `shutdown`, ends all of them. Returns whether all tunnels were
    /// ready at some time.
    ///
    /// # Errors
    /// Returns the first failure.
    pub(crate) async fn run(self, shutdown: &Shutdown) -> Result<bool, Ended> {
        let trackers = self.trackers();
        let several = self.tunnels.len() > 1;
        let runs = self.tunnels.into_iter().map(|tunnel| {
            // With several -L, a span adds the -L to each line of the log. With one -L there is no span, because a span costs a
            // little each time a task runs.
            let span = if several { tracing::warn_span!("forward", L = tunnel.spec().text) } else { Span::none() };
            tunnel.run(shutdown.clone(), span)
        });
        supervise(runs, shutdown).await?;
        warn_of_leftovers(&trackers, &self.reporter);
        Ok(trackers.iter().all(|tracker| tracker.state().was_ready))
    }

    fn trackers(&self) -> Vec<Tracker> {
        self.iter().map(Tunnel::tracker).collect()
    }
}

/// Runs all futures until the last one has ended. The first failure stops the others. After a stop was requested, waits for at most
/// [`GRACE`].
async fn supervise<F>(runs: impl Iterator<Item = F>, shutdown: &Shutdown) -> Result<(), Ended>
where
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let mut running: JoinSet<_> = runs.collect();
    let mut first = Ok(());
    let grace = async {
        shutdown.requested().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(grace);
    loop {
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            () = &mut grace => None,
        };
        let Some(ended) = ended else { return first };
        let result = ended.unwrap_or_else(|error| Err(Failure::internal(error).into()));
        if result.is_err() {
            shutdown.stop(StopCause::Failed);
        }
        first = first.and(result);
    }
}

fn warn_of_leftovers(trackers: &[Tracker], reporter: &Reporter) {
    for session_id in trackers.iter().filter_map(|tracker| tracker.state().session_id) {
        warn_of_leftover(&session_id, reporter);
    }
}

/// Prints a warning with the id of a session that did not end in time, so that the user can terminate it.
pub(crate) fn warn_of_leftover(session_id: &str, reporter: &Reporter) {
    reporter.warn(format!(
        "session {session_id} did not end in time; end it with: aws ssm terminate-session --session-id {session_id}"
    ));
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use ssm_forward::BoxFuture;

    use super::*;
    use crate::exit_code::ExitCode;

    fn failed(forward: usize, code: ExitCode) -> Ended {
        Ended { forward: Some(forward), failure: Failure::new(code, "test", "test") }
    }

    #[tokio::test]
    async fn the_first_failure_stops_the_others() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        let runs: [BoxFuture<'static, Result<(), Ended>>; 2] = [
            Box::pin(async move {
                other.requested().await;
                Err(failed(0, ExitCode::SessionLost))
            }),
            Box::pin(ready(Err(failed(1, ExitCode::Api)))),
        ];
        let ended = supervise(runs.into_iter(), &shutdown).await.unwrap_err();
        assert_eq!((ended.forward, ended.failure.code), (Some(1), ExitCode::Api));
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_is_bounded() {
        let shutdown = Shutdown::new();
        shutdown.stop(StopCause::Interrupt);
        let before = tokio::time::Instant::now();
        assert!(supervise([pending::<Result<(), Ended>>()].into_iter(), &shutdown).await.is_ok());
        assert_eq!(before.elapsed(), GRACE);
    }
}
