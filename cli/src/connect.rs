//! Opens one session for a command that works in it: `shell`, `exec`, `ssh-proxy`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ssm_forward::{
    AwsConfig, AwsOrigin, AwsProvider, ForwardError, LookupCache, NamedProvider, Person, ProviderError, Session,
    SessionConfig, SessionNotice, SessionProvider, StartRequest, StreamEndpoint, StreamUrlPolicy, TargetSpec,
    Terminations, await_target,
};

use crate::args::{AwsArgs, LocalProfile, LookupAwsArgs, SessionArgs};
use crate::completion;
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::output::awaiting;
use crate::shutdown::{Shutdown, StopCause, interrupted};
use crate::targets;
use crate::terminal::{Asking, AtTerminal};
use crate::{console, untrusted};

/// A session, and its local Session Manager, if there is one.
pub(crate) struct Connection {
    pub(crate) session: Arc<Session>,
    manager: Option<LocalManager>,
}

/// How a command starts a session by default.
pub(crate) struct Wanted<'a> {
    /// `None` with `--local`.
    pub(crate) target: Option<&'a str>,
    /// `None`: the account's shell.
    pub(crate) document: Option<&'a str>,
    /// Required by the command, with any document.
    pub(crate) parameters: Vec<(&'a str, String)>,
    /// Accepted by the command's own document, and passed to another one if it defines them.
    pub(crate) offered: Vec<(&'a str, String)>,
    pub(crate) quiet: bool,
    /// Do not even report the wait for a target.
    pub(crate) waits_quietly: bool,
}

impl Connection {
    /// Opens it, unless a signal arrives first.
    ///
    /// # Errors
    /// In one line, what went wrong and what to do. A granted session is terminated again.
    pub(crate) async fn open(
        wanted: Wanted<'_>,
        aws: &AwsArgs,
        session: &SessionArgs,
        shutdown: &Shutdown,
    ) -> Result<Self, Failure> {
        let target = wanted.target.unwrap_or(local::DEFAULT_TARGET);
        let manager = LocalManager::start_if(aws.local, || local_options(target)).await?;
        let opened = tokio::select! {
            opened = open(&wanted, target, aws, session, manager.as_ref()) => opened,
            cause = shutdown.requested() => Err(stopped(cause)),
            () = interrupted() => Err(stopped(StopCause::Interrupt)),
        };
        match opened {
            Ok(session) => Ok(Self { session, manager }),
            Err(failure) => {
                stop(manager).await;
                let names_none = wanted.document.is_none() && session.document_name.is_none();
                Err(if names_none { naming_the_shell(failure) } else { failure })
            }
        }
    }

    /// Terminates the session.
    pub(crate) async fn close(self) {
        self.session.terminate().await;
        stop(self.manager).await;
    }
}

/// A policy with `ssm:SessionDocumentAccessCheck` refuses requests without a document name, even if the default
/// document is allowed.
fn naming_the_shell(failure: Failure) -> Failure {
    const HINT: &str = "if the policy checks the document (ssm:SessionDocumentAccessCheck), name it: --document-name \
                        SSM-SessionManagerRunShell";
    match failure.kind {
        "access_denied" => Failure { message: format!("{}; {HINT}", failure.message), ..failure },
        _ => failure,
    }
}

/// The failure of a command that was stopped before its session began.
pub(crate) fn stopped(cause: StopCause) -> Failure {
    Failure::new(cause.exit_code(), "stopped", "stopped before the session began")
}

/// Ends the local Session Manager, if there is one.
pub(crate) async fn stop(manager: Option<LocalManager>) {
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
    // Boxed, as the compiler bounds how deep futures are inside each other.
    let source = Box::pin(Source::find(target, aws, session, manager, wanted.quiet)).await?;
    let request = start_request(wanted.document, wanted.parameters.clone(), wanted.offered.clone(), session);
    let patience = session.wait_connected.unwrap_or_default();
    Box::pin(source.first(request, patience, wanted.waits_quietly)).await
}

/// Where the sessions of a command come from: a target that was found, and what the data channel needs.
pub(crate) struct Source {
    provider: Arc<dyn SessionProvider>,
    config: SessionConfig,
    target: String,
    person: Arc<AtTerminal>,
    quiet: bool,
}

impl Source {
    /// Finds the target with the credentials of `aws`, or in the local Session Manager if there is one.
    ///
    /// # Errors
    /// The configuration is not right, there are no credentials, or no node has the name.
    pub(crate) async fn find(
        target: &str,
        aws: &AwsArgs,
        session: &SessionArgs,
        manager: Option<&LocalManager>,
        quiet: bool,
    ) -> Result<Self, Failure> {
        let person = Arc::new(AtTerminal::new(quiet));
        let aws_provider = aws_or_local(aws, manager, person.clone()).await?;
        let provider = named(&aws_provider, target, session).await?;
        let config = session_config(&aws_provider, &aws.allow_stream_host, aws.stream_endpoint.clone())?;
        Ok(Self { provider, config, target: target.to_owned(), person, quiet })
    }

    /// Starts the first session, with a line for the person meanwhile; `patience` is for a node that is not connected yet.
    ///
    /// # Errors
    /// The API or the node refused, or it took too long.
    pub(crate) async fn first(
        &self,
        request: StartRequest,
        patience: Duration,
        waits_quietly: bool,
    ) -> Result<Arc<Session>, Failure> {
        let target = self.target.as_str();
        let progress = Progress { shown: !self.quiet && stderr().is_terminal() };
        progress.show(&format!("Starting a session on {target}…"));
        let waiting = |cause: &str| {
            progress.clear();
            if !waits_quietly {
                let _ = writeln!(stderr(), "{}", awaiting(target, cause, patience));
            }
        };
        let started = await_target(target, patience, waiting, || self.start(request.clone())).await;
        progress.clear();
        let session = started?;
        self.person.is_taken();
        Ok(session)
    }

    /// Starts a session.
    ///
    /// # Errors
    /// The API or the node refused, or it took too long.
    pub(crate) async fn start(&self, request: StartRequest) -> Result<Arc<Session>, ForwardError> {
        let request = StartRequest { target: self.target.clone(), ..request };
        let quiet = self.quiet;
        let notice = move |notice| tell(notice, quiet);
        Session::start(self.provider.clone(), &request, self.config.clone(), |_| {}, notice).await.map(Arc::new)
    }
}

/// The request. If another document is named, it gets only those parameters of the command's own document that it
/// defines. Parameters that the user gives take precedence and are passed unchanged.
pub(crate) fn start_request(
    document: Option<&str>,
    parameters: Vec<(&str, String)>,
    offered: Vec<(&str, String)>,
    session: &SessionArgs,
) -> StartRequest {
    let collect = |pairs: Vec<(&str, String)>| {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), vec![value])).collect::<BTreeMap<_, _>>()
    };
    let (mut parameters, mut offered) = (collect(parameters), collect(offered));
    if session.document_name.is_none() {
        parameters.append(&mut offered);
    }
    parameters.extend(session.parameters.iter().map(|(name, value)| (name.clone(), vec![value.clone()])));
    StartRequest {
        document: session.document_name.clone().or_else(|| document.map(str::to_owned)),
        parameters,
        offered,
        reason: session.reason.clone(),
        ..StartRequest::default()
    }
}

