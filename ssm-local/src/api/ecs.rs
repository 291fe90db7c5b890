//! Operations of ECS that are needed to find a container and to execute a command in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::input::{Page, required};
use super::{Outcome, parse, timestamp, unknown};
use crate::broker::{Broker, StartRequest};
use crate::document::ECS_EXECUTE;
use crate::ecs::{Container, EcsTask};

pub(super) fn dispatch(broker: &Broker, operation: &str, body: &[u8]) -> Outcome {
    match operation {
        "ListClusters" => list_clusters(broker, parse(body)?),
        "DescribeClusters" => describe_clusters(broker, parse(body)?),
        "ListServices" => list_services(broker, parse(body)?),
        "DescribeServices" => describe_services(broker, parse(body)?),
        "ListTasks" => list_tasks(broker, parse(body)?),
        "DescribeTasks" => describe_tasks(broker, parse(body)?),
        "ExecuteCommand" => execute_command(broker, parse(body)?),
        _ => Err(unknown()),
    }
}

/// The members of the inputs of all these operations.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Input {
    cluster: Option<String>,
    service_name: Option<String>,
    clusters: Vec<String>,
    services: Vec<String>,
    tasks: Vec<String>,
    desired_status: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
    task: Option<String>,
    container: Option<String>,
    command: Option<String>,
    interactive: bool,
}

impl Input {
    /// Returns the cluster's tasks. A cluster exists only if it has tasks.
    fn cluster<'a>(&self, broker: &'a Broker) -> Result<Vec<&'a EcsTask>, ApiError> {
        let cluster = name(self.cluster.as_deref().unwrap_or("default"));
        let tasks: Vec<_> = broker.tasks().iter().filter(|task| task.cluster() == cluster).collect();
        if tasks.is_empty() {
            return Err(ApiError::new("ClusterNotFoundException", "Cluster not found."));
        }
        Ok(tasks)
    }

    fn list(&self, key: &'static str, arns: impl IntoIterator<Item = String>) -> Outcome {
        let page = Page::new(key, self.max_results, 1..=100, self.next_token.as_deref())?;
        let (part, next) = page.cut(arns);
        Ok(match next {
            Some(next) => json!({ key: part, "nextToken": next }),
            None => json!({ key: part }),
        })
    }
}

/// Returns the last part of an ARN, which is the name.
fn name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

fn list_clusters(broker: &Broker, input: Input) -> Outcome {
    let arns: BTreeSet<_> = broker.tasks().iter().map(EcsTask::cluster_arn).collect();
    input.list("clusterArns", arns)
}

fn describe_clusters(broker: &Broker, input: Input) -> Outcome {
    let wanted = if input.clusters.is_empty() { vec!["default".to_owned()] } else { input.clusters };
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    for wanted in &wanted {
        let tasks: Vec<_> = broker.tasks().iter().filter(|task| task.cluster() == name(wanted)).collect();
        let services: BTreeSet<_> = tasks.iter().map(|task| task.service()).collect();
        match tasks.first() {
            Some(task) => clusters.push(json!({
                "clusterArn": task.cluster_arn(),
                "clusterName": task.cluster(),
                "status": "ACTIVE",
                "registeredContainerInstancesCount": 0,
                "runningTasksCount": tasks.len(),
                "pendingTasksCount": 0,
                "activeServicesCount": services.len(),
                "statistics": [],
                "tags": [],
                "settings": [],
                "capacityProviders": [],
                "defaultCapacityProviderStrategy": [],
            })),
            None => failures.push(json!({ "arn": wanted, "reason": "MISSING" })),
        }
    }
    Ok(json!({ "clusters": clusters, "failures": failures }))
}

fn list_services(broker: &Broker, input: Input) -> Outcome {
    let arns: BTreeSet<_> = input.cluster(broker)?.into_iter().map(EcsTask::service_arn).collect();
    input.list("serviceArns", arns)
}

fn list_tasks(broker: &Broker, input: Input) -> Outcome {
    let mut tasks = input.cluster(broker)?;
    if let Some(service) = input.service_name.as_deref().map(name) {
        tasks.retain(|task| task.service() == service);
        if tasks.is_empty() {
            return Err(ApiError::new("ServiceNotFoundException", "Service not found."));
        }
    }
    // All tasks are running.
    tasks.retain(|_| input.desired_status.as_deref().is_none_or(|status| status == "RUNNING"));
    input.list("taskArns", tasks.into_iter().map(EcsTask::arn))
}

fn describe_services(broker: &Broker, input: Input) -> Outcome {
    let tasks = input.cluster(broker)?;
    let (mut services, mut failures) = (Vec::new(), Vec::new());
    for wanted in &input.services {
        let of_service: Vec<_> = tasks.iter().filter(|task| task.service() == name(wanted)).collect();
        match of_service.first() {
            Some(task) => services.push(json!({
                "serviceArn": task.service_arn(),
                "serviceName": task.service(),
                "clusterArn": task.cluster_arn(),
                "status": "ACTIVE",
                "desiredCount": of_service.len(),
                "runningCount": of_service.len(),
                "pendingCount": 0,
                "launchType": "FARGATE",
                "taskDefinition": task.definition_arn(),
                "enableExecuteCommand": task.is_enabled(),
                "schedulingStrategy": "REPLICA",
                "createdAt": timestamp(task.started()),
            })),
            None => failures.push(json!({ "arn": wanted, "reason": "MISSING" })),
        }
    }
    Ok(json!({ "services": services, "failures": failures }))
}

