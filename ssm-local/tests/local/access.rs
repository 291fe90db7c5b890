//! Access control: on a shared machine every user can connect.

use serde_json::json;
use ssm_local::{EcsTask, Local, LocalBuilder};

use crate::common::{TARGET, ask_control, call, echo, start_with};
use crate::http::{send, send_signed};

const UNSIGNED: &str = "AWS4-HMAC-SHA256 Credential=AKIALOCALLOCALLOCAL0/20261128/us-east-1/ssm/aws4_request, \
                        SignedHeaders=host;x-amz-date;x-amz-target, Signature=0000";
const START: &str = "AmazonSSM.StartSession";

async fn local(set_up: impl FnOnce(LocalBuilder) -> LocalBuilder) -> Local {
    let task = EcsTask::new("prod", "web", "task-1").container("app", "r-1");
    set_up(Local::builder().ecs_task(task)).start().await.unwrap()
}

fn shell() -> String {
    json!({ "Target": TARGET }).to_string()
}

#[tokio::test]
async fn no_call_of_a_stranger_is_answered() {
    let (local, other) = (local(|builder| builder).await, local(|builder| builder).await);
    let execute = "AmazonEC2ContainerServiceV20141113.ExecuteCommand";
    for operation in [START, "TrentService.Decrypt", execute, "AmazonSSM.DescribeSessions", "No.Such"] {
        let target = format!("X-Amz-Target: {operation}\r\n");
        let (status, answer) = send(&local, "POST", "/", &target, &shell()).await;
        assert!(status == 400 && answer.contains("MissingAuthenticationTokenException"), "{operation}: {answer}");
        for made_up in ["made-up", UNSIGNED] {
            let headers = format!("{target}Authorization: {made_up}\r\n");
            let (status, answer) = send(&local, "POST", "/", &headers, &shell()).await;
            assert!(status == 400 && !answer.contains("SessionId"), "{operation}: {answer}");
        }
    }
    let (status, answer) = send_signed(&local, &other, "ssm", ("POST", "/"), Some(START), &shell()).await;
    assert!(status == 400 && answer.contains("UnrecognizedClientException"), "{answer}");
    let (status, answer) = send_signed(&local, &local, "kms", ("POST", "/"), Some(START), &shell()).await;
    assert!(status == 400 && answer.contains("scoped to correct service: 'ssm'"), "{answer}");
    assert!(local.sessions().is_empty());
}

#[tokio::test]
async fn nobody_else_lets_something_go_wrong() {
    let local = local(|builder| builder).await;
    let requests = [("GET", "/faults"), ("PUT", "/faults"), ("DELETE", "/faults"), ("POST", "/control/terminate")];
    for (method, path) in requests {
        for headers in ["", "Authorization: made-up\r\n"] {
            assert_eq!(send(&local, method, path, headers, "").await.0, 403, "{method} {path}");
        }
    }
    assert_eq!(ask_control(&local, "GET", "/faults", "").await.0, 200);
}

#[tokio::test]
async fn pages_get_nothing_whatever_name_they_came_by() {
    let local = local(LocalBuilder::any_credentials).await;
    let port = local.local_addr().port();
    let ask = async |headers: &str| {
        let headers = format!("{headers}X-Amz-Target: {START}\r\nAuthorization: any\r\n");
        send(&local, "POST", "/", &headers, &shell()).await.0
    };
    for host in ["rebound.example", "localhost.example", "127.0.0.1.example", "[::1].example", ""] {
        for host in [host.to_owned(), format!("{host}:{port}")] {
            assert!([400, 421].contains(&ask(&format!("Host: {host}\r\n")).await), "{host}");
        }
    }
    assert_eq!(ask("Host: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n").await, 403);
    let upgrade = "Host: rebound.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let channel = start_with(&local, "SSM-SessionManagerRunShell", json!({})).await;
    let path = channel.url.split_once("/v1").unwrap().1;
    assert_eq!(send(&local, "GET", &format!("/v1{path}"), upgrade, "").await.0, 421);
    for host in ["127.0.0.1", "127.0.0.2:80", "localhost", "LOCALHOST:1", "[::1]", "[::1]:443"] {
        assert_eq!(ask(&format!("Host: {host}\r\n")).await, 200, "{host}");
    }
}

#[tokio::test]
async fn where_there_are_only_ports_nothing_is_run() {
    let local = local(LocalBuilder::ports_only).await;
    let command = json!({ "command": ["id"] });
    for (document, parameters) in [
        ("SSM-SessionManagerRunShell", json!({})),
        ("AWS-StartInteractiveCommand", command.clone()),
        ("AWS-StartNonInteractiveCommand", command),
    ] {
        let body = json!({ "Target": TARGET, "DocumentName": document, "Parameters": parameters });
        let (status, answer) = call(&local, "StartSession", body).await;
        assert_eq!((status, answer["__type"].as_str()), (400, Some("AccessDeniedException")), "{document}: {answer}");
    }
    let body = json!({ "cluster": "prod", "task": "task-1", "interactive": true, "command": "id" }).to_string();
    let execute = Some("AmazonEC2ContainerServiceV20141113.ExecuteCommand");
    let (status, answer) = send_signed(&local, &local, "ecs", ("POST", "/"), execute, &body).await;
    assert!(status == 400 && answer.contains("AccessDeniedException"), "{answer}");
    assert!(local.sessions().is_empty());
    let port = echo().await;
    start_with(&local, "AWS-StartPortForwardingSession", json!({ "portNumber": [port.to_string()] })).await;
}

#[tokio::test]
async fn credentials_may_be_fixed() {
    let local = local(|builder| builder.fixed_credentials("AKIAFIXED", "made-up")).await;
    let environment = local.environment();
    assert!(environment.contains(&("AWS_ACCESS_KEY_ID", "AKIAFIXED".to_owned())));
    assert!(environment.contains(&("AWS_SECRET_ACCESS_KEY", "made-up".to_owned())));
    assert_eq!(call(&local, "StartSession", json!({ "Target": TARGET })).await.0, 200);
    let other = Local::builder().fixed_credentials("AKIAFIXED", "another").start().await.unwrap();
    let (status, answer) = send_signed(&local, &other, "ssm", ("POST", "/"), Some(START), &shell()).await;
    assert!(status == 400 && answer.contains("InvalidSignatureException"), "{answer}");
}