/// The provider of sessions to a target. Names are looked up.
///
/// # Errors
/// No node has the name, or none that is online.
pub(crate) async fn named(
    aws: &Arc<AwsProvider>,
    target: &str,
    session: &SessionArgs,
) -> Result<Arc<dyn SessionProvider>, Failure> {
    let usage = |error: ProviderError| Failure::new(ExitCode::Usage, "usage", error.message);
    let target: TargetSpec = target.parse().map_err(usage)?;
    targets::await_online(aws, &target, session.wait_connected.unwrap_or_default()).await?;
    let source = targets::source(aws, &target, session.any).await?;
    let provider = NamedProvider::new(aws.clone(), source, None);
    provider.find().await?;
    Ok(Arc::new(provider))
}

/// AWS's API, after the credentials were obtained with the help of `person`. With `--local`, the API of this process.
///
/// # Errors
/// The configuration is invalid, or there are no credentials.
pub(crate) async fn aws_or_local(
    aws: &AwsArgs,
    manager: Option<&LocalManager>,
    person: Arc<dyn Person>,
) -> Result<Arc<AwsProvider>, Failure> {
    if let Some(manager) = manager {
        return Ok(Arc::new(manager.provider().await?));
    }
    let config = AwsConfig {
        profile: aws.profile.clone(),
        region: aws.region.clone(),
        endpoint_url: aws.endpoint_url.clone(),
        ca_bundle: aws.ca_bundle.clone(),
        credentials: None,
        person: Some(person),
    };
    let cache = completion::cache();
    authenticated(config, if aws.refresh { cache.map(LookupCache::refresh) } else { cache }).await
}

