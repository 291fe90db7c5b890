//! `man`: writes the man pages for packages. They are generated from the same descriptions as the help.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::args::Cli;
use crate::exit_code::{ExitCode, Failure};

/// Writes a page for each command into `folder`.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub(crate) fn write(folder: &Path) -> Result<ExitCode, Failure> {
    let mut command = with_all_descriptions(Cli::command());
    command.build();
    let written = std::fs::create_dir_all(folder).and_then(|()| write_pages(&command, folder));
    written.map_err(|error| {
        Failure::new(ExitCode::Output, "output", format!("cannot write man pages into {}: {error}", folder.display()))
    })?;
    Ok(ExitCode::Ok)
}

/// Returns the command with `hide_short_help` removed from its options. For an option that `-h` does not show, `clap_mangen`
/// leaves out the description if the option has only a short one.
fn with_all_descriptions(command: Command) -> Command {
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let command = command.mut_args(|option| option.hide_short_help(false));
    names.iter().fold(command, |command, name| command.mut_subcommand(name, with_all_descriptions))
}

fn write_pages(command: &Command, folder: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(command, folder)?;
    }
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page)?;
    // The text after the help is always a list of examples.
    let page = String::from_utf8_lossy(&page).replace(".SH EXTRA\n", ".SH EXAMPLES\n");
    let page = page
        .replace(".SH EXAMPLES\nExamples:\n", ".SH EXAMPLES\n")
        .replace(".SH EXAMPLES\nExample:\n", ".SH EXAMPLES\n");
    std::fs::write(folder.join(man.get_filename()), page)
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
            assert!(!page.contains(".SH EXTRA"), "{page}");
            // A description follows each option.
            assert!(
                !page.contains("\n\n.TP\n") && !page.contains("\n\n.SH"),
                "an option without a description in {page}"
            );
        }
        assert!(page("aws-ssm-forward").contains("aws\\-ssm\\-forward\\-forward(1)"));
        assert!(page("aws-ssm-forward-forward").contains("wait\\-ready"));
        assert!(page("aws-ssm-forward-up").contains(".SH EXAMPLES\n"));
    }
}
