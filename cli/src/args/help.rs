//! The help of the whole command: commands in groups, the everyday ones on one screen.

use clap::{Command, CommandFactory as _};

use super::Cli;

/// Commands that belong together. Every command is in one group.
struct Group {
    title: &'static str,
    /// `-h` describes these, in this order.
    everyday: &'static [&'static str],
    /// `-h` only names these.
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

/// The command line with its help. clap's own list of commands has no groups; everything else is clap's.
pub(crate) fn command() -> Command {
    let command = Cli::command();
    let options = heading(&command, "Options:").replacen('\n', "", 1);
    let (short, long) = (short(&command), long(&command));
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{{before-help}}{options}\n{{options}}{{after-help}}"
    );
    command.help_template(template).before_help(short).before_long_help(long)
}

/// The everyday commands, and the names of the others.
fn short(command: &Command) -> String {
    let groups = GROUPS.iter().filter(|group| !group.everyday.is_empty());
    let described: String = groups.map(|group| described(command, group.title, group.everyday)).collect();
    let more: Vec<_> = GROUPS.iter().flat_map(|group| group.more).copied().collect();
    let text = format!("{described}{}\n  {}", heading(command, "More (see --help):"), more.join(", "));
    text.replacen('\n', "", 1)
}

/// All commands.
fn long(command: &Command) -> String {
    let describe = |group: &Group| described(command, group.title, &[group.everyday, group.more].concat());
    GROUPS.iter().map(describe).collect::<Vec<_>>().join("\n").replacen('\n', "", 1)
}

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

/// A heading, on a line of its own. The line break is a part of it: clap counts columns from the last line break in a piece of text
/// of one style.
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
