//! The files on the node, as its script lists them. The listing is not trusted.

use super::lanes::Losses;
use super::node::{CopyError, Node, failed};
use super::place::RemotePath;
use super::script;
use super::wire::Event;
use crate::exact_output;
use crate::exit_code::Failure;
use crate::untrusted;

/// A source, or a file, directory or link below a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The names below the source; empty for the source itself.
    pub(super) names: Vec<Vec<u8>>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) modified: i64,
    pub(super) is_readable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    /// A symbolic link with its target.
    Link(Vec<u8>),
    Other,
}

/// A source with everything below it, or the reason why it cannot be copied.
pub(super) type Listed = Result<Vec<Entry>, Failure>;

/// Maximum size of a listing in bytes. A listing of a million files is far smaller.
const MAX_LISTING: usize = 512 << 20;

/// Lists `sources` on the node. A lost session is replaced.
pub(super) async fn list(node: &Node, sources: &[RemotePath], recursive: bool) -> Result<Vec<Listed>, CopyError> {
    let mut losses = Losses::default();
    loop {
        match list_once(node, sources, recursive).await {
            Ok(listed) => return Ok(listed),
            Err(error) => losses.wait_for_retry(error).await?,
        }
    }
}

async fn list_once(node: &Node, sources: &[RemotePath], recursive: bool) -> Result<Vec<Listed>, CopyError> {
    let mark = exact_output::mark();
    let paths = || sources.iter().map(RemotePath::bytes);
    let mut output = node.run(|begin| script::list(begin, &mark, recursive, paths())).await?;
    let listing = collect(async || output.next().await, MAX_LISTING).await?;
    output.end().await;
    Ok(parse(&listing, &mark, sources))
}

/// Collects all data until the end of the output. Fails if there is more than `limit` bytes.
async fn collect(mut next: impl AsyncFnMut() -> Result<Event, CopyError>, limit: usize) -> Result<Vec<u8>, CopyError> {
    let mut listing = Vec::new();
    loop {
        match next().await? {
            Event::Data(data) => listing.extend_from_slice(&data),
            Event::End => return Ok(listing),
            _ => {}
        }
        if listing.len() > limit {
            return Err(CopyError::Fatal(failed("the node lists too many files")));
        }
    }
}

/// Parses a listing.
fn parse(listing: &[u8], mark: &str, sources: &[RemotePath]) -> Vec<Listed> {
    let mut records = split(listing, mark.as_bytes()).into_iter().skip(1).peekable();
    let mut all = Vec::new();
    for source in sources {
        let shown = source.shown();
        let (mut listed, mut link): (Listed, _) = (Ok(Vec::new()), None);
        if records.next_if(|record| record.first() == Some(&b'B')).is_none() {
            all.push(Err(failed(format!("{shown}: the node did not list it"))));
            continue;
        }
        while let Some(record) = records.next_if(|record| record.first() != Some(&b'B')) {
            let Ok(entries) = &mut listed else { continue };
            if let Err(why) = add_record(record, source, entries, &mut link) {
                listed = Err(failed(format!("{shown}: {why}")));
            }
        }
        if listed.as_ref().is_ok_and(Vec::is_empty) {
            listed = Err(failed(format!("{shown}: the node did not list it")));
        }
        all.push(listed);
    }
    all
}

/// Adds a record to `entries`. `link` is the index of the link whose target the next record contains.
fn add_record(
    record: &[u8],
    source: &RemotePath,
    entries: &mut Vec<Entry>,
    link: &mut Option<usize>,
) -> Result<(), String> {
    const STRANGE: &str = "the node listed a path that is not below the source";
    let Some((kind, rest)) = record.split_first() else { return Ok(()) };
    match kind {
        b'D' => Err("is a directory; add -r to copy it".to_owned()),
        b'E' => {
            let text = String::from_utf8_lossy(rest);
            let text = text.trim();
            Err(untrusted::line(text.rsplit_once(": ").map_or(text, |(_, reason)| reason)))
        }
        b'S' => {
            entries.push(entry(rest, source).ok_or(STRANGE)?);
            Ok(())
        }
        b'U' | b'L' => {
            let names = names(rest, source).ok_or(STRANGE)?;
            // The search starts at the end, because such a record follows its entry closely.
            let at = entries.iter().rposition(|entry| entry.names == names).ok_or(STRANGE)?;
            match entries.get_mut(at) {
                Some(entry) if *kind == b'U' => entry.is_readable = false,
                _ => *link = Some(at),
            }
            Ok(())
        }
        b'T' => {
            let target = rest.strip_suffix(b"\n").unwrap_or(rest);
            let entry = link.take().and_then(|at| entries.get_mut(at)).ok_or(STRANGE)?;
            entry.kind = Kind::Link(target.to_vec());
            Ok(())
        }
        _ => Err(STRANGE.to_owned()),
    }
}

