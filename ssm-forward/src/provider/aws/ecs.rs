//! Containers of ECS services as targets. Session Manager's id of a container contains the ids of the task and of the runtime,
//! which change with each deployment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cache::Found;
use super::errors::invalid;
use super::json::ECS;
use super::{AwsProvider, ProviderError, ProviderErrorKind};

/// A container, given by names that do not change: `ecs:CLUSTER/SERVICE` or `ecs:CLUSTER/SERVICE/CONTAINER`. The id of a task can
/// be used instead of the service.
///
/// [`AwsProvider::resolve_ecs`] finds the running task and container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EcsSpec {
    /// The name of the cluster.
    pub cluster: String,
    /// The name of the service. `None` means any task of the cluster, or the task [`EcsSpec::task`].
    pub service: Option<String>,
    /// The id of a task. `None` means the newest task.
    pub task: Option<String>,
    /// The name of the container. `None` means the only container.
    pub container: Option<String>,
}

/// A container in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunningTask {
    /// The spec that selects this container.
    pub spec: EcsSpec,
    /// The task's id.
    pub task: String,
    /// `online` if sessions can be started in the container, otherwise the reason why not.
    pub connection: String,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EcsTarget {
    /// The target for StartSession: `ecs:CLUSTER_TASK_RUNTIME`.
    pub target: String,
    /// The task's id.
    pub task: String,
    /// The container's name.
    pub container: String,
}

const PREFIX: &str = "ecs:";

impl EcsSpec {
    /// Parses a target. Returns `None` if StartSession accepts it unchanged: the id of a node, or `ecs:CLUSTER_TASK_RUNTIME`.
    ///
    /// # Errors
    /// Returns an error if the target begins with `ecs:` but has neither form.
    pub fn of_target(target: &str) -> Result<Option<Self>, ProviderError> {
        match target.strip_prefix(PREFIX) {
            Some(name) if !is_resolved(name) => target.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// Describes where the task is searched, for error messages.
    fn place(&self) -> String {
        match (&self.task, &self.service) {
            (Some(task), _) => format!("the task {task} of the ECS cluster {}", self.cluster),
            (None, Some(service)) => format!("the service {service} of the ECS cluster {}", self.cluster),
            (None, None) => format!("the ECS cluster {}", self.cluster),
        }
    }
}

/// Whether the name has the three parts of `CLUSTER_TASK_RUNTIME`. The name of the cluster can itself contain underscores.
fn is_resolved(name: &str) -> bool {
    !name.contains('/') && name.rsplitn(3, '_').filter(|part| !part.is_empty()).count() == 3
}

impl FromStr for EcsSpec {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        let forms = "ecs:CLUSTER/SERVICE or ecs:CLUSTER/SERVICE/CONTAINER";
        let names = text.strip_prefix(PREFIX).ok_or_else(|| invalid(format!("{text:?} is not {forms}")))?;
        if names.starts_with("arn:") {
            return Err(invalid(format!("{text:?} contains an ARN; {forms} needs the plain names")));
        }
        let parts: Vec<&str> = names.split('/').collect();
        let (cluster, within, container) = match *parts.as_slice() {
            [cluster, within] => (cluster, within, None),
            [cluster, within, container] => (cluster, within, Some(container)),
            _ => return Err(invalid(format!("{text:?} is not {forms}"))),
        };
        if let Some(bad) = parts.iter().find(|part| !is_name(part)) {
            return Err(invalid(format!("{bad:?} in {text:?} is not a name: {forms}, of letters, digits, - and _")));
        }
        let (task, service) = if is_task_id(within) { (Some(within), None) } else { (None, Some(within)) };
        let owned = |name: Option<&str>| name.map(str::to_owned);
        Ok(Self { cluster: cluster.into(), service: owned(service), task: owned(task), container: owned(container) })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn is_task_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for EcsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = self.task.as_deref().or(self.service.as_deref()).unwrap_or("*");
        write!(f, "{PREFIX}{}/{within}", self.cluster)?;
        self.container.as_ref().map_or(Ok(()), |container| write!(f, "/{container}"))
    }
}

/// Maximum number of pages that are read. A page has 100 tasks, the maximum of DescribeTasks.
const MAX_PAGES: usize = 10;

impl AwsProvider {
    /// Finds the newest running task of `spec` and its container.
    ///
    /// # Errors
    /// Returns an error if the cluster, service, task or container does not exist, if no task is running, if ECS Exec is not
    /// enabled or its agent is not running, if the spec matches several containers, or if the API fails.
    pub async fn resolve_ecs(&self, spec: &EcsSpec) -> Result<EcsTarget, ProviderError> {
        let tasks = match &spec.task {
            Some(task) => self.describe(&spec.cluster, std::slice::from_ref(task)).await,
            None => self.tasks(spec).await,
        };
        let found = choose(spec, tasks.map_err(|error| about(spec, error))?)?;
        self.remember(Found { nodes: None, names: vec![spec.to_string()] }).await;
        Ok(found)
    }

