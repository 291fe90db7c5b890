//! The client's end of a relay: a program on the node that takes part in the tunnel (`docs/relay.md`).
//!
//! [`mod@place`] puts it there and starts it, [`pipes`] keeps a pipe to it through each session of the pool, [`stream`] is what a
//! connection reads and writes. The protocol itself is `ssm_proto::relay`.

mod pipe;
mod pipes;
mod place;
mod shared;
mod stream;

use std::sync::Arc;

pub(crate) use pipes::{Pipes, PipesEnd};
pub(crate) use place::{Placed, place};
pub(crate) use stream::{RelaySender, RelayStream};

use crate::{SessionConfig, SessionProvider, StartRequest};

/// A relay's program for one kind of machine.
#[derive(Clone, Copy, Debug)]
pub struct RelayProgram {
    /// As `uname -m` says, for example `x86_64`.
    pub machine: &'static str,
    /// The SHA-256 of the program, in lower-case hexadecimal digits.
    pub sha256: &'static str,
    /// The program, compressed by gzip.
    pub gzip: &'static [u8],
}

/// How a forwarder uses a relay on the node.
#[derive(Clone, Copy, Debug)]
pub struct RelayConfig {
    /// The programs that can be placed.
    pub programs: &'static [RelayProgram],
    /// Leave no file on the node.
    pub ephemeral: bool,
}

/// What [`relay_status`] and [`relay_remove`] found on a node: lines of a kind and its details.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayReport {
    /// One line each: `PATH BYTES` of a program that lies there, `PID PATH` of one that runs, or the path of a removed file.
    pub lines: Vec<String>,
}

/// Which relays lie and run on a node, of the user that sessions have there.
///
/// # Errors
/// In one line, why the node could not be asked.
pub async fn relay_status(
    provider: Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
) -> Result<RelayReport, String> {
    let lines = place::ask(&provider, request, session, &place::status_script()).await;
    Ok(RelayReport { lines: lines.map_err(|error| error.0)? })
}

/// Ends the relays of a node, of the user that sessions have there, and removes their files.
///
/// # Errors
/// In one line, why the node could not be asked.
pub async fn relay_remove(
    provider: Arc<dyn SessionProvider>,
    request: &StartRequest,
    session: &SessionConfig,
) -> Result<RelayReport, String> {
    let lines = place::ask(&provider, request, session, &place::remove_script()).await;
    Ok(RelayReport { lines: lines.map_err(|error| error.0)? })
}
