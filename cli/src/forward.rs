//! `forward`: every `-L` listens before the first session starts; the first failure, or a signal, ends them all.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ssm_forward::{
    AwsProvider, ForwardConfig, ForwardError, ForwardEvent, Forwarder, SessionConfig, SessionProvider, StartRequest,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

use crate::args::{ForwardArgs, SessionArgs, Verbosity};
use crate::client_hint;
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::figures::{self, Metrics};
use crate::local::{self, LocalManager};
use crate::output::{Output, Reporter, Style, Subject};
use crate::plan::{self, Planned, Requests};
use crate::shutdown::{Shutdown, StopCause};
use crate::spec::{ForwardSpec, Remote};
use crate::terminal::AtTerminal;

/// How long the sessions may take to end after the command was asked to stop.
const GRACE: Duration = Duration::from_secs(5);

/// How long terminating a session from here may take.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the command; its failures are told through its own output.
///
/// # Errors
/// If the signal handlers can't be installed.
pub(crate) async fn run(args: &ForwardArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let style = Style { format: args.output, quiet: verbosity.quiet, logging: verbosity.verbose > 0 };
    let requests = plan::requests(args);
    let manager = match args.aws.local {
        true => {
            let target = args.target().unwrap_or(local::DEFAULT_TARGET);
            Some(LocalManager::start(local::Options { ports_only: true, ..connect::local_options(target) }).await?)
        }
        false => None,
    };
    let prepared = tokio::select! {
        prepared = prepare(args, requests, manager.as_ref()) => prepared,
        cause = shutdown.requested() => return Ok(cause.exit_code()),
    };
    let subject = |planned: &Planned| Subject { target: planned.target.clone(), spec: planned.spec.clone() };
    let subjects = prepared.iter().flat_map(|(_, planned)| planned).map(subject).collect();
    let output = Output::start(style, subjects, shutdown.clone());
    let served = match prepared {
        Ok((aws, planned)) => serve(args, &aws, planned, output.reporter(), &shutdown).await,
        Err(failure) => Err(failure.into()),
    };
    let code = match served {
        Ok(code) => {
            output.close(None).await;
            code
        }
        Err(Ended { forward, failure }) => {
            output.reporter().fail(forward, &failure);
            output.close(Some(&failure)).await;
            failure.code
        }
    };
    if let Some(manager) = manager {
        manager.shutdown().await;
    }
    Ok(code)
}

/// Looks up what the command line names.
async fn prepare(
    args: &ForwardArgs,
    requests: Result<Requests, Failure>,
    manager: Option<&LocalManager>,
) -> Result<(Arc<AwsProvider>, Vec<Planned>), Failure> {
    let requests = requests?;
    let person = Arc::new(AtTerminal::new(false));
    let aws = connect::aws_or_local(&args.aws, manager, person).await?;
    let planned = plan::plan(args, requests, &aws).await?;
    Ok((aws, planned))
}

/// What ended the command, and the index of the `-L` if it was one of them.
struct Ended {
    forward: Option<usize>,
    failure: Failure,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self { forward: None, failure }
    }
}

async fn serve(
    args: &ForwardArgs,
    aws: &Arc<AwsProvider>,
    planned: Vec<Planned>,
    reporter: &Reporter,
    shutdown: &Shutdown,
) -> Result<ExitCode, Ended> {
    let metrics = match args.metrics {
        Some(address) => Some(Metrics::bind(address).await?),
        None => None,
    };
    let session = connect::session_config(aws, &args.aws.allow_stream_host, args.aws.stream_endpoint.clone())?;
    let specs: Vec<_> = planned.iter().map(|planned| planned.spec.text.clone()).collect();
    let mut forwards = Vec::new();
    let mut watching = JoinSet::new();
    for (index, planned) in planned.into_iter().enumerate() {
        let forward = bind(index, args, &session, aws, planned, reporter, &mut watching).await;
        forwards.push(forward.map_err(|failure| Ended { forward: Some(index), failure })?);
    }
    let trackers: Vec<_> = forwards.iter().map(|forward| forward.tracker.clone()).collect();
    let stats: Vec<_> = forwards.iter().map(|forward| forward.forwarder.stats()).collect();
    watching.spawn(figures::tell(stats.clone(), reporter.clone()));
    if let Some(metrics) = metrics {
        watching.spawn(metrics.serve(specs.iter().cloned().zip(stats).collect()));
    }
    let runs = forwards.into_iter().zip(&specs).map(|(forward, spec)| {
        // Log lines say which -L they are about where there are several. A span costs a little each time a task runs.
        let span = if specs.len() > 1 { tracing::warn_span!("forward", L = spec) } else { Span::none() };
        forward.run(shutdown.clone(), span)
    });
    supervise(runs, shutdown).await?;
    warn_of_leftovers(&trackers, reporter);
    let all_ready = trackers.iter().all(|tracker| tracker.state().was_ready);
    Ok(match shutdown.cause() {
        Some(cause) if !all_ready => cause.exit_code(),
        _ => ExitCode::Ok,
    })
}

