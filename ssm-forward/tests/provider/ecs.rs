//! Containers of ECS.

use super::*;

const OLD: &str = "00000000000000000000000000000001";
const NEW: &str = "00000000000000000000000000000002";
const ARNS: &str = r#"{"taskArns":["arn:aws:ecs:eu-west-1:1:task/prod/1","arn:aws:ecs:eu-west-1:1:task/prod/2"]}"#;

/// Returns a task in the form of DescribeTasks.
fn task(id: &str, started: &str, enabled: bool, containers: &[String]) -> String {
    let containers = containers.join(",");
    format!(
        r#"{{"taskArn":"arn:aws:ecs:eu-west-1:1:task/prod/{id}","clusterArn":"arn:aws:ecs:eu-west-1:1:cluster/prod",
            "lastStatus":"RUNNING","desiredStatus":"RUNNING","startedAt":{started},"enableExecuteCommand":{enabled},
            "launchType":"FARGATE","containers":[{containers}]}}"#
    )
}

fn container(name: &str, agent: &str) -> String {
    format!(
        r#"{{"name":"{name}","runtimeId":"{name}-1","lastStatus":"RUNNING",
            "managedAgents":[{{"name":"ExecuteCommandAgent","lastStatus":"{agent}","reason":"so"}}]}}"#
    )
}

