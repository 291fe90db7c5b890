//! Timeouts of the steps of opening a connection.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// Timeout for resolving a name.
pub(super) const RESOLVE: Duration = Duration::from_secs(10);
/// Timeout for TCP to one address of several.
pub(super) const ADDRESS: Duration = Duration::from_secs(10);
/// Timeout for the negotiation with a proxy until the tunnel is open.
pub(super) const PROXY: Duration = Duration::from_secs(10);
/// Timeout for the TLS handshake, with a proxy or with the destination.
pub(super) const TLS: Duration = Duration::from_secs(10);
/// Timeout for the upgrade of HTTP to a WebSocket.
pub(super) const UPGRADE: Duration = Duration::from_secs(10);

/// The time at which all steps together must be finished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn within(total: Duration) -> Self {
        Self(Instant::now() + total)
    }

    /// Runs one step, for at most `limit` and not beyond the deadline.
    pub(super) async fn step<T>(self, limit: Duration, step: impl Future<Output = T>) -> Result<T, Late> {
        let began = Instant::now();
        let limit = limit.min(self.0.saturating_duration_since(began));
        timeout(limit, step).await.map_err(|_| Late(began.elapsed()))
    }
}

/// The error of a step that did not finish in time. Displayed as the time that the step had.
#[derive(Debug)]
pub(super) struct Late(Duration);

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f32())
    }
}
