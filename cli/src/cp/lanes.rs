//! Lanes: tasks that process one queue, each over one session after the other.

use std::time::Duration;

use tokio::task::JoinSet;

use super::node::CopyError;
use crate::exit_code::Failure;

/// How many times in a row a lane may lose its session without progress.
const ATTEMPTS: u32 = 6;

/// Runs `count` lanes until all have ended. A fatal error ends the whole copy. A lane that lost its sessions ends alone; its error
/// is returned at the end.
pub(super) async fn run<F>(count: usize, lane: impl Fn(usize) -> F) -> Result<Option<Failure>, Failure>
where
    F: Future<Output = Result<(), CopyError>> + Send + 'static,
{
    let mut lanes = JoinSet::new();
    (0..count).for_each(|number| drop(lanes.spawn(lane(number))));
    let mut lost = None;
    while let Some(ended) = lanes.join_next().await {
        match ended.map_err(Failure::internal)? {
            Ok(()) => {}
            Err(CopyError::Lost(failure)) => lost = Some(failure),
            Err(CopyError::Fatal(failure)) => return Err(failure),
        }
    }
    Ok(lost)
}

/// How many times a lane has lost its session since its last progress.
#[derive(Debug, Default)]
pub(super) struct Losses(u32);

impl Losses {
    /// Starts counting again, because the lane has made progress.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }

    /// Counts a lost session and waits before the next one.
    ///
    /// # Errors
    /// Returns the error if a new session would not help, or after too many losses in a row.
    pub(super) async fn wait_for_retry(&mut self, error: CopyError) -> Result<(), CopyError> {
        self.0 += 1;
        match error {
            CopyError::Lost(failure) if self.0 < ATTEMPTS => {
                tracing::info!(%failure, "a session of the copy was lost");
                tokio::time::sleep(Duration::from_millis(250 << self.0.min(5))).await;
                Ok(())
            }
            error => Err(error),
        }
    }
}
