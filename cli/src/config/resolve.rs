//! Converts a tunnel to the arguments of `forward`, with variables replaced.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{FromArgMatches as _, ValueHint};
use ssm_forward::{ListenAddr, ServiceSpec};

use super::file::Entry;
use super::keys::{OPTIONS, Value, option_of};
use super::merge::Definition;
use super::problem::{Author, Place, Problem};
use super::{Tunnel, places, variables};
use crate::args::{self, TunnelArgs};
use crate::exit_code::{ExitCode, Failure};
use crate::spec::ForwardRequest;

/// How long a lazy tunnel keeps an unused session by default.
const IDLE: Duration = Duration::from_secs(300);

impl Definition {
    /// Returns the tunnel. Options in `given` come from the command line and take precedence. Returns `None` if there are errors,
    /// which are added to `problems`.
    ///
    /// # Errors
    /// Returns an error if two options contradict each other.
    pub(super) fn resolve(
        &self,
        name: &str,
        given: &[OsString],
        problems: &mut Vec<Problem>,
    ) -> Result<Option<Tunnel>, Failure> {
        let before = problems.len();
        let mut resolver = Resolver { problems };
        let is_local = given.iter().any(|word| option_of(word) == Some("local"));
        let is_given = |key: &str| {
            // With --local there is no account, and the only node is this machine.
            let is_of_aws = matches!(key, "target" | "profile" | "region" | "endpoint-url" | "ca-bundle");
            given.iter().any(|word| option_of(word) == Some(key)) || (is_local && is_of_aws) || is_in_environment(key)
        };
        let mut words = Vec::new();
        for entry in self.entries.values().filter(|entry| !is_given(option_name(entry))) {
            words.extend(resolver.words(entry));
        }
        let forward = self.forward(name, &mut resolver);
        let needs_node = matches!(&forward, Some(ForwardRequest::Plain(_)));
        if needs_node && !self.entries.contains_key("target") && !is_given("target") {
            let problem = Problem::new(format!("the tunnel `{name}` has no `target`"), &self.place, "");
            resolver.problems.push(problem.help("name the managed node: target = \"i-0123456789abcdef0\""));
        }
        let lazy = matches!(self.entries.get("lazy").map(|entry| &entry.value), Some(Value::Flag(true)));
        let idle = self.entries.get("idle").and_then(|entry| resolver.idle(entry)).unwrap_or(IDLE);
        let lazy = lazy.then_some(idle);
        if problems.len() > before {
            return Ok(None);
        }
        words.extend(given.iter().cloned());
        let parsed =
            OPTIONS.clone().try_get_matches_from(&words).and_then(|matches| TunnelArgs::from_arg_matches(&matches));
        let mut args = parsed.map_err(|error| {
            let text = args::one_line(&error).unwrap_or_else(|| error.to_string());
            Failure::new(ExitCode::Usage, "usage", format!("the tunnel `{name}`: {text}"))
        })?;
        args.forwards.extend(forward);
        args.lazy = lazy;
        words.push(name.into());
        words.extend(args.forwards.iter().map(|forward| forward.text().into()));
        words.push(format!("{lazy:?}").into());
        Ok(Some(Tunnel { name: name.to_owned(), args, words }))
    }

    /// Returns the tunnel's `-L`.
    fn forward(&self, name: &str, resolver: &mut Resolver<'_>) -> Option<ForwardRequest> {
        let Some(entry) = self.entries.get("remote") else {
            let problem = Problem::new(format!("the tunnel `{name}` has no `remote`"), &self.place, "");
            resolver.problems.push(problem.help("add a destination: remote = \"db.internal:5432\", or \"rds:NAME\""));
            return None;
        };
        let remote = resolver.text(entry)?;
        if let Err(error) = format!("0:{remote}").parse::<ForwardRequest>() {
            let label = "expected host:port, a port of the node itself, or a service such as rds:NAME";
            let error = error.what();
            resolver.problems.push(Problem::new(format!("`remote` '{remote}': {error}"), &entry.place, label));
            return None;
        }
        let Some(local) = self.entries.get("local") else {
            let text =
                if ServiceSpec::of_text(&remote).is_some() { remote } else { format!("{}:{remote}", port(&remote)) };
            return resolver.parsed(entry, &text);
        };
        let listen = resolver.text(local)?;
        let listen = match listen.strip_prefix("unix:") {
            Some(path) => format!("unix:{}", path_of(&local.place, path).display()),
            None => listen,
        };
        let forward = resolver.parsed(local, &format!("{listen}:{remote}"))?;
        resolver.check_local(local, &forward);
        Some(forward)
    }
}

