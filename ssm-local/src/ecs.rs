//! ECS tasks.

use std::time::SystemTime;

use uuid::Uuid;

use crate::target::LocalTarget;

/// A running task of the local ECS, in which commands can be executed. Its containers are on this machine.
///
/// ```
/// let task = ssm_local::EcsTask::new("prod", "web", "0123456789abcdef0123456789abcdef")
///     .container("app", "0123456789abcdef0123456789abcdef-1234567890");
/// ```
#[derive(Clone, Debug)]
pub struct EcsTask {
    cluster: String,
    service: String,
    id: String,
    containers: Vec<Container>,
    enabled: bool,
    started: SystemTime,
    /// The id of the attachment of the task's network interface; invented.
    attachment: Uuid,
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) runtime_id: String,
    /// The id of the container; invented.
    pub(crate) id: Uuid,
    pub(crate) target: LocalTarget,
}

const ARN: &str = "arn:aws:ecs:us-east-1:123456789012:";

impl EcsTask {
    /// Creates a task of a service, started just now, without containers.
    pub fn new(cluster: impl Into<String>, service: impl Into<String>, task_id: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            service: service.into(),
            id: task_id.into(),
            containers: Vec::new(),
            enabled: true,
            started: SystemTime::now(),
            attachment: Uuid::new_v4(),
        }
    }

    /// Adds a container. Its target id for sessions is `ecs:CLUSTER_TASK_RUNTIMEID`.
    #[must_use]
    pub fn container(mut self, name: impl Into<String>, runtime_id: impl Into<String>) -> Self {
        let runtime_id = runtime_id.into();
        let target = LocalTarget::new(format!("ecs:{}_{}_{runtime_id}", self.cluster, self.id));
        self.containers.push(Container { name: name.into(), runtime_id, id: Uuid::new_v4(), target });
        self
    }

    /// Marks the task's ExecuteCommandAgent as not running: commands are refused with `TargetNotConnectedException`.
    #[must_use]
    pub fn disconnected(mut self) -> Self {
        for container in &mut self.containers {
            container.target = container.target.clone().disconnected();
        }
        self
    }

    /// Marks the task as started without `enableExecuteCommand`: commands are refused with `InvalidParameterException`.
    #[must_use]
    pub fn without_execute_command(mut self) -> Self {
        self.enabled = false;
        self
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    pub(crate) fn attachment(&self) -> Uuid {
        self.attachment
    }

    pub(crate) fn containers(&self) -> &[Container] {
        &self.containers
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &LocalTarget> {
        self.containers.iter().filter(|_| self.enabled).map(|container| &container.target)
    }

    /// Returns whether an id or an ARN identifies this task.
    pub(crate) fn is(&self, id: &str) -> bool {
        id == self.id || id == self.arn()
    }

    pub(crate) fn arn(&self) -> String {
        format!("{ARN}task/{}/{}", self.cluster, self.id)
    }

    pub(crate) fn cluster_arn(&self) -> String {
        format!("{ARN}cluster/{}", self.cluster)
    }

    pub(crate) fn service_arn(&self) -> String {
        format!("{ARN}service/{}/{}", self.cluster, self.service)
    }

    pub(crate) fn container_arn(&self, container: &Container) -> String {
        format!("{ARN}container/{}/{}/{}", self.cluster, self.id, container.id)
    }

    pub(crate) fn definition_arn(&self) -> String {
        format!("{ARN}task-definition/{}:1", self.service)
    }
}
