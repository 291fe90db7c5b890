//! The arguments of `cp`: `TARGET:PATH`, a local path, or `-`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ssm_forward::TargetSpec;

use crate::exit_code::{ExitCode, Failure};

/// One argument of `cp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Standard input or output.
    Stream,
    /// A file or directory on this machine.
    Local(PathBuf),
    /// A file or directory on a node.
    Remote(Remote),
}

/// A path on a node. The target is empty only with `--local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) target: String,
    pub(super) path: RemotePath,
}

/// A path in the form that the node's tools need. It begins with `/` or `./`, so that no tool takes it for an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemotePath(Vec<u8>);

/// The sources, the destination and the direction of a copy.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// From a node.
    Down { target: String, sources: Vec<RemotePath>, destination: LocalEnd },
    /// To a node.
    Up { target: String, sources: Vec<LocalEnd>, destination: RemotePath },
}

/// The local source or destination of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LocalEnd {
    Stream,
    Path(PathBuf),
}

/// The kinds of targets that contain a colon after the kind.
const KINDS: [&str; 5] = ["tag", "asg", "name", "ecs", "sagemaker-cluster"];

impl Place {
    /// Parses an argument. It is remote if it contains a colon without a slash before the colon, as with scp.
    ///
    /// # Errors
    /// Returns an error if a remote argument has no valid target or no path.
    pub(super) fn parse(argument: &OsStr) -> Result<Self, Failure> {
        let bytes = argument.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/');
        match colon {
            _ if bytes.is_empty() => Err(usage("a source or destination is empty")),
            _ if bytes == b"-" => Ok(Self::Stream),
            Some(colon) if slash.is_none_or(|slash| slash > colon) => {
                let end = end_of_target(bytes, colon).ok_or_else(|| lacks_path(argument))?;
                let (target, path) = bytes.split_at_checked(end).unwrap_or_default();
                let path = path.strip_prefix(b":").unwrap_or(path);
                let target = std::str::from_utf8(target).map_err(|_| usage("the target is not UTF-8"))?;
                if !target.is_empty() {
                    target.parse::<TargetSpec>().map_err(|error| {
                        let shown = argument.to_string_lossy();
                        usage(format!("{shown:?}: {}; a local file of this name is ./{shown}", error.message))
                    })?;
                }
                Ok(Self::Remote(Remote { target: target.to_owned(), path: RemotePath::of(path) }))
            }
            _ => Ok(Self::Local(argument.into())),
        }
    }
}

/// Returns the position of the colon that ends the target: the first colon or, after the kind of a target, the next one. A tag's
/// key may contain colons.
fn end_of_target(bytes: &[u8], first: usize) -> Option<usize> {
    let kind = KINDS.iter().find(|kind| bytes.get(..first) == Some(kind.as_bytes()));
    let from = match kind {
        None => return Some(first),
        Some(&"tag") => bytes.iter().position(|byte| *byte == b'=')?,
        Some(_) => first + 1,
    };
    let colon = bytes.get(from..)?.iter().position(|byte| *byte == b':')?;
    Some(from + colon)
}

fn lacks_path(argument: &OsStr) -> Failure {
    let shown = argument.to_string_lossy();
    usage(format!("{shown:?} has no path on the node: {shown}:PATH; a local file of this name is ./{shown}"))
}