/// Opens the local end of one `-L`, and prepares the client of its service.
async fn bind(
    index: usize,
    args: &ForwardArgs,
    session: &SessionConfig,
    aws: &Arc<AwsProvider>,
    planned: Planned,
    reporter: &Reporter,
    watching: &mut JoinSet<()>,
) -> Result<Forward, Failure> {
    let Planned { spec, target, provider, service, found } = planned;
    if let Some(found) = found {
        reporter.found(index, found);
    }
    if spec.is_exposed() {
        let listen = &spec.text;
        reporter.warn(format!("-L {listen} accepts connections from other machines, without asking who they are"));
    }
    let request = start_request(&target, &spec, &args.session);
    let client = Arc::new(OnceLock::new());
    let forward =
        Forward::bind(index, &spec, request, &provider, config(args, session), reporter.clone(), client.clone())
            .await?;
    if let Some(service) = service {
        let hint = client_hint::prepare(args, aws, &service, &forward.forwarder.local_addr()).await?;
        let _ = client.set(hint.lines);
        if let Some(mut login) = hint.login {
            let reporter = reporter.clone();
            // Ends, and removes the file, when the forwards end.
            watching.spawn(async move { login.renew(|text| reporter.warn(text)).await });
        }
    }
    Ok(forward)
}

fn config(args: &ForwardArgs, session: &SessionConfig) -> ForwardConfig {
    let mut config = ForwardConfig::default();
    config.wait_ready = args.wait_ready;
    config.connect_timeout = args.connect_timeout;
    config.wait_connected = args.session.wait_connected.unwrap_or_default();
    config.linger = args.linger;
    config.session = session.clone();
    config.session.pacing = args.message_rate;
    config.pool.size = args.sessions;
    config.pool.restart = !args.no_restart;
    config.pool.hold = args.hold;
    config.keep_alive = args.keep_alive;
    config.max_payload = args.payload_size;
    config
}

/// The document that fits the remote end, or the one that the person names, and its parameters.
fn start_request(target: &str, spec: &ForwardSpec, session: &SessionArgs) -> StartRequest {
    let (document, host) = document(&spec.remote);
    let port = match &spec.listen {
        ssm_forward::ListenAddr::Tcp(address) => address.port(),
        _ => 0,
    };
    // A document that was named may want what the one that fits can do without.
    let named = session.document_name.is_some();
    let own = [
        ("portNumber", Some(spec.remote.port.to_string())),
        ("host", if named { spec.remote.host.clone() } else { host }),
        ("localPortNumber", (named || port != 0).then(|| port.to_string())),
    ];
    let offered = own.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let request = connect::start_request(Some(document), Vec::new(), offered, session);
    StartRequest { target: target.to_owned(), ..request }
}

/// For the node itself, by whatever name, there is a document that policies allow more often.
fn document(remote: &Remote) -> (&'static str, Option<String>) {
    match &remote.host {
        Some(host) if !is_node_itself(host) => ("AWS-StartPortForwardingSessionToRemoteHost", Some(host.clone())),
        _ => ("AWS-StartPortForwardingSession", None),
    }
}

/// Not the rest of 127.0.0.0/8: what listens on 127.0.0.53 is not reached at `localhost`, which that document means.
fn is_node_itself(host: &str) -> bool {
    host.trim_end_matches('.').eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "::1")
}

/// One `-L` that listens.
struct Forward {
    index: usize,
    forwarder: Forwarder,
    provider: Arc<dyn SessionProvider>,
    tracker: Tracker,
}

