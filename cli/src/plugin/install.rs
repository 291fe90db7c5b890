//! `plugin install` and `plugin uninstall`: installs this program where the AWS CLI looks for its own plugin.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::NAME;
use crate::exit_code::{ExitCode, Failure};

/// The name under which the replaced file is kept, in the same folder.
const KEPT: &str = "session-manager-plugin.replaced-by-aws-ssm-forward";

/// Installs a link to this program, or a copy of it, into `dir`. Returns a description of the change.
///
/// # Errors
/// Returns an error of one line if the program cannot be installed.
pub(crate) fn install(dir: Option<&Path>, copy: bool) -> Result<String, Failure> {
    let dir = directory(dir)?;
    let (place, kept) = (dir.join(NAME), dir.join(KEPT));
    let own = std::env::current_exe().map_err(Failure::internal)?;
    if !dir.is_dir() {
        return Err(refused(format!("{} is not a folder; create it, or name another one with --dir", dir.display())));
    }
    if is_own(&place, &own) {
        return Ok(format!("{} is already this program", place.display()));
    }
    // Created under another name first: the existing file is changed only when the new one is complete.
    let new = put(&dir, &own, copy).map_err(|error| failed(&dir, &error))?;
    let replaced = replace(&place, &kept, new, &own)?;
    let shadow = found_in_path().filter(|found| !is_own(found, &own));
    let warning = shadow.map_or_else(String::new, |other| {
        format!("\nwarning: {} comes first in PATH; the AWS CLI will start that one", other.display())
    });
    Ok(format!("{} is now this program{replaced}{warning}", place.display()))
}

/// Creates a link to this program, or a copy, under a random name in a folder. It is removed on drop.
fn put(dir: &Path, own: &Path, copy: bool) -> io::Result<TempPath> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(NAME);
    if !copy {
        return Ok(builder.make_in(dir, |path| std::os::unix::fs::symlink(own, path))?.into_temp_path());
    }
    let mut new = builder.tempfile_in(dir)?;
    io::copy(&mut fs::File::open(own)?, &mut new)?;
    new.as_file().set_permissions(own.metadata()?.permissions())?;
    Ok(new.into_temp_path())
}

/// Moves `new` to `place`. Returns what was done with the previous file.
fn replace(place: &Path, kept: &Path, new: TempPath, own: &Path) -> Result<String, Failure> {
    let replaced = if fs::symlink_metadata(place).is_err() {
        String::new()
    } else if is_some_build(place, own) {
        // A file that an earlier installation kept stays kept.
        "; the previous file was another build of it".to_owned()
    } else {
        let again =
            if fs::symlink_metadata(kept).is_ok() { ", which replaces the file that was kept there" } else { "" };
        fs::rename(place, kept).map_err(|error| failed(place, &error))?;
        format!("; the previous file is now {}{again}", kept.display())
    };
    new.persist(place).map_err(|error| failed(place, &error.error))?;
    Ok(replaced)
}

/// Removes the program and restores the kept file. Returns a description of the change.
///
/// # Errors
/// Returns an error of one line if `place` is not this program or cannot be changed.
pub(crate) fn uninstall(dir: Option<&Path>) -> Result<String, Failure> {
    let dir = directory(dir)?;
    let (place, kept) = (dir.join(NAME), dir.join(KEPT));
    let own = std::env::current_exe().map_err(Failure::internal)?;
    if !is_own(&place, &own) && !is_some_build(&place, &own) {
        return Err(refused(format!("{} is not this program; nothing was changed", place.display())));
    }
    fs::remove_file(&place).map_err(|error| failed(&place, &error))?;
    if fs::symlink_metadata(&kept).is_err() {
        return Ok(format!("{} was removed; there was no file before", place.display()));
    }
    fs::rename(&kept, &place).map_err(|error| failed(&kept, &error))?;
    Ok(format!("this program was removed from {}; the previous file is restored", place.display()))
}

/// Returns the folder: the requested one, otherwise the folder of the plugin in PATH, otherwise /usr/local/bin.
fn directory(dir: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = dir {
        return Ok(dir.to_path_buf());
    }
    if let Some(found) = found_in_path().and_then(|found| found.parent().map(Path::to_path_buf)) {
        return Ok(found);
    }
    let usual = Path::new("/usr/local/bin");
    match usual.is_dir() {
        true => Ok(usual.to_path_buf()),
        false => Err(refused("there is no /usr/local/bin; name a folder of PATH with --dir".into())),
    }
}

/// Returns the first plugin in PATH.
fn found_in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(NAME)).find(|candidate| candidate.exists())
}

/// Whether `place` is this program: a link to it, or a copy of the same length and content.
fn is_own(place: &Path, own: &Path) -> bool {
    let same_file = |a: &Path, b: &Path| Some(fs::canonicalize(a).ok()? == fs::canonicalize(b).ok()?);
    let same_bytes = |a: &Path, b: &Path| {
        let same_length = fs::metadata(a).ok()?.len() == fs::metadata(b).ok()?.len();
        Some(same_length && fs::read(a).ok()? == fs::read(b).ok()?)
    };
    same_file(place, own).unwrap_or(false) || same_bytes(place, own).unwrap_or(false)
}

/// Whether `place` is another build of this program, or a link to the former path of one. Every build contains the name [`KEPT`].
fn is_some_build(place: &Path, own: &Path) -> bool {
    let leads_to_one = fs::read_link(place).is_ok_and(|target| target.file_name() == own.file_name());
    let contains_name = |bytes: Vec<u8>| bytes.windows(KEPT.len()).any(|window| window == KEPT.as_bytes());
    leads_to_one || fs::read(place).is_ok_and(contains_name)
}

fn refused(message: String) -> Failure {
    Failure::new(ExitCode::Config, "install", message)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run the command as root, or choose a folder of yours with --dir",
        _ => "",
    };
    refused(format!("{}: {error}{remedy}", path.display()))
}
