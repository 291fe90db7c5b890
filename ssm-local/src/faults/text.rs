//! Faults as text: `effect,key=value,…`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Actor, ApiAnswer, Direction, Effect, Fault, Only, TEN_YEARS, When};

/// The reason why a text is not a valid fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// The effect does not exist.
    #[error("unknown fault {0:?}; the faults are: {names}", names = names())]
    Unknown(String),
    /// The effect acts on agents or on calls, so [`Local::strike`](crate::Local::strike) cannot apply it.
    #[error("{0} cannot happen at once; set it with the other faults (POST it to /faults)")]
    NotAtOnce(String),
    /// The effect has no such key.
    #[error("{effect} has no key {key:?}")]
    Key {
        /// The effect's name.
        effect: String,
        /// The key.
        key: String,
    },
    /// A value is invalid or missing.
    #[error("{key}={value:?}: {expected} is expected")]
    Value {
        /// The key.
        key: &'static str,
        /// The value; empty if it is missing.
        value: String,
        /// The expected value.
        expected: &'static str,
    },
    /// A list of faults is invalid.
    #[error("not a list of faults: {0}")]
    Json(String),
}

/// Names for common faults. Keys after the name are added.
const PRESETS: [(&str, &str); 4] = [
    ("bye", "close,every=1h,code=1000,reason=Bye"),
    ("drop-acks", "drop,only=acks"),
    ("expired-credentials", "api,answer=expired-credentials"),
    ("timed-out", "end,text=The session was idle for too long."),
];

const EFFECTS: [&str; 27] = [
    "close",
    "reset",
    "black-hole",
    "stall",
    "delay",
    "rate",
    "message-limit",
    "drop",
    "duplicate",
    "reorder",
    "corrupt",
    "bad-digest",
    "bad-header",
    "oversize",
    "process-twice",
    "pause-publication",
    "start-publication",
    "agent-away",
    "agent-deaf",
    "end",
    "restart-agent",
    "reboot",
    "agent-version",
    "slow-dial",
    "fail-dial",
    "deaf-destination",
    "api",
];

const ANSWERS: [(&str, ApiAnswer); 9] = [
    ("expired-credentials", ApiAnswer::ExpiredCredentials),
    ("forbidden", ApiAnswer::Forbidden),
    ("error", ApiAnswer::Error),
    ("unavailable", ApiAnswer::Unavailable),
    ("throttled", ApiAnswer::Throttled),
    ("silence", ApiAnswer::Silence),
    ("no-token", ApiAnswer::NoToken),
    ("expired-token", ApiAnswer::ExpiredToken),
    ("new-url", ApiAnswer::NewUrl),
];

const DIRECTIONS: [(&str, Direction); 3] =
    [("up", Direction::Up), ("down", Direction::Down), ("both", Direction::Both)];
const ONLY: [(&str, Only); 3] = [("any", Only::Any), ("data", Only::Data), ("acks", Only::Acks)];
const STATUS: [(&str, bool); 2] = [("terminated", false), ("failed", true)];

/// Time for which the service is reported to tolerate too many messages.
const TOLERATED: Duration = Duration::from_secs(2);
/// Default delay of reordered messages: long enough for other messages to overtake them, and shorter than the retransmission
/// timeout.
const OVERTAKEN: Duration = Duration::from_millis(50);
const RESTARTED: &str = "The session worker is gone: the agent was restarted.";
const REBOOTED: &str = "The session worker is gone: the instance was rebooted.";

fn names() -> String {
    let presets = PRESETS.iter().map(|(name, _)| *name);
    EFFECTS.into_iter().chain(presets).collect::<Vec<_>>().join(", ")
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut fields = Fields::read(text)?;
        let effect = fields.effect()?;
        let mut fault = Self::new(effect);
        fault.when = fields.when(fault.effect.actor())?;
        let directed = matches!(fault.effect, Effect::Stall | Effect::PausePublication | Effect::StartPublication);
        // The direction and the kind of the messages that can be processed twice are fixed.
        let on_messages = fault.effect.actor() == Actor::Message && fault.effect != Effect::ProcessTwice;
        if on_messages || directed {
            fault.direction = fields.name("direction", &DIRECTIONS)?.unwrap_or_default();
        }
        if on_messages {
            fault.only = fields.name("only", &ONLY)?.unwrap_or(fault.only);
        }
        fields.finish()?;
        Ok(fault)
    }
}

/// The keys and values after the effect's name.
struct Fields {
    effect: String,
    values: BTreeMap<String, String>,
}

