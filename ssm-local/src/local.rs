//! The local Session Manager as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::broker::{Broker, BrokerSettings, SessionInfo, World};
use crate::document::Documents;
use crate::ecs::EcsTask;
use crate::faults::{Fault, FaultError, Faults};
use crate::kms::{Kms, KmsFault};
use crate::target::LocalTarget;
use crate::{Profile, server};

/// A running local Session Manager. Dropping it ends everything immediately; [`Local::shutdown`] notifies the clients first.
#[derive(Debug)]
pub struct Local {
    address: SocketAddr,
    broker: Arc<Broker>,
    server: JoinHandle<()>,
    faults: JoinHandle<()>,
}

/// The reason why the local Session Manager cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The local Session Manager cannot listen on the address.
    #[error("cannot listen on {address}: {cause}; choose another address, or port 0 for any free port")]
    Listen {
        /// The requested address.
        address: SocketAddr,
        /// The system's error.
        cause: io::Error,
    },
    /// Two targets have the same id.
    #[error("there are two targets with the id {0}; give each target its own id")]
    DuplicateTarget(String),
    /// A document is not a valid session document.
    #[error("the document {name} is not a session document: {cause}")]
    Document {
        /// The document's name.
        name: String,
        /// The JSON error.
        cause: serde_json::Error,
    },
}

const REGION: &str = "us-east-1";
/// Maximum time for sessions to notify their clients.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

impl Local {
    /// Returns a builder with the default settings.
    pub fn builder() -> LocalBuilder {
        LocalBuilder::default()
    }

    /// Returns the address at which programs of this machine can connect: the listening address, or loopback if it listens on all
    /// addresses.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of the SSM API.
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the URL of a session's data channel, as in StartSession's response.
    pub fn stream_url(&self, session_id: &str) -> String {
        self.broker.stream_url(session_id)
    }

    /// Returns the environment variables for a client: `AWS_ENDPOINT_URL`, `AWS_REGION` and `AWS_DEFAULT_REGION` (us-east-1; every
    /// region is accepted), `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`. The last one is a secret: a program that has it can do on
    /// this machine whatever the user of this process can do.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let key = self.broker.access().key();
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint_url()),
            ("AWS_REGION", REGION.into()),
            // Older AWS tools read only this variable.
            ("AWS_DEFAULT_REGION", REGION.into()),
            ("AWS_ACCESS_KEY_ID", key.access_key_id().into()),
            ("AWS_SECRET_ACCESS_KEY", key.secret_access_key().into()),
        ]
    }

    /// Returns the sessions, the oldest first: all active ones and the last ones that ended.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.broker.sessions().iter().map(|session| session.info()).collect()
    }

    /// Returns the faults in force.
    pub fn faults(&self) -> Faults {
        self.broker.faults().get()
    }

    /// Replaces the faults, including the faults of active sessions. The times of the new faults start now.
    pub async fn set_faults(&self, faults: Faults) {
        self.broker.set_faults(faults).await;
    }

    /// Makes a fault happen once, now, to every active session or to the nodes. An effect on messages lasts from now on, in the
    /// sessions that are active now.
    ///
    /// # Errors
    /// Returns [`FaultError::NotAtOnce`] if the effect acts on agents or on calls of the API. Use [`Local::set_faults`] for such
    /// effects.
    pub async fn strike(&self, fault: Fault) -> Result<(), FaultError> {
        self.broker.strike_once(fault).await
    }

    /// Ends every session, notifies the clients, and stops. Takes at most three seconds.
    pub async fn shutdown(self) {
        self.server.abort();
        self.faults.abort();
        self.broker.shutdown(SHUTDOWN_TIMEOUT).await;
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.server.abort();
        self.faults.abort();
        self.broker.abort();
    }
}

/// Builds a [`Local`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LocalBuilder {
    listen: SocketAddr,
    targets: Vec<LocalTarget>,
    tasks: Vec<EcsTask>,
    documents: Vec<(String, String)>,
    kms_keys: BTreeSet<String>,
    access: Option<Access>,
    settings: BrokerSettings,
    faults: Faults,
}

impl Default for LocalBuilder {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            targets: Vec::new(),
            tasks: Vec::new(),
            documents: Vec::new(),
            kms_keys: BTreeSet::new(),
            access: None,
            settings: BrokerSettings {
                profile: Profile::default(),
                hosts: BTreeMap::new(),
                token_ttl: Duration::from_secs(180),
                idle_timeout: Duration::from_secs(20 * 60),
                max_session_duration: None,
                shell: std::env::var_os("SHELL")
                    .filter(|shell| !shell.is_empty())
                    .map_or_else(|| "/bin/sh".into(), PathBuf::from),
                encrypt_with: None,
                kms_fault: None,
                ports_only: false,
            },
            faults: Faults::new(),
        }
    }
}

impl LocalBuilder {
    /// Sets the listening address. Default: `127.0.0.1`, any free port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Accepts these credentials instead of a random secret.
    ///
    /// For tests only. A program that knows or guesses these credentials, and can connect, can run commands as the user of this
    /// process.
    pub fn fixed_credentials(mut self, access_key_id: &str, secret_access_key: &str) -> Self {
        self.access = Some(Access::fixed(access_key_id, secret_access_key));
        self
    }

    /// Disables the check of callers: any `Authorization` header is accepted.
    ///
    /// For tests only. Every program that can connect can run commands as the user of this process, unless [only
    /// ports](Self::ports_only) are allowed.
    pub fn any_credentials(mut self) -> Self {
        self.access = Some(Access::open());
        self
    }

