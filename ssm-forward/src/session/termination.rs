//! Ending sessions at the API, also those that nobody waits for any more.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::SessionProvider;

/// How long one call may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// Calls in the background that are not over.
static PENDING: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Waits until sessions that were given up (by a future that was dropped half-way, say) are terminated at the API; at most
/// three seconds. To be called before the runtime ends: the calls end with it.
pub async fn settle() {
    let mut pending = PENDING.subscribe();
    let _ = timeout(TIMEOUT, pending.wait_for(|pending| *pending == 0)).await;
}

/// A session that was granted. Terminates it at the API once, when told to or when it is dropped.
pub(super) struct Granted {
    provider: Arc<dyn SessionProvider>,
    session_id: Option<String>,
    /// Where to do so when it is dropped, by whichever thread.
    runtime: Handle,
}

impl Granted {
    /// Within a runtime.
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

/// Counts while it lives.
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
