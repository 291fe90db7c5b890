//! The route of connections to their destinations: through a relay on the node, or over separate sessions for each destination.

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

/// The route of all connections of this command. It is chosen once, at the start.
pub(super) enum Route {
    /// One relay on the node carries all connections.
    Relay(Relayed),
    /// Each destination has its own sessions.
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
    /// Returns the reason why the destination does not accept it.
    pub(super) async fn open(&self, destination: &Destination) -> Result<Opened, Refusal> {
        match self {
            Self::Relay(relayed) => relayed.open(destination).await.map(Opened::Relay),
            Self::Sessions(destinations) => destinations.open(destination).await.map(Opened::Session),
        }
    }

    /// Completes if the route fails as a whole, so that no destination can be reached.
    pub(super) async fn failure(&self) -> Failure {
        match self {
            Self::Relay(relayed) => failure(relayed.outcome.clone()).await,
            // Each destination fails on its own, and is tried again at the next request.
            Self::Sessions(_) => std::future::pending().await,
        }
    }

    /// Waits until all sessions have ended, after a stop was requested.
    pub(super) async fn ended(&self) {
        match self {
            Self::Relay(relayed) => relayed.ended().await,
            Self::Sessions(destinations) => destinations.ended().await,
        }
    }
}

impl Opened {
    /// Passes a client's connection to the forwarder. Completes when the forwarder has taken over the connection.
    ///
    /// # Errors
    /// Returns an error if the sessions have just ended. The client's connection is reset.
    pub(super) async fn serve(self, stream: TcpStream) -> Result<(), ForwardError> {
        match self {
            Self::Relay(dialed) => dialed.carry(stream).await,
            Self::Session(lease) => lease.serve(stream).await,
        }
    }
}

/// The result of the relay's forwarder, once it has ended. If the sender was dropped without a result, the forwarder panicked.
type Outcome = watch::Receiver<Option<Result<(), ForwardError>>>;

/// The route through one relay.
pub(super) struct Relayed {
    dialer: Dialer,
    outcome: Outcome,
    /// Timeout for the connection to a destination.
    patience: Duration,
}

impl Relayed {
    /// Starts the relay. It runs until a stop is requested.
    ///
    /// # Errors
    /// Returns the reason why the relay cannot be started.
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
        // The forwarder has ended because a stop was requested.
        Ok(_) => std::future::pending().await,
        Err(_) => panicked(),
    }
}

fn panicked() -> Failure {
    Failure::internal("the relay's forwarder panicked")
}

/// Returns the handler for the events of the relay's forwarder. It reports when the relay is ready, and logs the other events.
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

    /// Returns the exit code of the failure, if the route has already failed.
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