    async fn tasks(&self, spec: &EcsSpec) -> Result<Vec<Task>, ProviderError> {
        let mut tasks = Vec::new();
        let mut next_token = None;
        for _ in 0..MAX_PAGES {
            let (cluster, service_name) = (&*spec.cluster, spec.service.as_deref());
            let question = ListTasks { cluster, service_name, desired_status: RUNNING, next_token };
            let page: TaskArns = self.ask(ECS, "ListTasks", &question).await?;
            if !page.task_arns.is_empty() {
                tasks.append(&mut self.describe(&spec.cluster, &page.task_arns).await?);
            }
            next_token = page.next_token;
            if next_token.is_none() {
                break;
            }
        }
        Ok(tasks)
    }

    /// Returns the containers of all running tasks in the region's clusters.
    ///
    /// # Errors
    /// Returns the errors of ECS.
    pub async fn list_ecs(&self) -> Result<Vec<RunningTask>, ProviderError> {
        let mut found = Vec::new();
        for arn in &self.clusters().await? {
            let spec = EcsSpec { cluster: last_part(arn).to_owned(), service: None, task: None, container: None };
            let running = self.tasks(&spec).await?.into_iter().filter(|task| task.last_status == RUNNING);
            found.extend(running.flat_map(|task| task.list(&spec.cluster)));
        }
        let names = found.iter().map(|task| task.spec.to_string()).collect();
        self.remember(Found { nodes: None, names }).await;
        Ok(found)
    }

    /// Returns the ARNs of all clusters.
    async fn clusters(&self) -> Result<Vec<String>, ProviderError> {
        let (mut clusters, mut next_token) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let page: ClusterArns = self.ask(ECS, "ListClusters", &ListClusters { next_token }).await?;
            clusters.extend(page.cluster_arns);
            next_token = page.next_token;
            if next_token.is_none() {
                break;
            }
        }
        Ok(clusters)
    }

    async fn describe(&self, cluster: &str, tasks: &[String]) -> Result<Vec<Task>, ProviderError> {
        let answer: Tasks = self.ask(ECS, "DescribeTasks", &DescribeTasks { cluster, tasks }).await?;
        Ok(answer.tasks)
    }
}

/// Adds the requested container to an error message about the request.
fn about(spec: &EcsSpec, error: ProviderError) -> ProviderError {
    match error.kind {
        ProviderErrorKind::Invalid => invalid(format!("{spec}: {}", error.message)),
        _ => error,
    }
}

const RUNNING: &str = "RUNNING";
/// The managed agent through which Session Manager reaches a container.
const AGENT: &str = "ExecuteCommandAgent";

fn not_connected(message: String) -> ProviderError {
    ProviderError { kind: ProviderErrorKind::NotConnected, message }
}

/// Chooses the newest task whose agent is running. During the first seconds of a deployment this is the previous task.
fn choose(spec: &EcsSpec, mut tasks: Vec<Task>) -> Result<EcsTarget, ProviderError> {
    let place = spec.place();
    tasks.retain(|task| task.last_status == RUNNING);
    if tasks.is_empty() {
        return Err(match (&spec.task, &spec.service) {
            (Some(_), _) => not_connected(format!("{place} is not running, or does not exist: aws ecs list-tasks")),
            (None, Some(service)) => not_connected(format!(
                "{place} has no running task; its events contain the reason: aws ecs describe-services --cluster {} --services {service}",
                spec.cluster
            )),
            (None, None) => not_connected(format!("{place} has no running task")),
        });
    }
    tasks.retain(|task| task.enable_execute_command);
    tasks.sort_by(|a, b| b.since().total_cmp(&a.since()));
    let Some((newest, older)) = tasks.split_first() else {
        let service = spec.service.as_deref().unwrap_or("SERVICE");
        return Err(invalid(format!(
            "ECS Exec is not enabled in {place}: \
             aws ecs update-service --cluster {} --service {service} --enable-execute-command --force-new-deployment",
            spec.cluster
        )));
    };
    match container(spec, newest) {
        Err(error) if error.kind == ProviderErrorKind::NotConnected => {
            older.iter().find_map(|task| container(spec, task).ok()).ok_or(error)
        }
        found => found,
    }
}

