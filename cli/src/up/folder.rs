//! The folder of the control sockets, which only the user can access.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::exit_code::{ExitCode, Failure};

/// The folder of the control sockets.
#[derive(Clone, Debug)]
pub(crate) struct ControlFolder {
    folder: PathBuf,
}

impl ControlFolder {
    /// Opens `aws-ssm-forward` in `$XDG_RUNTIME_DIR`, or a folder in the temporary folder with the user's id in its name. Creates
    /// the folder if it is missing.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created, or if other users own it or can access it.
    pub(crate) fn open() -> Result<Self, Failure> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let uid = rustix::process::geteuid().as_raw();
        let folder = match runtime {
            Some(runtime) => runtime.join("aws-ssm-forward"),
            None => std::env::temp_dir().join(format!("aws-ssm-forward-{uid}")),
        };
        Self::at(folder)
    }

    /// Opens or creates this folder.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(super) fn at(folder: PathBuf) -> Result<Self, Failure> {
        let this = Self { folder };
        let refused = |why: &str| this.refused(why);
        match DirBuilder::new().mode(0o700).create(&this.folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refused(&format!("cannot be created: {error}"))),
        }
        let metadata = this.folder.symlink_metadata().map_err(|error| refused(&error.to_string()))?;
        if !metadata.is_dir() {
            return Err(refused("is not a folder; remove it"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(refused("belongs to another user; set XDG_RUNTIME_DIR to a folder of your own"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(refused("can be entered by others; make it private: chmod 700"));
        }
        Ok(this)
    }

    /// Returns the path of the control socket of a process.
    pub(crate) fn socket(&self, pid: u32) -> PathBuf {
        self.folder.join(format!("up-{pid}.sock"))
    }

    /// Waits for the lock. A process holds the lock while it checks which tunnels are open in other processes and then opens its
    /// control socket or further tunnels. Dropping the file releases the lock.
    ///
    /// # Errors
    /// Returns an error if the lock file cannot be created or locked.
    pub(super) async fn lock(&self) -> Result<File, Failure> {
        let path = self.folder.join("lock");
        let lock = move || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            file.lock()?;
            io::Result::Ok(file)
        };
        let locked = tokio::task::spawn_blocking(lock).await.map_err(Failure::internal)?;
        locked.map_err(|error| self.refused(&format!("cannot be locked: {error}")))
    }

    fn refused(&self, why: &str) -> Failure {
        let text = format!("the folder of control sockets, {}, {why}", self.folder.display());
        Failure::new(ExitCode::Config, "control", text)
    }

    /// Returns the paths of all sockets, including those of processes that have ended.
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
        ControlFolder::at(folder.clone()).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o750)).unwrap();
        let failure = ControlFolder::at(folder.clone()).unwrap_err();
        assert!(failure.message.contains("can be entered by others"), "{failure}");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(ControlFolder::at(link).unwrap_err().message.contains("is not a folder"));
    }
}