/// Returns an API whose cluster has these tasks.
fn api(tasks: &[String]) -> Api {
    let tasks = format!(r#"{{"tasks":[{}],"failures":[]}}"#, tasks.join(","));
    Api::answering_each(vec![(".ListTasks", "200 OK", ARNS.into()), (".DescribeTasks", "200 OK", tasks)])
}

#[track_caller]
fn assert_found(api: &Api, spec: &str, target: &str) {
    assert_eq!(Surroundings::at(&api.url).run(spec), [format!("OK {target}")]);
}

#[test]
fn a_service_is_its_newest_task() {
    let containers = [container("app", "RUNNING")];
    let api = api(&[task(NEW, "1700000001.5", true, &containers), task(OLD, "1.7e9", true, &containers)]);
    assert_found(&api, "ecs:prod/web", &format!("ecs:prod_{NEW}_app-1 {NEW} app"));
    let [list, describe] = &api.requests()[..] else { panic!("{:?}", api.requests()) };
    for part in [
        "x-amz-target: AmazonEC2ContainerServiceV20141113.ListTasks\r\n",
        "/eu-west-1/ecs/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, ",
        r#"{"cluster":"prod","serviceName":"web","desiredStatus":"RUNNING"}"#,
    ] {
        assert!(list.contains(part), "{part} is not in {list}");
    }
    assert!(describe.contains("x-amz-target: AmazonEC2ContainerServiceV20141113.DescribeTasks\r\n"), "{describe}");
    let asked = ARNS.replace("taskArns", "tasks");
    assert!(describe.contains(&format!(r#"{{"cluster":"prod",{}"#, &asked[1..])), "{describe}");
}

#[test]
fn each_session_looks_for_the_task_that_runs_then() {
    let tasks = format!(r#"{{"tasks":[{}]}}"#, task(NEW, "1.0", true, &[container("app", "RUNNING")]));
    let api = Api::answering_each(vec![
        (".ListTasks", "200 OK", ARNS.into()),
        (".DescribeTasks", "200 OK", tasks),
        (".StartSession", "200 OK", GRANTED.into()),
    ]);
    let target = format!("ecs:prod_{NEW}_app-1");
    let lines = Surroundings::at(&api.url).run("start ecs:prod/web,start ecs:prod/web");
    assert_eq!(lines, [format!("OK {target}"), format!("OK {target}")]);
    let asked = api.requests();
    let count = |call: &str| asked.iter().filter(|request| request.contains(call)).count();
    assert_eq!((count(".ListTasks"), count(".DescribeTasks"), count(".StartSession")), (2, 2, 2));
    assert!(asked.last().unwrap().contains(&format!(r#""Target":"{target}""#)), "{asked:?}");
}

#[test]
fn a_task_is_not_looked_for() {
    let api = api(&[task(OLD, "1.0", true, &[container("app", "RUNNING")])]);
    assert_found(&api, &format!("ecs:prod/{OLD}"), &format!("ecs:prod_{OLD}_app-1 {OLD} app"));
    let [describe] = &api.requests()[..] else { panic!("{:?}", api.requests()) };
    assert!(describe.contains(&format!(r#"{{"cluster":"prod","tasks":["{OLD}"]}}"#)), "{describe}");
}

#[test]
fn a_task_whose_agent_starts_leaves_the_turn_to_the_one_before() {
    let starting = task(NEW, "2.0", true, &[container("app", "PENDING")]);
    let running = task(OLD, "1.0", true, &[container("app", "RUNNING")]);
    let disabled = task(NEW, "3.0", false, &[container("app", "RUNNING")]);
    let target = format!("ecs:prod_{OLD}_app-1 {OLD} app");
    assert_found(&api(&[disabled, starting.clone(), running]), "ecs:prod/web", &target);
    let parts = &["NotConnected", "container app", NEW, "PENDING (so)", "wait", "ssmmessages"];
    Surroundings::at(&api(&[starting]).url).assert_error("ecs:prod/web", parts);
}

#[test]
fn a_container_is_named_or_the_only_one() {
    let without_agent = r#"{"name":"ecs-service-connect-1","runtimeId":"x-1","managedAgents":[]}"#.to_owned();
    let sidecar = api(&[task(NEW, "1.0", true, &[without_agent.clone(), container("app", "RUNNING")])]);
    assert_found(&sidecar, "ecs:prod/web", &format!("ecs:prod_{NEW}_app-1 {NEW} app"));
    let two = [container("app", "RUNNING"), container("proxy", "RUNNING"), without_agent];
    let two = api(&[task(NEW, "1.0", true, &two)]);
    assert_found(&two, "ecs:prod/web/proxy", &format!("ecs:prod_{NEW}_proxy-1 {NEW} proxy"));
    let at = Surroundings::at(&two.url);
    at.assert_error("ecs:prod/web", &["Invalid ecs:prod/web", "several containers", "one of app, proxy"]);
    at.assert_error("ecs:prod/web/db", &["Invalid", "no container db", "app, proxy, ecs-service-connect-1"]);
    at.assert_error("ecs:prod/web/ecs-service-connect-1", &["NotConnected", "ecs-service-connect-1", "missing"]);
}

#[test]
fn what_does_not_run_or_is_not_enabled_is_named_with_the_remedy() {
    let none = Api::answering("200 OK", r#"{"taskArns":[]}"#);
    Surroundings::at(&none.url).assert_error(
        "ecs:prod/web",
        &["NotConnected", "service web of the ECS cluster prod has no running task", "--cluster prod --services web"],
    );
    assert_eq!(none.requests().len(), 1, "without tasks, none is described");
    let missing = Api::answering("200 OK", r#"{"tasks":[],"failures":[{"arn":"x","reason":"MISSING"}]}"#);
    Surroundings::at(&missing.url)
        .assert_error(&format!("ecs:prod/{OLD}"), &["NotConnected", "the task 0000", "not running"]);
    let disabled = api(&[task(NEW, "1.0", false, &[container("app", "RUNNING")])]);
    Surroundings::at(&disabled.url).assert_error(
        "ecs:prod/web",
        &[
            "Invalid ECS Exec is not enabled",
            "aws ecs update-service --cluster prod --service web --enable-execute-command --force-new-deployment",
        ],
    );
}

#[test]
fn each_refusal_of_ecs_names_the_spec_or_the_permission() {
    for (code, text, parts) in [
        ("ClusterNotFoundException", "Cluster not found.", &["Invalid ecs:prod/web: ListTasks", "list-clusters"][..]),
        ("ServiceNotFoundException", "Service not found.", &["Invalid ecs:prod/web: ListTasks", "list-services"]),
        ("AccessDeniedException", "No.", &["AccessDenied", "permission ecs:ListTasks"]),
        ("ExpiredTokenException", "expired", &["ExpiredCredentials", "set new AWS_ACCESS_KEY_ID"]),
    ] {
        let api = Api::answering("400 Bad Request", format!(r#"{{"__type":"{code}","message":"{text}"}}"#));
        Surroundings::at(&api.url).assert_error("ecs:prod/web", &[parts, &[code]].concat());
    }
    let nameless = Api::answering("200 OK", r#"{"taskArns":["a"],"tasks":[{"lastStatus":"RUNNING"}]}"#);
    Surroundings::at(&nameless.url).assert_error("ecs:prod/web", &["Service", "DescribeTasks", "malformed"]);
}

#[test]
fn lists_in_pages_are_read_to_a_bound() {
    let endless = r#"{"taskArns":[],"nextToken":"next"}"#;
    let api = Api::answering("200 OK", endless);
    Surroundings::at(&api.url).assert_error("ecs:prod/web", &["no running task"]);
    let requests = api.requests();
    assert!(requests.len() == 10 && requests[1].contains(r#""nextToken":"next""#), "{requests:?}");
}

#[test]
fn a_spec_has_two_or_three_names() {
    let spec: EcsSpec = "ecs:my_prod/web-1/app".parse().unwrap();
    assert_eq!((&*spec.cluster, spec.service.as_deref()), ("my_prod", Some("web-1")));
    assert_eq!((spec.task.as_deref(), spec.container.as_deref()), (None, Some("app")));
    let of_task: EcsSpec = format!("ecs:prod/{OLD}").parse().unwrap();
    assert_eq!((of_task.service, of_task.task.as_deref()), (None, Some(OLD)));
    for text in ["ecs:prod/web", "ecs:prod/web/app"] {
        assert_eq!(text.parse::<EcsSpec>().unwrap().to_string(), text);
    }
    for (text, part) in [
        ("i-0123456789abcdef0", "is not ecs:CLUSTER/SERVICE"),
        ("ecs:prod", "is not ecs:CLUSTER/SERVICE"),
        ("ecs:prod/web/app/x", "is not ecs:CLUSTER/SERVICE"),
        ("ecs:prod/", "\"\" in \"ecs:prod/\" is not a name"),
        ("ecs:prod/we b", "\"we b\""),
        ("ecs:arn:aws:ecs:eu-west-1:1:cluster/prod/web", "ARN"),
    ] {
        let error = text.parse::<EcsSpec>().unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn targets_that_are_ready_stay_as_they_are() {
    for ready in ["i-0123456789abcdef0", "mi-1", &format!("ecs:prod_{OLD}_{OLD}-1"), "ecs:my_prod_1_2"] {
        assert_eq!(EcsSpec::of_target(ready).unwrap(), None, "{ready}");
    }
    assert_eq!(EcsSpec::of_target("ecs:a_b_c/web").unwrap().unwrap().cluster, "a_b_c");
    for neither in ["ecs:", "ecs:prod", "ecs:prod_1", "ecs:_1_2"] {
        EcsSpec::of_target(neither).unwrap_err();
    }
}
