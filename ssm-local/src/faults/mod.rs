//! Fault injection: the kinds of faults, their times, and the messages that they concern.
//!
//! A [`Fault`] is an [`Effect`] and its schedule, [`When`]. Its text form, `drop,probability=0.01,direction=down`, is the same on a
//! command line, in a file and over the control endpoint. All random decisions are derived from one seed.
//!
//! The modules: `text` parses and formats faults, `schedule` decides when they act, `session` acts on a session's messages and data
//! channel, `armed` stores the faults in force and answers for the API, the nodes and their agents.

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

/// A set of faults that are in force together.
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
    /// Creates an empty set of faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the seed from which all random decisions are derived. Default: 0.
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
    /// Returns an error if the JSON or one of the faults is invalid.
    pub fn from_json(text: &str) -> Result<Self, FaultError> {
        serde_json::from_str(text).map_err(|error| FaultError::Json(error.to_string()))
    }

    /// Formats the faults as JSON that [`Faults::from_json`] parses.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the faults, in the order in which they act on a message.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

/// A fault: an effect and its schedule.
///
/// The text form is `EFFECT[,key=value]…`, for example `drop,probability=0.01,direction=down`. The effect's name is the name of the
/// variant of [`Effect`] in lower case, with hyphens (`black-hole`). Further names are `bye` (a [`Close`](Effect::Close) every
/// hour, with AWS's reason), `drop-acks`, `expired-credentials` and `timed-out`. The keys are the fields of the effect and of
/// [`When`] (`lasts` is `for`), `direction` and `only`. `Display` formats this form; the module `fault_syntax` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    /// The effect.
    pub effect: Effect,
    /// The schedule.
    pub when: When,
    /// The direction of the affected messages; used only by effects on messages.
    pub direction: Direction,
    /// The kind of the affected messages; used only by effects on messages.
    pub only: Only,
}

impl Fault {
    /// Creates a fault that acts immediately, without an end and on all messages. A message limit acts only on data, as AWS's limit
    /// is reported to do.
    pub fn new(effect: Effect) -> Self {
        let only = effect.usual_only();
        Self { effect, when: When::default(), direction: Direction::Both, only }
    }
}

/// The schedule of a fault.
///
/// A fault is active from `after` on, for the duration `lasts`, and again at each `every`. An event, such as a close, happens at
/// the start of this period. An effect on messages or calls acts on those that arrive during the period. Times count from the
/// session's first data channel, or from the time at which the faults were set if that is later. For the API and the nodes, times
/// count from the time at which the faults were set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct When {
    /// Start of the first period. Default: `every` if it is set, otherwise immediately.
    pub after: Option<Duration>,
    /// Duration of a period. Default: no end.
    pub lasts: Option<Duration>,
    /// Interval between the starts of periods.
    pub every: Option<Duration>,
    /// Act only on each n-th message, call, connection or session. An event then happens when a message arrives, not at a time.
    pub nth: Option<u64>,
    /// Probability of acting, from 0 to 1. If it is set, an event also happens when a message arrives. Default: 1.
    pub probability: f64,
    /// Maximum number of times that the fault acts. Default: no limit, but an event without `every` and `nth` always happens only
    /// once.
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
    /// From the client to the agent.
    Up,
    /// From the agent to the client.
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

/// The effect of a fault.
///
/// The effects from `Close` to `Stall`, from `PausePublication` to `End`, and on nodes (`RestartAgent`, `Reboot`) are events: they
/// happen at a point in time. The effects from `Delay` to `ProcessTwice` act on messages, the effects from `AgentVersion` to
/// `DeafDestination` act on agents, and `Api` acts on calls.
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
    /// The client's WebSocket stays open, but no data passes; even pings are not answered. A new WebSocket is not affected.
    BlackHole,
    /// Messages wait until the fault is over.
    Stall,
    /// Messages are delayed; their order is kept.
    Delay {
        /// The delay.
        by: Duration,
        /// Upper limit of an additional random delay.
        jitter: Duration,
    },
    /// Messages take as long as their size needs at this rate.
    Rate {
        /// Bytes per second.
        bytes: u64,
    },
    /// The service closes a WebSocket that carries too many messages for too long, as AWS is reported to do.
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
    /// The agent processes a message without acknowledging it, and processes its retransmission again. The official agent does
    /// this when its WebSocket is reset during an upload (AGENT-8). The fault acts only on the first transmission of a message from
    /// the client.
    ProcessTwice,
    /// The service sends pause_publication although the other end is connected. [`Direction::Up`]: to the agent;
    /// [`Direction::Down`]: to the client.
    PausePublication,
    /// The service sends start_publication, in the same way.
    StartPublication,
    /// The agent's data channel is disconnected: messages are lost in both directions. The client receives pause_publication, and
    /// start_publication at the end.
    AgentAway,
    /// The agent reads nothing.
    AgentDeaf,
    /// The session ends.
    End {
        /// Whether the session ends as failed instead of terminated.
        failed: bool,
        /// The text in channel_closed.
        text: String,
    },
    /// All sessions end as failed; the nodes stay connected.
    RestartAgent {
        /// The text in channel_closed.
        text: String,
    },
    /// All sessions end as failed, and no node is connected until the end of the fault ([`When::lasts`]; without it, forever).
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
    /// The SSM API returns another response.
    Api {
        /// The operation, such as `StartSession`. Default: all operations for which the response is possible.
        operation: Option<String>,
        /// The response.
        answer: ApiAnswer,
    },
}

/// A response of the API that a fault injects.
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
    /// No response.
    Silence,
    /// StartSession, ResumeSession: a response without a token, as for a session that has ended.
    NoToken,
    /// StartSession, ResumeSession: a response with an expired token.
    ExpiredToken,
    /// StartSession, ResumeSession: a response with another URL; the old URL becomes invalid.
    NewUrl,
}

/// The component that applies an effect.
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
            | Self::Oversize { .. }
            | Self::ProcessTwice => Actor::Message,
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

    /// Returns the kind of messages that is affected by default.
    fn usual_only(&self) -> Only {
        if matches!(self, Self::MessageLimit { .. } | Self::ProcessTwice) { Only::Data } else { Only::Any }
    }

    /// Returns whether the effect happens at a point in time instead of acting on messages.
    pub(crate) fn is_event(&self) -> bool {
        matches!(self.actor(), Actor::Event | Actor::Nodes)
    }

    /// Returns whether the effect can happen immediately, to active sessions.
    pub(crate) fn can_strike(&self) -> bool {
        matches!(self.actor(), Actor::Message | Actor::Event | Actor::Nodes)
    }

    /// Returns whether the session applies the effect.
    fn is_of_session(&self) -> bool {
        matches!(self.actor(), Actor::Message | Actor::Event)
    }
}

/// Returns `now + duration`. Durations come from user input, so those that are longer than any test are shortened to avoid an
/// overflow.
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
