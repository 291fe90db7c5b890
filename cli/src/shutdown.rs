//! Requests to stop: Ctrl-C, SIGTERM, SIGHUP, a closed standard output, or another forward that failed.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::exit_code::ExitCode;
use crate::parent_process::{self, Parent};

/// The reason why the command must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP.
    HangUp,
    /// The reader of stdout has closed it.
    OutputClosed,
    /// Another forward of this command failed.
    Failed,
    /// `run`: the command that used the tunnels has ended.
    CommandEnded,
}

impl StopCause {
    /// Returns the exit code for a command that was stopped before it was ready.
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Interrupt => ExitCode::Interrupted,
            Self::Terminate => ExitCode::Terminated,
            Self::HangUp => ExitCode::HangUp,
            Self::OutputClosed | Self::Failed | Self::CommandEnded => ExitCode::Ok,
        }
    }
}

/// A request that all tasks stop. The first cause is kept. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown {
    cause: Arc<watch::Sender<Option<StopCause>>>,
    parent: Parent,
}

impl Shutdown {
    /// Creates a request that only [`stop`](Self::stop) triggers. Must be called before any signal handler is installed, because
    /// handlers hide which signals the parent made this process ignore.
    pub(crate) fn new() -> Self {
        Self { cause: Arc::new(watch::Sender::new(None)), parent: Parent::of_this_process() }
    }

    /// Creates a request that the signals of this process trigger. A second signal ends the process immediately.
    ///
    /// # Errors
    /// Returns an error if the signal handlers cannot be installed.
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

    /// Creates a request that SIGTERM and SIGHUP trigger, but not Ctrl-C, because keys are sent to the remote command.
    ///
    /// # Errors
    /// Returns an error if the signal handlers cannot be installed.
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

    /// Makes the next Ctrl-C end the process immediately.
    pub(crate) fn end_on_interrupt(&self) {
        let interrupted = interrupted();
        tokio::spawn(async move {
            interrupted.await;
            crate::terminal::restore();
            std::process::exit(ExitCode::Interrupted.number().into());
        });
    }

    /// Spawns a task that requests a stop when the parent process has ended, unless this process is detached. The returned handle
    /// aborts the task.
    pub(crate) fn watch_parent(&self) -> AbortHandle {
        let this = self.clone();
        let watching = tokio::spawn(async move {
            this.parent.gone().await;
            this.stop(StopCause::HangUp);
        });
        watching.abort_handle()
    }

    /// Completes when the parent process has ended. Never completes if this process is detached.
    pub(crate) async fn parent_gone(&self) {
        self.parent.gone().await;
    }

    /// Requests that all tasks stop. The first cause is kept.
    pub(crate) fn stop(&self, cause: StopCause) {
        self.cause.send_if_modified(|current| {
            let is_first = current.is_none();
            current.get_or_insert(cause);
            is_first
        });
    }

    /// Returns the cause, if a stop was requested.
    pub(crate) fn cause(&self) -> Option<StopCause> {
        *self.cause.borrow()
    }

    /// Waits until a stop is requested, and returns the cause.
    pub(crate) async fn requested(&self) -> StopCause {
        let mut cause = self.cause.subscribe();
        let found = cause.wait_for(Option::is_some).await.map(|cause| *cause);
        // Waiting cannot fail, because the sender is part of `self`.
        found.ok().flatten().unwrap_or(StopCause::Failed)
    }
}

/// Returns a future that completes at the first Ctrl-C after this call, even if the future is polled later.
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
    /// `None` if SIGHUP is ignored, as under nohup.
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
