//! Credentials that a command prints: the setting `credential_process`.

use std::io::{self, IsTerminal, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use process_wrap::std::{ChildWrapper, CommandWrap, ProcessSession};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::errors::credentials as refused;
use super::files::{config_file, words};
use super::person::Person;
use crate::text::one_line;
use crate::{ProviderError, Secret};

/// Timeout of the command. The user may have to find a security key and touch it.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Delay before the user is told what the program waits for.
const NOTICE_DELAY: Duration = Duration::from_secs(2);
/// Maximum length of the output, in bytes. Credentials are shorter.
const MAX_OUTPUT: u64 = 64 << 10;

/// Runs the command of a profile.
///
/// If the user can answer, the command may use the terminal. Otherwise it runs in a separate session (setsid), without a terminal.
/// It is killed if this future is dropped.
pub(super) async fn run(profile: &str, command: &str, person: &dyn Person) -> Result<Credentials, ProviderError> {
    let failed = |cause: String| {
        refused(format!(
            "no AWS credentials from the credential_process of the profile {profile:?} in {}: {cause}",
            config_file().display()
        ))
    };
    let words =
        words(command).filter(|words| !words.is_empty()).ok_or_else(|| failed("a quote is not closed".into()))?;
    let mut running = Running::start(&words, command, person.can_answer()).map_err(|error| {
        let program = words.first().map_or("", String::as_str);
        failed(format!("{program}: {error}"))
    })?;
    let mut ended = std::pin::pin!(timeout(TIMEOUT, running.output()));
    let ended = tokio::select! {
        ended = &mut ended => ended,
        () = sleep(NOTICE_DELAY) => {
            person.tell(&format!("waiting for the credential_process of the AWS profile {profile:?}"));
            ended.await
        }
    };
    let (status, output, errors) = ended
        .map_err(|_| failed(format!("it took longer than {} s", TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(failed(format!("{status}: {}", one_line(&String::from_utf8_lossy(&errors)))));
    }
    read(&output).map_err(failed)
}

/// The command. It is killed if this is dropped before its end.
struct Running {
    child: Option<Box<dyn ChildWrapper>>,
    id: Option<Pid>,
    /// Whether the command runs in a separate session. If so, it is killed with all its children.
    is_session: bool,
}

impl Running {
    /// Starts the command without a shell, like the AWS CLI. If there is no such program, and the command line looks like one that
    /// other tools pass to a shell, such as `$HOME/bin/tool`, it is started by a shell.
    fn start(words: &[String], command: &str, on_terminal: bool) -> io::Result<Self> {
        let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut direct = Command::new(program);
        direct.args(arguments);
        let child = match spawn(direct, on_terminal) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && needs_shell(command) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", command]);
                spawn(shell, on_terminal)?
            }
            other => other?,
        };
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Self { child: Some(child), id, is_session: !on_terminal })
    }

    async fn output(&mut self) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let mut child = self.child.take().ok_or(io::ErrorKind::NotFound)?;
        let (output, errors) = (child.stdout().take(), child.stderr().take());
        let output = spawn_blocking(move || read_all(output));
        let errors = spawn_blocking(move || read_all(errors));
        let status = spawn_blocking(move || child.wait());
        let ended = (status.await??, output.await??, errors.await??);
        self.id = None;
        Ok(ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let _ = if self.is_session { kill_process_group(id, Signal::KILL) } else { kill_process(id, Signal::KILL) };
    }
}

