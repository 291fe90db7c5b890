//! Downloads: from a node to this machine.

mod lane;
mod queue;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::Options;
use super::destination::{Attributes, PartialFile, Root};
use super::lanes;
use super::list::{Entry, Kind, list};
use super::node::{Node, failed};
use super::place::{RemotePath, last_name};
use super::report::Report;
use super::script::PIECE;
use crate::exit_code::{ExitCode, Failure};
use crate::writer::reason;

/// A file to be copied.
#[derive(Debug)]
struct File {
    path: RemotePath,
    /// The path below the root: names of directories, and the file's name at the end.
    names: Vec<Vec<u8>>,
    size: u64,
    attributes: Attributes,
}

/// The state of a file while it is copied.
#[derive(Debug, Default)]
struct DownloadState {
    partial: Option<Arc<PartialFile>>,
    /// Number of missing pieces.
    missing: u64,
    /// The node's digest, once it is known.
    digest: Option<String>,
    /// Whether a lane is comparing the file and renaming it to its final name.
    is_finishing: bool,
    /// Whether the file is complete or was given up.
    is_done: bool,
}

/// A unit of work for a lane.
#[derive(Clone, Debug)]
enum Item {
    /// A small file and its digest.
    Whole(usize),
    /// The digest of a large file.
    Digest(usize),
    /// A run of pieces of a large file.
    Pieces { file: usize, next: u64, end: u64 },
}

/// The state that all lanes share.
struct Copy {
    node: Arc<Node>,
    report: Arc<Report>,
    root: Root,
    /// The target, which is a part of a partial file's name, so that only the same copy continues the file.
    target: String,
    files: Vec<File>,
    work: Mutex<Work>,
}

struct Work {
    queue: VecDeque<Item>,
    states: Vec<DownloadState>,
}

/// The destination on this machine.
enum Place {
    /// The sources are copied into this directory, under their own names.
    Into(PathBuf),
    /// The only source is copied to this path.
    As(PathBuf),
}

/// Maximum size of a file that was listed as small, in bytes. Files below `/proc` report a size of 0.
pub(super) const MAX_SMALL: usize = 16 << 20;

/// Copies `sources` to `destination`.
///
/// # Errors
/// Returns an error that ends the whole copy. Errors of single files are added to the report.
pub(super) async fn run(
    node: Arc<Node>,
    sources: &[RemotePath],
    destination: &Path,
    options: &Options,
    report: Arc<Report>,
) -> Result<(), Failure> {
    let place = place(sources, destination)?;
    let listed = list(&node, sources, options.recursive).await?;
    let (root, mut copy) = (root(&place)?, Plan::default());
    for (source, entries) in sources.iter().zip(listed) {
        match entries {
            Ok(entries) => copy.add(source, entries, &place, &root, options, &report),
            Err(failure) => report.failed(failure),
        }
    }
    let states = copy.files.iter().map(|_| DownloadState::default()).collect();
    let work = Mutex::new(Work { queue: VecDeque::new(), states });
    let target = options.target.clone();
    let all = Arc::new(Copy { node, report, root, target, files: copy.files, work });
    all.queue().await?;
    let count = all.lanes(options.sessions);
    let lost = lanes::run(count, |_| lane::lane(all.clone(), count)).await?;
    if let Some(failure) = lost.filter(|_| !all.work().queue.is_empty()) {
        return Err(failure);
    }
    copy.links.into_iter().for_each(|(names, target)| all.link(&names, &target));
    if options.preserve {
        copy.directories.iter().rev().for_each(|(names, attributes)| all.finish_directory(names, *attributes));
    }
    Ok(())
}

