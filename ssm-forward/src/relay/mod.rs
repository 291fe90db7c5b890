//! The client's end of a relay: a program on the node that takes part in the tunnel (`docs/relay.md`).
//!
//! [`mod@place`] copies and starts the relay, [`pipes`] keeps a pipe to it in each session of the pool, [`feeds`] adds command
//! sessions for downloads when [`feed_plan`] decides so, and [`stream`] is a connection through the relay. The protocol itself is
//! `ssm_proto::relay`.

mod feed;
mod feed_plan;
mod feeds;
mod pipe;
mod pipes;
mod place;
mod shared;
mod stream;

use std::sync::Arc;

pub(crate) use feed::FeedSource;
pub(crate) use feeds::Feeds;
pub(crate) use pipes::{Pipes, PipesEnd};
pub(crate) use place::{Placed, place};
pub(crate) use stream::{RelaySender, RelayStream};

use crate::{SessionConfig, SessionProvider, StartRequest};

/// The relay program for one kind of machine.
#[derive(Clone, Copy, Debug)]
pub struct RelayProgram {
    /// The output of `uname -m`, for example `x86_64`.
    pub machine: &'static str,
    /// The SHA-256 of the program, in lower-case hexadecimal digits.
    pub sha256: &'static str,
    /// The program, compressed by gzip.
    pub gzip: &'static [u8],
}

/// How a forwarder uses a relay on the node.
#[derive(Clone, Copy, Debug)]
pub struct RelayConfig {
    /// The relay programs that can be placed on nodes.
    pub programs: &'static [RelayProgram],
    /// Whether to leave no file on the node.
    pub ephemeral: bool,
    /// Whether downloads also use command sessions if these make them faster. The agent does not slow down the output of such
    /// sessions.
    pub feeds: bool,
}

/// The findings of [`relay_status`] and [`relay_remove`] on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayReport {
    /// One line for each item: `PATH BYTES` for a program's file, `PID PATH` for a running program, or the path of a removed file.
    pub lines: Vec<String>,
}

/// Lists the files and running relays of the sessions' user on a node.
///
/// # Errors
/// Returns in one line why the node could not be queried.
pub async fn relay_status(
    provider: Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
) -> Result<RelayReport, String> {
    let lines = place::run_script(&provider, request, session, &place::status_script()).await;
    Ok(RelayReport { lines: lines.map_err(|error| error.0)? })
}

/// Stops the relays of the sessions' user on a node, and removes their files.
///
/// # Errors
/// Returns in one line why the node could not be reached.
pub async fn relay_remove(
    provider: Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
) -> Result<RelayReport, String> {
    let lines = place::run_script(&provider, request, session, &place::remove_script()).await;
    Ok(RelayReport { lines: lines.map_err(|error| error.0)? })
}
