//! Writes files of a node on this machine. The node chooses the names, and must not reach anything outside of the destination.
//! Therefore every name is one component, and no symbolic link below the destination is followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RawMode, Timespec, Timestamps, UTIME_NOW, fchmod, flock, fsync,
    futimens, mkdirat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::digest;
use super::script::PIECE;

/// The attributes of a copied file or directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    /// The permission bits.
    pub(super) mode: u32,
    /// Time of modification, in seconds since 1970.
    pub(super) modified: i64,
    /// Whether mode and time are set exactly (`-p`). Otherwise the time is not set, and the mode is that of the replaced file, or
    /// is reduced by the umask.
    pub(super) exact: bool,
}

/// A local directory, below which files are created.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

impl Root {
    /// Opens an existing directory. Symbolic links in `path` are followed, because the user named it.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// Opens the directory `names` below this one. With `mode`, creates missing directories.
    ///
    /// # Errors
    /// Returns an error if a name is a symbolic link or not a directory, or if a directory cannot be created.
    pub(super) fn directory<'a>(
        &self,
        names: impl IntoIterator<Item = &'a [u8]>,
        mode: Option<u32>,
    ) -> io::Result<OwnedFd> {
        let mut directory = openat(&self.0, ".", DIRECTORY, Mode::empty())?;
        for name in names {
            check(name)?;
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            let name = OsStr::from_bytes(name);
            directory = match (openat(&directory, name, flags, Mode::empty()), mode) {
                (Err(Errno::NOENT), Some(mode)) => {
                    match mkdirat(&directory, name, Mode::from_raw_mode((mode | 0o700) as RawMode)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    openat(&directory, name, flags, Mode::empty())?
                }
                (Err(Errno::NOTDIR | Errno::LOOP), _) => {
                    let is_link = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
                        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
                    let why = match is_link {
                        true => "is a symbolic link on this machine, which is not followed",
                        false => "is not a directory on this machine",
                    };
                    return Err(io::Error::other(why));
                }
                (opened, _) => opened?,
            };
        }
        Ok(directory)
    }
}

/// Refuses everything but a single name.
fn check(name: &[u8]) -> io::Result<()> {
    match name {
        b"" | b"." | b".." => Err(io::ErrorKind::InvalidInput.into()),
        name if name.contains(&b'/') || name.contains(&0) => Err(io::ErrorKind::InvalidInput.into()),
        _ => Ok(()),
    }
}

/// A file that is written under a temporary name, beside its final name.
#[derive(Debug)]
pub(super) struct PartialFile {
    directory: OwnedFd,
    part: String,
    name: Vec<u8>,
    file: File,
    /// Whether the file is new. Then unwritten parts are zero.
    is_new: bool,
}

impl PartialFile {
    /// Opens the partial file for `name` in `directory`. `identity` identifies the copy, so that only the same copy continues the
    /// file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be created, belongs to another user, or is written by another copy.
    pub(super) fn open(directory: OwnedFd, name: &[u8], identity: &str) -> io::Result<Self> {
        check(name)?;
        match statat(&directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile | FileType::Symlink => {}
                FileType::Directory => return Err(io::Error::other("is a directory on this machine")),
                _ => return Err(io::Error::other("is not a regular file on this machine")),
            },
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let part = part_name(identity, name);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let private = Mode::RUSR | Mode::WUSR;
        let (file, is_new) = match openat(&directory, part.as_str(), flags | OFlags::CREATE | OFlags::EXCL, private) {
            Ok(file) => (File::from(file), true),
            Err(Errno::EXIST) => {
                (File::from(openat(&directory, part.as_str(), flags | OFlags::NONBLOCK, private)?), false)
            }
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        let is_ours =
            metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.nlink() == 1;
        if !is_ours {
            return Err(io::Error::other(format!("{part} is not a file of this user")));
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another copy writes this file"))?;
        Ok(Self { directory, part, name: name.to_vec(), file, is_new })
    }

    /// Returns the number of pieces that the file has, including an incomplete last one.
    pub(super) fn old_pieces(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len().div_ceil(PIECE))
    }

    /// Returns the digest of a piece of the file.
    pub(super) fn digest_of(&self, index: u64, length: u64) -> io::Result<String> {
        let mut piece = digest::piece(&self.file, index)?;
        piece.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(digest::of_bytes(&piece))
    }

    /// Writes a piece. Blocks of zeros are not written to a new file, so that they occupy no disk space.
    pub(super) fn write(&self, index: u64, piece: &[u8]) -> io::Result<()> {
        const BLOCK: usize = 64 << 10;
        for (number, block) in piece.chunks(BLOCK).enumerate() {
            if !self.is_new || block.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(block, index * PIECE + (number * BLOCK) as u64)?;
            }
        }
        Ok(())
    }

    /// Truncates the file to its size and returns its digest.
    pub(super) fn digest(&self, size: u64) -> io::Result<String> {
        self.file.set_len(size)?;
        digest::of_file(&self.file)
    }

