//! Where control sockets are: a folder that only its user may enter.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::exit_code::{ExitCode, Failure};

/// The folder of the control sockets.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    /// `aws-ssm-forward` in `$XDG_RUNTIME_DIR`, or a folder of the user's own in the temporary folder. It is made if it is
    /// missing.
    ///
    /// # Errors
    /// It cannot be made, or others can enter it.
    pub(crate) fn open() -> Result<Self, Failure> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let uid = rustix::process::geteuid().as_raw();
        let folder = match runtime {
            Some(runtime) => runtime.join("aws-ssm-forward"),
            None => std::env::temp_dir().join(format!("aws-ssm-forward-{uid}")),
        };
        Self::at(folder)
    }

    /// A place in this folder.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn at(folder: PathBuf) -> Result<Self, Failure> {
        let refused = |why: &str| {
            let text = format!("the folder of control sockets, {}, {why}", folder.display());
            Failure::new(ExitCode::Config, "control", text)
        };
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refused(&format!("cannot be made: {error}"))),
        }
        let metadata = folder.symlink_metadata().map_err(|error| refused(&error.to_string()))?;
        if !metadata.is_dir() {
            return Err(refused("is no folder; remove it"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(refused("belongs to another user; set XDG_RUNTIME_DIR to a folder of your own"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(refused("can be entered by others; make it private: chmod 700"));
        }
        Ok(Self { folder })
    }

    /// The control socket of a process.
    pub(crate) fn socket(&self, pid: u32) -> PathBuf {
        self.folder.join(format!("up-{pid}.sock"))
    }

    /// Waits for, and takes, the right to look whose tunnels are open and to open others. It is given back when the file is
    /// dropped.
    ///
    /// # Errors
    /// The file of the lock cannot be made.
    pub(super) fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.folder.join("lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// The sockets that there are, of living processes and of dead ones.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut sockets: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_socket_name(path)).collect();
        sockets.sort();
        sockets
    }
}

fn is_socket_name(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("up-") && name.ends_with(".sock"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_folder_is_private_or_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("sockets");
        Place::at(folder.clone()).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o750)).unwrap();
        let failure = Place::at(folder.clone()).unwrap_err();
        assert!(failure.message.contains("can be entered by others"), "{failure}");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(Place::at(link).unwrap_err().message.contains("is no folder"));
    }
}