/// Returns the port at the end of a remote.
fn port(remote: &str) -> &str {
    remote.rsplit(':').next().unwrap_or(remote)
}

fn option_name(entry: &Entry) -> &'static str {
    entry.key.option.and_then(clap::Arg::get_long).unwrap_or(entry.key.name)
}

/// Whether an option's environment variable is set. It takes precedence over the files.
fn is_in_environment(key: &str) -> bool {
    let option = super::keys::key(key).and_then(|key| key.option);
    option.and_then(clap::Arg::get_env).is_some_and(|name| std::env::var_os(name).is_some())
}

/// Resolves a path of a file. `~/` is the home folder; a relative path begins at the file's folder.
fn path_of(place: &Place, text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), places::home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => place.source.path.parent().unwrap_or_else(|| Path::new("/")).join(text),
    }
}

struct Resolver<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Resolver<'_> {
    /// Returns the words of an entry, if it has an option and its value is valid.
    fn words(&mut self, entry: &Entry) -> Vec<OsString> {
        let Some(option) = entry.key.option else { return Vec::new() };
        let Some(mut value) = self.replaced(entry) else { return Vec::new() };
        if let (ValueHint::FilePath, Value::Texts(texts)) = (option.get_value_hint(), &mut value) {
            texts.iter_mut().for_each(|text| *text = path_of(&entry.place, text).display().to_string());
        }
        let words = entry.key.words(&value);
        let Err(error) = OPTIONS.clone().try_get_matches_from(words.clone()) else { return words };
        let why = std::error::Error::source(&error).map(ToString::to_string);
        let why = why.or_else(|| args::one_line(&error)).unwrap_or_else(|| error.to_string());
        self.problems.push(Problem::new(format!("`{}`: {why}", entry.key.name), &entry.place, ""));
        Vec::new()
    }

    /// Returns the value, with variables replaced.
    fn replaced(&mut self, entry: &Entry) -> Option<Value> {
        let Value::Texts(texts) = &entry.value else { return Some(entry.value.clone()) };
        let lookup = |name: &str| std::env::var(name).ok();
        let replaced = texts.iter().map(|text| variables::replace(text, &entry.place.source.author, lookup));
        match replaced.collect() {
            Ok(texts) => Some(Value::Texts(texts)),
            Err(why) => {
                self.problems.push(Problem::new(format!("`{}`: {why}", entry.key.name), &entry.place, ""));
                None
            }
        }
    }

    /// Returns the value of a key with a single text.
    fn text(&mut self, entry: &Entry) -> Option<String> {
        match self.replaced(entry)? {
            Value::Texts(texts) => texts.into_iter().next(),
            Value::Flag(_) => None,
        }
    }

    fn idle(&mut self, entry: &Entry) -> Option<Duration> {
        let text = self.text(entry)?;
        args::duration(&text)
            .map_err(|why| self.problems.push(Problem::new(format!("`idle`: {why}"), &entry.place, "")))
            .ok()
    }

    fn parsed(&mut self, entry: &Entry, text: &str) -> Option<ForwardRequest> {
        let parsed = text.parse::<ForwardRequest>().map_err(|error| {
            let label = "expected a port, bind:port, or unix:/path (IPv6 addresses in brackets)";
            let title = format!("`{}`: {}", entry.key.name, error.what());
            self.problems.push(Problem::new(title, &entry.place, label));
        });
        parsed.ok()
    }

    /// Checks that a project's file listens only where it may.
    fn check_local(&mut self, entry: &Entry, forward: &ForwardRequest) {
        let Author::Project(root) = &entry.place.source.author else { return };
        let help = "put `local` into a table of the same name in your own file; `config path` prints its path";
        let title = match forward.listen() {
            Some(ListenAddr::Tcp(address)) if !address.ip().is_loopback() => {
                "a project's file cannot listen on addresses that other machines reach"
            }
            Some(ListenAddr::Unix(path)) if !is_inside(path, root) => {
                "a project's file can create sockets only in its own folder"
            }
            _ => return,
        };
        self.problems.push(Problem::new(title, &entry.place, "").help(help));
    }
}

/// Whether a file created at this path is in the folder.
fn is_inside(path: &Path, root: &Path) -> bool {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    folder.zip(root.canonicalize().ok()).is_some_and(|(folder, root)| folder.starts_with(root))
}