    /// Sets the file's attributes and renames it to its final name. The file is on the disk when this returns.
    pub(super) fn finish(&self, attributes: Attributes) -> io::Result<()> {
        let name = OsStr::from_bytes(&self.name);
        let old = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .filter(|stat| !attributes.exact && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let mode = match old {
            Some(stat) => stat.st_mode & 0o777,
            None if attributes.exact => attributes.mode as RawMode,
            None => attributes.mode as RawMode & !umask(),
        };
        fchmod(&self.file, Mode::from_raw_mode(mode))?;
        if attributes.exact {
            futimens(&self.file, &times(attributes.modified))?;
        }
        fsync(&self.file)?;
        renameat(&self.directory, self.part.as_str(), &self.directory, name)?;
        // Some file systems do not support this for a directory.
        let _ = fsync(&self.directory);
        Ok(())
    }

    /// Removes the partial file.
    pub(super) fn remove(&self) {
        let _ = unlinkat(&self.directory, self.part.as_str(), AtFlags::empty());
    }
}

/// Returns the name of a partial file, on either side. The same copy always gets the same name.
pub(super) fn part_name(identity: &str, name: &[u8]) -> String {
    let digest = digest::of_bytes(&[identity.as_bytes(), &[0], name].concat());
    format!(".aws-ssm-forward-{}.part", digest.get(..24).unwrap_or_default())
}

/// Creates the symbolic link `name`. Replaces a file or a link.
pub(super) fn link(directory: impl AsFd, name: &[u8], target: &[u8]) -> io::Result<()> {
    check(name)?;
    let (name, target) = (OsStr::from_bytes(name), OsStr::from_bytes(target));
    match unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(symlinkat(target, &directory, name)?),
        Err(Errno::ISDIR | Errno::PERM) => Err(io::Error::other("is a directory on this machine")),
        Err(error) => Err(error.into()),
    }
}

/// Sets the attributes of a directory that `-p` preserves.
pub(super) fn finish_directory(directory: &OwnedFd, attributes: Attributes) -> io::Result<()> {
    fchmod(directory, Mode::from_raw_mode(attributes.mode as RawMode))?;
    utimensat(directory, ".", &times(attributes.modified), AtFlags::empty())?;
    Ok(())
}

fn times(modified: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: modified, tv_nsec: 0 },
    }
}

/// Returns the umask of this process.
pub(super) fn umask() -> RawMode {
    use std::sync::LazyLock;
    // The umask can only be read by changing it, so it is read once.
    static UMASK: LazyLock<RawMode> = LazyLock::new(|| {
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        rustix::process::umask(mask);
        mask.as_raw_mode()
    });
    *UMASK
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: Attributes = Attributes { mode: 0o640, modified: 1_000_000_000, exact: true };

    #[test]
    fn names_of_the_node_stay_below_the_destination() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("outside")).unwrap();
        std::fs::create_dir(directory.path().join("inside")).unwrap();
        std::os::unix::fs::symlink("../outside", directory.path().join("inside/link")).unwrap();
        let root = Root::open(&directory.path().join("inside")).unwrap();
        for name in [&b".."[..], b".", b"", b"a/b", b"/etc", b"a\0b", b"link"] {
            assert!(root.directory([name], Some(0o777)).is_err(), "{name:?}");
        }
        let at = |root: &Root| root.directory([], None).unwrap();
        for name in [&b".."[..], b"../outside/x", b"/tmp/x", b""] {
            assert!(PartialFile::open(at(&root), name, "copy").is_err(), "{name:?}");
            assert!(link(at(&root), name, b"x").is_err(), "{name:?}");
        }
        // A link with the name of a file is replaced, not followed.
        std::os::unix::fs::symlink("../outside/file", directory.path().join("inside/file")).unwrap();
        let partial = PartialFile::open(at(&root), b"file", "copy").unwrap();
        partial.write(0, b"content").unwrap();
        partial.finish(ATTRIBUTES).unwrap();
        assert_eq!(std::fs::read_dir(directory.path().join("outside")).unwrap().count(), 0);
        assert!(directory.path().join("inside/file").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_partial_file_is_private_locked_and_continued_by_the_same_copy_only() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let open = |identity: &str| PartialFile::open(root.directory([], None).unwrap(), b"file", identity);
        let partial = open("copy").unwrap();
        assert_eq!(partial.file.metadata().unwrap().mode() & 0o777, 0o600);
        partial.write(0, b"content").unwrap();
        assert!(open("copy").unwrap_err().to_string().contains("another copy"));
        drop(partial);
        assert_eq!(open("other").unwrap().old_pieces(), 0);
        let partial = open("copy").unwrap();
        assert_eq!((partial.old_pieces(), partial.digest(7).unwrap()), (1, digest::of_bytes(b"content")));
        partial.finish(ATTRIBUTES).unwrap();
        let metadata = directory.path().join("file").metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.mtime()), (0o640, 1_000_000_000));
    }

    #[test]
    fn zeros_take_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let partial = PartialFile::open(root.directory([], None).unwrap(), b"file", "copy").unwrap();
        let mut piece = vec![0; 1 << 20];
        piece.push(1);
        partial.write(0, &piece[..1 << 20]).unwrap();
        partial.write(1, &piece[1 << 20..]).unwrap();
        assert_eq!(partial.digest((1 << 20) + 1).unwrap(), digest::of_bytes(&piece));
        assert!(partial.file.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
