//! Answers of the API that are almost correct.

use fastrand::Rng;
use ssm_proto::fuzzing::vary;

use super::*;

const TASKS: &str = r#"{"tasks":[{"taskArn":"arn:aws:ecs:eu-west-1:1:task/prod/1","clusterArn":"arn:aws:ecs:eu-west-1:1:cluster/prod","lastStatus":"RUNNING",
    "startedAt":1.5,"enableExecuteCommand":true,"containers":[{"name":"app","runtimeId":"app-1","managedAgents":[{"name":"ExecuteCommandAgent",
    "lastStatus":"RUNNING"}]}]}],"failures":[]}"#;
const ARNS: &str = r#"{"taskArns":["arn:aws:ecs:eu-west-1:1:task/prod/1"]}"#;
const VARIATIONS: usize = 40;

/// Returns a variation of an answer. Invalid UTF-8 is replaced, because the answers are texts.
fn varied(rng: &mut Rng, answer: &str) -> String {
    let mut bytes = answer.as_bytes().to_vec();
    vary(rng, &mut bytes, GRANTED.as_bytes(), 4096);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Each answer results in a ticket, or in a one-line error. A panic makes the process fail, and a secret in its output makes the
/// test fail.
#[test]
fn answers_that_are_nearly_right_are_tickets_or_errors() {
    let mut rng = Rng::with_seed(15);
    for number in 0..VARIATIONS {
        let answers = vec![
            (".StartSession", "200 OK", varied(&mut rng, GRANTED)),
            (".ListTasks", "200 OK", if number % 2 == 0 { ARNS.to_owned() } else { varied(&mut rng, ARNS) }),
            (".DescribeTasks", "200 OK", varied(&mut rng, TASKS)),
        ];
        let calls = if number % 4 == 3 { "ecs:prod/web" } else { "start" };
        let api = Api::answering_each(answers.clone());
        for line in Surroundings::at(&api.url).run(calls) {
            assert!(
                line.starts_with("OK ")
                    || line.starts_with("Service ")
                    || line.starts_with("NotConnected ")
                    || line.starts_with("Invalid "),
                "{answers:?}: {line}"
            );
        }
    }
}
