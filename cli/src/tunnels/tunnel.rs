//! One listening `-L`: the request for its sessions, its forwarder, and the state that its events report.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ssm_forward::{
    AwsProvider, ForwardConfig, ForwardError, ForwardEvent, ForwardStats, Forwarder, ListenAddr, LocalAddr,
    ServiceEndpoint, SessionConfig, SessionProvider, StartRequest,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

use super::Ended;
use crate::activation;
use crate::args::{SessionArgs, TunnelArgs};
use crate::client_hint;
use crate::connect;
use crate::exit_code::Failure;
use crate::iam_auth::LoginFile;
use crate::output::Reporter;
use crate::plan::Planned;
use crate::relay;
use crate::shutdown::Shutdown;
use crate::spec::{ForwardSpec, Remote};
use crate::up::Phase;

/// Timeout for terminating the session of a forwarder that panicked.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(3);

/// One listening `-L`.
pub(crate) struct Tunnel {
    index: usize,
    spec: ForwardSpec,
    service: Option<ServiceEndpoint>,
    /// The login file of `--iam-auth`. It is renewed while the tunnel runs.
    login: Option<LoginFile>,
    forwarder: Forwarder,
    provider: Arc<dyn SessionProvider>,
    tracker: Tracker,
    reporter: Reporter,
}

impl Tunnel {
    /// Opens the listener and prepares the client of the service. Does not start a session yet. `index` is the number of the tunnel
    /// for `reporter`.
    ///
    /// # Errors
    /// Returns an error if the listener cannot be opened or a file for the client cannot be written.
    pub(crate) async fn bind(
        index: usize,
        args: &TunnelArgs,
        session: &SessionConfig,
        aws: &Arc<AwsProvider>,
        planned: Planned,
        reporter: &Reporter,
    ) -> Result<Self, Failure> {
        let Planned { spec, target, provider, service, found } = planned;
        if let Some(found) = found {
            reporter.found(index, found);
        }
        if spec.is_exposed() {
            let listen = &spec.text;
            reporter.warn(format!("-L {listen} accepts connections from other machines, without authentication"));
        }
        let tracker = Tracker::default();
        let client = Arc::new(OnceLock::new());
        let forwarder = Forwarder::builder(provider.clone(), start_request(&target, &spec, &args.session))
            .config(config(args, session))
            .on_event(on_event(index, &tracker, reporter, &client));
        let forwarder = match activation::listener(&spec.listen) {
            Some(open) => forwarder.listener(open)?,
            None => forwarder.bind(spec.listen.clone()).await?,
        };
        tracker.set_address(forwarder.local_addr());
        let mut login = None;
        if let Some(service) = &service {
            let hint = client_hint::prepare(args, aws, service, &forwarder.local_addr()).await?;
            let _ = client.set(hint.lines);
            login = hint.login;
        }
        Ok(Self { index, spec, service, login, forwarder, provider, tracker, reporter: reporter.clone() })
    }

    /// Returns the local address and the destination.
    pub(crate) fn spec(&self) -> &ForwardSpec {
        &self.spec
    }

    /// Returns the destination service, if the `-L` names one.
    pub(crate) fn service(&self) -> Option<&ServiceEndpoint> {
        self.service.as_ref()
    }

    /// Returns the path of the login file of `--iam-auth`.
    pub(crate) fn login_file(&self) -> Option<PathBuf> {
        self.login.as_ref().map(LoginFile::path)
    }

    /// Returns the local address, with the actual port.
    pub(crate) fn local_addr(&self) -> LocalAddr {
        self.forwarder.local_addr()
    }

    /// Returns the live figures.
    pub(crate) fn stats(&self) -> ForwardStats {
        self.forwarder.stats()
    }

    /// Returns a handle to the tunnel's state, which is updated while the tunnel runs.
    pub(crate) fn tracker(&self) -> Tracker {
        self.tracker.clone()
    }