fn describe_tasks(broker: &Broker, input: Input) -> Outcome {
    let tasks = input.cluster(broker)?;
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for wanted in &input.tasks {
        match tasks.iter().find(|task| task.is(wanted)) {
            Some(task) => found.push(describe_task(task)),
            None => failures.push(json!({ "arn": wanted, "reason": "MISSING" })),
        }
    }
    Ok(json!({ "tasks": found, "failures": failures }))
}

fn describe_task(task: &EcsTask) -> Value {
    let containers: Vec<_> = task.containers().iter().map(|container| describe_container(task, container)).collect();
    json!({
        "taskArn": task.arn(),
        "clusterArn": task.cluster_arn(),
        "taskDefinitionArn": task.definition_arn(),
        "group": format!("service:{}", task.service()),
        "lastStatus": "RUNNING",
        "desiredStatus": "RUNNING",
        "launchType": "FARGATE",
        "platformVersion": "1.4.0",
        "connectivity": "CONNECTED",
        "enableExecuteCommand": task.is_enabled(),
        "startedAt": timestamp(task.started()),
        "createdAt": timestamp(task.started()),
        "containers": containers,
        "attachments": [attachment(task)],
        "overrides": { "containerOverrides": [] },
        "tags": [],
    })
}

/// Returns the task's network interface, as for tasks with their own network. Its address is this machine's address.
fn attachment(task: &EcsTask) -> Value {
    let detail = |name: &str, value: &str| json!({ "name": name, "value": value });
    json!({
        "id": task.attachment().to_string(),
        "type": "ElasticNetworkInterface",
        "status": "ATTACHED",
        "details": [
            detail("subnetId", "subnet-00000000000000000"),
            detail("networkInterfaceId", "eni-00000000000000000"),
            detail("privateDnsName", "localhost"),
            detail("privateIPv4Address", ADDRESS),
        ],
    })
}

/// The address of all containers, because they are on this machine.
const ADDRESS: &str = "127.0.0.1";

fn describe_container(task: &EcsTask, container: &Container) -> Value {
    let status = if container.target.is_connected() { "RUNNING" } else { "STOPPED" };
    let agents = task.is_enabled().then(|| json!({ "name": "ExecuteCommandAgent", "lastStatus": status }));
    json!({
        "containerArn": task.container_arn(container),
        "taskArn": task.arn(),
        "name": container.name,
        "runtimeId": container.runtime_id,
        "image": "local",
        "lastStatus": "RUNNING",
        "networkInterfaces": [{ "attachmentId": task.attachment().to_string(), "privateIpv4Address": ADDRESS }],
        "managedAgents": Vec::from_iter(agents),
    })
}

fn execute_command(broker: &Broker, input: Input) -> Outcome {
    let command = required("command", input.command.as_deref())?;
    let id = required("task", input.task.as_deref())?;
    if !input.interactive {
        return Err(invalid("Interactive is a required parameter and must be set to true."));
    }
    let tasks = input.cluster(broker)?;
    let task =
        tasks.into_iter().find(|task| task.is(id)).ok_or_else(|| invalid("The referenced task was not found."))?;
    let container = choose(task, input.container.as_deref())?;
    if !task.is_enabled() {
        return Err(invalid(
            "The execute command failed because execute command was not enabled when the task was run or the execute \
             command agent isn’t running. Wait and try again or run a new task with execute command enabled and try \
             again.",
        ));
    }
    if !container.target.is_connected() {
        let text = "The execute command failed due to an internal error. Try again later.";
        return Err(ApiError::new("TargetNotConnectedException", text));
    }
    let document = broker.documents().find(ECS_EXECUTE).ok_or_else(|| ApiError::no_document(ECS_EXECUTE))?.clone();
    let settings = document.settings(&BTreeMap::from([("command".to_owned(), vec![command.to_owned()])]))?;
    let request = StartRequest { target: container.target.clone(), document, settings, reason: None };
    let (session, token) = broker.start(request)?;
    Ok(json!({
        "clusterArn": task.cluster_arn(),
        "taskArn": task.arn(),
        "containerArn": task.container_arn(container),
        "containerName": container.name,
        "interactive": true,
        "session": {
            "sessionId": session.id,
            "streamUrl": broker.stream_url(&session.id),
            "tokenValue": token,
        },
    }))
}

/// Returns the container with this name; without a name, the only container.
fn choose<'a>(task: &'a EcsTask, name: Option<&str>) -> Result<&'a Container, ApiError> {
    match (name, task.containers()) {
        (None, [container]) => Ok(container),
        (None, _) => Err(invalid("A container name is required: the task does not have exactly one container.")),
        (Some(name), containers) => containers
            .iter()
            .find(|container| container.name == name)
            .ok_or_else(|| invalid("The container was not found in the task.")),
    }
}

fn invalid(text: &str) -> ApiError {
    ApiError::new("InvalidParameterException", text)
}
