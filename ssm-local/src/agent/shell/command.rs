//! Selects the program of a session according to its document.

use std::path::PathBuf;

use regex_lite::Regex;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::process::Command;

use super::signals;
use crate::agent::AgentSpec;

/// The program of a session.
#[derive(Debug)]
pub(super) enum Program {
    /// A program on a terminal.
    Terminal {
        command: Command,
        /// Text that is typed before the client's first input.
        typed: String,
    },
    /// A command whose outputs are sent together, after it has ended.
    Merged(Command),
    /// A command whose outputs are sent separately, as they arrive. After the end of a line, the next piece starts with the prefix
    /// of its output.
    Separate { command: Command, prefixes: Prefixes },
}

/// Prefixes that mark the outputs, for clients that print both to the same place.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A document's properties for one kind of system.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Properties {
    commands: String,
    #[serde(deserialize_with = "boolean")]
    separate_output_stream: bool,
    std_out_separator_prefix: String,
    std_err_separator_prefix: String,
}

const PREFIX: &str = r"^[0-9a-zA-Z\r\n_:-]{0,30}$";
const SYSTEM: &str = if cfg!(target_os = "macos") { "macos" } else { "linux" };

impl Program {
    /// Returns the shell, and the profile that the document types into it.
    pub(super) fn shell(spec: &AgentSpec) -> Self {
        let typed = match spec.inputs.shell_profile.linux.trim() {
            "" => String::new(),
            profile => format!("{profile}\n"),
        };
        Self::Terminal { command: prepared(Command::new(&spec.shell)), typed }
    }

    /// Returns a command line for `sh`; in a container, the program itself.
    pub(super) fn on_terminal(spec: &AgentSpec) -> Result<Self, String> {
        let line = Properties::of(spec)?.commands;
        let command = if line.trim().is_empty() {
            Command::new("sh")
        } else if spec.identity.target.starts_with("ecs:") {
            split(&line)?
        } else {
            let mut command = Command::new("sh");
            command.arg("-c").arg(line);
            command
        };
        Ok(Self::Terminal { command: prepared(command), typed: String::new() })
    }

    /// Returns the program itself, without a shell.
    pub(super) fn without_terminal(spec: &AgentSpec) -> Result<Self, String> {
        let properties = Properties::of(spec)?;
        let command = prepared(split(&properties.commands)?);
        if !properties.separate_output_stream {
            return Ok(Self::Merged(command));
        }
        let prefixes =
            Prefixes { stdout: properties.std_out_separator_prefix, stderr: properties.std_err_separator_prefix };
        let valid = |prefix: &str| Regex::new(PREFIX).is_ok_and(|pattern| pattern.is_match(prefix));
        match [("stdout", &prefixes.stdout), ("stderr", &prefixes.stderr)].iter().find(|(_, prefix)| !valid(prefix)) {
            Some((name, prefix)) => Err(format!("invalid {name}SeparatorPrefix {prefix}")),
            None => Ok(Self::Separate { command, prefixes }),
        }
    }

    pub(super) fn has_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// Returns whether the sending rate is limited: the official agent sleeps after each message, except when it reads a command's
    /// outputs separately.
    pub(super) fn is_paced(&self) -> bool {
        !matches!(self, Self::Separate { .. })
    }
}

impl Properties {
    fn of(spec: &AgentSpec) -> Result<Self, String> {
        let properties = spec.properties.get(SYSTEM).cloned().unwrap_or_else(|| Value::Object(Default::default()));
        serde_json::from_value(properties).map_err(|error| format!("Invalid format in session properties: {error}"))
    }
}

/// Accepts `true` and `"true"`, because documents contain both.
fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(value),
        Value::Null => Ok(false),
        Value::String(text) if text.is_empty() => Ok(false),
        Value::String(text) => text.to_ascii_lowercase().parse().map_err(serde::de::Error::custom),
        other => Err(serde::de::Error::custom(format_args!("{other} is not true or false"))),
    }
}

fn split(line: &str) -> Result<Command, String> {
    let parts = shlex::split(line).unwrap_or_default();
    let Some((program, arguments)) = parts.split_first() else {
        return Err(format!("Unable to start command: Failed to parse commands input: {line}"));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Sets the environment of the official agent, the home directory, and the default actions of all signals.
fn prepared(mut command: Command) -> Command {
    signals::inherit_none();
    command.env("TERM", "xterm-256color").kill_on_drop(true);
    if std::env::var_os("LANG").is_none_or(|lang| lang.is_empty()) {
        command.env("LANG", "C.UTF-8");
    }
    let home = std::env::home_dir().filter(|home| home.is_dir()).unwrap_or_else(|| PathBuf::from("/"));
    command.current_dir(home);
    command
}
