//! Sessions, and the connection between a client's WebSocket and an agent.

mod relay;
mod session;
mod token;

pub(crate) use relay::ClientSocket;
pub(crate) use session::BrokerSession;
pub use session::{SessionInfo, SessionState};

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ssm_proto::Identity;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::Profile;
use crate::access::Access;
use crate::agent::AgentSpec;
use crate::document::{Document, Documents, PORT, Settings};
use crate::ecs::EcsTask;
use crate::faults::{Armed, Effect, Fault, FaultError, Faults, When};
use crate::kms::{Encryption, Kms, KmsFault};
use crate::target::LocalTarget;
use relay::{Command, Relay};

/// Settings of all sessions.
#[derive(Clone, Debug)]
pub(crate) struct BrokerSettings {
    pub(crate) profile: Profile,
    /// Names that only the agents resolve, in lower case.
    pub(crate) hosts: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) token_ttl: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_session_duration: Option<Duration>,
    /// The program of a shell session.
    pub(crate) shell: PathBuf,
    /// The KMS key for shells and commands whose document names none.
    pub(crate) encrypt_with: Option<String>,
    pub(crate) kms_fault: Option<KmsFault>,
    /// Whether shells and commands are refused.
    pub(crate) ports_only: bool,
}

/// The configuration that the builder created.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) targets: Vec<LocalTarget>,
    pub(crate) tasks: Vec<EcsTask>,
    pub(crate) documents: Documents,
    pub(crate) kms: Arc<Kms>,
}

/// A validated call of StartSession.
#[derive(Debug)]
pub(crate) struct StartRequest {
    pub(crate) target: LocalTarget,
    pub(crate) document: Arc<Document>,
    pub(crate) settings: Settings,
    pub(crate) reason: Option<String>,
}

/// The error for a refused shell or command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("This local Session Manager only forwards ports: it runs no shells and no commands.")]
pub(crate) struct PortsOnly;

/// Stores the targets and the sessions.
#[derive(Debug)]
pub(crate) struct Broker {
    address: SocketAddr,
    access: Access,
    world: World,
    settings: BrokerSettings,
    faults: Arc<Armed>,
    inner: Mutex<BrokerState>,
}

#[derive(Debug, Default)]
struct BrokerState {
    /// The sessions in the order of their start.
    sessions: VecDeque<Arc<BrokerSession>>,
    relays: JoinSet<()>,
    /// The nodes are rebooting until this time.
    down_until: Option<Instant>,
}