impl Fields {
    fn read(text: &str) -> Result<Self, FaultError> {
        let (effect, rest) = text.split_once(',').unwrap_or((text, ""));
        let effect = effect.trim();
        let mut fields = match PRESETS.iter().find(|(name, _)| *name == effect) {
            Some((_, preset)) => Self::read(preset)?,
            None => Self { effect: effect.into(), values: BTreeMap::new() },
        };
        let mut last = None;
        for part in rest.split(',').filter(|_| !rest.is_empty()) {
            match (part.split_once('='), &last) {
                (Some((key, value)), _) => {
                    let key = key.trim().to_owned();
                    last = Some(key.clone());
                    fields.values.insert(key, value.into());
                }
                // This is a comma within a text value.
                (None, Some(key)) => {
                    let value = fields.values.entry(key.clone()).or_default();
                    value.push(',');
                    value.push_str(part);
                }
                (None, None) => return Err(FaultError::Key { effect: fields.effect, key: part.trim().into() }),
            }
        }
        Ok(fields)
    }

    fn effect(&mut self) -> Result<Effect, FaultError> {
        Ok(match self.effect.as_str() {
            "close" => Effect::Close { code: self.code()?, reason: self.text("reason", "Bye") },
            "reset" => Effect::Reset,
            "black-hole" => Effect::BlackHole,
            "stall" => Effect::Stall,
            "delay" => Effect::Delay {
                by: self.needed("by", A_DURATION, duration)?,
                jitter: self.value("jitter", A_DURATION, duration)?.unwrap_or_default(),
            },
            "rate" => Effect::Rate { bytes: self.needed("bytes", A_COUNT, positive)? },
            "message-limit" => Effect::MessageLimit {
                limit: self.value("limit", A_COUNT, positive)?.unwrap_or(1000),
                bear: self.value("bear", A_DURATION, duration)?.unwrap_or(TOLERATED),
                code: self.code()?,
                reason: self.text("reason", ""),
            },
            "drop" => Effect::Drop,
            "duplicate" => Effect::Duplicate,
            "reorder" => Effect::Reorder { by: self.value("by", A_DURATION, duration)?.unwrap_or(OVERTAKEN) },
            "corrupt" => Effect::Corrupt,
            "bad-digest" => Effect::BadDigest,
            "bad-header" => Effect::BadHeader,
            "oversize" => Effect::Oversize {
                bytes: self.value("bytes", "a number up to 4000000", size)?.unwrap_or(ssm_proto::MAX_PAYLOAD + 1),
            },
            "process-twice" => Effect::ProcessTwice,
            "pause-publication" => Effect::PausePublication,
            "start-publication" => Effect::StartPublication,
            "agent-away" => Effect::AgentAway,
            "agent-deaf" => Effect::AgentDeaf,
            "end" => {
                Effect::End { failed: self.name("status", &STATUS)?.unwrap_or(false), text: self.text("text", "") }
            }
            "restart-agent" => Effect::RestartAgent { text: self.text("text", RESTARTED) },
            "reboot" => Effect::Reboot { text: self.text("text", REBOOTED) },
            "agent-version" => Effect::AgentVersion { version: self.needed("version", "a version", some_text)? },
            "slow-dial" => Effect::SlowDial { by: self.needed("by", A_DURATION, duration)? },
            "fail-dial" => Effect::FailDial,
            "deaf-destination" => Effect::DeafDestination,
            "api" => {
                let operation = self.value("operation", "an operation", some_text)?;
                let answer = self.name("answer", &ANSWERS)?;
                let expected = "an answer such as throttled";
                let answer = answer.ok_or(FaultError::Value { key: "answer", value: String::new(), expected })?;
                Effect::Api { operation, answer }
            }
            other => return Err(FaultError::Unknown(other.into())),
        })
    }

    fn when(&mut self, actor: Actor) -> Result<When, FaultError> {
        let mut when = When {
            after: self.value("after", A_DURATION, duration)?,
            lasts: self.value("for", A_DURATION, duration)?,
            every: self.value("every", "a duration above 0", |text| duration(text).filter(|every| !every.is_zero()))?,
            times: self.value("times", A_COUNT, positive)?,
            ..When::default()
        };
        // Faults of nodes have no messages to count.
        if actor != Actor::Nodes {
            when.nth = self.value("nth", A_COUNT, positive)?;
            when.probability = self.value("probability", "a number from 0 to 1", probability)?.unwrap_or(1.0);
        }
        Ok(when)
    }

    fn code(&mut self) -> Result<u16, FaultError> {
        let code = |text: &str| text.parse().ok().filter(|code| (1000..5000).contains(code));
        Ok(self.value("code", "a number from 1000 to 4999", code)?.unwrap_or(1000))
    }

    fn text(&mut self, key: &str, default: &str) -> String {
        self.values.remove(key).unwrap_or_else(|| default.into())
    }

