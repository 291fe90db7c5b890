//! Fault injection: what goes wrong, when, and for which messages.
//!
//! A [`Fault`] is an [`Effect`] and its schedule, [`When`]. It has a text form, `drop,probability=0.01,direction=down`,
//! which is the same on a command line, in a file and over the control endpoint. Everything random is derived from one
//! seed.
//!
//! The modules: `text` parses and writes faults, `schedule` decides when they act, `session` acts on a session's
//! messages and data channel, `armed` keeps the faults in force and answers for the API, the nodes and their agents.

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
    /// No faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything random is derived from this seed. Default: 0.
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

    /// Parses `{"seed": 7, "faults": ["drop,probability=0.01", …]}`; both members are optional.
    ///
    /// # Errors
    /// What is wrong with the JSON or with one of the faults.
    pub fn from_json(text: &str) -> Result<Self, FaultError> {
        serde_json::from_str(text).map_err(|error| FaultError::Json(error.to_string()))
    }

    /// Writes what [`Faults::from_json`] parses.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The faults, in the order in which they act on a message.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

/// One thing that goes wrong.
///
/// Its text form is `EFFECT[,key=value]…`, for example `drop,probability=0.01,direction=down`. The effect's name is that of
/// the variant of [`Effect`] in lower case, with hyphens (`black-hole`); further names are `bye` (a [`Close`](Effect::Close)
/// every hour, with AWS's reason), `drop-acks`, `expired-credentials` and `timed-out`. The keys are the fields of the effect
/// and of [`When`] (`lasts` is `for`), `direction` and `only`. `Display` writes this form; the module `fault_syntax`
/// describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// When.
    pub when: When,
    /// The direction of the messages concerned; used only by effects on messages.
    pub direction: Direction,
    /// The kind of the messages concerned; used only by effects on messages.
    pub only: Only,
}

impl Fault {
    /// The effect immediately, without an end and on everything; a message limit only on data, as AWS's is reported.
    pub fn new(effect: Effect) -> Self {
        let only = effect.usual_only();
        Self { effect, when: When::default(), direction: Direction::Both, only }
    }
}

/// When a fault acts.
///
/// A fault is active from `after` on, for the duration `lasts`, and again at each `every`. An event, such as a close,
/// happens at the start of this period. An effect on messages or calls acts on those that arrive during the period.
/// Times count from the session's first data channel, or from when the faults were set if that is later; for the API
/// and the nodes, from when they were set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct When {
    /// Start of the first period. Default: `every` if it is set, otherwise immediately.
    pub after: Option<Duration>,
    /// Duration of a period. Default: without an end.
    pub lasts: Option<Duration>,
    /// Interval between the starts of periods.
    pub every: Option<Duration>,
    /// Only each n-th message, call, connection or session. An event then happens by messages, not by time.
    pub nth: Option<u64>,
    /// Only with this probability, from 0 to 1. An event then happens by messages, too. Default: 1.
    pub probability: f64,
    /// Maximum number of times. Default: no limit; an event without `every` and `nth` happens once in any case.
    pub times: Option<u64>,
}

impl Default for When {
    fn default() -> Self {
        Self { after: None, lasts: None, every: None, nth: None, probability: 1.0, times: None }
    }
}

/// The direction of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Client to agent.
    Up,
    /// Agent to client.
    Down,
    /// Both directions.
    #[default]
    Both,
}

/// The kind of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Only {
    /// All messages.
    #[default]
    Any,
    /// Numbered messages.
    Data,
    /// Acknowledgements.
    Acks,
}

/// What goes wrong.
///
/// The effects from `Close` to `Stall`, from `PausePublication` to `End`, and on nodes (`RestartAgent`, `Reboot`) are events:
/// they happen at a time. Those from `Delay` to `Oversize` act on messages. Those from `AgentVersion` to `DeafDestination`
/// act on agents, `Api` on calls.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// The service closes the client's WebSocket; the session continues.
    Close {
        /// The close code.
        code: u16,
        /// The close frame's text.
        reason: String,
    },
    /// The client's TCP connection is reset.
    Reset,
    /// The client's WebSocket stays open, but nothing passes; even pings are not answered. A new WebSocket is not
    /// affected.
    BlackHole,
    /// Messages wait until the fault is over.
    Stall,
    /// Messages are late, in order.
    Delay {
        /// The delay.
        by: Duration,
        /// Upper limit of an additional random delay.
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
        /// How long a higher rate is tolerated, in whole seconds.
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
    /// Messages are overtaken by later ones.
    Reorder {
        /// The delay.
        by: Duration,
    },
    /// One bit of the payload is wrong.
    Corrupt,
    /// The header's digest is wrong.
    BadDigest,
    /// The header's length field is wrong.
    BadHeader,
    /// The payload is enlarged; lengths and digest are correct.
    Oversize {
        /// Number of bytes.
        bytes: usize,
    },
    /// The service sends pause_publication although the other end is connected. [`Direction::Up`]: to the agent;
    /// [`Direction::Down`]: to the client.
    PausePublication,
    /// start_publication, in the same way.
    StartPublication,
    /// The agent's data channel is gone: messages are lost in both directions. The client gets pause_publication, and
    /// start_publication at the end.
    AgentAway,
    /// The agent reads nothing.
    AgentDeaf,
    /// The session ends.
    End {
        /// As failed, not as terminated.
        failed: bool,
        /// The text in channel_closed.
        text: String,
    },
    /// All sessions end as failed; the nodes stay connected.
    RestartAgent {
        /// The text in channel_closed.
        text: String,
    },
    /// All sessions end as failed, and no node is connected until the fault is over ([`When::lasts`]; without it, never).
    Reboot {
        /// The text in channel_closed.
        text: String,
    },
    /// The agents of new sessions have another version.
    AgentVersion {
        /// The version.
        version: String,
    },
    /// The agents take longer to connect to a destination.
    SlowDial {
        /// The delay.
        by: Duration,
    },
    /// The agents cannot connect to a destination.
    FailDial,
    /// Destinations accept connections, but read nothing.
    DeafDestination,
    /// The SSM API gives another answer.
    Api {
        /// The operation, as in `StartSession`. Without one, all operations that the answer fits.
        operation: Option<String>,
        /// The answer.
        answer: ApiAnswer,
    },
}

/// What the API answers instead.
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
    /// No answer.
    Silence,
    /// StartSession, ResumeSession: without a token, as for a session that is over.
    NoToken,
    /// StartSession, ResumeSession: with a token that has expired.
    ExpiredToken,
    /// StartSession, ResumeSession: with another URL; the old one becomes invalid.
    NewUrl,
}

/// What applies an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    /// The session, to messages.
    Message,
    /// The session, at a point in time.
    Event,
    /// All nodes, at a point in time.
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

    /// The kind of messages concerned by default.
    fn usual_only(&self) -> Only {
        if matches!(self, Self::MessageLimit { .. }) { Only::Data } else { Only::Any }
    }

    /// Whether it happens at a point in time instead of acting on messages.
    pub(crate) fn is_event(&self) -> bool {
        matches!(self.actor(), Actor::Event | Actor::Nodes)
    }

    /// Whether it can happen immediately, to active sessions.
    pub(crate) fn can_strike(&self) -> bool {
        matches!(self.actor(), Actor::Message | Actor::Event | Actor::Nodes)
    }

    /// Whether the session applies it.
    fn is_of_session(&self) -> bool {
        matches!(self.actor(), Actor::Message | Actor::Event)
    }
}

/// `now + duration`, for durations from outside: durations longer than any test are shortened.
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