impl RemotePath {
    /// Converts a path of the command line. An empty path and `~` are the home directory, in which relative paths begin.
    pub(super) fn of(given: &[u8]) -> Self {
        match given {
            b"" | b"~" => Self(b"./.".to_vec()),
            [b'/', ..] => Self(given.to_vec()),
            [b'~', b'/', rest @ ..] => Self([b"./", rest].concat()),
            _ => Self([b"./", given].concat()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path as text for messages.
    pub(super) fn shown(&self) -> String {
        let given = self.0.strip_prefix(b"./").unwrap_or(&self.0);
        String::from_utf8_lossy(given).into_owned()
    }

    /// Returns the path of `relative` below this directory.
    pub(super) fn join(&self, relative: &[u8]) -> Self {
        let slash: &[u8] = if self.0.ends_with(b"/") { b"" } else { b"/" };
        Self([&self.0, slash, relative].concat())
    }

    /// Returns the directory that contains this path.
    pub(super) fn parent(&self) -> Self {
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Self(self.0.get(..end.max(1)).unwrap_or(b".").to_vec())
    }

    /// Returns the path without slashes at its end. With such a slash, the node's tools do not recognize a file.
    pub(super) fn without_slash(&self) -> Self {
        let end = self.0.iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
        Self(self.0.get(..end).unwrap_or_default().to_vec())
    }

    /// Whether the path means the contents of a directory instead of the directory: it ends with a slash, `.` or `..`.
    pub(super) fn means_contents(&self) -> bool {
        matches!(last_name(&self.0), None | Some(b"." | b".."))
    }

    /// Returns the last name of the path; `None` if the path ends with a slash.
    pub(super) fn name(&self) -> Option<&[u8]> {
        last_name(&self.0)
    }
}

/// Returns the last name of a path; `None` if the path ends with a slash.
pub(super) fn last_name(path: &[u8]) -> Option<&[u8]> {
    path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty())
}

impl Plan {
    /// Parses all arguments. The last one is the destination.
    ///
    /// # Errors
    /// Returns an error unless exactly one side is remote, and if the sources are on several nodes.
    pub(super) fn parse(arguments: &[OsString], is_local: bool) -> Result<Self, Failure> {
        let places = arguments.iter().map(|argument| Place::parse(argument)).collect::<Result<Vec<_>, _>>()?;
        let Some((destination, sources)) = places.split_last() else { return Err(usage("nothing to copy")) };
        let plan = match destination {
            Place::Remote(Remote { target, path }) => {
                let ends = sources.iter().map(local_end).collect::<Option<Vec<_>>>();
                let sources = ends.ok_or_else(|| usage("both sides are on a node: copy to this machine first"))?;
                if sources.len() > 1 && sources.contains(&LocalEnd::Stream) {
                    return Err(usage("standard input must be the only source"));
                }
                Self::Up { target: target.clone(), sources, destination: path.clone() }
            }
            destination => {
                let remotes = sources.iter().map(|place| if let Place::Remote(it) = place { Some(it) } else { None });
                let remotes: Vec<_> = remotes.collect::<Option<_>>().ok_or_else(|| {
                    usage("neither side is on a node: write TARGET:PATH for one, for example i-0123456789abcdef0:/etc/hosts")
                })?;
                let Some(Remote { target, .. }) = remotes.first() else { return Err(usage("nothing to copy")) };
                if let Some(other) = remotes.iter().find(|remote| remote.target != *target) {
                    return Err(usage(format!(
                        "the sources are on {target} and {}: copy from one at a time",
                        other.target
                    )));
                }
                let sources = remotes.iter().map(|remote| remote.path.clone()).collect();
                let destination = local_end(destination).unwrap_or(LocalEnd::Stream);
                Self::Down { target: target.clone(), sources, destination }
            }
        };
        match &plan {
            Self::Down { target, .. } | Self::Up { target, .. } if target.is_empty() && !is_local => {
                Err(usage("the target is missing before the colon: TARGET:PATH"))
            }
            _ => Ok(plan),
        }
    }
}

fn local_end(place: &Place) -> Option<LocalEnd> {
    match place {
        Place::Stream => Some(LocalEnd::Stream),
        Place::Local(path) => Some(LocalEnd::Path(path.clone())),
        Place::Remote(_) => None,
    }
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Usage, "usage", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> (String, String) {
        match Place::parse(OsStr::new(text)) {
            Ok(Place::Remote(Remote { target, path })) => (target, String::from_utf8(path.0).unwrap()),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_target_ends_at_its_colon() {
        for (text, target, path) in [
            ("i-0a:/etc/x", "i-0a", "/etc/x"),
            ("web:a:b", "web", "./a:b"),
            ("10.0.0.5:x", "10.0.0.5", "./x"),
            ("i-0a:", "i-0a", "./."),
            ("i-0a:~/-x", "i-0a", "./-x"),
            (":/tmp", "", "/tmp"),
            ("tag:Role=bastion,env=a/b:/x:y", "tag:Role=bastion,env=a/b", "/x:y"),
            ("tag:aws:cloudformation:stack-name=a:x", "tag:aws:cloudformation:stack-name=a", "./x"),
            ("asg:web:/x", "asg:web", "/x"),
            ("name:web:/x", "name:web", "/x"),
            ("ecs:prod/web/app:/tmp/a", "ecs:prod/web/app", "/tmp/a"),
            ("ecs:prod_0123456789_abc:x", "ecs:prod_0123456789_abc", "./x"),
        ] {
            assert_eq!(remote(text), (target.to_owned(), path.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_slash_before_the_colon_makes_it_local() {
        for text in ["./a:b", "/a:b", "a", "dir/ecs:x", "."] {
            assert_eq!(Place::parse(OsStr::new(text)).unwrap(), Place::Local(text.into()), "{text}");
        }
        assert_eq!(Place::parse(OsStr::new("-")).unwrap(), Place::Stream);
    }

    #[test]
    fn slashes_at_the_end_mean_what_is_inside() {
        for (given, means_contents, bare) in
            [("a/", true, "./a"), ("a//", true, "./a"), ("/", true, "/"), ("a/.", true, "./a/."), ("a", false, "./a")]
        {
            let path = RemotePath::of(given.as_bytes());
            assert_eq!(path.means_contents(), means_contents, "{given}");
            assert_eq!(path.without_slash().0, bare.as_bytes(), "{given}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_explained() {
        for (text, told) in [
            ("ecs:prod/web", "ecs:prod/web:PATH; a local file of this name is ./ecs:prod/web"),
            ("tag:a:b", "has no path"),
            (" a:b", "white space"),
            ("", "empty"),
        ] {
            let failure = Place::parse(OsStr::new(text)).unwrap_err();
            assert!(failure.message.contains(told), "{text}: {failure}");
            assert_eq!(failure.code, ExitCode::Usage);
        }
    }

    #[test]
    fn one_side_is_on_a_node() {
        let plan = |words: &[&str]| Plan::parse(&words.iter().map(OsString::from).collect::<Vec<_>>(), false);
        assert!(matches!(plan(&["i-0a:x", "i-0a:y", "."]), Ok(Plan::Down { sources, .. }) if sources.len() == 2));
        assert!(matches!(plan(&["-", "i-0a:y"]), Ok(Plan::Up { .. })));
        for (words, told) in [
            (&["a", "b"][..], "neither side"),
            (&["i-0a:x", "i-0b:y"], "both sides"),
            (&["i-0a:x", "i-0b:y", "."], "on i-0a and i-0b"),
            (&["-", "a", "i-0a:y"], "the only source"),
            (&[":x", "."], "missing before the colon"),
        ] {
            assert!(plan(words).unwrap_err().message.contains(told), "{words:?}");
        }
    }
}
