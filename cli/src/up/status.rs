//! The status of tunnels, as it is sent over the control socket.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The phase of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Names are being looked up, or the first session is being started.
    #[default]
    Starting,
    /// Connections are served.
    Ready,
    /// The tunnel listens, and the next connection starts a session.
    Waiting,
    /// The data channel is being reopened, or a lost session is being replaced.
    Reconnecting,
    /// The tunnel failed, and will be opened again.
    Retrying,
    /// The user has paused the tunnel.
    Paused,
    /// The tunnel is being closed.
    Stopping,
}

impl Phase {
    /// Whether the tunnel accepts connections.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Ready | Self::Waiting | Self::Reconnecting)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Reconnecting => "reconnecting",
            Self::Retrying => "retrying",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        })
    }
}

/// The limits after which the service ends a session, from the account's preferences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Idle timeout in minutes; `None` for no timeout.
    pub(crate) idle_minutes: Option<u32>,
    /// Maximum duration of a session in minutes; `None` for no limit.
    pub(crate) max_minutes: Option<u32>,
}

/// The status of a tunnel of an `up`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The name of the tunnel.
    pub(crate) name: String,
    /// The current phase.
    pub(crate) state: Phase,
    /// The local address, once it is known.
    pub(crate) address: Option<String>,
    /// The destination.
    pub(crate) remote: String,
    /// The managed node of the session.
    pub(crate) target: Option<String>,
    /// The current session, if there is one.
    pub(crate) session_id: Option<String>,
    /// The last failure, until the tunnel is open again.
    pub(crate) error: Option<String>,
    /// Expiry time of the tunnel's credentials in the format of RFC 3339, if it is known.
    #[serde(default)]
    pub(crate) credentials_end: Option<String>,
    /// The limits of the tunnel's sessions, if they are known.
    #[serde(default)]
    pub(crate) limits: Option<Limits>,
    /// Whether a relay was requested. Connections through a relay outlive a session, but it is possible that the relay could not be
    /// started.
    #[serde(default)]
    pub(crate) relay: bool,
    /// How many times the tunnel was opened again.
    pub(crate) restarts: u64,
    /// The live figures, with the names of the statistics in JSON events.
    pub(crate) figures: Map<String, Value>,
}

impl Status {
    /// Returns one of the figures; 0 if it does not exist.
    pub(crate) fn figure(&self, name: &str) -> u64 {
        self.figures.get(name).and_then(Value::as_u64).unwrap_or_default()
    }
}

/// The status of an `up` process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProcessStatus {
    /// The process id.
    pub(crate) pid: u32,
    /// The working folder, in which the process has searched for the project's configuration file.
    pub(crate) folder: String,
    /// The tunnels of the process.
    pub(crate) tunnels: Vec<Status>,
}