fn container(spec: &EcsSpec, task: &Task) -> Result<EcsTarget, ProviderError> {
    let id = last_part(&task.task_arn);
    let names = |containers: &[&Container]| {
        let names: Vec<&str> = containers.iter().map(|container| &*container.name).collect();
        names.join(", ")
    };
    let all: Vec<&Container> = task.containers.iter().collect();
    // Containers that AWS itself adds to a task, for Service Connect or GuardDuty, have no agent.
    let with_agent: Vec<&Container> = all.iter().copied().filter(|container| container.agent().is_some()).collect();
    let container = match (&spec.container, with_agent.as_slice()) {
        (Some(name), _) => *all.iter().find(|container| container.name == *name).ok_or_else(|| {
            invalid(format!("there is no container {name} in the ECS task {id}; its containers are: {}", names(&all)))
        })?,
        (None, [only]) => only,
        (None, []) => return Err(not_connected(no_agent(id, &names(&all), None))),
        (None, several) => {
            let names = names(several);
            return Err(invalid(format!("{spec} has several containers: add /CONTAINER, one of {names}")));
        }
    };
    let reachable = container.agent().is_some_and(|agent| agent.last_status == RUNNING);
    match container.runtime_id.as_deref().filter(|_| reachable) {
        Some(runtime) => {
            let cluster = task.cluster_arn.as_deref().map_or(&*spec.cluster, last_part);
            let target = format!("{PREFIX}{cluster}_{id}_{runtime}");
            Ok(EcsTarget { target, task: id.to_owned(), container: container.name.clone() })
        }
        None => Err(not_connected(no_agent(id, &container.name, container.agent()))),
    }
}

fn no_agent(task: &str, container: &str, agent: Option<&Agent>) -> String {
    let status = agent.map_or("missing", |agent| &agent.last_status);
    let reason = agent.and_then(|agent| agent.reason.as_deref()).map_or_else(String::new, |why| format!(" ({why})"));
    format!(
        "the ECS Exec agent in the container {container} of the task {task} is not running but {status}{reason}: \
         wait if the task is new, else check that its task role allows ssmmessages:* and that it reaches Session Manager"
    )
}

fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListTasks<'a> {
    cluster: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<&'a str>,
    desired_status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListClusters {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterArns {
    #[serde(default)]
    cluster_arns: Vec<String>,
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TaskArns {
    #[serde(default)]
    task_arns: Vec<String>,
    next_token: Option<String>,
}

#[derive(Serialize)]
struct DescribeTasks<'a> {
    cluster: &'a str,
    tasks: &'a [String],
}

#[derive(Debug, Deserialize)]
struct Tasks {
    #[serde(default)]
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    task_arn: String,
    cluster_arn: Option<String>,
    /// `service:NAME` if a service started it.
    group: Option<String>,
    #[serde(default)]
    last_status: String,
    #[serde(default)]
    enable_execute_command: bool,
    /// In seconds since 1970. `None` if the task has not started yet.
    started_at: Option<f64>,
    created_at: Option<f64>,
    #[serde(default)]
    containers: Vec<Container>,
}

impl Task {
    fn since(&self) -> f64 {
        self.started_at.or(self.created_at).unwrap_or_default()
    }

    fn list(self, cluster: &str) -> Vec<RunningTask> {
        let id = last_part(&self.task_arn).to_owned();
        let service = self.group.as_deref().and_then(|group| group.strip_prefix("service:"));
        let (service, task) = (service.map(str::to_owned), service.is_none().then(|| id.clone()));
        let enabled = self.enable_execute_command;
        let one = |container: Container| {
            let connection = match container.agent() {
                _ if !enabled => "ECS Exec is not enabled".to_owned(),
                Some(agent) if agent.last_status == RUNNING => "online".to_owned(),
                Some(agent) => format!("agent {}", agent.last_status.to_ascii_lowercase()),
                None => "no agent".to_owned(),
            };
            let cluster = cluster.to_owned();
            let spec =
                EcsSpec { cluster, service: service.clone(), task: task.clone(), container: Some(container.name) };
            RunningTask { spec, task: id.clone(), connection }
        };
        self.containers.into_iter().map(one).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    runtime_id: Option<String>,
    #[serde(default)]
    managed_agents: Vec<Agent>,
}

impl Container {
    fn agent(&self) -> Option<&Agent> {
        self.managed_agents.iter().find(|agent| agent.name == AGENT)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agent {
    name: String,
    #[serde(default)]
    last_status: String,
    reason: Option<String>,
}
