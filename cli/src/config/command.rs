//! `config`: checks the files, creates a first one, prints the schema.

use std::fs::OpenOptions;
use std::io::{ErrorKind, IsTerminal as _, Write as _, stderr, stdin};
use std::path::{Path, PathBuf};

use dialoguer::theme::ColorfulTheme;
use dialoguer::{Confirm, Input};

use super::{Config, PROJECT_FILE, Tunnel, is_plain_name, schema, user_file};
use crate::args::{ConfigAction, ConfigArgs};
use crate::exit_code::{ExitCode, Failure};
use crate::spec::ForwardRequest;
use crate::{console, outside};

/// Runs the command.
///
/// # Errors
/// A file is wrong, or cannot be written.
pub(crate) fn run(action: &ConfigAction) -> Result<ExitCode, Failure> {
    match action {
        ConfigAction::Check { names, config } => check(names, config)?,
        ConfigAction::Init { project, config } => init(*project, config)?,
        ConfigAction::Path => console::say(format!("{}\n", own_file()?.display())),
        ConfigAction::Schema => console::say(format!("{:#}\n", schema::schema())),
    }
    Ok(ExitCode::Ok)
}

fn own_file() -> Result<PathBuf, Failure> {
    let none =
        || Failure::new(ExitCode::Config, "configuration", "there is no home folder: set HOME or XDG_CONFIG_HOME");
    user_file().ok_or_else(none)
}

fn check(names: &[String], args: &ConfigArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref())?;
    let tunnels = if names.is_empty() { config.check()? } else { config.select(names, &[])? };
    for path in &config.files {
        console::note(&format!("{}: read", outside::line(&path.display().to_string())));
    }
    if config.files.is_empty() {
        console::note(&format!(
            "there is no configuration file: neither {} nor {PROJECT_FILE}; `config init` writes one",
            own_file()?.display()
        ));
    }
    for tunnel in &tunnels {
        console::say(format!("{}\n", outside::line(&describe(tunnel))));
    }
    Ok(())
}

/// A tunnel in one line.
fn describe(Tunnel { name, args, .. }: &Tunnel) -> String {
    let to = args.forwards.first().map(ForwardRequest::text).unwrap_or_default();
    let through = args.target().map_or_else(String::new, |node| format!(" through {node}"));
    let idle = |idle| format!(" (lazy, ends after {} idle)", humantime::format_duration(idle));
    let lazy = args.lazy.map(idle).unwrap_or_default();
    format!("{name}: {to}{through}{lazy}")
}

fn init(project: bool, args: &ConfigArgs) -> Result<(), Failure> {
    let path = match &args.config {
        Some(path) => path.clone(),
        None if project => PathBuf::from(PROJECT_FILE),
        None => own_file()?,
    };
    if path.symlink_metadata().is_ok() {
        return Err(not_written(&path, "it exists already"));
    }
    let asks = stdin().is_terminal() && stderr().is_terminal();
    let text = if asks { ask().map_err(|error| not_written(&path, &error.to_string()))? } else { EXAMPLE.to_owned() };
    write_new(&path, &text).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => not_written(&path, "it exists already"),
        _ => not_written(&path, &error.to_string()),
    })?;
    console::note(&format!("Wrote {}; check it with: aws-ssm-forward config check", path.display()));
    Ok(())
}

fn not_written(path: &Path, why: &str) -> Failure {
    Failure::new(ExitCode::Output, "output", format!("{} is not written: {why}", path.display()))
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

/// A file that works unchanged: every line of a tunnel is a comment.
const EXAMPLE: &str = include_str!("example.toml");

/// The file that a person at the terminal describes.
fn ask() -> Result<String, dialoguer::Error> {
    let theme = ColorfulTheme::default();
    let ask = |prompt: &str, example: &str| {
        Input::<String>::with_theme(&theme)
            .with_prompt(prompt)
            .with_initial_text(example)
            .allow_empty(true)
            .interact_text()
    };
    let mut file = toml::Table::new();
    let mut defaults = toml::Table::new();
    for (key, prompt) in [("profile", "AWS profile (empty: none)"), ("region", "Region (empty: the profile's)")] {
        let value = ask(prompt, "")?;
        if !value.is_empty() {
            defaults.insert(key.to_owned(), value.into());
        }
    }
    if !defaults.is_empty() {
        file.insert("defaults".to_owned(), defaults.into());
    }
    let mut tunnels = toml::Table::new();
    loop {
        let is_name = |name: &String| if is_plain_name(name) { Ok(()) } else { Err("letters, digits, - and _") };
        let name = Input::<String>::with_theme(&theme).with_prompt("Name of the tunnel").validate_with(is_name);
        let name = name.interact_text()?;
        let is_remote = |remote: &String| {
            let parsed = format!("0:{remote}").parse::<ForwardRequest>();
            parsed.map(drop).map_err(|_| "expected host:port, a port of the node itself, or a service such as rds:NAME")
        };
        let remote = Input::<String>::with_theme(&theme)
            .with_prompt("Where it leads (host:port, a port of the node, or rds:NAME)")
            .validate_with(is_remote)
            .interact_text()?;
        let is_service = ssm_forward::ServiceSpec::of_text(&remote).is_some();
        let target = ask(
            match is_service {
                true => "Managed node (empty: one in the service's VPC)",
                false => "Managed node (id, Name tag, tag:Key=Value, asg:NAME)",
            },
            "",
        )?;
        let local = ask("Local port (empty: the remote's own)", "")?;
        let mut tunnel = toml::Table::new();
        for (key, value) in [("target", target), ("remote", remote), ("local", local)] {
            if !value.is_empty() {
                tunnel.insert(key.to_owned(), value.into());
            }
        }
        tunnels.insert(name, tunnel.into());
        if !Confirm::with_theme(&theme).with_prompt("Another tunnel?").default(false).interact()? {
            break;
        }
    }
    file.insert("tunnels".to_owned(), tunnels.into());
    Ok(format!("{HEAD}\n{file}"))
}

const HEAD: &str = "# Tunnels of aws-ssm-forward. `aws-ssm-forward config check` checks this file.";

#[cfg(test)]
mod tests {
    use super::super::{merge, places};
    use super::*;

    /// As it is written, and with all its example tunnels enabled.
    #[test]
    fn the_example_is_right_also_without_its_comment_signs() {
        let folder = tempfile::tempdir().unwrap();
        let uncommented: Vec<_> = EXAMPLE.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
        for (text, count) in [(EXAMPLE.to_owned(), 0), (uncommented.join("\n"), 3)] {
            let path = folder.path().join("config.toml");
            std::fs::write(&path, text).unwrap();
            let config = merge::load(Some(&path), None, None).map_err(|failure| failure.shown().to_owned()).unwrap();
            assert_eq!(config.names().count(), count);
            config.check().unwrap();
        }
    }

    #[test]
    fn a_file_that_exists_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("config.toml");
        write_new(&path, "a").unwrap();
        assert_eq!(write_new(&path, "b").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a");
        assert!(places::project_file(folder.path()).is_none_or(|path| !path.starts_with(folder.path())));
    }
}
