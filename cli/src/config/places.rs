//! Where configuration files are.

use std::path::{Path, PathBuf};

/// The name of a project's file.
pub(crate) const PROJECT_FILE: &str = ".aws-ssm-forward.toml";

/// The user's own file, whether it exists or not: `aws-ssm-forward/config.toml` in `$XDG_CONFIG_HOME`, by default `~/.config`.
/// `None`: there is no home folder.
pub(crate) fn user_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).and_then(absolute);
    let folder = folder.or_else(|| Some(home()?.join(".config")))?;
    Some(folder.join("aws-ssm-forward").join("config.toml"))
}

/// The user's home folder.
pub(super) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home.is_absolute())
}

/// The project's file: in `folder`, or in the nearest parent folder that has one.
pub(super) fn project_file(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|folder| folder.join(PROJECT_FILE)).find(|path| path.symlink_metadata().is_ok())
}

/// Whether anybody other than the user or the system's administrator could have written a file.
///
/// # Errors
/// Its metadata cannot be read.
pub(super) fn is_of_another(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    // The folder is checked too, because its owner can replace the file.
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    for path in [path, folder] {
        let metadata = path.symlink_metadata()?;
        let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.uid() != own && (metadata.uid() != 0 || (metadata.mode() & 0o022 != 0 && !is_sticky)) {
            return Ok(true);
        }
    }
    Ok(false)
}
