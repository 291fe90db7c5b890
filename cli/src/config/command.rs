//! The `config` command: checks the configuration files, creates a first one, prints the schema.

use std::fs::OpenOptions;
use std::io::{ErrorKind, IsTerminal as _, Write as _, stderr, stdin};
use std::path::{Path, PathBuf};

use dialoguer::theme::ColorfulTheme;
use dialoguer::{Confirm, Input};
use ssm_forward::ServiceSpec;
use toml::Table;

use super::file::check_name;
use super::problem::Author;
use super::{Config, PROJECT_FILE, Tunnel, merge, schema, user_file};
use crate::args::{ConfigAction, ConfigArgs};
use crate::exit_code::{ExitCode, Failure};
use crate::spec::ForwardRequest;
use crate::{console, untrusted};

/// Runs the command.
///
/// # Errors
/// Returns an error if a file is invalid or cannot be written.
pub(crate) fn run(action: &ConfigAction) -> Result<ExitCode, Failure> {
    match action {
        ConfigAction::Check { names, config } => check(names, config)?,
        ConfigAction::Init { project, config } => init(*project, config)?,
        ConfigAction::Path => console::say(format!("{}\n", own_file()?.display())),
        ConfigAction::Schema => console::say(format!("{:#}\n", schema::schema())),
    }
    Ok(ExitCode::Ok)
}

/// Returns the path of the user's configuration file.
fn own_file() -> Result<PathBuf, Failure> {
    let none =
        || Failure::new(ExitCode::Config, "configuration", "there is no home folder: set HOME or XDG_CONFIG_HOME");
    user_file().ok_or_else(none)
}

fn check(names: &[String], args: &ConfigArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref())?;
    let tunnels = if names.is_empty() { config.check()? } else { config.select(names, &[])? };
    for path in &config.files {
        console::note(&format!("{}: read", untrusted::line(&path.display().to_string())));
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
        console::say(format!("{}\n", untrusted::line(&describe(tunnel))));
    }
    Ok(())
}

/// Describes a tunnel in one line.
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
    let text = match asks {
        true => ask(project, &path).map_err(|error| not_written(&path, &error.to_string()))?,
        false => EXAMPLE.to_owned(),
    };
    write_new(&path, &text).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => not_written(&path, "it exists already"),
        _ => not_written(&path, &error.to_string()),
    })?;
    console::note(&format!("Wrote {}; check it with: aws-ssm-forward config check", path.display()));
    Ok(())
}

fn ask(project: bool, path: &Path) -> Result<String, dialoguer::Error> {
    let path = std::path::absolute(path)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    Questions::ask(path, if project { Author::Project(folder) } else { Author::User })
}

fn not_written(path: &Path, why: &str) -> Failure {
    Failure::new(ExitCode::Output, "output", format!("cannot write {}: {why}", path.display()))
}

/// Creates a file that must not exist, and the folders above it.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

/// The example file. It is valid unchanged, because every line of a tunnel is a comment.
const EXAMPLE: &str = include_str!("example.toml");

/// Asks the user at the terminal for the contents of the file. An answer is accepted if [`check`] would accept the file with this
/// answer.
struct Questions {
    /// The path of the new file.
    path: PathBuf,
    author: Author,
    defaults: Table,
    tunnels: Table,
}

impl Questions {
    fn ask(path: PathBuf, author: Author) -> Result<String, dialoguer::Error> {
        let mut questions = Self { path, author, defaults: Table::new(), tunnels: Table::new() };
        for (key, prompt) in [("profile", "AWS profile (empty: none)"), ("region", "Region (empty: the profile's)")] {
            let value = ask_for(prompt, |value| questions.validate_default(key, value))?;
            questions.defaults = with(&questions.defaults, key, &value);
        }
        loop {
            let name = ask_for("Name of the tunnel", |name| questions.validate_name(name))?;
            let tunnel = questions.ask_for_tunnel(&name)?;
            questions.tunnels.insert(name, tunnel.into());
            let theme = ColorfulTheme::default();
            let another = Confirm::with_theme(&theme).with_prompt("Another tunnel?").default(false);
            if !another.interact()? {
                return Ok(text(&questions.tunnels, &questions.defaults));
            }
        }
    }

    fn ask_for_tunnel(&self, name: &str) -> Result<Table, dialoguer::Error> {
        let validate = |tunnel: &Table| self.validate(name, tunnel, &self.defaults);
        let remote = ask_for("Destination (host:port, a port of the node, or rds:NAME)", |remote| {
            validate(&with(&with(&Table::new(), "target", ANY_NODE), "remote", remote))
        })?;
        let prompt = match ServiceSpec::of_text(&remote) {
            Some(_) => "Managed node (empty: one in the service's VPC)",
            None => "Managed node (id, Name tag, tag:Key=Value, asg:NAME)",
        };
        let tunnel = with(&Table::new(), "remote", &remote);
        let target = ask_for(prompt, |target| validate(&with(&tunnel, "target", target)))?;
        let tunnel = with(&tunnel, "target", &target);
        let local = ask_for("Local port (empty: the remote's own)", |local| validate(&with(&tunnel, "local", local)))?;
        Ok(with(&tunnel, "local", &local))
    }

    fn validate_default(&self, key: &str, value: &str) -> Result<(), String> {
        let tunnel = with(&with(&Table::new(), "target", ANY_NODE), "remote", "80");
        self.validate("tunnel", &tunnel, &with(&self.defaults, key, value))
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        match self.tunnels.contains_key(name) {
            true => Err(format!("there is a tunnel `{name}` already")),
            false => check_name(name).map_err(str::to_owned),
        }
    }

    fn validate(&self, name: &str, tunnel: &Table, defaults: &Table) -> Result<(), String> {
        let tunnels = Table::from_iter([(name.to_owned(), tunnel.clone().into())]);
        merge::check_text(&self.path, text(&tunnels, defaults), self.author.clone())
    }
}

/// Returns the text of the file.
fn text(tunnels: &Table, defaults: &Table) -> String {
    let mut file = Table::new();
    if !defaults.is_empty() {
        file.insert("defaults".to_owned(), defaults.clone().into());
    }
    file.insert("tunnels".to_owned(), tunnels.clone().into());
    format!("{HEAD}\n{file}")
}

/// A target for checks before the user has entered one.
const ANY_NODE: &str = "i-0123456789abcdef0";

/// Returns the table with one more value. An empty value is not added.
fn with(table: &Table, key: &str, value: &str) -> Table {
    let mut table = table.clone();
    if !value.is_empty() {
        table.insert(key.to_owned(), value.into());
    }
    table
}

/// Asks until `check` accepts the answer, which may be empty.
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
    use super::super::places;
    use super::*;

    /// The example is checked as it is, and with all its example tunnels enabled.
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
