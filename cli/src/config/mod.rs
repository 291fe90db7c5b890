//! Named tunnels: merges the user's configuration file and the project's.
//!
//! A tunnel of a file is converted to the arguments of `forward` on a command line, and parsed by the same parser. So the options
//! and their values are defined in one place.

pub(crate) mod command;
mod file;
pub(crate) mod keys;
mod merge;
mod places;
mod problem;
mod resolve;
mod schema;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ssm_forward::{ServiceSpec, TargetSpec};

pub(crate) use places::{PROJECT_FILE, user_file};
use problem::failure;

use crate::args::TunnelArgs;
use crate::exit_code::{ExitCode, Failure};
use crate::suggestion;
use merge::Definition;

/// A tunnel of the configuration.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The tunnel's name.
    pub(crate) name: String,
    /// The equivalent arguments of `forward`; there is exactly one `-L`.
    pub(crate) args: TunnelArgs,
    /// The whole definition as words. Two readings of the files are compared by it.
    pub(crate) words: Vec<OsString>,
}

/// The contents of the configuration files.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// The files, including the included ones.
    pub(crate) files: Vec<PathBuf>,
    tunnels: BTreeMap<String, Definition>,
}

impl Config {
    /// Reads `only`, or the user's file and the file of the project that contains the current folder. A missing file counts as
    /// empty.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or is invalid. Values of a tunnel are checked only when the tunnel is requested.
    pub(crate) fn load(only: Option<&Path>) -> Result<Self, Failure> {
        let folder = std::env::current_dir().ok();
        merge::load(only, user_file().as_deref(), folder.as_deref())
    }

    /// Returns the names of all tunnels.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tunnels.keys().map(String::as_str)
    }

    /// Returns a tunnel's destination, as it is written in the file.
    pub(crate) fn remote(&self, name: &str) -> Option<&str> {
        self.tunnels.get(name).and_then(Definition::remote)
    }

    /// Returns the names of all groups.
    pub(crate) fn groups(&self) -> BTreeSet<&str> {
        self.tunnels.values().flat_map(Definition::groups).collect()
    }

    /// Returns the tunnel of this name. `given` contains the options of a command line, from [`keys::given`]; they take precedence
    /// over the file.
    ///
    /// # Errors
    /// Returns an error if there is no such tunnel (the error lists the existing ones), or if one of its values is invalid.
    pub(crate) fn tunnel(&self, name: &str, given: &[OsString]) -> Result<Tunnel, Failure> {
        let Some(definition) = self.tunnels.get(name) else { return Err(self.unknown(name)) };
        let mut problems = Vec::new();
        match definition.resolve(name, given, &mut problems)? {
            Some(tunnel) => Ok(tunnel),
            None => Err(failure(&problems)),
        }
    }

    /// Returns the tunnels of these names and groups, each once, or all tunnels if `wanted` is empty.
    ///
    /// # Errors
    /// As for [`Self::tunnel`]. Also returns an error if there are no tunnels.
    pub(crate) fn select(&self, wanted: &[String], given: &[OsString]) -> Result<Vec<Tunnel>, Failure> {
        let mut names: Vec<&str> = Vec::new();
        for name in wanted {
            let members: Vec<_> = match self.tunnels.get_key_value(name) {
                Some((name, _)) => vec![name.as_str()],
                None => self.members(name).collect(),
            };
            if members.is_empty() {
                return Err(self.unknown(name));
            }
            names.extend(members);
        }
        if wanted.is_empty() {
            names.extend(self.names());
        }
        if names.is_empty() {
            return Err(Failure::new(
                ExitCode::Usage,
                "not_found",
                format!("there are no tunnels{}", self.where_looked()),
            ));
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        names.into_iter().map(|name| self.tunnel(name, given)).collect()
    }

    /// Returns all tunnels.
    ///
    /// # Errors
    /// Returns the errors of all tunnels.
    fn check(&self) -> Result<Vec<Tunnel>, Failure> {
        let mut problems = Vec::new();
        let tunnels = self.tunnels.iter().map(|(name, definition)| definition.resolve(name, &[], &mut problems));
        let tunnels: Result<Vec<_>, Failure> = tunnels.filter_map(Result::transpose).collect();
        if problems.is_empty() { tunnels } else { Err(failure(&problems)) }
    }

    /// Returns the names of a group's tunnels.
    pub(crate) fn members<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a str> {
        let has = move |definition: &Definition| definition.groups().any(|name| name == group);
        self.tunnels.iter().filter(move |(_, definition)| has(definition)).map(|(name, _)| name.as_str())
    }

    /// The failure for a name that is neither a tunnel nor a group.
    fn unknown(&self, name: &str) -> Failure {
        let all: Vec<_> = self.names().chain(self.groups()).collect();
        let text = match (suggestion::nearest(name, all.iter().copied()), all.as_slice()) {
            (_, []) => format!("there is no tunnel `{name}`{}", self.where_looked()),
            (Some(meant), all) => {
                format!("there is no tunnel `{name}`; did you mean `{meant}`? There are: {}", all.join(", "))
            }
            (None, all) => format!("there is no tunnel `{name}`; there are: {}", all.join(", ")),
        };
        Failure::new(ExitCode::Usage, "not_found", text)
    }

    /// The names of the files that were read, for a message.
    fn where_looked(&self) -> String {
        match (self.files.as_slice(), user_file()) {
            ([], Some(path)) => {
                format!(": neither {} nor {PROJECT_FILE} exists; `config init` writes one", path.display())
            }
            (files, _) => {
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                format!(" in {}", files.join(", "))
            }
        }
    }
}

/// Returns the tunnel that `forward` was given by name, if no other arguments describe what to forward.
///
/// # Errors
/// Returns an error if there is no such tunnel, or if the configuration is invalid.
pub(crate) fn of_forward(args: &TunnelArgs) -> Result<Option<Tunnel>, Failure> {
    let Some(name) = args.target().filter(|name| args.forwards.is_empty() && is_plain_name(name)) else {
        return Ok(None);
    };
    Config::load(args.config.as_deref())?.tunnel(name, &args.given).map(Some)
}

/// Whether the target argument may be the name of a tunnel.
pub(crate) fn is_plain_name(word: &str) -> bool {
    let is_name = matches!(word.parse(), Ok(TargetSpec::Name(name)) if name == word);
    is_name && ServiceSpec::of_text(word).is_none()
}

#[cfg(test)]
mod tests;
