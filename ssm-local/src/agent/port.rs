//! Port sessions: many streams at a time, one stream after the other, or the whole session as one stream.

use std::sync::Arc;

use ssm_proto::{PortProperties, SessionMode, SessionType, StreamId, Version};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::config;
use super::connection;
use super::destination::Destination;
use super::driver::{self, DriverEvent};
use super::shared::{AgentStream, SharedAgent};
use super::{AgentResult, AgentSpec, FAREWELL};
use crate::Profile;
use crate::faults::Armed;
use crate::pipe::{PipeReceiver, PipeSender};

/// Serves the session until it has ended.
pub(super) async fn serve(spec: AgentSpec, input: PipeReceiver, output: &PipeSender) -> AgentResult {
    let properties: PortProperties = match serde_json::from_value(spec.properties.clone()) {
        Ok(properties) => properties,
        Err(error) => return AgentResult::failed(format!("Invalid format in session properties: {error}")),
    };
    // Old agents ignore the host (PORT-8).
    let knows_hosts = !Version::new(&spec.agent_version).is_older_than(Version::AGENT_REMOTE_HOST);
    let host = properties.host.clone().filter(|_| knows_hosts);
    let destination = Destination::resolve(&PortProperties { host, ..properties.clone() }, &spec.hosts);
    let shared = SharedAgent::new(config::protocol(&spec, SessionType::Port(properties), true));
    let (events, mut seen) = mpsc::unbounded_channel();
    let mut port = Port::new(shared.clone(), destination, spec.profile, spec.faults);
    let mut driver = std::pin::pin!(driver::run(&shared, input, output, events));
    let result = loop {
        tokio::select! {
            result = &mut driver => return result,
            Some(event) = seen.recv() => if let Some(result) = port.handle(event) { break result },
            Some(Ok(ended)) = port.connections.join_next() => if let Some(result) = port.ended(ended) { break result },
        }
    };
    // All sent data must arrive before the session ends.
    shared.lock().close();
    let _ = timeout(FAREWELL, driver).await;
    result
}

/// The end of a connection's task.
enum Ended {
    /// The connection was served.
    Served,
    /// The destination could not be reached.
    Unreachable { stream: AgentStream, why: String },
}

/// The session's connections.
struct Port {
    shared: Arc<SharedAgent>,
    destination: Result<Destination, String>,
    /// A semaphore with one permit for the real profile: the official agent connects to one destination after the other.
    dials: Arc<Semaphore>,
    mode: Option<SessionMode>,
    faults: Arc<Armed>,
    connections: JoinSet<Ended>,
}

impl Port {
    fn new(
        shared: Arc<SharedAgent>,
        destination: Result<Destination, String>,
        profile: Profile,
        faults: Arc<Armed>,
    ) -> Self {
        let permits = match profile {
            Profile::Fast => Semaphore::MAX_PERMITS,
            Profile::Real => 1,
        };
        let dials = Arc::new(Semaphore::new(permits));
        Self { shared, destination, dials, mode: None, faults, connections: JoinSet::new() }
    }

    fn handle(&mut self, event: DriverEvent) -> Option<AgentResult> {
        match event {
            DriverEvent::Ready(mode) => {
                self.mode = Some(mode);
                self.destination.as_ref().err().map(AgentResult::failed)
            }
            DriverEvent::Opened(id) => {
                self.open(id);
                None
            }
            DriverEvent::Terminated => Some(AgentResult::default()),
            DriverEvent::DecryptNeeded(..) => None,
        }
    }

    fn open(&mut self, id: StreamId) {
        let Ok(destination) = self.destination.clone() else { return };
        let (stream, dials) = (AgentStream::new(self.shared.clone(), id), self.dials.clone());
        let dial = self.faults.dial(Instant::now().into_std());
        self.connections.spawn(async move {
            let dialled = {
                let _turn = dials.acquire().await;
                // Sleeping for a duration of zero could take a tick of the timer.
                if !dial.delay.is_zero() {
                    sleep(dial.delay).await;
                }
                if dial.fails { Err(std::io::ErrorKind::TimedOut.into()) } else { destination.dial().await }
            };
            match dialled {
                Ok(tcp) => {
                    connection::serve(tcp, &stream, dial.deaf).await;
                    stream.forget();
                    Ended::Served
                }
                Err(error) => Ended::Unreachable { stream, why: error.to_string() },
            }
        });
    }

    fn ended(&self, ended: Ended) -> Option<AgentResult> {
        match (ended, self.mode) {
            (Ended::Served, Some(SessionMode::Plain)) => Some(AgentResult::default()),
            (Ended::Served, _) => None,
            (Ended::Unreachable { stream, why }, Some(SessionMode::Mux)) => {
                tracing::debug!(why, "destination not reached");
                stream.refuse();
                stream.forget();
                None
            }
            (Ended::Unreachable { why, .. }, _) => {
                Some(AgentResult::failed(format!("Unable to connect to specified port: {why}")))
            }
        }
    }
}
