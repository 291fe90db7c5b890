//! Finds the program that a command line names, before any session is started.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::exit_code::{ExitCode, Failure};

/// A program that can be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// The path of the file.
    pub(crate) path: PathBuf,
    /// The name on the command line.
    pub(crate) name: OsString,
}

impl Program {
    /// Finds a program as a shell does: a name with a slash is a path, any other name is searched in `folders`.
    ///
    /// # Errors
    /// Returns an error if the program does not exist (exit code 127) or cannot be executed (126).
    pub(crate) fn find(name: &OsStr, folders: Option<&OsStr>) -> Result<Self, Failure> {
        let shown = Path::new(name).display();
        let candidates: Vec<PathBuf> = match name.as_encoded_bytes().contains(&b'/') {
            true => vec![name.into()],
            // In POSIX, an empty entry of PATH is the current folder.
            false => std::env::split_paths(folders.unwrap_or_else(|| OsStr::new(DEFAULT_PATH)))
                .map(|folder| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder })
                .map(|folder| folder.join(name))
                .collect(),
        };
        let is_there = |path: &&PathBuf| !name.is_empty() && path.exists();
        let executable = |path: &&PathBuf| path.is_file() && access(path.as_path(), Access::EXEC_OK).is_ok();
        match candidates.iter().filter(is_there).find(executable) {
            Some(path) => Ok(Self { path: path.clone(), name: name.to_owned() }),
            None => Err(match candidates.iter().find(is_there) {
                Some(path) if path.is_dir() => not_executable(format!("cannot run {shown}: it is a folder")),
                Some(path) => not_executable(format!("cannot run {}: it is not executable", path.display())),
                None if name.as_encoded_bytes().contains(&b'/') => not_found(format!("{shown} does not exist")),
                None => not_found(format!("the command {shown} was not found in PATH")),
            }),
        }
    }

    /// Finds the user's shell: `$SHELL`, or `/bin/sh`.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub(crate) fn shell(folders: Option<&OsStr>) -> Result<Self, Failure> {
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        Self::find(shell.as_deref().unwrap_or_else(|| OsStr::new("/bin/sh")), folders)
    }
}

/// The folders in which `execvp` searches if `PATH` is not set.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

fn not_found(text: String) -> Failure {
    Failure::new(ExitCode::CommandNotFound, "command_not_found", text)
}

fn not_executable(text: String) -> Failure {
    Failure::new(ExitCode::CommandNotExecutable, "command_not_executable", text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_is_found_or_it_is_said_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let [empty, full] = ["empty", "full"].map(|name| folder.path().join(name));
        std::fs::create_dir_all(full.join("folder")).unwrap();
        std::fs::create_dir(&empty).unwrap();
        let file = |name: &str, mode| {
            std::fs::write(full.join(name), "").unwrap();
            std::fs::set_permissions(full.join(name), PermissionsExt::from_mode(mode)).unwrap();
        };
        file("tool", 0o755);
        file("text", 0o644);
        let path = std::env::join_paths([&empty, &full]).unwrap();
        let find = |name: &str| Program::find(OsStr::new(name), Some(&path));
        assert_eq!(find("tool").unwrap(), Program { path: full.join("tool"), name: "tool".into() });
        let absolute = full.join("tool");
        assert_eq!(find(absolute.to_str().unwrap()).unwrap().path, absolute);
        for (name, code) in [
            ("text", ExitCode::CommandNotExecutable),
            ("folder", ExitCode::CommandNotExecutable),
            ("nothing", ExitCode::CommandNotFound),
            ("", ExitCode::CommandNotFound),
            ("./nothing", ExitCode::CommandNotFound),
        ] {
            assert_eq!(find(name).unwrap_err().code, code, "{name}");
        }
    }
}
