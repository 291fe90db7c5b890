//! How connections get to their destinations: through a relay on the node, or over sessions of each destination.

use std::time::Duration;

use ssm_forward::{Dialed, Dialer, ForwardError, ForwardEvent, Forwarder, RelayConfig, StartRequest};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::access::Destination;
use super::destinations::{Destinations, Lease, Plan};
use super::refusal::{Refusal, RefusalKind};
use crate::exit_code::Failure;
use crate::shutdown::Shutdown;

/// How the connections of this command get to their destinations. It is chosen once.
pub(super) enum Route {
    /// One relay on the node carries all connections.
    Relay(Relayed),
    /// Each destination has sessions of its own.
    Sessions(Destinations),
}

/// A destination that has accepted a connection.
pub(super) enum Opened {
    Relay(Dialed),
    Session(Lease),
}

impl Route {
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
    pub(super) async fn failure(&self) -> Failure {
        match self {
            Self::Relay(relayed) => failure(relayed.outcome.clone()).await,
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

/// How the relay's forwarder has ended. If the sender is gone, it panicked.
type Outcome = watch::Receiver<Option<Result<(), ForwardError>>>;

/// All destinations over the sessions of one relay.
pub(super) struct Relayed {
    dialer: Dialer,
    outcome: Outcome,
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
            ended = outcome.wait_for(Option::is_some) => match ended.as_deref() {
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(_) => {}
                Err(_) => return Err(panicked().message),
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

    async fn ended(&self) {
        let _ = self.outcome.clone().wait_for(Option::is_some).await;
    }
}

/// Completes if the relay's forwarder fails.
async fn failure(mut outcome: Outcome) -> Failure {
    match outcome.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Err(error))) => error.clone().into(),
        // It has ended because the command was asked to stop.
        Ok(_) => std::future::pending().await,
        Err(_) => panicked(),
    }
}

fn panicked() -> Failure {
    Failure::internal("the relay's forwarder panicked")
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

#[cfg(test)]
mod tests {
    use ssm_forward::{ProviderError, ProviderErrorKind};

    use super::*;
    use crate::exit_code::ExitCode;

    /// The failure that is known at once.
    async fn known(outcome: &Outcome) -> Option<ExitCode> {
        tokio::select! {
            biased;
            failure = failure(outcome.clone()) => Some(failure.code),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn the_command_ends_with_the_relay_unless_it_was_asked_to_stop() {
        let (end, outcome) = watch::channel(None);
        assert_eq!(known(&outcome).await, None);
        end.send_replace(Some(Ok(())));
        assert_eq!(known(&outcome).await, None);
        end.send_replace(Some(Err(ProviderError { kind: ProviderErrorKind::Service, message: "no".into() }.into())));
        assert_eq!(known(&outcome).await, Some(ExitCode::Api));
        let (panicking, outcome) = watch::channel(None);
        drop(panicking);
        assert_eq!(known(&outcome).await, Some(ExitCode::Internal));
    }
}
