//! Uploads: from this machine to a node.

mod lane;
mod prepare;
mod queue;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Options;
use super::control::{Control, Request};
use super::destination::part_name;
use super::lanes;
use super::list::Kind;
use super::local::{Entry, Source};
use super::node::{Node, failed};
use super::place::{LocalEnd, RemotePath};
use super::report::Report;
use super::script::word;
use crate::exit_code::Failure;

/// A file to be copied.
#[derive(Debug)]
struct File {
    /// The local file; `None` for standard input.
    entry: Option<Entry>,
    /// The path of the partial file on the node, encoded for the script.
    part: String,
    /// The final path on the node, encoded for the script.
    last: String,
    /// The final path, for messages.
    shown: String,
    /// Mode and time, as the script reads them (see [`attributes`]).
    attributes: String,
}

/// The state of a file while it is copied.
#[derive(Debug, Default)]
struct UploadState {
    /// Number of pieces that the node does not have.
    missing: u64,
    /// Whether the partial file is new. Then unwritten parts are zero.
    is_new: bool,
    /// The local digest, once it is known.
    digest: Option<String>,
    /// Number of bytes that were read locally. The node compares it if it has no tool for digests.
    length: u64,
    /// Whether the file is complete or was given up.
    is_done: bool,
}

/// A unit of work for a lane.
#[derive(Clone, Debug)]
enum Job {
    /// A whole small file.
    Small(usize),
    /// A piece of a large file.
    Piece { file: usize, index: u64 },
    /// A piece of standard input.
    Data { file: usize, index: u64, data: Bytes },
    /// Compares the partial file and renames it to its final name.
    Finish(usize),
}

/// The state that all lanes share.
struct Copy {
    node: Arc<Node>,
    report: Arc<Report>,
    files: Vec<File>,
    work: Mutex<Work>,
    /// Notifies when the queue or the work in progress changes.
    changed: Notify,
}

#[derive(Default)]
struct Work {
    queue: VecDeque<Job>,
    states: Vec<UploadState>,
    /// Number of jobs that lanes have taken and not finished.
    running: usize,
    /// Whether standard input may add more jobs.
    is_open: bool,
}

/// Copies `sources` to `destination`.
///
/// # Errors
/// Returns an error that ends the whole copy. Errors of single files are added to the report.
pub(super) async fn run(
    node: Arc<Node>,
    sources: Vec<Source>,
    destination: &RemotePath,
    options: &Options,
    report: Arc<Report>,
) -> Result<(), Failure> {
    let mut control = Control::new(node.clone());
    let into = is_directory(&mut control, &sources, destination).await?;
    let mut plan = Plan::default();
    for source in sources {
        plan.add(source, destination, into, options, &report);
    }
    let is_new = plan.make_directories(&mut control, &report).await?;
    let work = prepare::prepare(&mut control, &plan.files, &report).await?;
    let stdin = plan.files.iter().position(|file| file.entry.is_none());
    let copy = Arc::new(Copy { node, report, files: plan.files, work: Mutex::new(work), changed: Notify::new() });
    let count = match stdin {
        Some(file) => copy.read_stdin(file, options.sessions).await?,
        None => copy.lanes(options.sessions),
    };
    let first = Mutex::new(control.into_session());
    let session = || first.lock().unwrap_or_else(PoisonError::into_inner).take();
    let lost = lanes::run(count, |_| lane::lane(copy.clone(), session())).await?;
    if let Some(failure) = lost.filter(|_| !copy.work().queue.is_empty()) {
        return Err(failure);
    }
    let mut control = Control::new(copy.node.clone());
    finish(&mut control, &plan.links, &plan.directories, &is_new, options, &copy.report).await
}

/// Whether the sources are copied into the destination, by the rules of scp and rsync. Creates a directory that is named with a
/// slash at its end.
async fn is_directory(control: &mut Control, sources: &[Source], destination: &RemotePath) -> Result<bool, Failure> {
    let shown = destination.shown();
    let name = word(destination.without_slash().bytes());
    let has_slash = destination.means_contents();
    let into = match control.ask(format!("t {name} x")).await?.as_deref() {
        Ok("d") => true,
        Ok("n") if has_slash => {
            let made = control.ask(format!("d {name} x 777")).await?;
            made.map_err(|why| refused(&shown, &why))?;
            true
        }
        Ok("n" | "f") if has_slash => return Err(failed(format!("{shown}: is not a directory"))),
        Ok("n") if sources.len() > 1 => {
            return Err(failed(format!(
                "several sources need a directory, and {shown} does not exist; use {shown}/ to create it"
            )));
        }
        Ok("f") if sources.len() > 1 => return Err(failed(format!("{shown}: is not a directory"))),
        Ok("n" | "f") => false,
        Ok(_) => return Err(failed(format!("{shown}: is not a regular file"))),
        Err(why) => return Err(refused(&shown, why)),
    };
    match sources {
        [Source::Stream] if into => {
            Err(failed(format!("{shown} is a directory: standard input needs the name of a file")))
        }
        _ => Ok(into),
    }
}

/// The failure for something that the node refused, with the node's reason.
fn refused(shown: &str, why: &str) -> Failure {
    let text = if why.is_empty() { "the node could not write it" } else { why };
    failed(format!("{shown}: {text}"))
}

/// Whether the node could not write any other file either.
fn is_full(why: &str) -> bool {
    ["No space left", "Disk quota exceeded", "Read-only file system"].iter().any(|text| why.contains(text))
}

