//! How connections get to their destinations: through a relay on the node, or over sessions of each destination.

use std::time::Duration;

use ssm_forward::{Dialed, Dialer, ForwardError, ForwardEvent, Forwarder, RelayConfig, StartRequest};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::access::Destination;
use super::destinations::{Destinations, Lease, Plan};
use super::refusal::{Refusal, RefusalKind};
use crate::shutdown::Shutdown;

/// See the module.
pub(super) enum Way {
    Relay(Relayed),
    Sessions(Destinations),
}

/// A destination that has accepted a connection.
pub(super) enum Opened {
    Relay(Dialed),
    Session(Lease),
}

impl Way {
    /// Waits until a destination accepts a connection.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) async fn open(&self, destination: &Destination) -> Result<Opened, Refusal> {
        match self {
            Self::Relay(relayed) => relayed.open(destination).await.map(Opened::Relay),
            Self::Sessions(destinations) => destinations.open(destination).await.map(Opened::Session),
        }
    }

    /// Completes if no destination can be reached any more.
    pub(super) async fn failure(&self) -> ForwardError {
        match self {
            Self::Relay(relayed) => relayed.failure().await,
            // Each destination is tried again when it is wanted.
            Self::Sessions(_) => std::future::pending().await,
        }
    }

    /// Waits until all sessions have ended, after the command was asked to stop.
    pub(super) async fn ended(&self) {
        match self {
            Self::Relay(relayed) => relayed.ended().await,
            Self::Sessions(destinations) => destinations.ended().await,
        }
    }
}

impl Opened {
    /// Carries a client's connection. Completes when the connection is counted and lives by itself.
    ///
    /// # Errors
    /// The sessions are gone at this moment: the client sees a reset.
    pub(super) async fn serve(self, stream: TcpStream) -> Result<(), ForwardError> {
        match self {
            Self::Relay(dialed) => dialed.carry(stream).await,
            Self::Session(lease) => lease.serve(stream).await,
        }
    }
}

/// All destinations over the sessions of one relay.
pub(super) struct Relayed {
    dialer: Dialer,
    /// How its forwarder has ended.
    outcome: watch::Receiver<Option<Result<(), ForwardError>>>,
    patience: Duration,
}

impl Relayed {
    /// Starts the relay. It ends with the command.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn start(plan: &Plan, relay: RelayConfig, shutdown: Shutdown) -> Result<Self, String> {
        let patience = plan.config.connect_timeout;
        let reason = plan.session.reason.clone();
        let request = StartRequest { target: plan.target.clone(), reason, ..StartRequest::default() };
        let (ready, is_ready) = oneshot::channel();
        let (end, mut outcome) = watch::channel(None);
        let builder = Forwarder::builder(plan.provider.clone(), request).config(plan.config.clone());
        let (forwarder, dialer) = builder.on_event(on_event(ready)).dial(relay);
        tokio::spawn(async move {
            let until = async {
                shutdown.requested().await;
            };
            end.send_replace(Some(forwarder.run(until).await));
        });
        tokio::select! {
            biased;
            Ok(()) = is_ready => {}
            ended = outcome.wait_for(Option::is_some) => if let Ok(Some(Err(error))) = ended.as_deref() {
                return Err(error.to_string());
            },
        }
        Ok(Self { dialer, outcome, patience })
    }

    async fn open(&self, destination: &Destination) -> Result<Dialed, Refusal> {
        let Destination { host, port } = destination;
        let refusal = match timeout(self.patience, self.dialer.dial(host, *port)).await {
            Ok(Ok(dialed)) => return Ok(dialed),
            Ok(Err(error)) => Refusal::of_relay(destination, &error),
            Err(_) => {
                let seconds = self.patience.as_secs_f32();
                Refusal::new(RefusalKind::TimedOut, format!("{destination}: no connection within {seconds} s"))
            }
        };
        tracing::warn!("{}", refusal.text);
        Err(refusal)
    }

    async fn failure(&self) -> ForwardError {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(|outcome| matches!(outcome, Some(Err(_)))).await.as_deref() {
            Ok(Some(Err(error))) => error.clone(),
            // It has ended because the command was asked to stop.
            _ => std::future::pending().await,
        }
    }

    async fn ended(&self) {
        let _ = self.outcome.clone().wait_for(Option::is_some).await;
    }
}

/// What happens to the sessions goes to the log.
fn on_event(ready: oneshot::Sender<()>) -> impl Fn(ForwardEvent) + Send + Sync + 'static {
    let ready = std::sync::Mutex::new(Some(ready));
    move |event| match event {
        ForwardEvent::Ready { session_id, .. } => {
            tracing::info!(session_id, "the relay is ready");
            let ready = ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(ready) = ready {
                let _ = ready.send(());
            }
        }
        ForwardEvent::ConnectionClosed { connection, error: Some(error), .. } => {
            tracing::warn!(connection, error, "connection");
        }
        ForwardEvent::Warning { text } => tracing::warn!("{text}"),
        event => tracing::debug!(?event, "event"),
    }
}
