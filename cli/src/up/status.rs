//! What is known of a tunnel that is open, as it goes over the control socket.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Where a tunnel is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Names are looked up, or its first session starts.
    #[default]
    Starting,
    /// Connections are served.
    Ready,
    /// It listens; the next connection starts a session.
    Waiting,
    /// The data channel is being opened again.
    Reconnecting,
    /// It failed, and is tried again.
    Retrying,
    /// The user paused it.
    Paused,
    /// It is being closed.
    Stopping,
}

impl Phase {
    /// Whether the tunnel takes connections.
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

/// When the service ends a session, as the account's preferences say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// After so many minutes without data; `None`: never.
    pub(crate) idle_minutes: Option<u32>,
    /// After so many minutes in any case; `None`: never.
    pub(crate) max_minutes: Option<u32>,
}

/// A tunnel of an `up`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Its name.
    pub(crate) name: String,
    /// Where it is in its life.
    pub(crate) state: Phase,
    /// Where it listens, once that is known.
    pub(crate) address: Option<String>,
    /// Where it leads.
    pub(crate) remote: String,
    /// The managed node of the session.
    pub(crate) target: Option<String>,
    /// The session, while there is one.
    pub(crate) session_id: Option<String>,
    /// Why it failed, until it is open again.
    pub(crate) error: Option<String>,
    /// When the credentials with which it was opened end, as in RFC 3339, if that is known.
    #[serde(default)]
    pub(crate) credentials_end: Option<String>,
    /// When the service ends its sessions, if that is known.
    #[serde(default)]
    pub(crate) limits: Option<Limits>,
    /// Whether a relay was requested. Connections through a relay outlive a session; the node may have none.
    #[serde(default)]
    pub(crate) relay: bool,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// The live figures, by the names that `--metrics` has.
    pub(crate) figures: Map<String, Value>,
}

impl Status {
    /// One of the figures; 0 if there is none.
    pub(crate) fn figure(&self, name: &str) -> u64 {
        self.figures.get(name).and_then(Value::as_u64).unwrap_or_default()
    }
}

/// All tunnels of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProcessStatus {
    /// The process.
    pub(crate) pid: u32,
    /// Its folder: where it looked for the project's file.
    pub(crate) folder: String,
    /// Its tunnels.
    pub(crate) tunnels: Vec<Status>,
}
