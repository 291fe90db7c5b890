//! IAM database authentication for a client that reads its password from a file.
//!
//! A token is a secret that is valid for 15 minutes. It is written to a file that only the user can read, and is never passed in
//! an argument or an environment variable. The token is renewed while the tunnel runs. The file is removed at the end.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ssm_forward::{AwsProvider, DatabaseToken, ServiceEndpoint};
use tempfile::{NamedTempFile, TempDir};

use crate::client_line::{Family, LocalEnd, family};
use crate::exit_code::{ExitCode, Failure};
use crate::token::require_iam;

/// A login file that is kept up to date. Dropping it removes the file.
pub(crate) struct LoginFile {
    folder: TempDir,
    login: Login,
    aws: Arc<AwsProvider>,
    service: ServiceEndpoint,
    expires: SystemTime,
}

/// The file's content apart from the token.
struct Login {
    family: Family,
    user: String,
    /// The database's host name, by which libpq selects the password.
    host: String,
    local_host: String,
    local_port: u16,
}

/// Time before its expiry at which a token is renewed.
const MARGIN: Duration = Duration::from_secs(5 * 60);
/// Delay after a failure, and the minimum interval between two tokens.
const RETRY: Duration = Duration::from_secs(30);
/// Interval at which the clock is compared with the token's expiry time. A single timer for the whole time would be late after
/// the machine was suspended.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

impl LoginFile {
    /// Creates the file with the first token.
    ///
    /// # Errors
    /// Returns an error if the database does not accept tokens, there are no credentials, or the file cannot be written.
    pub(crate) async fn create(
        aws: Arc<AwsProvider>,
        service: ServiceEndpoint,
        user: &str,
        local: LocalEnd<'_>,
    ) -> Result<Self, Failure> {
        let family = family(&service.engine).filter(|family| matches!(family, Family::MySql | Family::Postgres));
        let Some(family) = family else {
            let text = format!(
                "{} is {}: IAM database authentication is for MySQL, MariaDB and PostgreSQL",
                service.spec, service.engine
            );
            return Err(Failure::new(ExitCode::Usage, "usage", text));
        };
        require_iam(&service.spec, service.iam_auth)?;
        let token = aws.database_token(&service, user).await?;
        let folder = private_folder().map_err(|error| not_written(&error))?;
        let login = Login {
            family,
            user: user.to_owned(),
            host: service.host.clone(),
            local_host: local.host.to_owned(),
            local_port: local.port,
        };
        let mut file = Self { folder, login, aws, service, expires: token.expires };
        file.write(&token).map_err(|error| not_written(&error))?;
        Ok(file)
    }

    /// Returns the file's path.
    pub(crate) fn path(&self) -> PathBuf {
        let name = match self.login.family {
            Family::Postgres => "pgpass",
            _ => "client.cnf",
        };
        self.folder.path().join(name)
    }

    /// Renews the token before it expires. Never returns. Errors are reported with `warn`, and the renewal is retried.
    pub(crate) async fn renew(&mut self, warn: impl Fn(String)) {
        let mut pause = CHECK_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            if !is_due(self.expires, SystemTime::now()) {
                pause = CHECK_INTERVAL;
                continue;
            }
            pause = RETRY;
            let renewed = match self.aws.database_token(&self.service, &self.login.user).await {
                Ok(token) => self.write(&token).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = renewed {
                warn(format!("the token of {} could not be renewed: {error}", self.service.spec));
            }
        }
    }

    /// Replaces the file atomically, so that a client never reads an incomplete file.
    fn write(&mut self, token: &DatabaseToken) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(self.folder.path())?;
        file.write_all(self.login.text(token.as_str()).as_bytes())?;
        file.persist(self.path())?;
        self.expires = token.expires;
        Ok(())
    }
}

/// Whether a token that expires at `expires` must be renewed at `now`.
fn is_due(expires: SystemTime, now: SystemTime) -> bool {
    expires.duration_since(now).unwrap_or_default() <= MARGIN
}

impl Login {
    fn text(&self, token: &str) -> String {
        let Self { user, host, local_host, local_port, .. } = self;
        match self.family {
            Family::Postgres => {
                let part = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
                format!("{}:{local_port}:*:{}:{}\n", part(host), part(user), part(token))
            }
            // `loose-`, because MariaDB's client does not have this option. With the option, the token is sent in clear text
            // inside TLS.
            _ => format!(
                "[client]\nhost={local_host}\nport={local_port}\nprotocol=tcp\nuser=\"{}\"\npassword=\"{token}\"\n\
                 loose-enable-cleartext-plugin\n",
                user.replace('\\', "\\\\").replace('"', "\\\"")
            ),
        }
    }
}

/// Creates a folder that only the user can access.
fn private_folder() -> io::Result<TempDir> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| Path::new(folder).is_dir());
    let mut builder = tempfile::Builder::new();
    builder.prefix("aws-ssm-forward-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    match runtime {
        Some(folder) => builder.tempdir_in(folder),
        None => builder.tempdir(),
    }
}

fn not_written(error: &io::Error) -> Failure {
    Failure::new(ExitCode::Output, "login_file", format!("the file with the database token cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(family: Family) -> Login {
        let (user, host) = ("app\\one".to_owned(), "db.example".to_owned());
        Login { family, user, host, local_host: "127.0.0.1".into(), local_port: 3307 }
    }

    #[test]
    fn each_client_reads_its_own_format() {
        let token = "db.example:5432/?Action=connect&X=%2F";
        assert_eq!(
            login(Family::Postgres).text(token),
            "db.example:3307:*:app\\\\one:db.example\\:5432/?Action=connect&X=%2F\n"
        );
        let text = login(Family::MySql).text(token);
        assert!(text.starts_with("[client]\nhost=127.0.0.1\nport=3307\n"), "{text}");
        assert!(text.contains(&format!("password=\"{token}\"\n")) && text.contains("user=\"app\\\\one\""), "{text}");
    }

    #[test]
    fn a_token_is_replaced_before_it_expires() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        assert!(!is_due(now + MARGIN + Duration::from_secs(1), now));
        assert!(is_due(now + MARGIN, now));
        assert!(is_due(now - Duration::from_secs(3600), now));
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_may_enter_the_folder() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = private_folder().unwrap();
        assert_eq!(folder.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
