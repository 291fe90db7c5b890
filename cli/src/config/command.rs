//! `config`: checks the files, creates a first one, prints the schema.

use std::fs::OpenOptions;
use std::io::{ErrorKind, IsTerminal as _, Write as _, stderr, stdin};
use std::path::{Path, PathBuf};

use dialoguer::theme::ColorfulTheme;
use dialoguer::{Confirm, Input};
use ssm_forward::TargetSpec;

use super::file::check_name;
use super::{Config, PROJECT_FILE, Tunnel, schema, user_file};
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
    } else if tunnels.is_empty() {
        console::note("no tunnels are defined");
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
    Failure::new(ExitCode::Output, "output", format!("cannot write {}: {why}", path.display()))
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
    let mut file = toml::Table::new();
    let mut defaults = toml::Table::new();
    for (key, prompt) in [("profile", "AWS profile (empty: none)"), ("region", "Region (empty: the profile's)")] {
        let value = ask_for(prompt, |_| Ok(()))?;
        if !value.is_empty() {
            defaults.insert(key.to_owned(), value.into());
        }
    }
    if !defaults.is_empty() {
        file.insert("defaults".to_owned(), defaults.into());
    }
    let mut tunnels = toml::Table::new();
    loop {
        let name = ask_for("Name of the tunnel", |name| check_name(name).map_err(str::to_owned))?;
        tunnels.insert(name, ask_for_tunnel()?.into());
        if !Confirm::with_theme(&ColorfulTheme::default()).with_prompt("Another tunnel?").default(false).interact()? {
            break;
        }
    }
    file.insert("tunnels".to_owned(), tunnels.into());
    Ok(format!("{HEAD}\n{file}"))
}

fn ask_for_tunnel() -> Result<toml::Table, dialoguer::Error> {
    let forward = |text: String| text.parse::<ForwardRequest>().map(drop);
    let remote = ask_for("Where it leads (host:port, a port of the node, or rds:NAME)", |remote| {
        forward(format!("0:{remote}"))
            .map_err(|_| "expected host:port, a port of the node itself, or a service such as rds:NAME".to_owned())
    })?;
    let is_service = ssm_forward::ServiceSpec::of_text(&remote).is_some();
    let prompt = match is_service {
        true => "Managed node (empty: one in the service's VPC)",
        false => "Managed node (id, Name tag, tag:Key=Value, asg:NAME)",
    };
    let target = ask_for(prompt, |target| match target.parse::<TargetSpec>() {
        Err(error) if !(is_service && target.is_empty()) => Err(error.message),
        _ => Ok(()),
    })?;
    let local = ask_for("Local port (empty: the remote's own)", |local| match local {
        "" => Ok(()),
        local => forward(format!("{local}:{remote}")).map_err(|error| error.what().to_owned()),
    })?;
    let entries = [("target", target), ("remote", remote), ("local", local)].into_iter();
    let given = entries.filter(|(_, value)| !value.is_empty());
    Ok(given.map(|(key, value)| (key.to_owned(), value.into())).collect())
}

/// Asks until the answer is right; it may be empty if `check` takes that.
fn ask_for(prompt: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<String, dialoguer::Error> {
    Input::<String>::with_theme(&ColorfulTheme::default())
        .with_prompt(prompt)
        .allow_empty(true)
        .validate_with(|answer: &String| check(answer))
        .interact_text()
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
