//! Reads AWS's configuration files by the rules of the AWS CLI: `~/.aws/config` and `~/.aws/credentials`, or the paths in the
//! environment. The SDK's own reader rejects much of what the AWS CLI accepts, so the SDK reads no file.

mod ini;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

pub(super) use ini::words;
use ini::{Keys, nested, parse};

use super::errors::credentials;
use super::variable;
use crate::ProviderError;

/// Timeout for reading a file.
const TIMEOUT: Duration = Duration::from_secs(5);
const ACCESS_KEY: &str = "aws_access_key_id";

/// The contents of both files.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    profiles: BTreeMap<String, Profile>,
    sso_sessions: BTreeMap<String, Keys>,
    services: BTreeMap<String, Keys>,
}

/// One profile. The credentials file takes precedence over the config file.
#[derive(Clone, Debug, Default)]
pub(super) struct Profile {
    keys: Keys,
    /// Whether the profile's access key is in the credentials file.
    pub(super) in_credentials_file: bool,
}

impl Profile {
    /// Returns the value as it is written, if it exists and is not empty.
    pub(super) fn raw(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the value without a comment at its end. The AWS CLI treats such a comment as a part of the value and then fails;
    /// other tools remove it.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.raw(key).map(without_comment).filter(|value| !value.is_empty())
    }

    /// Whether the profile assumes a role with other credentials. A role for a web identity does not count.
    pub(super) fn assumes_role(&self) -> bool {
        self.get("role_arn").is_some() && self.get("web_identity_token_file").is_none()
    }
}

fn without_comment(value: &str) -> &str {
    let comment = value
        .match_indices([' ', '\t'])
        .find(|(at, _)| value.get(*at..).is_some_and(|rest| rest.trim_start().starts_with(['#', ';'])));
    comment.and_then(|(at, _)| value.get(..at)).unwrap_or(value).trim_end()
}

impl Files {
    /// Reads both files. A file that does not exist is treated as empty.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or contains an invalid line. The message names the file and the line.
    pub(super) async fn read() -> Result<Self, ProviderError> {
        let mut files = Self::default();
        files.add_config(sections(&config_file()).await?);
        files.add_credentials(sections(&credentials_file()).await?);
        Ok(files)
    }

    /// Adds the config file. The name of a profile may be quoted like a word in a shell.
    fn add_config(&mut self, sections: Vec<(String, Keys)>) {
        for (section, keys) in sections {
            if section == "default" {
                self.profiles.insert(section, Profile { keys, in_credentials_file: false });
                continue;
            }
            let [_, name] = &*words(&section).unwrap_or_default() else { continue };
            if section.starts_with("profile") {
                self.profiles.insert(name.clone(), Profile { keys, in_credentials_file: false });
            } else if section.starts_with("sso-session") {
                self.sso_sessions.insert(name.clone(), keys);
            } else if section.starts_with("services") {
                self.services.insert(name.clone(), keys);
            }
        }
    }

    /// Adds the credentials file. The whole section name is the name of the profile.
    fn add_credentials(&mut self, sections: Vec<(String, Keys)>) {
        for (name, keys) in sections {
            let profile = self.profiles.entry(name).or_default();
            profile.in_credentials_file = keys.get(ACCESS_KEY).is_some_and(|key| !key.is_empty());
            profile.keys.extend(keys);
        }
    }

    /// Returns a profile by its name.
    pub(super) fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    /// Returns the names of all profiles, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// Returns the section `sso-session` of that name. `None` if it does not exist.
    pub(super) fn sso_session(&self, name: &str) -> Option<Profile> {
        self.sso_sessions.get(name).map(|keys| Profile { keys: keys.clone(), in_credentials_file: false })
    }

    /// Returns the endpoints in the `services` section that `profile` names, by service.
    pub(super) fn service_endpoints(&self, profile: &Profile) -> BTreeMap<String, String> {
        let services = profile.get("services").and_then(|name| self.services.get(name));
        let endpoint = |block| nested(block, "endpoint_url").map(without_comment).filter(|url| !url.is_empty());
        let endpoints = services.into_iter().flatten();
        endpoints.filter_map(|(service, block)| Some((service.clone(), endpoint(block)?.to_owned()))).collect()
    }
}

