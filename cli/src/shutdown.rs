//! When to stop: Ctrl-C, SIGTERM, SIGHUP, a reader that is gone, or another forward that failed.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::exit_code::ExitCode;
use crate::parent_process::{self, Parent};

/// Why the command must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP.
    HangUp,
    /// Nobody reads stdout any more.
    OutputClosed,
    /// Another forward of this command failed.
    Failed,
    /// The command that used the tunnels has ended.
    CommandEnded,
}

impl StopCause {
    /// The exit code if the command was not ready yet.
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Interrupt => ExitCode::Interrupted,
            Self::Terminate => ExitCode::Terminated,
            Self::HangUp => ExitCode::HangUp,
            Self::OutputClosed | Self::Failed | Self::CommandEnded => ExitCode::Ok,
        }
    }
}

/// Tells all tasks to stop, once. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown {
    cause: Arc<watch::Sender<Option<StopCause>>>,
    parent: Parent,
}

impl Shutdown {
    /// Creates one that only [`stop`](Self::stop) triggers. Must be called before any signal handler is installed:
    /// handlers hide which signals the parent made this process ignore.
    pub(crate) fn new() -> Self {
        Self { cause: Arc::new(watch::Sender::new(None)), parent: Parent::of_this_process() }
    }

    /// Creates one that the signals of this process trigger. A second signal ends the process immediately.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub(crate) fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut signals = Signals::install()?;
        let this = shutdown.clone();
        tokio::spawn(async move {
            this.stop(signals.next().await);
            let cause = signals.next().await;
            crate::terminal::restore();
            std::process::exit(cause.exit_code().number().into());
        });
        Ok(shutdown)
    }

    /// Creates one that SIGTERM and SIGHUP trigger, but no key, because keys are for the far side.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub(crate) fn on_signals_but_keys() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut signals = Signals::install()?;
        let this = shutdown.clone();
        tokio::spawn(async move {
            loop {
                match signals.next().await {
                    StopCause::Interrupt => {}
                    cause if this.cause().is_some() => {
                        crate::terminal::restore();
                        std::process::exit(cause.exit_code().number().into())
                    }
                    cause => this.stop(cause),
                }
            }
        });
        Ok(shutdown)
    }

    /// From now on the next Ctrl-C ends the process immediately.
    pub(crate) fn end_on_interrupt(&self) {
        let interrupted = interrupted();
        tokio::spawn(async move {
            interrupted.await;
            crate::terminal::restore();
            std::process::exit(ExitCode::Interrupted.number().into());
        });
    }

    /// Stops when the process that started this one is gone, unless it detached this one. Ends when the task is
    /// aborted.
    pub(crate) fn watch_parent(&self) -> AbortHandle {
        let this = self.clone();
        let watching = tokio::spawn(async move {
            this.parent.gone().await;
            this.stop(StopCause::HangUp);
        });
        watching.abort_handle()
    }

    /// Completes when the process that started this one is gone, unless it detached this one.
    pub(crate) async fn parent_gone(&self) {
        self.parent.gone().await;
    }

    /// Asks all tasks to stop; the first cause is kept.
    pub(crate) fn stop(&self, cause: StopCause) {
        self.cause.send_if_modified(|current| {
            let is_first = current.is_none();
            current.get_or_insert(cause);
            is_first
        });
    }

    /// The cause, if a stop was requested.
    pub(crate) fn cause(&self) -> Option<StopCause> {
        *self.cause.borrow()
    }

    /// Completes when a stop is requested.
    pub(crate) async fn requested(&self) -> StopCause {
        let mut cause = self.cause.subscribe();
        let found = cause.wait_for(Option::is_some).await.map(|cause| *cause);
        // The sender is part of `self`, so it still exists.
        found.ok().flatten().unwrap_or(StopCause::Failed)
    }
}

/// Completes with the next Ctrl-C after the call, even if it is polled later.
pub(crate) fn interrupted() -> impl Future<Output = ()> + Send + 'static {
    let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    async move {
        match signal {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None` under nohup.
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if parent_process::ignores(rustix::process::Signal::HUP) {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    async fn next(&mut self) -> StopCause {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => StopCause::Interrupt,
            _ = self.terminate.recv() => StopCause::Terminate,
            _ = hang_up => StopCause::HangUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_cause_counts_and_everybody_hears_it() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        let waiting = tokio::spawn(async move { other.requested().await });
        assert_eq!(shutdown.cause(), None);
        shutdown.stop(StopCause::Terminate);
        shutdown.stop(StopCause::Interrupt);
        assert_eq!(waiting.await.unwrap(), StopCause::Terminate);
        assert_eq!(shutdown.requested().await, StopCause::Terminate);
        assert_eq!(shutdown.cause(), Some(StopCause::Terminate));
    }
}
