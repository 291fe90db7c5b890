//! A whole tunnel in this process: a local Session Manager, a private service, a forwarder and the forwarder's events.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ssm_forward::{
    AwsConfig, AwsCredentials, AwsProvider, ForwardConfig, ForwardError, ForwardEvent, ForwardStats, Forwarder,
    ListenAddr, LocalAddr, PoolSize, RelayConfig, StartRequest,
};
use ssm_local::{Faults, Local, Profile};
use ssm_relay_programs::PROGRAMS;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::service::Service;

/// A failure of the set-up, not of the tested code.
pub(crate) type SetupError = Box<dyn Error + Send + Sync>;

pub(crate) const TARGET: &str = "i-0123456789abcdef0";

/// Timeout for a start or a stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running tunnel.
pub(crate) struct Tunnel {
    pub(crate) local: Local,
    pub(crate) service: Service,
    /// The address to which programs connect.
    pub(crate) entrance: SocketAddr,
    pub(crate) stats: ForwardStats,
    events: Arc<Mutex<Vec<ForwardEvent>>>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ForwardError>>,
}

impl Tunnel {
    /// Starts all parts. Returns when the forwarder accepts connections.
    pub(crate) async fn open(profile: Profile, faults: Faults, config: ForwardConfig) -> Result<Self, SetupError> {
        let builder = Local::builder().profile(profile).faults(faults);
        // The relay is started by a command.
        let builder = if config.relay.is_some() { builder } else { builder.ports_only() };
        let local = builder.start().await?;
        let service = Service::start().await?;
        let variables: BTreeMap<_, _> = local.environment().into_iter().collect();
        let variable = |name| variables.get(name).map(String::as_str).unwrap_or_default();
        let (key, secret) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
        let provider = provider_with(&local.endpoint_url(), key, secret).await?;
        let events: Arc<Mutex<Vec<ForwardEvent>>> = Arc::default();
        let ready = Arc::new(Notify::new());
        let (kept, is_ready) = (events.clone(), ready.clone());
        let forwarder = Forwarder::builder(Arc::new(provider), request(service.address))
            .config(config)
            .on_event(move |event| {
                if let ForwardEvent::Ready { .. } = event {
                    is_ready.notify_one();
                }
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            })
            .bind(ListenAddr::Tcp((Ipv4Addr::LOCALHOST, 0).into()))
            .await?;
        let LocalAddr::Tcp(entrance) = forwarder.local_addr() else { return Err("no TCP socket".into()) };
        let stats = forwarder.stats();
        let (stop, stopped) = oneshot::channel();
        let mut running = tokio::spawn(forwarder.run(async move {
            let _ = stopped.await;
        }));
        tokio::select! {
            () = ready.notified() => {}
            ended = &mut running => return Err(format!("not ready: {ended:?}").into()),
            () = tokio::time::sleep(PATIENCE) => return Err("not ready in time".into()),
        }
        let tunnel = Self { local, service, entrance, stats, events, stop, running };
        match tunnel.events().into_iter().find_map(without_relay) {
            Some(text) => Err(text.into()),
            None => Ok(tunnel),
        }
    }

    /// Whether the forwarder has ended although it was not stopped.
    pub(crate) fn has_ended(&self) -> bool {
        self.running.is_finished()
    }

    /// The events so far.
    pub(crate) fn events(&self) -> Vec<ForwardEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops all parts.
    pub(crate) async fn close(self) -> Result<(), SetupError> {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.running).await.map_err(|_| "the forwarder does not stop")???;
        self.local.shutdown().await;
        Ok(())
    }
}

/// Returns the warning that the tunnel works without its relay, if there is one.
fn without_relay(event: ForwardEvent) -> Option<String> {
    match event {
        ForwardEvent::Warning { text } => text.starts_with("no relay").then_some(text),
        _ => None,
    }
}

/// Returns the provider for a local Session Manager that accepts any credentials.
pub(crate) async fn provider(endpoint_url: &str) -> Result<AwsProvider, SetupError> {
    provider_with(endpoint_url, "AKIALOCALLOCALLOCAL0", "any").await
}

/// Returns the provider for a local Session Manager with these credentials.
async fn provider_with(endpoint_url: &str, key: &str, secret: &str) -> Result<AwsProvider, SetupError> {
    let credentials =
        AwsCredentials { access_key_id: key.into(), secret_access_key: secret.to_owned().into(), session_token: None };
    let config = AwsConfig {
        profile: None,
        region: Some("us-east-1".into()),
        endpoint_url: Some(endpoint_url.into()),
        ca_bundle: None,
        credentials: Some(credentials),
        person: None,
    };
    Ok(AwsProvider::new(config).await?)
}

/// Request of a session to a port of the node itself.
pub(crate) fn request(to: SocketAddr) -> StartRequest {
    StartRequest {
        target: TARGET.into(),
        document: Some("AWS-StartPortForwardingSessionToRemoteHost".into()),
        parameters: [("host", to.ip().to_string()), ("portNumber", to.port().to_string())]
            .map(|(key, value)| (key.to_owned(), vec![value]))
            .into(),
        ..StartRequest::default()
    }
}

/// The linger. It is shorter than some outages and pauses, which must not count as silence of the remote side.
const LINGER: Duration = Duration::from_secs(3);

/// Settings with which dead peers are detected within twice `interval`, and the linger is short. All other settings
/// are the defaults.
pub(crate) fn config(interval: Duration) -> ForwardConfig {
    let mut config = ForwardConfig::default();
    // The reported outages are compared with those of the single session.
    config.pool.size = PoolSize::Fixed(1);
    config.linger = LINGER;
    config.session.liveness.ping_interval = interval;
    config.session.liveness.pong_timeout = interval;
    config
}

/// The same settings with a relay, and with several sessions.
pub(crate) fn relayed(mut config: ForwardConfig) -> ForwardConfig {
    config.pool.size = PoolSize::Fixed(4);
    config.relay = Some(RelayConfig { programs: PROGRAMS, ephemeral: true, feeds: true });
    config
}