/// The state of one of AWS's two configuration files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigurationFile {
    /// The path of the file, whether it exists or not.
    pub path: PathBuf,
    /// Whether the file exists.
    pub exists: bool,
    /// Number of profiles in the file.
    pub profiles: usize,
    /// Sections that AWS's tools ignore, most often because their names are misspelled, each with the correct spelling.
    pub ignored: Vec<String>,
    /// Why the file cannot be used. `None` if it can be used.
    pub error: Option<String>,
}

/// Checks AWS's configuration files: first the config file, then the credentials file.
pub async fn configuration_files() -> Vec<ConfigurationFile> {
    let (config, credentials) = (config_file(), credentials_file());
    vec![
        ConfigurationFile::check(config, is_config_profile).await,
        ConfigurationFile::check(credentials, is_credentials_profile).await,
    ]
}

impl ConfigurationFile {
    /// `means` returns whether a section is a profile, or an error if AWS's tools ignore the section.
    async fn check(path: PathBuf, means: fn(&str) -> Result<bool, String>) -> Self {
        let exists = tokio::fs::metadata(&path).await.is_ok_and(|metadata| metadata.is_file());
        let mut file = Self { path, exists, profiles: 0, ignored: Vec::new(), error: None };
        match sections(&file.path).await {
            Ok(sections) => {
                for (section, _) in sections {
                    match means(&section) {
                        Ok(is_profile) => file.profiles += usize::from(is_profile),
                        Err(why) => file.ignored.push(why),
                    }
                }
            }
            Err(error) => file.error = Some(error.message),
        }
        file
    }
}

/// Whether a section of the config file is a profile.
///
/// # Errors
/// Returns an error if AWS's tools ignore the section.
fn is_config_profile(section: &str) -> Result<bool, String> {
    let words = words(section).unwrap_or_default();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["default"] | ["profile", _] => Ok(true),
        ["sso-session" | "services", _] | ["plugins" | "preview"] => Ok(false),
        [_] => Err(format!("[{section}], which must be [profile {section}] in this file")),
        _ => Err(format!("[{section}]")),
    }
}

/// Whether a section of the credentials file is a profile; see [`is_config_profile`].
fn is_credentials_profile(section: &str) -> Result<bool, String> {
    match section.strip_prefix("profile ") {
        Some(name) => Err(format!("[{section}], which must be [{name}] in this file")),
        None => Ok(true),
    }
}

/// Returns the names of the profiles in the AWS configuration files, sorted. Returns an empty list if the files cannot be read.
pub async fn profile_names() -> Vec<String> {
    let files = Files::read().await.unwrap_or_default();
    files.names().map(str::to_owned).collect()
}

/// Returns the paths of the files that may contain a profile, for error messages.
pub(super) fn places() -> String {
    format!("{} and {}", config_file().display(), credentials_file().display())
}

pub(super) fn config_file() -> PathBuf {
    place("AWS_CONFIG_FILE", "config")
}

pub(super) fn credentials_file() -> PathBuf {
    place("AWS_SHARED_CREDENTIALS_FILE", "credentials")
}

/// Returns the folder that AWS's tools share.
pub(super) fn folder() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".aws")
}

fn place(named: &str, name: &str) -> PathBuf {
    variable(named).map_or_else(|| folder().join(name), |path| expanded(&path))
}