impl Forward {
    async fn bind(
        index: usize,
        spec: &ForwardSpec,
        request: StartRequest,
        provider: &Arc<dyn SessionProvider>,
        config: ForwardConfig,
        reporter: Reporter,
        client: Arc<OnceLock<Vec<String>>>,
    ) -> Result<Self, Failure> {
        let tracker = Tracker::default();
        let watching = tracker.clone();
        let forwarder = Forwarder::builder(provider.clone(), request)
            .config(config)
            .on_event(move |event| {
                watching.note(&event);
                let is_ready = matches!(event, ForwardEvent::Ready { .. });
                reporter.event(index, event);
                for line in client.get().into_iter().flatten().filter(|_| is_ready) {
                    reporter.client(index, line.clone());
                }
            })
            .bind(spec.listen.clone())
            .await?;
        Ok(Self { index, forwarder, provider: provider.clone(), tracker })
    }

    async fn run(self, shutdown: Shutdown, span: Span) -> Result<(), Ended> {
        let stop = async move {
            shutdown.requested().await;
        };
        let (index, run) = (self.index, self.forwarder.run(stop).instrument(span));
        contain(run, &self.provider, &self.tracker).await.map_err(|failure| Ended { forward: Some(index), failure })
    }
}

/// Runs a forward on a task of its own. Where it ended by a panic, its session is terminated from here: the forwarder could
/// not.
async fn contain(
    run: impl Future<Output = Result<(), ForwardError>> + Send + 'static,
    provider: &Arc<dyn SessionProvider>,
    tracker: &Tracker,
) -> Result<(), Failure> {
    let result = tokio::spawn(run).await;
    let state = tracker.state();
    let must_terminate = result.is_err();
    let is_terminated = match state.session_id {
        Some(session_id) if must_terminate => {
            matches!(timeout(TERMINATE_TIMEOUT, provider.terminate(&session_id)).await, Ok(Ok(())))
        }
        _ => true,
    };
    if is_terminated {
        tracker.ended();
    }
    result.map_err(|_| Failure::internal("a forward panicked"))?.map_err(Failure::from)
}

/// What is known of a forward from its events. Clones are the same.
#[derive(Clone, Debug, Default)]
struct Tracker {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// The session that is to be terminated.
    session_id: Option<String>,
    was_ready: bool,
}

impl Tracker {
    fn note(&self, event: &ForwardEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ForwardEvent::SessionStarted { session_id } => state.session_id = Some(session_id.clone()),
            ForwardEvent::Ready { .. } => state.was_ready = true,
            _ => {}
        }
    }

    fn ended(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).session_id = None;
    }

    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs all until the last has ended. The first failure stops the others; none gets more than [`GRACE`] after that.
async fn supervise<F>(runs: impl Iterator<Item = F>, shutdown: &Shutdown) -> Result<(), Ended>
where
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let mut running: JoinSet<_> = runs.collect();
    let mut first = Ok(());
    let grace = async {
        shutdown.requested().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(grace);
    loop {
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            () = &mut grace => None,
        };
        let Some(ended) = ended else { return first };
        let result = ended.unwrap_or_else(|error| Err(Failure::internal(error).into()));
        if result.is_err() {
            shutdown.stop(StopCause::Failed);
        }
        first = first.and(result);
    }
}