    /// Refuses shells and commands, so that sessions can only forward ports. Default: they are allowed.
    pub fn ports_only(mut self) -> Self {
        self.settings.ports_only = true;
        self
    }

    /// Adds a managed node. If none is added, there is one node with the id `i-0123456789abcdef0`.
    pub fn target(mut self, target: LocalTarget) -> Self {
        self.targets.push(target);
        self
    }

    /// Adds an ECS task. The ECS API lists it, and ExecuteCommand runs commands in its containers. Like all sessions, these
    /// commands run on this machine.
    pub fn ecs_task(mut self, task: EcsTask) -> Self {
        self.tasks.push(task);
        self
    }

    /// Adds a session document (schema 1.0, JSON), or replaces one of AWS's documents. If the document is invalid,
    /// [`LocalBuilder::start`] returns the error.
    ///
    /// `SSM-SessionManagerRunShell` is the document of sessions without a document name. Of a document's `inputs`, `kmsKeyId` and
    /// `shellProfile.linux` are supported.
    pub fn document(mut self, name: impl Into<String>, content: impl Into<String>) -> Self {
        self.documents.push((name.into(), content.into()));
        self
    }

    /// Sets the program of a shell session. Default: the variable `SHELL`, otherwise `/bin/sh`. The program runs as the user of
    /// this process.
    pub fn shell(mut self, program: impl Into<PathBuf>) -> Self {
        self.settings.shell = program.into();
        self
    }

    /// Adds a KMS key by an id, an alias or an ARN. The KMS API creates data keys with it. The key alone encrypts no session: a
    /// document's `kmsKeyId` or [`LocalBuilder::encrypt_with`] does.
    pub fn kms_key(mut self, id: impl Into<String>) -> Self {
        self.kms_keys.insert(id.into());
        self
    }

    /// Encrypts shells and commands with this KMS key, which is added too, unless their document names another key.
    pub fn encrypt_with(mut self, key_id: impl Into<String>) -> Self {
        let key_id = key_id.into();
        self.settings.encrypt_with = Some(key_id.clone());
        self.kms_key(key_id)
    }

    /// Makes the agents of encrypted sessions fail to get their data key. Default: no fault.
    pub fn kms_fault(mut self, fault: KmsFault) -> Self {
        self.settings.kms_fault = Some(fault);
        self
    }

    /// Sets the behaviour of the agents. Default: [`Profile::Fast`].
    pub fn profile(mut self, profile: Profile) -> Self {
        self.settings.profile = profile;
        self
    }

    /// Adds a private name that only the agents resolve. Apart from such names, the agents resolve only `localhost` and IP
    /// addresses.
    pub fn host<A: Into<IpAddr>>(mut self, name: impl Into<String>, addresses: impl IntoIterator<Item = A>) -> Self {
        let addresses = addresses.into_iter().map(Into::into).collect();
        self.settings.hosts.insert(name.into().to_ascii_lowercase(), addresses);
        self
    }

    /// Sets how long a token can open a data channel. ResumeSession issues new tokens. Default: 3 minutes.
    pub fn token_ttl(mut self, ttl: Duration) -> Self {
        self.settings.token_ttl = ttl;
        self
    }

    /// Sets the time without data after which a session ends. Default: 20 minutes, as in AWS.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// Sets the maximum duration of a session. Default: no limit, as in AWS.
    pub fn max_session_duration(mut self, duration: Duration) -> Self {
        self.settings.max_session_duration = Some(duration);
        self
    }

    /// Sets the faults. Default: none.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Starts the local Session Manager.
    ///
    /// # Errors
    /// Returns [`StartError::Listen`] if it cannot listen on the address, [`StartError::DuplicateTarget`] if two targets have the
    /// same id, and [`StartError::Document`] if a document is invalid.
    pub async fn start(mut self) -> Result<Local, StartError> {
        if self.targets.is_empty() {
            self.targets.push(LocalTarget::default());
        }
        self.targets.sort_by(|a, b| a.id().cmp(b.id()));
        let ids = self.targets.iter().map(LocalTarget::id);
        if let Some((twice, _)) = ids.clone().zip(ids.skip(1)).find(|(a, b)| a == b) {
            return Err(StartError::DuplicateTarget(twice.into()));
        }
        let mut documents = Documents::default();
        for (name, content) in self.documents {
            documents.insert(name.clone(), content).map_err(|cause| StartError::Document { name, cause })?;
        }
        let world =
            World { targets: self.targets, tasks: self.tasks, documents, kms: Arc::new(Kms::new(self.kms_keys)) };
        let failed = |cause| StartError::Listen { address: self.listen, cause };
        let listener = listen(self.listen).map_err(failed)?;
        let address = reachable(listener.local_addr().map_err(failed)?);
        let access = self.access.unwrap_or_else(Access::secret);
        let broker = Arc::new(Broker::new(address, access, world, self.settings, self.faults));
        let faults = tokio::spawn({
            let broker = broker.clone();
            async move { broker.run_faults().await }
        });
        let server = tokio::spawn(server::run(listener, broker.clone()));
        tracing::info!(%address, "the local Session Manager is ready");
        Ok(Local { address, broker, server, faults })
    }
}

/// Maximum number of connections that wait to be accepted; the system may allow fewer. The usual 128 are too few when many sessions
/// begin at the same time.
const QUEUE: u32 = 65_535;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Returns an address to which a client on this machine can connect.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
