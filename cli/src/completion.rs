//! Completion in the user's shell. The completion script of the shell runs this program to get the candidates, so that the names
//! of profiles and regions are current.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::engine::{CompletionCandidate, complete};
use clap_complete::env::{Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh};
use clap_complete::{CompleteEnv, Shell};
use ssm_forward::LookupCache;

use crate::args::{Cli, NAME};
use crate::config::Config;
use crate::untrusted;
use crate::up;

/// The environment variable that the completion script sets to the shell's name when it requests candidates. clap's default,
/// `COMPLETE`, may have another meaning for other programs.
const VARIABLE: &str = "AWS_SSM_FORWARD_COMPLETE";
const SHELLS: Shells<'static> = Shells(&[&Bash, &Elvish, &Fish, &Powershell, &Zsh]);

/// If this process was started by a completion script, prints the candidates and exits.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Cli::command).shells(SHELLS).var(VARIABLE).bin(NAME).complete();
}

/// Writes the completion script for `shell` to standard output.
///
/// # Errors
/// Returns an error if the shell is not supported.
pub(crate) fn print(shell: Shell) -> io::Result<()> {
    let shells = SHELLS;
    let completer = shells.completer(&shell.to_string()).ok_or(io::ErrorKind::Unsupported)?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, NAME, NAME, &program(), &mut script)?;
    if shell == Shell::Zsh {
        script.extend_from_slice(ZSH_FIRST_CALL.as_bytes());
    }
    // The reader may have closed the pipe, as `head` does. This is not an error.
    let _ = io::stdout().write_all(&script);
    Ok(())
}

/// zsh loads a packaged completion file at the first completion, as the function `_aws-ssm-forward`. Without these lines, the
/// first call would only define the completion function and offer no candidates.
const ZSH_FIRST_CALL: &str = r#"if [[ $funcstack[1] == _aws-ssm-forward ]]; then
    _clap_dynamic_completer_aws_ssm_forward "$@"
fi
"#;

/// Returns the name or path with which the script starts this program: the one with which this process was started. A path is
/// made absolute, because the shell's current folder changes.
fn program() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&called);
    match std::path::absolute(called) {
        Ok(path) if called.components().count() > 1 => path.to_string_lossy().into_owned(),
        _ => NAME.to_owned(),
    }
}

/// Completion for bash. Unlike clap's implementation, it supports that bash splits words at `=` and `:` and replaces only the
/// part after these characters.
struct Bash;

const BASH_SCRIPT: &str = r#"_aws_ssm_forward() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        [[ ${COMP_WORDS[COMP_CWORD]} == [\"\']* ]] || printf -v candidate %q "$candidate"
        COMPREPLY+=("$candidate")
    done < <(VARIABLE=bash PROGRAM -- "${COMP_WORDS[@]:0:COMP_CWORD}" "$2" 2>/dev/null)
    if [[ ${COMPREPLY-} == *[=/:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o bashdefault -o nosort -F _aws_ssm_forward NAME 2>/dev/null ||
    complete -o bashdefault -F _aws_ssm_forward NAME
"#;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(
        &self,
        var: &str,
        _name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let program = shlex::try_quote(completer).map_err(io::Error::other)?;
        let script = BASH_SCRIPT.replace("VARIABLE", var).replace("PROGRAM", &program).replace("NAME", bin);
        buf.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        cmd: &mut clap::Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let (words, kept) = joined(&args);
        let current = words.len().saturating_sub(1);
        for candidate in complete(cmd, words, current, current_dir)? {
            let value = candidate.get_value().to_string_lossy();
            writeln!(buf, "{}", value.strip_prefix(&kept).unwrap_or(&value))?;
        }
        Ok(())
    }
}

/// Joins the pieces into which bash has split the words. Returns the words as the user typed them, and the part of the last word
/// that bash keeps when it inserts a candidate.
fn joined(pieces: &[OsString]) -> (Vec<OsString>, String) {
    let is_break =
        |piece: &OsString| !piece.is_empty() && piece.to_string_lossy().chars().all(|c| matches!(c, '=' | ':'));
    let mut words: Vec<OsString> = Vec::new();
    let (mut kept, mut after_break) = (String::new(), false);
    for piece in pieces {
        let joins = is_break(piece) || after_break;
        after_break = is_break(piece);
        match words.last_mut().filter(|_| joins) {
            Some(word) => {
                kept = word.to_string_lossy().into_owned();
                word.push(piece);
            }
            None => {
                kept.clear();
                words.push(piece.clone());
            }
        }
    }
    (words, kept)
}

/// Returns the profiles of the AWS configuration files.
pub(crate) fn profiles() -> Vec<CompletionCandidate> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let names = runtime.map(|runtime| runtime.block_on(ssm_forward::profile_names())).unwrap_or_default();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Returns the tunnels of the configuration files, with their destinations.
pub(crate) fn tunnels() -> Vec<CompletionCandidate> {
    let config = config();
    let candidate =
        |name| CompletionCandidate::new(name).help(config.remote(name).map(|remote| remote.to_owned().into()));
    config.names().map(candidate).collect()
}

/// Returns the tunnels and groups of the configuration files.
pub(crate) fn tunnels_and_groups() -> Vec<CompletionCandidate> {
    let config = config();
    let candidate = |name: &str| {
        let members: Vec<_> = config.members(name).collect();
        CompletionCandidate::new(name).help(Some(format!("group: {}", members.join(", ")).into()))
    };
    let mut all = tunnels();
    all.extend(config.groups().into_iter().map(candidate));
    all
}

/// Returns the tunnels that are open, with their local addresses.
pub(crate) fn open_tunnels() -> Vec<CompletionCandidate> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let open = runtime.map(|runtime| runtime.block_on(up::open_tunnels())).unwrap_or_default();
    open.into_iter().map(|(name, address)| CompletionCandidate::new(name).help(address.map(Into::into))).collect()
}

