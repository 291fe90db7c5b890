//! The local files to upload.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::list::Kind;
use super::node::failed;
use super::place::{LocalEnd, last_name};
use super::report::Report;
use crate::exit_code::Failure;
use crate::writer::reason;

/// A local source.
#[derive(Debug)]
pub(super) enum Source {
    /// Standard input.
    Stream,
    /// A file, or a directory with everything below it.
    Tree {
        /// The source's name; `None` if the contents of a directory are copied instead of the directory.
        name: Option<Vec<u8>>,
        entries: Vec<Entry>,
    },
}

/// A source, or a file, directory or link below a source.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// The names below the source; empty for the source itself.
    pub(super) names: Vec<Vec<u8>>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) modified: i64,
}

impl Source {
    /// Lists a source before anything is copied. Symbolic links below the source are copied as links. Entries that cannot be read
    /// are added to the report.
    ///
    /// # Errors
    /// Returns an error if the source does not exist or cannot be read, or if it is a directory and `recursive` is not set.
    pub(super) fn find(end: &LocalEnd, recursive: bool, report: &Report) -> Result<Self, Failure> {
        let path = match end {
            LocalEnd::Stream => return Ok(Self::Stream),
            LocalEnd::Path(path) => path,
        };
        let metadata = path.metadata().map_err(|error| cannot_read(path, &error))?;
        if metadata.is_dir() && !recursive {
            return Err(failed(format!("{}: is a directory; add -r to copy it", path.display())));
        }
        let name = last_name(path.as_os_str().as_bytes()).filter(|name| *name != b"." && *name != b"..");
        let mut entries = Vec::new();
        match Entry::of(path.clone(), Vec::new(), &metadata) {
            Ok(entry) if entry.kind == Kind::File => {
                std::fs::File::open(path).map_err(|error| cannot_read(path, &error))?;
                entries.push(entry);
            }
            Ok(entry) => walk(entry, &mut entries, report),
            Err(error) => return Err(cannot_read(path, &error)),
        }
        Ok(Self::Tree { name: name.map(<[u8]>::to_vec), entries })
    }
}

impl Entry {
    fn of(path: PathBuf, names: Vec<Vec<u8>>, metadata: &Metadata) -> io::Result<Self> {
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File,
            kind if kind.is_symlink() => Kind::Link(std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec()),
            _ => return Err(io::Error::other("is not a regular file")),
        };
        let (mode, size, modified) = (metadata.mode() & 0o777, metadata.size(), metadata.mtime());
        Ok(Self { path, names, kind, mode, size, modified })
    }
}

/// Adds an entry and everything below it to `entries`, in a fixed order.
fn walk(top: Entry, entries: &mut Vec<Entry>, report: &Report) {
    let mut waiting = vec![top];
    while let Some(entry) = waiting.pop() {
        if entry.kind == Kind::Directory {
            let mut below = Vec::new();
            let found =
                std::fs::read_dir(&entry.path).inspect_err(|error| report.failed(cannot_read(&entry.path, error)));
            for found in found.into_iter().flatten() {
                match found.and_then(|found| Ok((found.path(), found.file_name(), found.metadata()?))) {
                    Ok((path, name, metadata)) => {
                        let names = entry.names.iter().cloned().chain([name.as_bytes().to_vec()]).collect();
                        match Entry::of(path.clone(), names, &metadata) {
                            Ok(entry) => below.push(entry),
                            Err(error) => report.failed(cannot_read(&path, &error)),
                        }
                    }
                    Err(error) => report.failed(cannot_read(&entry.path, &error)),
                }
            }
            below.sort_by(|one, other| other.names.cmp(&one.names));
            waiting.append(&mut below);
        }
        entries.push(entry);
    }
}

/// The failure for a local file that cannot be read.
pub(super) fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    failed(format!("{}: {}", path.display(), reason(error)))
}
