//! Several sessions that work off one queue.

use std::time::Duration;

use tokio::task::JoinSet;

use super::node::Trouble;
use crate::exit_code::Failure;

/// So often in a row a lane may lose its session without getting on.
const ATTEMPTS: u32 = 6;

/// Runs `count` lanes to their end. What can't be helped ends all; a lane that lost its sessions ends alone, and is told about at the
/// end.
pub(super) async fn run<F>(count: usize, lane: impl Fn(usize) -> F) -> Result<Option<Failure>, Failure>
where
    F: Future<Output = Result<(), Trouble>> + Send + 'static,
{
    let mut lanes = JoinSet::new();
    (0..count).for_each(|number| drop(lanes.spawn(lane(number))));
    let mut lost = None;
    while let Some(ended) = lanes.join_next().await {
        match ended.map_err(Failure::internal)? {
            Ok(()) => {}
            Err(Trouble::Lost(failure)) => lost = Some(failure),
            Err(Trouble::Fatal(failure)) => return Err(failure),
        }
    }
    Ok(lost)
}

/// How often a lane lost its session since it last got on.
#[derive(Debug, Default)]
pub(super) struct Losses(u32);

impl Losses {
    /// It got on.
    pub(super) fn forget(&mut self) {
        self.0 = 0;
    }

    /// Waits before the next session; gives what can't be helped back.
    pub(super) async fn bear(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        self.0 += 1;
        match trouble {
            Trouble::Lost(failure) if self.0 < ATTEMPTS => {
                tracing::info!(%failure, "a session of the copy is lost");
                tokio::time::sleep(Duration::from_millis(250 << self.0.min(5))).await;
                Ok(())
            }
            trouble => Err(trouble),
        }
    }
}
