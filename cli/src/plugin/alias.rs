//! `plugin install --alias`: adds an alias to the AWS CLI, so that `aws forward …` runs `aws-ssm-forward forward …`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::args::NAME;
use crate::exit_code::{ExitCode, Failure};

/// The line above the alias, by which `uninstall` finds it.
const MARK: &str = "# of aws-ssm-forward: aws-ssm-forward plugin uninstall --alias";

/// The section for aliases of top-level commands.
const SECTION: &str = "[toplevel]";

/// Adds the alias. Returns a description of the change.
///
/// # Errors
/// Returns an error if there is another alias of this name, or if the file cannot be written.
pub(crate) fn install() -> Result<String, Failure> {
    let path = file()?;
    let text = read(&path)?;
    let own = std::env::current_exe().map_err(Failure::internal)?;
    let own = own.display().to_string();
    let own = shlex::try_quote(&own).map_err(Failure::internal)?;
    let added = added(&without(&text), &format!("forward = !{own} forward"))
        .ok_or_else(|| refused(&path, "has another alias `forward`; remove it first"))?;
    write(&path, &added)?;
    Ok(format!("`aws forward` is now {NAME} forward, by {}", path.display()))
}

/// Removes the alias. Returns a description of the change.
///
/// # Errors
/// Returns an error if the file has no alias of this program, or cannot be written.
pub(crate) fn uninstall() -> Result<String, Failure> {
    let path = file()?;
    let text = read(&path)?;
    let rest = without(&text);
    if rest == text {
        return Err(refused(&path, "has no alias of this program; nothing was changed"));
    }
    write(&path, &rest)?;
    Ok(format!("removed the alias `aws forward` from {}", path.display()))
}

/// Returns the path of the AWS CLI's alias file, which is fixed.
fn file() -> Result<PathBuf, Failure> {
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| Failure::new(ExitCode::Config, "install", "there is no home folder: set HOME"))?;
    Ok(home.join(".aws/cli/alias"))
}

fn read(path: &Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(refused(path, &format!("cannot be read: {error}"))),
    }
}

/// Replaces the file in one step.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let written = fs::create_dir_all(folder).and_then(|()| {
        // If the path is a symbolic link, its target is replaced, because this is the file that the user edits.
        let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut file = tempfile::NamedTempFile::new_in(place.parent().unwrap_or(folder))?;
        file.write_all(text.as_bytes())?;
        file.persist(place).map_err(|error| error.error).map(drop)
    });
    written.map_err(|error| refused(path, &format!("cannot be written: {error}")))
}

/// Returns the text with the alias. `None` if there is another alias of this name.
fn added(text: &str, alias: &str) -> Option<String> {
    let name = |line: &str| line.split('=').next().map(|name| name.trim().to_owned());
    let mut section = "";
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim();
        } else if section == SECTION && !line.starts_with([' ', '\t', '#']) && name(line).as_deref() == Some("forward")
        {
            return None;
        }
    }
    let lines = format!("{MARK}\n{alias}\n");
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        offset += line.len();
        if line.trim() == SECTION {
            let (before, after) = text.split_at(offset);
            let end = if before.ends_with('\n') { "" } else { "\n" };
            return Some(format!("{before}{end}{lines}{after}"));
        }
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Some(format!("{text}{end}{SECTION}\n{lines}"))
}

/// Returns the text without the alias of this program. All other lines stay unchanged.
fn without(text: &str) -> String {
    let mut rest = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        if line.trim() == MARK {
            lines.next();
        } else {
            rest.push_str(line);
        }
    }
    rest
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::new(ExitCode::Config, "install", format!("{} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIAS: &str = "forward = !/bin/x forward";

    #[test]
    fn the_alias_is_added_to_the_section_and_taken_out_again() {
        for text in [
            "",
            "[toplevel]\n",
            "[toplevel]\nls = ec2 ls",
            "# mine\n[command ec2]\nforward = x\n\n[toplevel]\nls = x\n",
        ] {
            let with = added(text, ALIAS).unwrap();
            assert_eq!(with.matches(SECTION).count(), 1, "{with}");
            assert!(with.contains(&format!("{SECTION}\n{MARK}\n{ALIAS}\n")), "{with}");
            let rest = without(&with);
            let rest = if text.is_empty() { rest.replace("[toplevel]\n", "") } else { rest };
            assert_eq!(rest, text);
        }
        assert_eq!(added("[toplevel]\nforward = !other\n", ALIAS), None);
    }
}
