//! Opens the session of the commands that use a single session (`shell`, `exec`, `ssh-proxy`). Also creates the AWS provider and
//! the configuration of sessions for the other commands.

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

/// A session, and the local Session Manager with `--local`.
pub(crate) struct Connection {
    pub(crate) session: Arc<Session>,
    manager: Option<LocalManager>,
}

/// The session that a command starts by default. The user's options can change it.
pub(crate) struct Wanted<'a> {
    /// The target; `None` with `--local`.
    pub(crate) target: Option<&'a str>,
    /// The document; `None` means the account's default document, a shell.
    pub(crate) document: Option<&'a str>,
    /// Parameters that the command requires, whatever the document is.
    pub(crate) parameters: Vec<(&'a str, String)>,
    /// Parameters that the command's own document accepts. Another document gets those of them that it defines.
    pub(crate) offered: Vec<(&'a str, String)>,
    /// Whether progress and messages of the session are suppressed.
    pub(crate) quiet: bool,
    /// Whether the message about waiting for the target is suppressed.
    pub(crate) waits_quietly: bool,
}

impl Connection {
    /// Opens the session, unless a signal arrives first.
    ///
    /// # Errors
    /// Returns an error if the session cannot be opened or a signal arrives. A session that the API has already granted is
    /// terminated.
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
                Err(if names_none { with_document_hint(failure) } else { failure })
            }
        }
    }

    /// Terminates the session and stops the local Session Manager.
    pub(crate) async fn close(self) {
        self.session.terminate().await;
        stop(self.manager).await;
    }
}

/// Adds a hint to an access-denied error. A policy with `ssm:SessionDocumentAccessCheck` refuses requests without a document
/// name, even if it allows the default document.
fn with_document_hint(failure: Failure) -> Failure {
    const HINT: &str = "if the policy checks the document (ssm:SessionDocumentAccessCheck), name it: --document-name \
                        SSM-SessionManagerRunShell";
    match failure.kind {
        "access_denied" => Failure { message: format!("{}; {HINT}", failure.message), ..failure },
        _ => failure,
    }
}

/// Returns the failure of a command that was stopped before its session started.
pub(crate) fn stopped(cause: StopCause) -> Failure {
    Failure::new(cause.exit_code(), "stopped", "stopped before the session started")
}

/// Stops the local Session Manager, if there is one.
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
    // Boxed, because the compiler limits how deep futures can be nested.
    let source = Box::pin(Source::find(target, aws, session, manager, wanted.quiet)).await?;
    let request = start_request(wanted.document, wanted.parameters.clone(), wanted.offered.clone(), session);
    let patience = session.wait_connected.unwrap_or_default();
    Box::pin(source.first(request, patience, wanted.waits_quietly)).await
}

/// Starts the sessions of a command: the provider of the resolved target, and the configuration of the data channel.
pub(crate) struct Source {
    provider: Arc<dyn SessionProvider>,
    config: SessionConfig,
    target: String,
    person: Arc<AtTerminal>,
    quiet: bool,
}

impl Source {
    /// Looks up the target with the credentials of `aws`, or in the local Session Manager if there is one.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, there are no credentials, or no node has the name.
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

    /// Starts the first session and shows a progress line in the meantime. If the node is not connected, waits for it for at most
    /// `patience`.
    ///
    /// # Errors
    /// Returns an error if the API or the node refuses the session, or if the start takes too long.
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
        self.person.set_taken();
        Ok(session)
    }

    /// Starts a session.
    ///
    /// # Errors
    /// Returns an error if the API or the node refuses the session, or if the start takes too long.
    pub(crate) async fn start(&self, request: StartRequest) -> Result<Arc<Session>, ForwardError> {
        let request = StartRequest { target: self.target.clone(), ..request };
        let quiet = self.quiet;
        let notice = move |notice| show_notice(notice, quiet);
        Session::start(self.provider.clone(), &request, self.config.clone(), |_| {}, notice).await.map(Arc::new)
    }
}

/// Builds the request. If the user names another document, this document gets only those `offered` parameters that it defines.
/// Parameters that the user sets take precedence and are passed unchanged.
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

/// Returns the provider of sessions to a target. A name of a target is looked up.
///
/// # Errors
/// Returns an error if the target is invalid, no node has the name, or no such node is online.
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

/// Returns the AWS provider after it has obtained credentials; `person` answers its prompts, for example for an MFA code. With a
/// local Session Manager, returns the provider of its API.
///
/// # Errors
/// Returns an error if the configuration is invalid or there are no credentials.
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

/// Returns the AWS provider for commands that only make look-ups. It ignores cached results, because these commands show the
/// current state.
///
/// # Errors
/// As for [`aws_or_local`].
pub(crate) async fn aws(args: &LookupAwsArgs) -> Result<Arc<AwsProvider>, Failure> {
    authenticated(lookup_config(args), completion::cache().map(LookupCache::refresh)).await
}

/// Returns the AWS configuration of a command that only makes look-ups.
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

/// Returns the running API calls that terminate sessions of this process. The process waits for them before it exits.
pub(crate) fn terminations() -> Terminations {
    static TERMINATIONS: LazyLock<Terminations> = LazyLock::new(Terminations::default);
    TERMINATIONS.clone()
}

/// Returns the configuration of the data channel for a command without access to the API.
pub(crate) fn plain_session_config() -> SessionConfig {
    let mut config = SessionConfig::default();
    config.terminations = terminations();
    config
}

/// Returns the configuration of the data channel. The session token may also be sent to the hosts in `allowed`; `endpoint`
/// replaces the host of the stream URL.
///
/// # Errors
/// Returns an error if the environment or the profile contains an invalid endpoint.
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

/// Returns the settings of the local Session Manager that `--local` starts in this process.
pub(crate) fn local_options(target: &str) -> local::Options {
    local::Options { target: target.into(), profile: LocalProfile::Fast, ..local::Options::default() }
}

/// [`local_options`] for a command that only forwards ports. With a relay, the node must also accept commands, because a command
/// starts the relay.
pub(crate) fn local_options_for_ports(target: &str, with_relay: bool) -> local::Options {
    local::Options { ports_only: !with_relay, ..local_options(target) }
}

/// Prints those notices of a session that are of interest to the user.
fn show_notice(notice: SessionNotice, quiet: bool) {
    let text = match notice {
        SessionNotice::Reconnecting { cause, attempt: 2, .. } => format!("reconnecting: {cause}"),
        SessionNotice::Message(text) => text,
        _ => return,
    };
    if !quiet {
        text.lines().for_each(|line| console::note(&untrusted::line(line)));
    }
}

/// A progress line on the terminal that is removed afterwards.
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