/// Decides, by the rules of scp and rsync, whether the sources are copied into the destination: if it is an existing directory, or
/// is named with a slash at its end.
fn place(sources: &[RemotePath], destination: &Path) -> Result<Place, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let shown = destination.display();
    let has_slash = last_name(destination.as_os_str().as_bytes()).is_none();
    match destination.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(Place::Into(destination.to_owned())),
        Ok(_) if has_slash || sources.len() > 1 => Err(failed(format!("{shown} is not a directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_slash => {
            std::fs::create_dir(destination).map_err(|error| cannot_write(&shown, &error))?;
            Ok(Place::Into(destination.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && sources.len() > 1 => Err(failed(format!(
            "several sources need a directory, and {shown} does not exist; use {shown}/ to create it"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(failed(format!("{shown} is not a directory")))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot_write(&shown, &error)),
        _ => Ok(Place::As(destination.to_owned())),
    }
}

/// Opens the directory that contains all destinations.
fn root(place: &Place) -> Result<Root, Failure> {
    let path = match place {
        Place::Into(path) => path.as_path(),
        Place::As(path) => path.parent().unwrap_or(path),
    };
    Root::open(path).map_err(|error| cannot_write(&path.display(), &error))
}

/// The failure for a local file that cannot be written.
pub(super) fn cannot_write(what: &dyn std::fmt::Display, error: &io::Error) -> Failure {
    let text = format!("cannot write {what}: {}", reason(error));
    if is_full(error) { Failure::new(ExitCode::Output, "output", text) } else { failed(text) }
}

/// Whether no other file could be written either.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded | Kind::ReadOnlyFilesystem | Kind::FileTooLarge)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// What to create on this machine.
#[derive(Default)]
struct Plan {
    files: Vec<File>,
    links: Vec<(Vec<Vec<u8>>, Vec<u8>)>,
    directories: Vec<(Vec<Vec<u8>>, Attributes)>,
}

impl Plan {
    fn add(
        &mut self,
        source: &RemotePath,
        entries: Vec<Entry>,
        place: &Place,
        root: &Root,
        options: &Options,
        report: &Report,
    ) {
        use std::os::unix::ffi::OsStrExt;
        let base = match place {
            Place::As(path) => path.file_name().map(|name| name.as_bytes().to_vec()),
            Place::Into(_) if source.means_contents() => None,
            Place::Into(_) => source.name().map(<[u8]>::to_vec),
        };
        for entry in entries {
            let names: Vec<_> = base.iter().cloned().chain(entry.names.iter().cloned()).collect();
            let path = if entry.names.is_empty() { source.clone() } else { source.join(&entry.names.join(&b'/')) };
            if !entry.is_readable {
                report.failed(failed(format!("{}: Permission denied", path.shown())));
                continue;
            }
            let attributes = Attributes { mode: entry.mode, modified: entry.modified, exact: options.preserve };
            match entry.kind {
                Kind::Directory => match root.directory(names.iter().map(Vec::as_slice), Some(entry.mode)) {
                    Ok(_) => self.directories.push((names, attributes)),
                    Err(error) => report.failed(cannot_write(&shown(&names), &error)),
                },
                Kind::File => {
                    report.expect(entry.size);
                    self.files.push(File { path, names, size: entry.size, attributes });
                }
                // The node's script follows a source that is a link, so only a dishonest node lists one. The link would get the
                // destination's own name, and the next copy would follow it.
                Kind::Link(_) if entry.names.is_empty() => {
                    report.failed(failed(format!("{}: the node lists a link in place of the source", path.shown())));
                }
                Kind::Link(target) => self.links.push((names, target)),
                Kind::Other => report.failed(failed(format!("{}: is not a regular file", path.shown()))),
            }
        }
    }
}

fn shown(names: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&names.join(&b'/')).into_owned()
}

impl File {
    fn is_small(&self) -> bool {
        self.size <= PIECE
    }

    fn pieces(&self) -> u64 {
        self.size.div_ceil(PIECE)
    }

    /// The length of a piece in bytes.
    fn length(&self, index: u64) -> u64 {
        self.size.saturating_sub(index * PIECE).min(PIECE)
    }
}

/// The failure for a file whose digest or length differs.
pub(super) fn changed(path: &RemotePath) -> Failure {
    failed(format!("{}: changed while it was copied; copy it again", path.shown()))
}
