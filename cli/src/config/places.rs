//! The paths of the configuration files.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The name of a project's configuration file.
pub(crate) const PROJECT_FILE: &str = ".aws-ssm-forward.toml";

/// Returns the path of the user's own file, which may not exist: `aws-ssm-forward/config.toml` in `$XDG_CONFIG_HOME`, by default
/// `~/.config`. `None` if there is no home folder.
pub(crate) fn user_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).and_then(absolute);
    let folder = folder.or_else(|| Some(home()?.join(".config")))?;
    Some(folder.join("aws-ssm-forward").join("config.toml"))
}

/// Returns the user's home folder.
pub(super) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home.is_absolute())
}

/// Returns the path of the project's file: in `folder`, or in the nearest parent folder that has one.
pub(super) fn project_file(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|folder| folder.join(PROJECT_FILE)).find(|path| path.symlink_metadata().is_ok())
}

/// Whether anyone but the user and the system's administrator could have written a file, or can replace it.
///
/// # Errors
/// Returns an error if the file's metadata cannot be read.
pub(super) fn is_writable_by_others(path: &Path) -> io::Result<bool> {
    let real = path.canonicalize()?;
    // The owner of a folder can replace its entries: the file, and a link to the file.
    let folders = [&real, path].map(|path| path.parent().unwrap_or_else(|| Path::new("/")));
    let mut metadata = vec![real.metadata()?];
    for folder in folders {
        metadata.push(folder.metadata()?);
    }
    Ok(metadata.iter().any(may_be_changed) || !is_trusted(path.symlink_metadata()?.uid()))
}

/// Whether other users can change a file, or the entries of a folder.
fn may_be_changed(metadata: &Metadata) -> bool {
    let mode = metadata.mode();
    // In a folder such as /tmp, users cannot replace the files of other users.
    let is_sticky = metadata.is_dir() && mode & 0o1000 != 0;
    // On systems where each user has a private group, the group has the same number as the user, and files are writable for the
    // group.
    let for_group = mode & 0o020 != 0 && metadata.gid() != metadata.uid();
    !is_trusted(metadata.uid()) || ((for_group || mode & 0o002 != 0) && !is_sticky)
}

fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}