    fn name<T: Copy>(&mut self, key: &'static str, names: &[(&str, T)]) -> Result<Option<T>, FaultError> {
        let known = |text: &str| names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        self.value(key, "one of the names in docs/faults.md", known)
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, FaultError> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        read(value.trim()).map(Some).ok_or(FaultError::Value { key, value, expected })
    }

    fn needed<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, FaultError> {
        let value = self.value(key, expected, read)?;
        value.ok_or(FaultError::Value { key, value: String::new(), expected })
    }

    fn finish(self) -> Result<(), FaultError> {
        match self.values.into_keys().next() {
            Some(key) => Err(FaultError::Key { effect: self.effect, key }),
            None => Ok(()),
        }
    }
}

const A_DURATION: &str = "a duration such as 200ms, 1.5s, 2m or 1h";
const A_COUNT: &str = "a number above 0";

const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok().filter(|length| *length <= TEN_YEARS)
}

fn positive(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number| *number > 0)
}

fn size(text: &str) -> Option<usize> {
    text.parse().ok().filter(|bytes| *bytes <= 4_000_000)
}

fn probability(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=1.0).contains(number))
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.into())
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_effect(&self.effect, f)?;
        let durations = [("after", self.when.after), ("for", self.when.lasts), ("every", self.when.every)];
        for (key, duration) in durations {
            if let Some(duration) = duration {
                write!(f, ",{key}={}", Length(duration))?;
            }
        }
        for (key, number) in [("nth", self.when.nth), ("times", self.when.times)] {
            if let Some(number) = number {
                write!(f, ",{key}={number}")?;
            }
        }
        if self.when.probability < 1.0 {
            write!(f, ",probability={}", self.when.probability)?;
        }
        if self.direction != Direction::Both {
            write!(f, ",direction={}", name_of(&DIRECTIONS, self.direction))?;
        }
        if self.only != self.effect.usual_only() {
            write!(f, ",only={}", name_of(&ONLY, self.only))?;
        }
        Ok(())
    }
}

fn write_effect(effect: &Effect, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match effect {
        Effect::Close { code, reason } => write!(f, "close,code={code},reason={reason}"),
        Effect::Reset => f.write_str("reset"),
        Effect::BlackHole => f.write_str("black-hole"),
        Effect::Stall => f.write_str("stall"),
        Effect::Delay { by, jitter } => write!(f, "delay,by={},jitter={}", Length(*by), Length(*jitter)),
        Effect::Rate { bytes } => write!(f, "rate,bytes={bytes}"),
        Effect::MessageLimit { limit, bear, code, reason } => {
            write!(f, "message-limit,limit={limit},bear={},code={code},reason={reason}", Length(*bear))
        }
        Effect::Drop => f.write_str("drop"),
        Effect::Duplicate => f.write_str("duplicate"),
        Effect::Reorder { by } => write!(f, "reorder,by={}", Length(*by)),
        Effect::Corrupt => f.write_str("corrupt"),
        Effect::BadDigest => f.write_str("bad-digest"),
        Effect::BadHeader => f.write_str("bad-header"),
        Effect::Oversize { bytes } => write!(f, "oversize,bytes={bytes}"),
        Effect::ProcessTwice => f.write_str("process-twice"),
        Effect::PausePublication => f.write_str("pause-publication"),
        Effect::StartPublication => f.write_str("start-publication"),
        Effect::AgentAway => f.write_str("agent-away"),
        Effect::AgentDeaf => f.write_str("agent-deaf"),
        Effect::End { failed, text } => write!(f, "end,status={},text={text}", name_of(&STATUS, *failed)),
        Effect::RestartAgent { text } => write!(f, "restart-agent,text={text}"),
        Effect::Reboot { text } => write!(f, "reboot,text={text}"),
        Effect::AgentVersion { version } => write!(f, "agent-version,version={version}"),
        Effect::SlowDial { by } => write!(f, "slow-dial,by={}", Length(*by)),
        Effect::FailDial => f.write_str("fail-dial"),
        Effect::DeafDestination => f.write_str("deaf-destination"),
        Effect::Api { operation, answer } => {
            write!(f, "api,answer={}", name_of(&ANSWERS, *answer))?;
            operation.as_ref().map_or(Ok(()), |operation| write!(f, ",operation={operation}"))
        }
    }
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
}

/// A duration, formatted as [`duration`] parses it.
struct Length(Duration);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_secs(), self.0.subsec_nanos()) {
            (0, 1..) => write!(f, "{}ms", self.0.as_secs_f64() * 1000.0),
            (seconds, 0) if seconds > 0 && seconds.is_multiple_of(3600) => write!(f, "{}h", seconds / 3600),
            _ => write!(f, "{}s", self.0.as_secs_f64()),
        }
    }
}

impl TryFrom<String> for Fault {
    type Error = FaultError;

    fn try_from(text: String) -> Result<Self, FaultError> {
        text.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

#[cfg(test)]
mod tests;
