//! Tunnels by name: the user's configuration file and a project's, merged.
//!
//! A tunnel of a file is converted to the arguments that `forward` would have got on its command line, and passes the
//! same parser. So the options and their values are defined in one place.

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
    /// Its name.
    pub(crate) name: String,
    /// The arguments that `forward` would have got on its command line; there is exactly one `-L`.
    pub(crate) args: TunnelArgs,
    /// All that makes it what it is, to compare it with another reading of the files.
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
    /// Reads `only`, or the user's file and that of the project around the current folder. Missing files count as
    /// empty.
    ///
    /// # Errors
    /// A file cannot be read, or is invalid. Values of tunnels are checked when the tunnels are requested.
    pub(crate) fn load(only: Option<&Path>) -> Result<Self, Failure> {
        let folder = std::env::current_dir().ok();
        merge::load(only, user_file().as_deref(), folder.as_deref())
    }

    /// The names of all tunnels.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tunnels.keys().map(String::as_str)
    }

    /// Where a tunnel leads, as it is written in the file.
    pub(crate) fn remote(&self, name: &str) -> Option<&str> {
        self.tunnels.get(name).and_then(Definition::remote)
    }

    /// The names of all groups.
    pub(crate) fn groups(&self) -> BTreeSet<&str> {
        self.tunnels.values().flat_map(Definition::groups).collect()
    }

    /// The tunnel of this name. `given` are the options of a command line, from [`keys::given`]; they take precedence
    /// over the file's.
    ///
    /// # Errors
    /// There is no such tunnel (the error lists the existing ones), or one of its values is invalid.
    pub(crate) fn tunnel(&self, name: &str, given: &[OsString]) -> Result<Tunnel, Failure> {
        let Some(definition) = self.tunnels.get(name) else { return Err(self.unknown(name)) };
        let mut problems = Vec::new();
        match definition.resolve(name, given, &mut problems)? {
            Some(tunnel) => Ok(tunnel),
            None => Err(failure(&problems)),
        }
    }

    /// The tunnels of these names and groups, each once; all tunnels if none is named.
    ///
    /// # Errors
    /// As for [`Self::tunnel`].
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

    /// All tunnels.
    ///
    /// # Errors
    /// All errors in any of them.
    fn check(&self) -> Result<Vec<Tunnel>, Failure> {
        let mut problems = Vec::new();
        let tunnels = self.tunnels.iter().map(|(name, definition)| definition.resolve(name, &[], &mut problems));
        let tunnels: Result<Vec<_>, Failure> = tunnels.filter_map(Result::transpose).collect();
        if problems.is_empty() { tunnels } else { Err(failure(&problems)) }
    }

    /// The tunnels of a group.
    pub(crate) fn members<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a str> {
        let has = move |definition: &Definition| definition.groups().any(|name| name == group);
        self.tunnels.iter().filter(move |(_, definition)| has(definition)).map(|(name, _)| name.as_str())
    }

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

/// The tunnel that `forward` was given by name, if there are no other arguments that say what to forward.
///
/// # Errors
/// There is no such tunnel, or the configuration is invalid.
pub(crate) fn of_forward(args: &TunnelArgs) -> Result<Option<Tunnel>, Failure> {
    let Some(name) = args.target().filter(|name| args.forwards.is_empty() && is_plain_name(name)) else {
        return Ok(None);
    };
    Config::load(args.config.as_deref())?.tunnel(name, &args.given).map(Some)
}

/// Whether a word in the place of the target may be the name of a tunnel.
pub(crate) fn is_plain_name(word: &str) -> bool {
    let is_name = matches!(word.parse(), Ok(TargetSpec::Name(name)) if name == word);
    is_name && ServiceSpec::of_text(word).is_none()
}

#[cfg(test)]
mod tests;