/// Names the sessions that did not end in time: somebody may want to terminate them by hand.
fn warn_of_leftovers(trackers: &[Tracker], reporter: &Reporter) {
    for session_id in trackers.iter().filter_map(|tracker| tracker.state().session_id) {
        reporter.warn(format!(
            "session {session_id} did not end in time; end it with: aws ssm terminate-session --session-id {session_id}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ssm_forward::{BoxFuture, ProviderError, SessionTicket};
    use std::future::{pending, ready};

    fn request(spec: &str, parameters: &[(&str, &str)], document_name: Option<&str>) -> StartRequest {
        let parameters = parameters.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let document_name = document_name.map(Into::into);
        let session = SessionArgs { any: false, document_name, parameters, reason: None, wait_connected: None };
        start_request("i-1", &spec.parse().unwrap(), &session)
    }

    fn parameters(request: &StartRequest) -> Vec<(&str, &str)> {
        request.parameters.iter().map(|(key, value)| (key.as_str(), value[0].as_str())).collect()
    }

    #[test]
    fn the_host_chooses_the_document() {
        let node = request("8080:80", &[], None);
        assert_eq!(node.document.as_deref(), Some("AWS-StartPortForwardingSession"));
        assert_eq!(parameters(&node), [("localPortNumber", "8080"), ("portNumber", "80")]);
        let remote = request("0:db:3306", &[], None);
        assert_eq!(remote.document.as_deref(), Some("AWS-StartPortForwardingSessionToRemoteHost"));
        assert_eq!(parameters(&remote), [("host", "db"), ("portNumber", "3306")]);
    }

    #[test]
    fn a_loopback_host_is_the_node_itself() {
        for host in ["localhost", "LocalHost.", "127.0.0.1", "[::1]"] {
            let node = request(&format!("0:{host}:5432"), &[], None);
            assert_eq!(node.document.as_deref(), Some("AWS-StartPortForwardingSession"), "{host}");
            assert_eq!(parameters(&node), [("portNumber", "5432")], "{host}");
        }
        for host in ["127.0.0.53", "localhost.example", "[::2]", "0.0.0.0"] {
            let remote = request(&format!("0:{host}:53"), &[], None);
            assert_eq!(remote.document.as_deref(), Some("AWS-StartPortForwardingSessionToRemoteHost"), "{host}");
        }
    }

    #[test]
    fn another_document_gets_what_is_given_and_is_offered_the_rest() {
        let request = request("3307:db:3306", &[("host", "other"), ("extra", "a,b")], Some("My-Document"));
        assert_eq!(request.document.as_deref(), Some("My-Document"));
        assert_eq!(parameters(&request), [("extra", "a,b"), ("host", "other")]);
        let offered: Vec<_> = request.offered.iter().map(|(name, value)| (name.as_str(), value[0].as_str())).collect();
        assert_eq!(offered, [("host", "db"), ("localPortNumber", "3307"), ("portNumber", "3306")]);
    }

    fn failed(forward: usize, code: ExitCode) -> Ended {
        Ended { forward: Some(forward), failure: Failure::new(code, "test", "test") }
    }

    #[tokio::test]
    async fn the_first_failure_stops_the_others() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        let runs: [BoxFuture<'static, Result<(), Ended>>; 2] = [
            Box::pin(async move {
                other.requested().await;
                Err(failed(0, ExitCode::SessionLost))
            }),
            Box::pin(ready(Err(failed(1, ExitCode::Api)))),
        ];
        let ended = supervise(runs.into_iter(), &shutdown).await.unwrap_err();
        assert_eq!((ended.forward, ended.failure.code), (Some(1), ExitCode::Api));
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_is_bounded() {
        let shutdown = Shutdown::new();
        shutdown.stop(StopCause::Interrupt);
        let before = tokio::time::Instant::now();
        assert!(supervise([pending::<Result<(), Ended>>()].into_iter(), &shutdown).await.is_ok());
        assert_eq!(before.elapsed(), GRACE);
    }

    #[derive(Default)]
    struct Terminated(Mutex<Vec<String>>);

    impl SessionProvider for Terminated {
        fn start<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
            Box::pin(pending())
        }
        fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
            Box::pin(pending())
        }
        fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
            self.0.lock().unwrap().push(session_id.into());
            Box::pin(ready(Ok(())))
        }
        fn sign_upgrade<'a>(
            &'a self,
            _: &'a ssm_forward::Url,
        ) -> BoxFuture<'a, Result<ssm_forward::HeaderMap, ProviderError>> {
            Box::pin(pending())
        }
    }

    #[tokio::test]
    async fn a_panic_terminates_the_session() {
        let terminated = Arc::new(Terminated::default());
        let provider: Arc<dyn SessionProvider> = terminated.clone();
        let tracker = Tracker::default();
        tracker.note(&ForwardEvent::SessionStarted { session_id: "s-1".into() });
        let failure = contain(async { panic!("on purpose") }, &provider, &tracker).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::Internal);
        assert_eq!(*terminated.0.lock().unwrap(), ["s-1"]);
        assert_eq!(tracker.state().session_id, None);
    }
}
