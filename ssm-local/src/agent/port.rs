//! Port sessions: many streams at a time, one after the other, or the session as one stream.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssm_proto::{
    AgentConfig, AgentQuirks, ChannelConfig, Clock, Pace, PortProperties, Retransmission, Session, SessionMode,
    SessionType, StreamId,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::connection;
use super::destination::Destination;
use super::driver::{self, Happening};
use super::shared::{Shared, Stream};
use super::{AgentResult, AgentSpec};
use crate::Profile;
use crate::broker::{PipeReceiver, PipeSender};
use crate::faults::Armed;

/// Serves the session until it is over.
pub(super) async fn serve(spec: AgentSpec, input: PipeReceiver, output: &PipeSender) -> AgentResult {
    let properties: PortProperties = match serde_json::from_value(spec.properties.clone()) {
        Ok(properties) => properties,
        Err(error) => return AgentResult::failed(format!("Invalid format in session properties: {error}")),
    };
    let clock = Clock {
        start: Instant::now().into_std(),
        unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    };
    let destination = Destination::resolve(&properties, &spec.hosts);
    let protocol = Session::agent(config(&spec, properties), clock, fastrand::u64(..));
    let shared = Shared::new(protocol);
    let (happenings, mut seen) = mpsc::unbounded_channel();
    let mut port = Port::new(shared.clone(), destination, spec.profile, spec.faults);
    let mut driver = std::pin::pin!(driver::run(&shared, input, output, happenings));
    let result = loop {
        tokio::select! {
            result = &mut driver => return result,
            Some(happening) = seen.recv() => if let Some(result) = port.handle(happening) { break result },
            Some(Ok(ended)) = port.connections.join_next() => if let Some(result) = port.ended(ended) { break result },
        }
    };
    // What was sent is to arrive before the session ends.
    shared.lock().close();
    let _ = timeout(FAREWELL, driver).await;
    result
}

/// At the end of a session, what is not acknowledged for so long is given up (PORT-9).
const FAREWELL: Duration = Duration::from_secs(2);

/// Largest payload that the fast agent sends.
const FAST_PAYLOAD: usize = 32 << 10;
/// The official agent's.
const REAL_PAYLOAD: usize = 1024;
/// It sleeps so long after each.
const REAL_PACE: Duration = Duration::from_millis(1);
/// It takes data so long after the handshake; before, it refuses without an acknowledgement.
const REAL_START: Duration = Duration::from_millis(3);

fn config(spec: &AgentSpec, properties: PortProperties) -> AgentConfig {
    let base = AgentConfig {
        agent_version: spec.agent_version.clone(),
        session_type: SessionType::Port(properties),
        ..AgentConfig::default()
    };
    match spec.profile {
        Profile::Fast => AgentConfig { max_payload: FAST_PAYLOAD, ..base },
        Profile::Real => AgentConfig {
            max_payload: REAL_PAYLOAD,
            channel: ChannelConfig {
                retransmission: Retransmission::HeadOnly,
                pace: Some(Pace { interval: REAL_PACE, burst: 1 }),
                ..ChannelConfig::default()
            },
            quirks: AgentQuirks { refuse_for: REAL_START, ..AgentQuirks::default() },
            ..base
        },
    }
}

/// What a connection's task has to tell at its end.
enum Ended {
    /// It was served.
    Served,
    /// The destination could not be reached.
    Unreachable { stream: Stream, why: String },
}

/// The session's connections.
struct Port {
    shared: Arc<Shared>,
    destination: Result<Destination, String>,
    /// The official agent dials one destination after the other.
    dials: Arc<Semaphore>,
    mode: Option<SessionMode>,
    faults: Arc<Armed>,
    connections: JoinSet<Ended>,
}

impl Port {
    fn new(
        shared: Arc<Shared>,
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

    fn handle(&mut self, happening: Happening) -> Option<AgentResult> {
        match happening {
            Happening::Ready(mode) => {
                self.mode = Some(mode);
                self.destination.as_ref().err().map(AgentResult::failed)
            }
            Happening::Opened(id) => {
                self.open(id);
                None
            }
            Happening::Terminated => Some(AgentResult::default()),
        }
    }

    fn open(&mut self, id: StreamId) {
        let Ok(destination) = self.destination.clone() else { return };
        let (stream, dials) = (Stream::new(self.shared.clone(), id), self.dials.clone());
        let fate = self.faults.dial(Instant::now().into_std());
        self.connections.spawn(async move {
            let dialled = {
                let _turn = dials.acquire().await;
                // A sleep of nothing may take a tick of the timer.
                if !fate.delay.is_zero() {
                    sleep(fate.delay).await;
                }
                if fate.fails { Err(std::io::ErrorKind::TimedOut.into()) } else { destination.dial().await }
            };
            match dialled {
                Ok(tcp) => {
                    connection::serve(tcp, &stream, fate.deaf).await;
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
