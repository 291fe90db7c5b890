//! Terminates sessions at the API, even if no task waits for this.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument as _;

use crate::SessionProvider;

/// Timeout of one call.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// The API calls that terminate sessions. These are the calls of [`Session::terminate`](crate::Session::terminate), and background
/// calls for sessions that were dropped or whose start was cancelled.
///
/// Each [`SessionConfig`](crate::SessionConfig) has one instance, which the clones of the configuration share. A program that may
/// drop sessions must wait for it before its runtime ends, because the calls end with the runtime:
///
/// ```no_run
/// # use ssm_forward::{SessionConfig, Terminations};
/// # async fn run() {
/// let config = SessionConfig::default();
/// let terminations = config.terminations.clone();
/// // … sessions are started with `config`, and some are dropped …
/// terminations.finished().await;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Terminations(Arc<watch::Sender<usize>>);

impl Default for Terminations {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Terminations {
    /// Waits until all calls have ended, for at most three seconds.
    pub async fn finished(&self) {
        let mut pending = self.0.subscribe();
        let _ = timeout(TIMEOUT, pending.wait_for(|pending| *pending == 0)).await;
    }

    fn begin(&self) -> Pending {
        self.0.send_modify(|pending| *pending += 1);
        Pending(self.clone())
    }
}

/// Counts as one call while it exists.
struct Pending(Terminations);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.0.send_modify(|pending| *pending -= 1);
    }
}

/// A granted session. Terminates it at the API once, when requested or when it is dropped.
pub(super) struct Granted {
    provider: Arc<dyn SessionProvider>,
    session_id: Option<String>,
    terminations: Terminations,
    /// The runtime that makes the call when this value is dropped, because any thread can drop it.
    runtime: Handle,
}

impl Granted {
    /// Creates the value. Must be called within a runtime.
    pub(super) fn new(provider: Arc<dyn SessionProvider>, session_id: String, terminations: Terminations) -> Self {
        Self { provider, session_id: Some(session_id), terminations, runtime: Handle::current() }
    }

    /// Terminates the session. The call continues if this future is dropped.
    pub(super) async fn terminate(&mut self) {
        if let Some(call) = self.call() {
            let _ = call.await;
        }
    }

    fn call(&mut self) -> Option<JoinHandle<()>> {
        let session_id = self.session_id.take()?;
        let (provider, pending) = (self.provider.clone(), self.terminations.begin());
        let call = async move {
            terminate(provider, session_id).await;
            drop(pending);
        };
        Some(self.runtime.spawn(call.in_current_span()))
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        drop(self.call());
    }
}

async fn terminate(provider: Arc<dyn SessionProvider>, session_id: String) {
    match timeout(TIMEOUT, provider.terminate(&session_id)).await {
        Ok(Ok(())) => tracing::debug!(session_id, "session terminated"),
        Ok(Err(error)) => tracing::warn!(session_id, %error, "the session could not be terminated"),
        Err(_) => tracing::warn!(session_id, "terminating the session took too long"),
    }
}