/// Maximum number of ended sessions that are stored.
const HISTORY: usize = 1000;
const A_YEAR: Duration = Duration::from_secs(365 * 86_400);
/// Capacity of the queue of commands to a relay.
const COMMANDS: usize = 16;
impl Broker {
    pub(crate) fn new(
        address: SocketAddr,
        access: Access,
        world: World,
        settings: BrokerSettings,
        faults: Faults,
    ) -> Self {
        let faults = Arc::new(Armed::new(faults, now()));
        Self { address, access, world, settings, faults, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BrokerState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// Returns all managed nodes in their current state, by id.
    pub(crate) fn targets(&self) -> Vec<LocalTarget> {
        let rebooting = self.lock().down_until.is_some_and(|until| now() < until);
        let state = |target: &LocalTarget| if rebooting { target.clone().disconnected() } else { target.clone() };
        self.world.targets.iter().map(state).collect()
    }

    /// Returns a managed node or a container.
    pub(crate) fn target(&self, id: &str) -> Option<LocalTarget> {
        let container = || self.world.tasks.iter().flat_map(EcsTask::targets).find(|target| target.id() == id);
        self.targets().into_iter().find(|target| target.id() == id).or_else(|| container().cloned())
    }

    pub(crate) fn tasks(&self) -> &[EcsTask] {
        &self.world.tasks
    }

    pub(crate) fn documents(&self) -> &Documents {
        &self.world.documents
    }

    pub(crate) fn kms(&self) -> &Kms {
        &self.world.kms
    }

    pub(crate) fn faults(&self) -> &Armed {
        &self.faults
    }

    /// Replaces the faults, including those of active sessions.
    pub(crate) async fn set_faults(&self, faults: Faults) {
        self.faults.set(faults, now());
        for session in self.active_sessions() {
            session.command(Command::SetFaults(self.faults.of_session(now()))).await;
        }
    }

    /// Makes a fault happen once, now; see [`Local::strike`](crate::Local::strike).
    pub(crate) async fn strike_once(&self, fault: Fault) -> Result<(), FaultError> {
        if !fault.effect.can_strike() {
            return Err(FaultError::NotAtOnce(fault.to_string()));
        }
        self.strike(fault).await;
        Ok(())
    }

    /// Makes a fault happen once, now, to every session or to the nodes.
    async fn strike(&self, mut fault: Fault) {
        match &fault.effect {
            Effect::End { failed: false, text } => return self.end_sessions(SessionState::Terminated, text).await,
            Effect::End { failed: true, text } | Effect::RestartAgent { text } => {
                return self.end_sessions(SessionState::Failed, text).await;
            }
            Effect::Reboot { text } => {
                // Without a duration, the nodes are down for longer than any test runs.
                self.lock().down_until = Some(now() + fault.when.lasts.unwrap_or(A_YEAR).min(A_YEAR));
                return self.end_sessions(SessionState::Failed, text).await;
            }
            _ => {}
        }
        if fault.effect.is_event() {
            fault.when = When { lasts: fault.when.lasts, times: Some(1), ..When::default() };
        }
        for session in self.active_sessions() {
            session.command(Command::AddFault(fault.clone())).await;
        }
    }

    async fn end_sessions(&self, how: SessionState, text: &str) {
        for session in self.active_sessions() {
            session.end(how, text);
            session.command(Command::Terminate).await;
        }
    }

    fn active_sessions(&self) -> Vec<Arc<BrokerSession>> {
        self.lock().sessions.iter().filter(|session| session.is_active()).cloned().collect()
    }

    /// Applies the faults of the nodes. Never returns.
    pub(crate) async fn run_faults(&self) {
        loop {
            let (due, next) = self.faults.due(now());
            for fault in due {
                self.strike(fault).await;
            }
            let wait = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.faults.changed() => {}
            }
        }
    }

    /// Returns the sessions in the order of their start.
    pub(crate) fn sessions(&self) -> Vec<Arc<BrokerSession>> {
        self.lock().sessions.iter().cloned().collect()
    }

    pub(crate) fn session(&self, id: &str) -> Option<Arc<BrokerSession>> {
        self.lock().sessions.iter().rev().find(|session| session.id == id).cloned()
    }

    pub(crate) fn stream_url(&self, session_id: &str) -> String {
        let address = self.address;
        let cell = self.session(session_id).map_or_else(|| session::cell_number(0), |session| session.cell_number());
        format!("ws://{address}/v1/data-channel/{session_id}?role=publish_subscribe&cell-number={cell}")
    }

    /// Starts a session and returns its first token. The agent starts when the client opens the data channel.
    ///
    /// # Errors
    /// Returns [`PortsOnly`] if only ports are allowed, and the session is not a port session.
    pub(crate) fn start(&self, request: StartRequest) -> Result<(Arc<BrokerSession>, String), PortsOnly> {
        if self.settings.ports_only && request.document.body.session_type != PORT {
            return Err(PortsOnly);
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (session, token) = BrokerSession::new(&request, commands, self.settings.token_ttl);
        let session = Arc::new(session);
        tracing::info!(
            session_id = session.id,
            target = session.target,
            document = session.document,
            "session started"
        );
        let spec = AgentSpec {
            session_type: request.document.body.session_type.clone(),
            identity: Identity { session_id: session.id.clone(), target: session.target.clone() },
            encryption: self.encryption(&request.settings),
            properties: request.settings.properties,
            inputs: request.settings.inputs,
            shell: self.settings.shell.clone(),
            agent_version: self.faults.agent_version(now()).unwrap_or_else(|| request.target.version().into()),
            faults: self.faults.clone(),
            profile: self.settings.profile,
            hosts: self.settings.hosts.clone(),
        };
        let relay = Relay::new(session.clone(), receiver, spec, &self.settings);
        let mut inner = self.lock();
        while inner.relays.try_join_next().is_some() {}
        inner.relays.spawn(relay.run());
        inner.sessions.push_back(session.clone());
        inner.forget_old_sessions();
        Ok((session, token))
    }

    fn encryption(&self, settings: &Settings) -> Option<Encryption> {
        let named = Some(&settings.inputs.kms_key_id).filter(|key| !key.is_empty());
        let key_id = named.or(self.settings.encrypt_with.as_ref())?.clone();
        Some(Encryption { key_id, kms: self.world.kms.clone(), fault: self.settings.kms_fault })
    }

    /// Replaces the token by a new one. Returns `None` if the session has ended.
    pub(crate) fn issue_token(&self, session: &BrokerSession) -> Option<String> {
        session.issue_token(self.settings.token_ttl)
    }

    /// Ends all sessions, and waits up to `limit` until their clients are notified.
    pub(crate) async fn shutdown(&self, limit: Duration) {
        let mut relays = {
            let mut inner = self.lock();
            inner.sessions.iter().for_each(|session| session.terminate());
            std::mem::take(&mut inner.relays)
        };
        let _ = timeout(limit, async { while relays.join_next().await.is_some() {} }).await;
    }

    /// Ends all sessions and agents immediately.
    pub(crate) fn abort(&self) {
        self.lock().relays.abort_all();
    }
}

/// Returns the time of the runtime's clock.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl BrokerState {
    fn forget_old_sessions(&mut self) {
        let ended = self.sessions.iter().filter(|session| !session.info().is_active()).count();
        let mut surplus = ended.saturating_sub(HISTORY);
        self.sessions.retain(|session| {
            let forget = surplus > 0 && !session.info().is_active();
            surplus -= usize::from(forget);
            !forget
        });
    }
}
