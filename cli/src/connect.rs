//! Opens one session for a command that works in it: `shell`, `exec`, `ssh-proxy`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{
    AwsConfig, AwsProvider, EcsSpec, Session, SessionConfig, SessionNotice, SessionProvider, StartRequest,
    StreamUrlPolicy,
};
use tokio::time::timeout;

use crate::args::{AwsArgs, LocalProfile, SessionArgs};
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::shutdown::{Shutdown, StopCause, interrupted};

/// A session, and the local Session Manager that it is one of, if it is.
pub(crate) struct Connection {
    pub(crate) session: Arc<Session>,
    manager: Option<LocalManager>,
}

/// Credentials, API, data channel and handshake together may take so long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a command starts a session with, unless the person says otherwise.
pub(crate) struct Wanted<'a> {
    /// `None` with `--local`.
    pub(crate) target: Option<&'a str>,
    /// `None`: the account's shell.
    pub(crate) document: Option<&'a str>,
    pub(crate) parameters: Vec<(&'a str, String)>,
    pub(crate) quiet: bool,
}

impl Connection {
    /// Opens it, unless a signal comes first.
    ///
    /// # Errors
    /// In one line, what went wrong and what to do. A session that was granted is terminated again.
    pub(crate) async fn open(
        wanted: Wanted<'_>,
        aws: &AwsArgs,
        session: &SessionArgs,
        shutdown: &Shutdown,
    ) -> Result<Self, Failure> {
        let target = wanted.target.unwrap_or(local::DEFAULT_TARGET);
        let manager = match aws.local {
            true => Some(LocalManager::start(local_options(target)).await?),
            false => None,
        };
        let opened = tokio::select! {
            opened = open(&wanted, target, aws, session, manager.as_ref()) => opened,
            cause = shutdown.requested() => Err(stopped(cause)),
            () = interrupted() => Err(stopped(StopCause::Interrupt)),
        };
        match opened {
            Ok(session) => Ok(Self { session, manager }),
            Err(failure) => {
                stop(manager).await;
                Err(failure)
            }
        }
    }

    /// Terminates the session.
    pub(crate) async fn close(self) {
        self.session.terminate().await;
        stop(self.manager).await;
    }
}

fn stopped(cause: StopCause) -> Failure {
    Failure::new(cause.exit_code(), "stopped", "stopped before the session began")
}

async fn stop(manager: Option<LocalManager>) {
    if let Some(manager) = manager {
        manager.shutdown().await;
    }
}

async fn open(
    wanted: &Wanted<'_>,
    target: &str,
    aws: &AwsArgs,
    session: &SessionArgs,
    manager: Option<&LocalManager>,
) -> Result<Arc<Session>, Failure> {
    let provider = provider(aws, target, manager).await?;
    let given = session.parameters.iter().map(|(key, value)| (key.as_str(), value.clone()));
    let parameters: BTreeMap<_, _> =
        wanted.parameters.iter().cloned().chain(given).map(|(key, value)| (key.to_owned(), vec![value])).collect();
    let request = StartRequest {
        target: target.to_owned(),
        document: session.document_name.clone().or_else(|| wanted.document.map(str::to_owned)),
        parameters,
        reason: session.reason.clone(),
    };
    let mut config = SessionConfig::default();
    config.stream_url_policy = stream_url_policy(aws);
    let progress = Progress { shown: !wanted.quiet && stderr().is_terminal() };
    progress.show(&format!("Starting a session on {target}…"));
    let quiet = wanted.quiet;
    let start = Session::start(provider, &request, config, |_| {}, move |notice| tell(notice, quiet));
    let started = timeout(TIMEOUT, start).await;
    progress.clear();
    let session = started.map_err(|_| {
        let text = format!("{target} did not get ready within {} s: is its agent online?", TIMEOUT.as_secs());
        Failure::new(ExitCode::Channel, "timeout", text)
    })??;
    Ok(Arc::new(session))
}

/// Where sessions come from.
///
/// # Errors
/// The configuration is not right, or the target is no name.
pub(crate) async fn provider(
    aws: &AwsArgs,
    target: &str,
    manager: Option<&LocalManager>,
) -> Result<Arc<dyn SessionProvider>, Failure> {
    EcsSpec::of_target(target)?;
    let provider = match manager {
        Some(manager) => manager.provider().await?,
        None => AwsProvider::new(config(aws)).await?,
    };
    Ok(Arc::new(provider))
}

fn config(aws: &AwsArgs) -> AwsConfig {
    AwsConfig {
        profile: aws.profile.clone(),
        region: aws.region.clone(),
        endpoint_url: aws.endpoint_url.clone(),
        credentials: None,
    }
}

/// Which hosts may get the token.
pub(crate) fn stream_url_policy(aws: &AwsArgs) -> StreamUrlPolicy {
    match aws.allow_stream_host.as_slice() {
        [] => StreamUrlPolicy::default(),
        hosts => StreamUrlPolicy::AlsoHosts(hosts.to_vec()),
    }
}

/// How `--local` sets up the Session Manager in this process.
pub(crate) fn local_options(target: &str) -> local::Options {
    local::Options { target: target.into(), profile: LocalProfile::Fast, ..local::Options::default() }
}

/// What a person at the terminal should know.
fn tell(notice: SessionNotice, quiet: bool) {
    let text = match notice {
        SessionNotice::Reconnecting { cause, attempt: 2, .. } => format!("reconnecting: {cause}"),
        SessionNotice::Message(text) => text,
        _ => return,
    };
    if !quiet {
        let _ = writeln!(crate::terminal::Stderr, "{text}");
    }
}

/// One line that goes away again.
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&self, text: &str) {
        if self.shown {
            let _ = write!(stderr(), "{text}").and_then(|()| stderr().flush());
        }
    }

    fn clear(&self) {
        const CLEAR_LINE: &str = "\r\x1b[K";
        self.show(CLEAR_LINE);
    }
}
