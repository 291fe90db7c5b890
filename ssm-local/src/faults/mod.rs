//! Faults on demand: what goes wrong, when, and for which messages.
//!
//! A [`Fault`] is an [`Effect`] and its moment, [`When`]. It is written as text, `drop,probability=0.01,direction=down`,
//! the same on a command line, in a file and over the control endpoint. Everything random follows from one seed.
//!
//! The rooms: `text` reads and writes faults, `schedule` says when, `session` acts on a session's messages and data
//! channel, `armed` keeps what is in force and answers for the API, the nodes and their agents.

mod armed;
mod line;
mod mangle;
mod schedule;
mod session;
mod text;

pub(crate) use armed::Armed;
pub(crate) use session::{Action, SessionFaults};
pub use text::FaultError;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Faults that are in force together.
///
/// ```
/// use ssm_local::Faults;
///
/// let faults = Faults::new().seed(7).with("drop,probability=0.01".parse()?).with("bye,every=30s".parse()?);
/// assert_eq!(Faults::from_json(&faults.to_json())?, faults);
/// # Ok::<(), ssm_local::FaultError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    seed: u64,
    faults: Vec<Fault>,
}

impl Faults {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything random follows from this. Default: 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Adds a fault.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Reads `{"seed": 7, "faults": ["drop,probability=0.01", …]}`; both may be missing.
    ///
    /// # Errors
    /// What is wrong with the JSON or with one of the faults.
    pub fn from_json(text: &str) -> Result<Self, FaultError> {
        serde_json::from_str(text).map_err(|error| FaultError::Json(error.to_string()))
    }

    /// Writes what [`Faults::from_json`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The faults, in the order in which they act on a message.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

/// One thing that goes wrong. Its text form is described in `docs/faults.md`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// When.
    pub when: When,
    /// To which messages; only effects on messages look at it.
    pub direction: Direction,
    /// Likewise.
    pub only: Only,
}

impl Fault {
    /// The effect at once, for good and on everything; a limit of messages on data only, as AWS's is reported.
    pub fn new(effect: Effect) -> Self {
        let only = effect.usual_only();
        Self { effect, when: When::default(), direction: Direction::Both, only }
    }
}

/// When a fault acts.
///
/// It is open from `after` on, for `lasts`, and again each `every`. An event, such as a close, happens at the start of
/// that time; an effect on messages or calls acts on those that come in it. Times count from the session's first data
/// channel, or from when the faults were set if that is later; for the API and the nodes, from when they were set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct When {
    /// Begins after so long. Default: `every` if there is one, else at once.
    pub after: Option<Duration>,
    /// Lasts so long. Default: for good.
    pub lasts: Option<Duration>,
    /// Begins again and again.
    pub every: Option<Duration>,
    /// On each n-th message, call, connection or session only; makes an event happen by messages, not by the clock.
    pub nth: Option<u64>,
    /// With this probability, from 0 to 1; likewise. Default: 1.
    pub probability: f64,
    /// So many times at most. Default: without limit; an event without `every` and `nth` happens once anyhow.
    pub times: Option<u64>,
}

impl Default for When {
    fn default() -> Self {
        Self { after: None, lasts: None, every: None, nth: None, probability: 1.0, times: None }
    }
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Client to agent.
    Up,
    /// Agent to client.
    Down,
    /// Either way.
    #[default]
    Both,
}