fn spawn(mut command: Command, on_terminal: bool) -> io::Result<Box<dyn ChildWrapper>> {
    // Piped input is meant for the session, not for the command.
    let typed = on_terminal && io::stdin().is_terminal();
    command.stdin(if typed { Stdio::inherit() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = CommandWrap::from(command);
    if !on_terminal {
        command.wrap(ProcessSession);
    }
    command.spawn()
}

fn needs_shell(command: &str) -> bool {
    command.contains(['$', '~', '`', '|', '&', ';', '<', '>', '(', '=', '*', '?'])
}

fn read_all(stream: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    version: u32,
    access_key_id: String,
    secret_access_key: Secret,
    session_token: Option<Secret>,
    expiration: Option<String>,
    account_id: Option<String>,
}

fn read(output: &[u8]) -> Result<Credentials, String> {
    // The parser's own error message could quote the secret.
    let answer: Answer = serde_json::from_slice(output).map_err(|error| {
        format!(
            "it did not print the JSON object with Version, AccessKeyId and SecretAccessKey (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    if answer.version != 1 {
        return Err(format!("it printed Version {}; only 1 is known", answer.version));
    }
    let expiry = answer.expiration.filter(|text| !text.is_empty()).map(|text| time(&text)).transpose()?;
    let mut credentials = Credentials::builder()
        .access_key_id(answer.access_key_id)
        .secret_access_key(answer.secret_access_key.expose())
        .provider_name("credential_process");
    credentials.set_session_token(answer.session_token.map(|token| token.expose().clone()));
    credentials.set_expiry(expiry);
    credentials.set_account_id(answer.account_id.map(Into::into));
    Ok(credentials.build())
}

/// Parses a time in RFC 3339.
pub(super) fn time(text: &str) -> Result<std::time::SystemTime, String> {
    DateTime::from_str(text, Format::DateTimeWithOffset)
        .ok()
        .and_then(|time| time.try_into().ok())
        .ok_or_else(|| format!("its Expiration {text:?} is not a time"))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn what_is_printed_is_read_without_being_quoted() {
        let text = r#"{"Version":1,"AccessKeyId":"a","SecretAccessKey":"b","Expiration":"1970-01-01T00:01:00+00:00"}"#;
        let credentials = read(text.as_bytes()).unwrap();
        assert_eq!(credentials.expiry(), Some(UNIX_EPOCH + Duration::from_secs(60)));
        for (text, part) in [
            (r#"{"Version":1,"SecretAccessKey":"hush"}"#, "AccessKeyId"),
            (r#"{"Version":2,"AccessKeyId":"a","SecretAccessKey":"hush"}"#, "only 1"),
            (r#"{"Version":1,"AccessKeyId":"a","SecretAccessKey":"hush","Expiration":"soon"}"#, "is not a time"),
            ("hush", "did not print"),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(error.contains(part) && !error.contains("hush"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_terminal_is_out_of_reach_when_nobody_can_answer() {
        let prints = r#"echo '{"Version":1,"AccessKeyId":"'$(cat; readlink /proc/self/fd/0; cut -d\  -f6,7 /proc/$$/stat)'","SecretAccessKey":"x"}'"#;
        let command = format!("sh -c {}", quote(prints));
        let credentials = run("dev", &command, &super::super::person::LogOnly).await.unwrap();
        let id = credentials.access_key_id();
        let (stdin, session) = id.split_once(' ').unwrap();
        assert_eq!(stdin, "/dev/null");
        let (session, terminal) = session.split_once(' ').unwrap();
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(own.split(' ').nth(5).is_none_or(|own| own != session), "{id}");
        assert_eq!(terminal, "0");
    }

    #[tokio::test]
    async fn output_without_an_end_is_read_to_a_bound() {
        let taken = read_all(Some(io::repeat(b'x'))).unwrap();
        assert_eq!(taken.len() as u64, MAX_OUTPUT);
        let error = run("dev", "yes", &super::super::person::LogOnly).await.unwrap_err();
        assert!(error.message.len() < 1000, "{error}");
    }

    #[tokio::test]
    async fn it_does_not_outlive_whoever_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, started) = (folder.path().join("alive"), folder.path().join("started"));
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // The child of the command keeps the pipe open while it runs.
        let script = format!("exec 9>'{}'; touch '{}'; sleep 300 & wait", fifo.display(), started.display());
        let command = format!("sh -c {}", quote(&script));
        let asked = tokio::spawn(async move { run("dev", &command, &super::super::person::LogOnly).await.map(drop) });
        // Opening the FIFO waits for the writer. Reading waits until the writer ends.
        let mut pipe = spawn_blocking(move || std::fs::File::open(fifo)).await.unwrap().unwrap();
        asked.abort();
        let ended = spawn_blocking(move || Read::read_to_end(&mut pipe, &mut Vec::new()));
        assert_eq!(timeout(Duration::from_secs(60), ended).await.unwrap().unwrap().unwrap(), 0);
    }

    fn quote(text: &str) -> String {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
