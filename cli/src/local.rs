//! The local Session Manager: the command `local`, and the instance that `--local` and `demo` start in this process.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ssm_forward::{AwsConfig, AwsCredentials, AwsProvider};
use ssm_local::{EcsTask, Faults, Local, LocalBuilder, LocalTarget, Profile, StartError};
use tokio::time::timeout;

use crate::args::{InsecureCredentials, LocalArgs, LocalProfile};
use crate::console;
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;

/// The default managed node of a local Session Manager.
pub(crate) const DEFAULT_TARGET: &str = "i-0123456789abcdef0";

/// The credentials of `--insecure-credentials fixed`. They are the same in every run.
const FIXED_KEY_ID: &str = "AKIALOCALLOCALLOCAL0";
const FIXED_SECRET: &str = "local-session-manager-fixed-no-secret-00";

/// Time limit for stopping.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of a local Session Manager.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Listening address.
    pub(crate) listen: SocketAddr,
    /// The id of the node.
    pub(crate) target: String,
    /// Additional nodes.
    pub(crate) nodes: Vec<LocalTarget>,
    /// How the agent behaves.
    pub(crate) profile: LocalProfile,
    /// The version that the agent reports.
    pub(crate) agent_version: Option<String>,
    /// Host names that only the agent resolves.
    pub(crate) hosts: Vec<(String, IpAddr)>,
    /// The containers of ECS tasks.
    pub(crate) ecs_containers: Vec<EcsContainer>,
    /// Session documents in addition to AWS's, or in place of them.
    pub(crate) documents: Vec<Document>,
    /// The key that encrypts shells and commands.
    pub(crate) kms_key: Option<String>,
    /// Credentials that are not secret; by default, the secret is random.
    pub(crate) insecure_credentials: Option<InsecureCredentials>,
    /// Whether shells and commands are refused.
    pub(crate) ports_only: bool,
    /// The injected faults.
    pub(crate) faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            target: DEFAULT_TARGET.into(),
            nodes: Vec::new(),
            profile: LocalProfile::default(),
            agent_version: None,
            hosts: Vec::new(),
            ecs_containers: Vec::new(),
            documents: Vec::new(),
            kms_key: None,
            insecure_credentials: None,
            ports_only: false,
            faults: Faults::new(),
        }
    }
}

/// A local Session Manager that runs in this process.
pub(crate) struct LocalManager {
    local: Local,
}

impl LocalManager {
    /// Starts a local Session Manager.
    pub(crate) async fn start(options: Options) -> Result<Self, Failure> {
        let mut target = LocalTarget::new(options.target);
        if let Some(version) = options.agent_version {
            target = target.agent_version(version);
        }
        let profile = match options.profile {
            LocalProfile::Fast => Profile::Fast,
            LocalProfile::Real => Profile::Real,
        };
        let mut builder =
            Local::builder().listen(options.listen).target(target).profile(profile).faults(options.faults);
        builder = options.nodes.into_iter().fold(builder, LocalBuilder::target);
        for (name, address) in options.hosts {
            builder = builder.host(name, [address]);
        }
        builder = tasks(options.ecs_containers).into_iter().fold(builder, LocalBuilder::ecs_task);
        for Document { name, content } in options.documents {
            builder = builder.document(name, content);
        }
        if let Some(key) = options.kms_key {
            builder = builder.encrypt_with(key);
        }
        builder = match options.insecure_credentials {
            Some(InsecureCredentials::Fixed) => builder.fixed_credentials(FIXED_KEY_ID, FIXED_SECRET),
            Some(InsecureCredentials::Any) => builder.any_credentials(),
            None => builder,
        };
        if options.ports_only {
            builder = builder.ports_only();
        }
        let local = builder.start().await.map_err(cannot_start)?;
        Ok(Self { local })
    }

    /// Starts the local Session Manager of `--local`, if `is_wanted`.
    pub(crate) async fn start_if(is_wanted: bool, options: impl FnOnce() -> Options) -> Result<Option<Self>, Failure> {
        match is_wanted {
            true => Self::start(options()).await.map(Some),
            false => Ok(None),
        }
    }