/// What to create on the node.
#[derive(Default)]
struct Plan {
    files: Vec<File>,
    links: Vec<(RemotePath, Vec<u8>)>,
    /// With mode and time of modification.
    directories: Vec<(RemotePath, u32, i64)>,
}

impl Plan {
    fn add(&mut self, source: Source, destination: &RemotePath, into: bool, options: &Options, report: &Report) {
        let (name, entries) = match source {
            Source::Stream => {
                let identity = format!("{}\0{:x}", options.target, fastrand::u64(..));
                self.files.push(file(None, destination, &identity, "644 -".to_owned()));
                return;
            }
            Source::Tree { name, entries } => (name, entries),
        };
        let base = match name {
            Some(name) if into => destination.join(&name),
            _ => destination.clone(),
        };
        for entry in entries {
            let path = if entry.names.is_empty() { base.clone() } else { base.join(&entry.names.join(&b'/')) };
            match &entry.kind {
                Kind::Directory => self.directories.push((path, entry.mode, entry.modified)),
                Kind::Link(target) => self.links.push((path, target.clone())),
                _ => {
                    report.expect(entry.size);
                    let origin = std::path::absolute(&entry.path).unwrap_or_else(|_| entry.path.clone());
                    let identity = format!("{}\0{}", options.target, origin.display());
                    let attributes = attributes(entry.mode, entry.modified, options.preserve);
                    self.files.push(file(Some(entry), &path, &identity, attributes));
                }
            }
        }
    }

    /// Creates the directories, with write permission for the user until the end of the copy. Returns for each whether it is new.
    async fn make_directories(&self, control: &mut Control, report: &Report) -> Result<Vec<bool>, Failure> {
        let request =
            |(path, mode, _): &(RemotePath, u32, i64)| (format!("d {} x {:o}", word(path.bytes()), mode & 0o777), 1);
        let requests: Vec<Request> = self.directories.iter().map(request).collect();
        let answers = control.ask_all(&requests).await?;
        let mut is_new = Vec::new();
        for ((path, ..), answer) in self.directories.iter().zip(answers.into_iter().flatten()) {
            is_new.push(answer.as_deref() == Ok("new"));
            if let Err(why) = answer {
                report.failed(refused(&path.shown(), &why));
            }
        }
        Ok(is_new)
    }
}

fn file(entry: Option<Entry>, path: &RemotePath, identity: &str, attributes: String) -> File {
    let part = path.parent().join(part_name(identity, path.name().unwrap_or_default()).as_bytes());
    File { entry, part: word(part.bytes()), last: word(path.bytes()), shown: path.shown(), attributes }
}

/// Returns mode and time as the script reads them. With `exact`: `=MODE TIME`. Otherwise `MODE -`, for which the script uses the
/// mode of an existing file, or applies the node's umask.
fn attributes(mode: u32, modified: i64, exact: bool) -> String {
    if !exact {
        return format!("{mode:o} -");
    }
    const LAST: u64 = 253_402_300_799;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(modified).unwrap_or(0).min(LAST));
    let digits: String =
        humantime::format_rfc3339_seconds(time).to_string().chars().filter(char::is_ascii_digit).collect();
    let (minutes, seconds) = digits.split_at(digits.len().saturating_sub(2));
    format!("={mode:o} {minutes}.{seconds}")
}

/// Creates the links and sets the attributes of the directories. This comes last, so that nothing is written through a link, and
/// because a directory may not be writable afterwards.
async fn finish(
    control: &mut Control,
    links: &[(RemotePath, Vec<u8>)],
    directories: &[(RemotePath, u32, i64)],
    is_new: &[bool],
    options: &Options,
    report: &Report,
) -> Result<(), Failure> {
    let mut all: Vec<(&RemotePath, Request)> = Vec::new();
    for (path, target) in links {
        all.push((path, (format!("l {} {}", word(target), word(path.bytes())), 1)));
    }
    let changed = directories.iter().zip(is_new).filter(|(_, is_new)| options.preserve || **is_new);
    for ((path, mode, modified), _) in changed.rev() {
        let attributes = attributes(*mode, *modified, options.preserve);
        all.push((path, (format!("m {} x {attributes}", word(path.bytes())), 1)));
    }
    let requests: Vec<Request> = all.iter().map(|(_, request)| request.clone()).collect();
    let answers = control.ask_all(&requests).await?;
    for ((path, _), answer) in all.iter().zip(answers.into_iter().flatten()) {
        if let Err(why) = answer {
            report.failed(refused(&path.shown(), &why));
        }
    }
    Ok(())
}

impl Job {
    /// Whether the job writes bytes of a file. [`Job::Finish`] writes none, so its answer needs no confirmation.
    fn writes(&self) -> bool {
        !matches!(self, Self::Finish(_))
    }

    fn file(&self) -> usize {
        match self {
            Self::Small(file) | Self::Finish(file) | Self::Piece { file, .. } | Self::Data { file, .. } => *file,
        }
    }
}

/// Lists the local sources; none for a download.
///
/// # Errors
/// Returns an error if a source does not exist or cannot be read.
pub(super) fn sources(ends: &[LocalEnd], options: &Options, report: &Report) -> Result<Vec<Source>, Failure> {
    ends.iter().map(|end| Source::find(end, options.recursive, report)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_touch_reads_them() {
        assert_eq!(attributes(0o644, 1_000_000_000, true), "=644 200109090146.40");
        assert_eq!(attributes(0o755, 0, false), "755 -");
        assert_eq!(attributes(0o600, -5, true), "=600 197001010000.00");
        assert_eq!(attributes(0o600, i64::MAX, true), "=600 999912312359.59");
    }
}
