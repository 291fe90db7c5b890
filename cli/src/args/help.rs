//! The help of the whole command. Commands are in groups; `-h` describes only the everyday commands, so that the help fits on one
//! screen.

use clap::{Command, CommandFactory as _};

use super::Cli;

/// A group of commands. Every command is in one group.
struct Group {
    title: &'static str,
    /// Commands that `-h` describes, in this order.
    everyday: &'static [&'static str],
    /// Commands that `-h` only names.
    more: &'static [&'static str],
}

const GROUPS: [Group; 4] = [
    Group {
        title: "Tunnels",
        everyday: &["forward", "up", "status", "run"],
        more: &["down", "logs", "restart", "reload", "socks", "config"],
    },
    Group { title: "Nodes", everyday: &["shell", "exec", "ls"], more: &["cp", "ssh-proxy", "relay"] },
    Group { title: "Access and setup", everyday: &[], more: &["token", "policy", "doctor", "plugin", "completions"] },
    Group { title: "Without AWS", everyday: &[], more: &["demo", "local"] },
];

/// Returns the command line with its help. The list of commands is made here, because clap's list has no groups.
pub(crate) fn command() -> Command {
    let command = Cli::command();
    let options = heading(&command, "Options:").replacen('\n', "", 1);
    let (short, long) = (short(&command), long(&command));
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{{before-help}}{options}\n{{options}}{{after-help}}"
    );
    command.help_template(template).before_help(short).before_long_help(long)
}

/// Returns the everyday commands with descriptions, and the names of the other commands.
fn short(command: &Command) -> String {
    let groups = GROUPS.iter().filter(|group| !group.everyday.is_empty());
    let described: String = groups.map(|group| described(command, group.title, group.everyday)).collect();
    let more: Vec<_> = GROUPS.iter().flat_map(|group| group.more).copied().collect();
    let text = format!("{described}{}\n  {}", heading(command, "More (see --help):"), more.join(", "));
    text.replacen('\n', "", 1)
}

/// Returns all commands with descriptions.
fn long(command: &Command) -> String {
    let describe = |group: &Group| described(command, group.title, &[group.everyday, group.more].concat());
    GROUPS.iter().map(describe).collect::<Vec<_>>().join("\n").replacen('\n', "", 1)
}

/// Returns a group as text: its title, and a line with name and description for each command.
fn described(command: &Command, title: &str, names: &[&str]) -> String {
    let mut lines = vec![heading(command, &format!("{title}:"))];
    let width = GROUPS.iter().flat_map(|group| group.everyday.iter().chain(group.more)).map(|name| name.len()).max();
    let style = command.get_styles().get_literal();
    for name in names {
        let about = command.find_subcommand(name).and_then(Command::get_about);
        let about = about.map(ToString::to_string).unwrap_or_default();
        lines.push(format!("  {style}{name:width$}{style:#}  {about}", width = width.unwrap_or_default()));
    }
    lines.join("\n")
}

/// Returns a heading that starts with a line break. The line break must be inside the styled text: clap counts columns from the
/// last line break in a piece of text of one style.
fn heading(command: &Command, text: &str) -> String {
    let style = command.get_styles().get_header();
    format!("{style}\n{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let command = Cli::command();
        let is_shown = |command: &&Command| !command.is_hide_set();
        let mut commands: Vec<_> = command.get_subcommands().filter(is_shown).map(Command::get_name).collect();
        let mut grouped: Vec<_> =
            GROUPS.iter().flat_map(|group| group.everyday.iter().chain(group.more)).copied().collect();
        commands.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, commands);
    }
}