    /// Returns a provider that uses this local Session Manager as AWS's API.
    pub(crate) async fn provider(&self) -> Result<AwsProvider, Failure> {
        let mut variables: BTreeMap<_, _> = self.local.environment().into_iter().collect();
        let mut variable = |name| variables.remove(name).unwrap_or_default();
        let credentials = AwsCredentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID"),
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY").into(),
            session_token: None,
        };
        let config = AwsConfig {
            profile: None,
            region: Some(variable("AWS_REGION")),
            endpoint_url: Some(self.local.endpoint_url()),
            ca_bundle: None,
            credentials: Some(credentials),
            person: None,
        };
        Ok(AwsProvider::new(config).await?)
    }

    /// Stops the local Session Manager. Waits for at most five seconds.
    pub(crate) async fn shutdown(self) {
        let _ = timeout(STOP_TIMEOUT, self.local.shutdown()).await;
    }
}

fn cannot_start(error: StartError) -> Failure {
    let (code, kind) = match error {
        StartError::Listen { .. } => (ExitCode::Listen, "listen"),
        _ => (ExitCode::Usage, "usage"),
    };
    Failure::new(code, kind, format!("cannot start the local Session Manager: {error}"))
}

/// Runs the command `local` until it is stopped.
///
/// # Errors
/// Returns an error if the local Session Manager cannot be started.
pub(crate) async fn run(args: LocalArgs) -> Result<ExitCode, Failure> {
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let target = args.target.clone();
    let mut faults = args.more_faults.into_iter().fold(args.faults.unwrap_or_default(), Faults::with);
    if let Some(seed) = args.seed {
        faults = faults.seed(seed);
    }
    let options = Options {
        listen: args.listen,
        target: args.target,
        nodes: args.nodes,
        profile: args.profile,
        agent_version: args.agent_version,
        hosts: args.hosts,
        ecs_containers: args.ecs_containers,
        documents: args.documents,
        kms_key: args.kms_key,
        insecure_credentials: args.insecure_credentials,
        ports_only: false,
        faults,
    };
    let manager = LocalManager::start(options).await?;
    warn(args.listen, args.insecure_credentials);
    introduce(&manager.local, &target);
    shutdown.requested().await;
    manager.shutdown().await;
    Ok(ExitCode::Ok)
}

/// A session document from a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) name: String,
    /// The JSON text.
    pub(crate) content: String,
}

/// A container of ECS in which commands can be executed.
#[derive(Clone, Debug)]
pub(crate) struct EcsContainer {
    pub(crate) cluster: String,
    pub(crate) service: String,
    pub(crate) task: String,
    pub(crate) container: String,
}

/// Groups the containers by task.
fn tasks(containers: Vec<EcsContainer>) -> Vec<EcsTask> {
    let mut tasks: BTreeMap<[String; 3], EcsTask> = BTreeMap::new();
    for (number, EcsContainer { cluster, service, task, container }) in containers.into_iter().enumerate() {
        // A runtime id consists of the task's id and ten digits.
        let runtime_id = format!("{task}-{:010}", 123_456_789 + number);
        let known = tasks.remove(&[cluster.clone(), service.clone(), task.clone()]);
        let known = known.unwrap_or_else(|| EcsTask::new(&cluster, &service, &task));
        tasks.insert([cluster, service, task], known.container(container, runtime_id));
    }
    tasks.into_values().collect()
}

fn warn(listen: SocketAddr, insecure: Option<InsecureCredentials>) {
    let everybody = "so everybody who can connect to this port can run commands as you";
    match insecure {
        Some(InsecureCredentials::Fixed) => {
            console::note(&format!(
                "warning: --insecure-credentials fixed: these credentials are not secret, {everybody}"
            ));
        }
        Some(InsecureCredentials::Any) => {
            console::note(&format!("warning: --insecure-credentials any: signatures are not checked, {everybody}"));
        }
        None => {}
    }
    if !listen.ip().is_loopback() {
        console::note(
            "warning: other machines can connect to this port, and the traffic is not encrypted: anyone who can read it can \
             take over a session",
        );
    }
}

fn introduce(local: &Local, target: &str) {
    for (key, value) in local.environment() {
        console::say(format!("export {key}={value}\n"));
    }
    // On a terminal, the hint must follow these lines.
    console::flush();
    console::note(&format!(
        "The local Session Manager is ready. The lines above contain a secret of this run: anyone who has it can run commands as \
         you.\nIn another terminal, after running these lines:\n  \
         aws-ssm-forward forward {target} -L 8080:80\n  \
         aws ssm start-session --target {target}\nCtrl-C stops it."
    ));
}