/// Parses `MODE SIZE TIME PATH`.
fn entry(record: &[u8], source: &RemotePath) -> Option<Entry> {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    let mut words = record.splitn(4, |byte| *byte == b' ');
    let mut word = || words.next();
    let text = |word: Option<&[u8]>| word.and_then(|word| std::str::from_utf8(word).ok().map(str::to_owned));
    let mode = u32::from_str_radix(&text(word())?, 16).ok()?;
    let size = text(word())?.parse().ok()?;
    let modified = text(word())?.split('.').next()?.parse().ok()?;
    let names = match word()? {
        b"x" => Vec::new(),
        path => names(path, source)?,
    };
    let kind = match mode & 0o170_000 {
        0o040_000 => Kind::Directory,
        0o100_000 => Kind::File,
        0o120_000 => Kind::Link(Vec::new()),
        _ => Kind::Other,
    };
    Some(Entry { names, kind, mode: mode & 0o777, size, modified, is_readable: true })
}

/// Returns the names of `path` below `source`; `None` if `path` is not below `source`.
fn names(path: &[u8], source: &RemotePath) -> Option<Vec<Vec<u8>>> {
    let base = source.bytes();
    let rest = match path {
        b"" => b"",
        path => path.strip_prefix(base)?,
    };
    let names = rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
    let names: Vec<_> = names.collect();
    let is_name = |name: &Vec<u8>| name != b"." && name != b".." && !name.contains(&0);
    let is_below = base.ends_with(b"/") || rest.is_empty() || rest.starts_with(b"/");
    (is_below && names.iter().all(is_name)).then_some(names)
}

fn split<'a>(text: &'a [u8], mark: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while let Some(found) = text.get(at..).and_then(|rest| rest.iter().position(|byte| Some(byte) == mark.first())) {
        at += found;
        if text.get(at..).is_some_and(|rest| rest.starts_with(mark)) {
            parts.extend(text.get(begin..at));
            at += mark.len();
            begin = at;
        } else {
            at += 1;
        }
    }
    parts.extend(text.get(begin..));
    parts
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_listing_without_an_end_is_given_up() {
        let mut asked = 0;
        let endless = async || {
            asked += 1;
            Ok(Event::Data(bytes::Bytes::from_static(&[b'x'; 100])))
        };
        let Err(CopyError::Fatal(failure)) = collect(endless, 1000).await else { panic!("all of it was read") };
        assert!(failure.to_string().contains("too many files"), "{failure}");
        assert_eq!(asked, 11);
    }

    fn source(text: &str) -> RemotePath {
        RemotePath::of(text.as_bytes())
    }

    fn listed(listing: &str, path: &str) -> Listed {
        parse(listing.as_bytes(), "MARK", &[source(path)]).remove(0)
    }

    #[test]
    fn names_with_everything_in_them_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("d/ e\n'\"")).unwrap();
        std::fs::write(root.join("d/ e\n'\"/-f\n"), "12345").unwrap();
        std::os::unix::fs::symlink("/no where\n", root.join("d/link")).unwrap();
        let path = RemotePath::of(root.join("d").as_os_str().as_bytes());
        for shell in [&["sh"][..], &["busybox", "sh"]] {
            let words = script::list("BEGIN", "MARK", true, [path.bytes()].into_iter());
            let Ok(output) = Command::new(shell[0]).args(&shell[1..]).args(&words[1..]).output() else { continue };
            let mut decoder = super::super::wire::Decoder::new("BEGIN");
            decoder.feed(output.stdout.into());
            let mut listing = Vec::new();
            while let Some(event) = decoder.next() {
                if let Event::Data(data) = event {
                    listing.extend_from_slice(&data);
                }
            }
            let mut entries = parse(&listing, "MARK", std::slice::from_ref(&path)).remove(0).unwrap();
            entries.sort_by(|one, other| one.names.cmp(&other.names));
            let found: Vec<_> =
                entries.iter().map(|entry| (entry.names.concat(), entry.kind.clone(), entry.size)).collect();
            assert_eq!(found[0].1, Kind::Directory);
            assert_eq!(found[1].0, b" e\n'\"");
            assert_eq!(found[2], (b" e\n'\"-f\n".to_vec(), Kind::File, 5));
            assert_eq!((&found[3].0[..], &found[3].1), (&b"link"[..], &Kind::Link(b"/no where\n".to_vec())));
            assert_eq!(found.len(), 4, "{shell:?}");
        }
    }

    #[test]
    fn a_node_that_names_something_else_is_refused() {
        for path in ["d/../x", "d/./x", "dx/y", "/etc/passwd", "d/a\0b"] {
            let listing = format!("MARKBMARKS41ed 0 0 ./d\nMARKS81a4 5 0 ./{path}\n");
            assert!(listed(&listing, "d").unwrap_err().message.contains("not below the source"), "{path}");
        }
        let listing = "MARKBMARKS81a4 5 1700000000 x\nMARKU";
        let entries = listed(listing, "d").unwrap();
        assert_eq!((entries[0].size, entries[0].is_readable, entries[0].names.len()), (5, false, 0));
        for (listing, told) in [
            ("MARKBMARKD", "add -r to copy it"),
            ("MARKBMARKEstat: cannot stat './d': No such file or directory", "No such file or directory"),
            ("MARKBMARKS81a4 x 0 x", "not below the source"),
            ("MARKB", "did not list"),
            ("", "did not list"),
        ] {
            assert!(listed(listing, "d").unwrap_err().message.contains(told), "{listing}");
        }
    }
}