/// Reads the configuration that the command line selects. Errors are not reported here: the command reports them when it runs.
fn config() -> Config {
    let words: Vec<_> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    Config::load(config_file(&joined(&words).0).as_deref()).unwrap_or_default()
}

/// Returns the value of `--config`.
fn config_file(words: &[OsString]) -> Option<PathBuf> {
    words.iter().zip(words.iter().skip(1)).find_map(|(word, next)| match word.to_str()?.strip_prefix("--config")? {
        "" => Some(next.into()),
        value => value.strip_prefix('=').map(PathBuf::from),
    })
}

/// Returns the cache for results of look-ups, in the user's cache folder (`$XDG_CACHE_HOME`, by default `~/.cache`). Returns
/// `None` if neither this variable nor `HOME` is set.
pub(crate) fn cache() -> Option<LookupCache> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(LookupCache::new(folder.join(NAME).join("lookups")))
}

/// Returns the nodes, containers and services that were found within the last week. They come from the cache: a request to AWS
/// would take too long while the user waits for the completion.
pub(crate) fn targets() -> Vec<CompletionCandidate> {
    let names = cache().map(|cache| cache.names()).unwrap_or_default();
    let candidate = |(name, places): (String, BTreeSet<String>)| {
        let places = places.into_iter().collect::<Vec<_>>().join(", ");
        CompletionCandidate::new(name).help(Some(untrusted::line(&places).into()))
    };
    names.into_iter().filter(|(name, _)| !name.contains(char::is_control)).map(candidate).collect()
}

/// Returns the tunnels, and the nodes, containers and services of [`targets`].
pub(crate) fn targets_and_tunnels() -> Vec<CompletionCandidate> {
    tunnels().into_iter().chain(targets()).collect()
}

/// Returns the databases among [`targets`].
pub(crate) fn databases() -> Vec<CompletionCandidate> {
    let is_database = |name: &CompletionCandidate| name.get_value().to_string_lossy().starts_with("rds:");
    targets().into_iter().filter(is_database).collect()
}

/// Returns all regions of AWS.
pub(crate) fn regions() -> Vec<CompletionCandidate> {
    REGIONS.iter().map(CompletionCandidate::new).collect()
}

/// Whether AWS has a region of this name.
pub(crate) fn is_region(name: &str) -> bool {
    REGIONS.contains(&name)
}

/// The regions of all partitions. `tests/real/completion.py` compares them with botocore's list.
const REGIONS: [&str; 48] = [
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-isoe-west-1",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eusc-de-east-1",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "me-west-1",
    "mx-central-1",
    "sa-east-1",
    "sa-west-1",
    "us-east-1",
    "us-east-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "us-isob-west-1",
    "us-isof-east-1",
    "us-isof-south-1",
    "us-west-1",
    "us-west-2",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_command_line_is_found() {
        for (words, file) in [
            (&["x", "up", "--config", "a.toml", ""][..], Some("a.toml")),
            (&["x", "up", "--config=a.toml", ""], Some("a.toml")),
            (&["x", "up", "--configs", "a.toml", ""], None),
            (&["x", "up", ""], None),
        ] {
            let words: Vec<OsString> = words.iter().map(Into::into).collect();
            assert_eq!(config_file(&words), file.map(PathBuf::from));
        }
    }

    #[test]
    fn words_that_bash_splits_are_joined() {
        for (pieces, words, kept) in [
            (&["x", "forward", ""][..], &["x", "forward", ""][..], ""),
            (&["x", "--profile", "=", "pro"], &["x", "--profile=pro"], "--profile="),
            (&["x", "-L", "1", ":", "db", ":", "2", "--pro"], &["x", "-L", "1:db:2", "--pro"], ""),
            (&["x", "ecs", ":", "prod/web", ""], &["x", "ecs:prod/web", ""], ""),
            (&["x", "-L", "8080", ":", "8"], &["x", "-L", "8080:8"], "8080:"),
            (&["x", "-L", "[", "::", "1]", ":", "1"], &["x", "-L", "[::1]:1"], "[::1]:"),
        ] {
            let pieces: Vec<OsString> = pieces.iter().map(Into::into).collect();
            let (joined, rest) = joined(&pieces);
            assert_eq!((joined, &*rest), (words.iter().map(Into::into).collect(), kept));
        }
    }
}
