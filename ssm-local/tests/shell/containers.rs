//! The ECS API, and commands in containers.

use serde_json::{Value, json};
use ssm_local::{EcsTask, Local};

use crate::client::{Client, INTERACTIVE, Ticket, builder, call, start};

const TASK: &str = "0123456789abcdef0123456789abcdef";
const RUNTIME: &str = "0123456789abcdef0123456789abcdef-1234567890";

async fn local() -> Local {
    builder()
        .ecs_task(EcsTask::new("prod", "web", TASK).container("app", RUNTIME).container("proxy", "r-2"))
        .ecs_task(EcsTask::new("prod", "jobs", "task-2").container("job", "r-3").without_execute_command())
        .ecs_task(EcsTask::new("prod", "jobs", "task-3").container("job", "r-4").disconnected())
        .start()
        .await
        .unwrap()
}

async fn ecs(local: &Local, operation: &str, body: Value) -> (u16, Value) {
    call(local, &format!("AmazonEC2ContainerServiceV20141113.{operation}"), body).await
}

async fn ok(local: &Local, operation: &str, body: Value) -> Value {
    let (status, answer) = ecs(local, operation, body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn a_command_runs_in_a_container_that_was_found_by_the_api() {
    let local = local().await;
    let cluster = ok(&local, "ListClusters", json!({})).await["clusterArns"][0].clone();
    assert_eq!(cluster, "arn:aws:ecs:us-east-1:123456789012:cluster/prod");
    let tasks = ok(&local, "ListTasks", json!({ "cluster": cluster, "serviceName": "web" })).await;
    let described = ok(&local, "DescribeTasks", json!({ "cluster": "prod", "tasks": tasks["taskArns"] })).await;
    let task = &described["tasks"][0];
    assert_eq!((&task["lastStatus"], &task["enableExecuteCommand"]), (&json!("RUNNING"), &json!(true)));
    let container = &task["containers"][0];
    assert_eq!((&container["name"], &container["runtimeId"]), (&json!("app"), &json!(RUNTIME)));
    let interface = &container["networkInterfaces"][0];
    assert_eq!(interface["privateIpv4Address"], "127.0.0.1");
    assert_eq!(
        (&task["attachments"][0]["id"], task["attachments"][0]["type"].as_str()),
        (&interface["attachmentId"], Some("ElasticNetworkInterface"))
    );
    assert_eq!(container["managedAgents"], json!([{ "name": "ExecuteCommandAgent", "lastStatus": "RUNNING" }]));

    let body = json!({
        "cluster": "prod", "task": task["taskArn"], "container": "app", "interactive": true,
        "command": "sh -c 'echo a$((1 + 1))b; test -t 0 && echo terminal'",
    });
    let answer = ok(&local, "ExecuteCommand", body).await;
    assert_eq!((&answer["clusterArn"], &answer["taskArn"]), (&cluster, &task["taskArn"]));
    assert_eq!((&answer["containerArn"], &answer["containerName"]), (&container["containerArn"], &json!("app")));
    assert_eq!(answer["interactive"], true);
    let text = |key: &str| answer["session"][key].as_str().unwrap().to_owned();
    let target = format!("ecs:prod_{TASK}_{RUNTIME}");
    let ticket = Ticket {
        session_id: text("sessionId"),
        target: target.clone(),
        url: text("streamUrl"),
        token: text("tokenValue"),
    };
    let mut client = Client::open(&local, &ticket).await;
    assert_eq!(client.end().await, "");
    assert_eq!(client.stdout, b"a2b\r\nterminal\r\n");
    assert_eq!(local.sessions()[0].target, target);
}

#[tokio::test]
async fn a_session_with_a_container_is_started_by_its_target_too() {
    let local = local().await;
    let target = format!("ecs:prod_{TASK}_{RUNTIME}");
    let ticket = start(&local, &target, INTERACTIVE, json!({ "command": ["echo x"] })).await;
    let mut client = Client::open(&local, &ticket).await;
    client.end().await;
    assert_eq!(client.stdout, b"x\r\n");
    for target in ["ecs:prod_task-2_r-3", "ecs:prod_task-3_r-4", "ecs:prod_task-9_r-9"] {
        let (_, error) = call(&local, "AmazonSSM.StartSession", json!({ "Target": target })).await;
        assert_eq!(error["__type"], "TargetNotConnected", "{target}");
    }
}

#[tokio::test]
async fn a_container_has_no_shell_between() {
    let local = local().await;
    let body = json!({ "cluster": "prod", "task": TASK, "container": "app", "interactive": true, "command": "exit 3" });
    let answer = ok(&local, "ExecuteCommand", body).await;
    let text = |key: &str| answer["session"][key].as_str().unwrap().to_owned();
    let ticket = Ticket {
        session_id: text("sessionId"),
        target: String::new(),
        url: text("streamUrl"),
        token: text("tokenValue"),
    };
    let mut client = Client::open(&local, &ticket).await;
    assert!(client.end().await.starts_with("Unable to start command"));
}

#[tokio::test]
async fn what_can_t_be_executed_is_refused_by_name() {
    let local = local().await;
    let whole = json!({ "cluster": "prod", "task": TASK, "container": "app", "interactive": true, "command": "true" });
    let with = |changes: Value| {
        let mut body = whole.clone();
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body
    };
    let refused = [
        (json!({ "cluster": "other" }), "ClusterNotFoundException"),
        (json!({ "cluster": null }), "ClusterNotFoundException"),
        (json!({ "interactive": false }), "InvalidParameterException"),
        (json!({ "task": "no-such-task" }), "InvalidParameterException"),
        (json!({ "container": "no-such-container" }), "InvalidParameterException"),
        // The task has two containers, so a container name is needed.
        (json!({ "container": null }), "InvalidParameterException"),
        (json!({ "task": "task-2", "container": "job" }), "InvalidParameterException"),
        (json!({ "task": "task-3", "container": null }), "TargetNotConnectedException"),
    ];
    for (changes, exception) in refused {
        let (status, error) = ecs(&local, "ExecuteCommand", with(changes.clone())).await;
        assert_eq!((status, error["__type"].as_str()), (400, Some(exception)), "{changes}");
    }
    assert!(local.sessions().is_empty());
}

#[tokio::test]
async fn services_and_tasks_are_listed_and_described() {
    let local = local().await;
    let answer = ok(&local, "DescribeServices", json!({ "cluster": "prod", "services": ["jobs", "gone"] })).await;
    let service = &answer["services"][0];
    assert_eq!((&service["runningCount"], &service["enableExecuteCommand"]), (&json!(2), &json!(false)));
    assert_eq!(answer["failures"], json!([{ "arn": "gone", "reason": "MISSING" }]));
    let services = ok(&local, "ListServices", json!({ "cluster": "prod" })).await;
    assert_eq!(services["serviceArns"].as_array().unwrap().len(), 2);

    let first = ok(&local, "ListTasks", json!({ "cluster": "prod", "maxResults": 2 })).await;
    let rest = ok(&local, "ListTasks", json!({ "cluster": "prod", "nextToken": first["nextToken"] })).await;
    let count = |answer: &Value| answer["taskArns"].as_array().unwrap().len();
    assert_eq!((count(&first), count(&rest)), (2, 1));
    let stopped = ok(&local, "ListTasks", json!({ "cluster": "prod", "desiredStatus": "STOPPED" })).await;
    assert_eq!(count(&stopped), 0);
    let (_, error) = ecs(&local, "ListTasks", json!({ "cluster": "prod", "serviceName": "gone" })).await;
    assert_eq!(error["__type"], "ServiceNotFoundException");

    let described =
        ok(&local, "DescribeTasks", json!({ "cluster": "prod", "tasks": ["task-2", "task-3", "gone"] })).await;
    assert_eq!(described["tasks"][0]["containers"][0]["managedAgents"], json!([]));
    assert_eq!(described["tasks"][1]["containers"][0]["managedAgents"][0]["lastStatus"], "STOPPED");
    assert_eq!(described["failures"][0]["arn"], "gone");
    // Containers are not managed nodes.
    let (_, nodes) = call(&local, "AmazonSSM.DescribeInstanceInformation", json!({})).await;
    assert_eq!(nodes["InstanceInformationList"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn clusters_are_described() {
    let local = local().await;
    let both = ok(&local, "DescribeClusters", json!({ "clusters": ["prod", "none"] })).await;
    let cluster = &both["clusters"][0];
    assert_eq!((&cluster["clusterName"], &cluster["status"]), (&json!("prod"), &json!("ACTIVE")));
    assert_eq!((&cluster["runningTasksCount"], &cluster["activeServicesCount"]), (&json!(3), &json!(2)));
    assert_eq!(both["failures"], json!([{ "arn": "none", "reason": "MISSING" }]));
    let default = ok(&local, "DescribeClusters", json!({})).await;
    assert_eq!(default["failures"][0]["arn"], "default");
}