    /// Runs until the tunnel is stopped or fails. Renews the login file in the meantime, and removes it at the end.
    ///
    /// # Errors
    /// Returns the failure that ended the tunnel. A stop is not an error.
    pub(crate) async fn run(self, shutdown: Shutdown, span: Span) -> Result<(), Ended> {
        let stop = async move {
            shutdown.requested().await;
        };
        let Self { index, forwarder, provider, tracker, mut login, reporter, .. } = self;
        let renew = async {
            match &mut login {
                Some(login) => login.renew(|text| reporter.warn(text)).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = contain(forwarder.run(stop).instrument(span), &provider, &tracker) => ended,
            () = renew => Ok(()),
        };
        ended.map_err(|failure| Ended { forward: Some(index), failure })
    }
}

/// Returns the handler for the events of a tunnel. It records and reports each event. When the tunnel is ready, it also prints the
/// lines for the service's client.
fn on_event(
    index: usize,
    tracker: &Tracker,
    reporter: &Reporter,
    client: &Arc<OnceLock<Vec<String>>>,
) -> impl Fn(ForwardEvent) + Send + Sync + use<> {
    let (tracker, reporter, client) = (tracker.clone(), reporter.clone(), client.clone());
    move |event| {
        tracker.record(&event);
        let is_ready = matches!(event, ForwardEvent::Ready { .. });
        reporter.event(index, event);
        for line in client.get().into_iter().flatten().filter(|_| is_ready) {
            reporter.client(index, line.clone());
        }
    }
}

fn config(args: &TunnelArgs, session: &SessionConfig) -> ForwardConfig {
    let mut config = ForwardConfig::default();
    config.wait_ready = args.wait_ready;
    config.connect_timeout = args.connect_timeout;
    config.wait_connected = args.session.wait_connected.unwrap_or_default();
    config.linger = args.linger;
    config.session = session.clone();
    config.session.pacing = args.pool.message_rate;
    config.pool.size = args.pool.sessions;
    config.pool.restart = !args.no_restart;
    config.pool.hold = args.hold;
    config.keep_alive = args.keep_alive;
    config.max_payload = args.payload_size;
    config.lazy = args.lazy;
    config.relay = relay::config(&args.relay);
    config
}

/// Returns the request for a session, with the document for the destination, or the document that the user names.
pub(crate) fn start_request(target: &str, spec: &ForwardSpec, session: &SessionArgs) -> StartRequest {
    let (document, host) = document(&spec.remote);
    let port = match &spec.listen {
        ListenAddr::Tcp(address) => address.port(),
        _ => 0,
    };
    // A document that the user names may require parameters that are optional in AWS's document.
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

/// Returns the document for a destination, and the host for its parameters. For the node itself, whatever its name in `-L`, returns
/// a document that more policies allow.
pub(crate) fn document(remote: &Remote) -> (&'static str, Option<String>) {
    match &remote.host {
        Some(host) if !is_node_itself(host) => ("AWS-StartPortForwardingSessionToRemoteHost", Some(host.clone())),
        _ => ("AWS-StartPortForwardingSession", None),
    }
}

/// Whether `host` means the node itself. Other addresses in 127.0.0.0/8 do not count: that document connects to `localhost`, which
/// does not reach a service on 127.0.0.53, for example.
fn is_node_itself(host: &str) -> bool {
    host.trim_end_matches('.').eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "::1")
}

/// Runs a forward in a separate task. If the forward panics, terminates its session, because the forwarder could not do so.
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

/// Records the state of a tunnel from its events. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracker {
    state: Arc<watch::Sender<TunnelState>>,
}

/// The state of a tunnel.
#[derive(Clone, Debug, Default)]
pub(crate) struct TunnelState {
    /// The current session, which must be terminated at the end.
    pub(crate) session_id: Option<String>,
    /// Whether the tunnel was ready at some time.
    pub(crate) was_ready: bool,
    /// The current phase.
    pub(crate) phase: Phase,
    /// The local address.
    pub(crate) address: Option<LocalAddr>,
}

impl Tracker {
    fn record(&self, event: &ForwardEvent) {
        self.state.send_modify(|state| match event {
            ForwardEvent::Starting { .. } => state.phase = Phase::Starting,
            ForwardEvent::SessionStarted { session_id } | ForwardEvent::Restarted { session_id, .. } => {
                state.session_id = Some(session_id.clone());
                if matches!(event, ForwardEvent::Restarted { .. }) {
                    state.phase = Phase::Ready;
                }
            }
            ForwardEvent::Ready { .. } => (state.was_ready, state.phase) = (true, Phase::Ready),
            ForwardEvent::Reconnected { .. } => state.phase = Phase::Ready,
            ForwardEvent::Reconnecting { .. } | ForwardEvent::Restarting { .. } => state.phase = Phase::Reconnecting,
            // There are no connections, so a new session is started only for the next connection.
            ForwardEvent::SessionLost { connections: 0, .. } => state.phase = Phase::Waiting,
            ForwardEvent::SessionLost { .. } => state.phase = Phase::Reconnecting,
            ForwardEvent::Waiting { .. } => (state.session_id, state.phase) = (None, Phase::Waiting),
            _ => {}
        });
    }

    fn set_address(&self, address: LocalAddr) {
        self.state.send_modify(|state| state.address = Some(address));
    }

    fn ended(&self) {
        self.state.send_modify(|state| state.session_id = None);
    }

    /// Returns a snapshot of the state.
    pub(crate) fn state(&self) -> TunnelState {
        self.state.borrow().clone()
    }

    /// Waits until the tunnel accepts connections.
    pub(crate) async fn open(&self) {
        let _ = self.state.subscribe().wait_for(|state| state.phase.is_open()).await;
    }

    /// Waits until the tunnel has been ready at some time.
    pub(crate) async fn ready(&self) {
        // Waiting cannot fail, because the sender is part of `self`.
        let _ = self.state.subscribe().wait_for(|state| state.was_ready).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Mutex;

    use ssm_forward::{BoxFuture, ProviderError, SessionTicket};

    use super::*;
    use crate::exit_code::ExitCode;

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
        tracker.record(&ForwardEvent::SessionStarted { session_id: "s-1".into() });
        let failure = contain(async { panic!("on purpose") }, &provider, &tracker).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::Internal);
        assert_eq!(*terminated.0.lock().unwrap(), ["s-1"]);
        assert_eq!(tracker.state().session_id, None);
    }
}