/// Which kind of message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Only {
    /// Every message that passes.
    #[default]
    Any,
    /// Numbered messages.
    Data,
    /// Acknowledgements.
    Acks,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// The service closes the client's WebSocket; the session lives on.
    Close {
        /// The close code.
        code: u16,
        /// The close frame's text.
        reason: String,
    },
    /// The client's TCP connection is reset.
    Reset,
    /// The client's WebSocket stays open, but nothing moves: not even pings are answered. A new WebSocket is free of it.
    BlackHole,
    /// Messages wait until it is over.
    Stall,
    /// Messages are late, in order.
    Delay {
        /// By so much.
        by: Duration,
        /// And by up to so much more.
        jitter: Duration,
    },
    /// Messages take as long as their bytes need at this rate.
    Rate {
        /// Bytes per second.
        bytes: u64,
    },
    /// The service closes a WebSocket that carries too many messages for too long, as AWS's is reported to do.
    MessageLimit {
        /// Messages per second, both directions together.
        limit: u64,
        /// It is borne for so long, in whole seconds.
        bear: Duration,
        /// The close code.
        code: u16,
        /// The close frame's text.
        reason: String,
    },
    /// Messages are lost.
    Drop,
    /// Messages arrive twice.
    Duplicate,
    /// Messages are overtaken by those that follow.
    Reorder {
        /// They are late by so much.
        by: Duration,
    },
    /// One bit of the payload is wrong.
    Corrupt,
    /// The header's digest is wrong.
    BadDigest,
    /// The header's length field is wrong.
    BadHeader,
    /// The payload is blown up; lengths and digest are right.
    Oversize {
        /// To so many bytes.
        bytes: usize,
    },
    /// pause_publication though nobody left: `up` tells the agent, `down` the client.
    PausePublication,
    /// start_publication, likewise.
    StartPublication,
    /// The agent's data channel is gone: messages are lost both ways, the client gets pause_publication, and
    /// start_publication when it is back.
    AgentAway,
    /// The agent reads nothing.
    AgentDeaf,
    /// The session ends.
    End {
        /// As failed, not as terminated.
        failed: bool,
        /// What channel_closed says.
        text: String,
    },
    /// All sessions end as failed; the nodes stay connected.
    RestartAgent {
        /// What channel_closed says.
        text: String,
    },
    /// All sessions end as failed, and no node is connected until it is over.
    Reboot {
        /// What channel_closed says.
        text: String,
    },
    /// The agents of sessions that start have another version.
    AgentVersion {
        /// This one.
        version: String,
    },
    /// The agents take longer to connect to a destination.
    SlowDial {
        /// By so much.
        by: Duration,
    },
    /// The agents can't connect to a destination.
    FailDial,
    /// Destinations take connections, but read nothing.
    DeafDestination,
    /// The SSM API answers otherwise.
    Api {
        /// This operation; all that the answer fits if there is none.
        operation: Option<String>,
        /// How.
        answer: ApiAnswer,
    },
}

/// How the API answers instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApiAnswer {
    /// 400 ExpiredTokenException: the credentials have expired.
    ExpiredCredentials,
    /// 403 AccessDeniedException.
    Forbidden,
    /// 500 InternalServerError.
    Error,
    /// 503 ServiceUnavailable.
    Unavailable,
    /// 400 ThrottlingException.
    Throttled,
    /// Not at all.
    Silence,
    /// StartSession, ResumeSession: without a token, as for a session that is over.
    NoToken,
    /// StartSession, ResumeSession: with a token that has expired.
    ExpiredToken,
    /// StartSession, ResumeSession: with another URL; the one before is void.
    NewUrl,
}

/// Who acts out an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    /// The session, on messages.
    Message,
    /// The session, at a moment.
    Event,
    /// All nodes, at a moment.
    Nodes,
    /// The agents.
    Agent,
    Api,
}

impl Effect {
    fn actor(&self) -> Actor {
        match self {
            Self::Delay { .. }
            | Self::Rate { .. }
            | Self::MessageLimit { .. }
            | Self::Drop
            | Self::Duplicate
            | Self::Reorder { .. }
            | Self::Corrupt
            | Self::BadDigest
            | Self::BadHeader
            | Self::Oversize { .. } => Actor::Message,
            Self::Close { .. }
            | Self::Reset
            | Self::BlackHole
            | Self::Stall
            | Self::PausePublication
            | Self::StartPublication
            | Self::AgentAway
            | Self::AgentDeaf
            | Self::End { .. } => Actor::Event,
            Self::RestartAgent { .. } | Self::Reboot { .. } => Actor::Nodes,
            Self::AgentVersion { .. } | Self::SlowDial { .. } | Self::FailDial | Self::DeafDestination => Actor::Agent,
            Self::Api { .. } => Actor::Api,
        }
    }

    /// The messages that it is about unless others are named.
    fn usual_only(&self) -> Only {
        if matches!(self, Self::MessageLimit { .. }) { Only::Data } else { Only::Any }
    }

    /// Whether it happens at a moment instead of to what passes.
    pub(crate) fn is_event(&self) -> bool {
        matches!(self.actor(), Actor::Event | Actor::Nodes)
    }

    /// Whether it can happen at once, to the sessions that live.
    pub(crate) fn can_strike(&self) -> bool {
        matches!(self.actor(), Actor::Message | Actor::Event | Actor::Nodes)
    }

    /// Whether it is the session's own.
    fn is_of_session(&self) -> bool {
        matches!(self.actor(), Actor::Message | Actor::Event)
    }
}

/// `now + duration`, for durations from outside: longer ones than any test are cut.
fn later(now: Instant, duration: Duration) -> Instant {
    now + duration.min(TEN_YEARS)
}

const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Direction {
    fn covers(self, one: Self) -> bool {
        self == Self::Both || self == one
    }
}

impl Only {
    fn covers(self, acknowledgement: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Data => !acknowledgement,
            Self::Acks => acknowledgement,
        }
    }
}