/// AWS's API, for commands that look things up. They show what is true now.
///
/// # Errors
/// As [`aws_or_local`].
pub(crate) async fn aws(args: &LookupAwsArgs) -> Result<Arc<AwsProvider>, Failure> {
    authenticated(lookup_config(args), completion::cache().map(LookupCache::refresh)).await
}

/// The configuration of a command that looks things up.
pub(crate) fn lookup_config(args: &LookupAwsArgs) -> AwsConfig {
    AwsConfig {
        profile: args.profile.clone(),
        region: args.region.clone(),
        endpoint_url: args.endpoint_url.clone(),
        ca_bundle: args.ca_bundle.clone(),
        credentials: None,
        person: Some(Arc::new(AtTerminal::new(false))),
    }
}

async fn authenticated(config: AwsConfig, cache: Option<LookupCache>) -> Result<Arc<AwsProvider>, Failure> {
    let mut provider = AwsProvider::new(config).await?;
    if let Some(cache) = cache {
        provider = provider.with_cache(cache);
    }
    let AwsOrigin { profile, credentials, region, endpoint, .. } = provider.origin().await;
    tracing::info!(profile, credentials, region, endpoint, "AWS configuration");
    let _asking = Asking;
    provider.authenticate().await?;
    Ok(Arc::new(provider))
}

/// The calls that terminate this process's sessions. The process waits for them before it ends.
pub(crate) fn terminations() -> Terminations {
    static TERMINATIONS: LazyLock<Terminations> = LazyLock::new(Terminations::default);
    TERMINATIONS.clone()
}

/// The configuration of the data channel without access to the API.
pub(crate) fn plain_session_config() -> SessionConfig {
    let mut config = SessionConfig::default();
    config.terminations = terminations();
    config
}

/// The configuration of the data channel: `allowed` hosts may get the token, and `endpoint` replaces the stream URL's
/// host.
///
/// # Errors
/// The environment or the profile contains an invalid endpoint.
pub(crate) fn session_config(
    provider: &AwsProvider,
    allowed: &[String],
    endpoint: Option<StreamEndpoint>,
) -> Result<SessionConfig, Failure> {
    let mut config = plain_session_config();
    if !allowed.is_empty() {
        config.stream_url_policy = StreamUrlPolicy::AlsoHosts(allowed.to_vec());
    }
    config.stream_endpoint = match endpoint {
        Some(endpoint) => Some(endpoint),
        None => provider.stream_endpoint()?,
    };
    config.transport.ca_bundle = provider.ca_bundle().map(Into::into);
    Ok(config)
}

/// The settings of the Session Manager in this process for `--local`.
pub(crate) fn local_options(target: &str) -> local::Options {
    local::Options { target: target.into(), profile: LocalProfile::Fast, ..local::Options::default() }
}

/// [`local_options`] of a command that only forwards ports; a relay is started by a command on the node.
pub(crate) fn local_options_for_ports(target: &str, with_relay: bool) -> local::Options {
    local::Options { ports_only: !with_relay, ..local_options(target) }
}

/// Shows what a person at the terminal should know.
fn tell(notice: SessionNotice, quiet: bool) {
    let text = match notice {
        SessionNotice::Reconnecting { cause, attempt: 2, .. } => format!("reconnecting: {cause}"),
        SessionNotice::Message(text) => text,
        _ => return,
    };
    if !quiet {
        text.lines().for_each(|line| console::note(&untrusted::line(line)));
    }
}

/// A line that is removed again.
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
