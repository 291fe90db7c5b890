//! `man`: writes the man pages, for packages. They are made from the same descriptions as the help.

use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::exit_code::{ExitCode, Failure};

/// Writes a page for each command into `folder`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(folder: &Path) -> Result<ExitCode, Failure> {
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    written.map_err(|error| {
        Failure::new(ExitCode::Output, "output", format!("cannot write man pages into {}: {error}", folder.display()))
    })?;
    Ok(ExitCode::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_each_command_with_its_options() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = page(&format!("aws-ssm-forward-{}", command.get_name()));
            assert!(page.contains(".SH NAME") && page.contains(".SH DESCRIPTION"), "{page}");
        }
        assert!(page("aws-ssm-forward").contains("aws\\-ssm\\-forward\\-forward(1)"));
        assert!(page("aws-ssm-forward-forward").contains("wait\\-ready"));
    }
}
