//! Terminates sessions at the API, including those that nobody waits for any more.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::SessionProvider;

/// Timeout of one call.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// Number of calls in the background that are not finished.
static PENDING: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Waits until abandoned sessions (for example by a future that was dropped early) are terminated at the API; at most
/// three seconds. To be called before the runtime ends, because the calls end with it.
pub async fn settle() {
    let mut pending = PENDING.subscribe();
    let _ = timeout(TIMEOUT, pending.wait_for(|pending| *pending == 0)).await;
}

/// A granted session. Terminates it at the API once, when requested or when it is dropped.
pub(super) struct Granted {
    provider: Arc<dyn SessionProvider>,
    session_id: Option<String>,
    /// The runtime for the call when it is dropped, by whichever thread.
    runtime: Handle,
}

impl Granted {
    /// Must be called within a runtime.
    pub(super) fn new(provider: Arc<dyn SessionProvider>, session_id: String) -> Self {
        Self { provider, session_id: Some(session_id), runtime: Handle::current() }
    }

    pub(super) async fn terminate(&mut self) {
        if let Some(session_id) = self.session_id.take() {
            let _pending = Pending::new();
            terminate(self.provider.clone(), session_id).await;
        }
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(session_id) = self.session_id.take() {
            let (provider, pending) = (self.provider.clone(), Pending::new());
            self.runtime.spawn(async move {
                terminate(provider, session_id).await;
                drop(pending);
            });
        }
    }
}

/// Counts as pending while it exists.
struct Pending;

impl Pending {
    fn new() -> Self {
        PENDING.send_modify(|pending| *pending += 1);
        Self
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        PENDING.send_modify(|pending| *pending -= 1);
    }
}

async fn terminate(provider: Arc<dyn SessionProvider>, session_id: String) {
    match timeout(TIMEOUT, provider.terminate(&session_id)).await {
        Ok(Ok(())) => tracing::debug!(session_id, "session terminated"),
        Ok(Err(error)) => tracing::warn!(session_id, %error, "the session could not be terminated"),
        Err(_) => tracing::warn!(session_id, "terminating the session took too long"),
    }
}