/// Expands `~` at the beginning, and `$NAME` and `${NAME}` of variables that are set.
fn expanded(path: &str) -> PathBuf {
    let (mut text, mut rest) = (String::new(), path);
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let end = after.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(after.len());
        let (name, then) = braced.unwrap_or_else(|| after.split_at(end));
        match std::env::var(name) {
            Ok(value) if !name.is_empty() => {
                text.push_str(&value);
                rest = then;
            }
            _ => {
                text.push('$');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    let home = (text == "~" || text.starts_with("~/")).then(std::env::home_dir).flatten();
    home.map_or_else(|| PathBuf::from(&text), |home| home.join(text.trim_start_matches(['~', '/'])))
}

async fn sections(path: &Path) -> Result<Vec<(String, Keys)>, ProviderError> {
    let failed = |cause: String| credentials(format!("the AWS configuration file {} {cause}", path.display()));
    let read = timeout(TIMEOUT, tokio::fs::read(path)).await;
    let text =
        match read.map_err(|_| failed("cannot be read: is it on a network drive that does not respond?".into()))? {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(failed(format!("cannot be read: {error}"))),
        };
    parse(&String::from_utf8_lossy(&text))
        .map_err(|malformed| failed(format!("cannot be used: line {}: {}", malformed.line, malformed.what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(config: &str, credentials: &str) -> Files {
        let mut files = Files::default();
        files.add_config(parse(config).unwrap());
        files.add_credentials(parse(credentials).unwrap());
        files
    }

    #[test]
    fn profiles_have_the_names_that_the_aws_cli_gives_them() {
        let config = r#"
            [default]
            region: a
            [profile "my dev"]
            region = b
            [profile a,b#[1]ü]
            region = c
            [profile my\ prod]
            [profile two words]
            [preview]
            [sso-session s]
            sso_region = d
        "#;
        let files = files(config, "[plain name]\naws_access_key_id = x\n[profile odd]\n[default]\nregion = z");
        let names: Vec<&str> = files.names().collect();
        assert_eq!(names, ["a,b#[1]ü", "default", "my dev", "my prod", "plain name", "profile odd"]);
        assert_eq!(files.profile("default").unwrap().get("region"), Some("z"));
        assert_eq!(files.profile("my dev").unwrap().get("region"), Some("b"));
        assert!(files.profile("plain name").unwrap().in_credentials_file);
        assert_eq!(files.sso_session("s").unwrap().get("sso_region"), Some("d"));
    }

    #[tokio::test]
    async fn sections_that_mean_nothing_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let look = |means| ConfigurationFile::check(path.clone(), means);
        assert!(!look(is_config_profile).await.exists);
        std::fs::write(&path, "[default]\n[profile a]\n[staging]\n[sso-session s]\n[profile b c]\n").unwrap();
        let file = look(is_config_profile).await;
        assert_eq!((file.exists, file.profiles, file.error), (true, 2, None));
        assert_eq!(file.ignored, ["[staging], which must be [profile staging] in this file", "[profile b c]"]);
        assert_eq!(look(is_credentials_profile).await.ignored.len(), 2);
        std::fs::write(&path, "[default]\nnonsense\n").unwrap();
        assert!(look(is_config_profile).await.error.unwrap().contains("line 2"));
    }

    #[test]
    fn the_endpoint_of_a_service_is_two_steps_away() {
        let config = "[default]\nservices = x\n[services x]\nssm =\n  endpoint_url = http://ssm/\nkms =\n  a = b";
        let files = files(config, "");
        let endpoints = files.service_endpoints(files.profile("default").unwrap());
        assert_eq!(endpoints, BTreeMap::from([("ssm".to_owned(), "http://ssm/".to_owned())]));
    }

    #[test]
    fn a_comment_after_a_value_is_none_of_it() {
        assert_eq!(without_comment("eu-west-1  # Dublin"), "eu-west-1");
        assert_eq!(without_comment("https://x.example/start#/ ; y"), "https://x.example/start#/");
        assert_eq!(without_comment("a b"), "a b");
    }

    #[test]
    fn paths_may_begin_at_home() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(expanded("~/x/y"), home.join("x/y"));
        assert_eq!(expanded("$NO_SUCH_VARIABLE_HERE/a$"), Path::new("$NO_SUCH_VARIABLE_HERE/a$"));
        assert_eq!(expanded("${HOME}/a"), home.join("a"));
    }
}
