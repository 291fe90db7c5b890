//! The settings of `local`.

use serde_json::json;

use crate::common::{Cli, LocalManager, TARGET, run};

/// A document with a fixed port. It defines no parameters.
const FIXED: &str = r#"{"schemaVersion": "1.0", "sessionType": "Port", "description": "the database",
    "properties": {"type": "LocalPortForwarding", "host": "db.internal", "portNumber": "3306"}}"#;

#[test]
fn documents_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fixed.json");
    std::fs::write(&file, FIXED).unwrap();
    let manager = LocalManager::start_with(&["--document", &format!("My-Database={}", file.display())]);
    let described = manager.call("DescribeDocument", &json!({ "Name": "My-Database" }));
    assert_eq!(described["Document"]["Description"], "the database");
    assert_eq!(described["Document"]["Parameters"], json!([]));
    let got = manager.call("GetDocument", &json!({ "Name": "My-Database" }));
    assert_eq!(got["Content"], FIXED);
    let start = |parameters| json!({ "Target": TARGET, "DocumentName": "My-Database", "Parameters": parameters });
    manager.call("StartSession", &start(json!({})));
    // Like the service, it refuses parameters that the document does not define.
    let (status, answer) = manager.answer("StartSession", &start(json!({ "portNumber": ["3306"] })));
    assert_eq!((status, answer["__type"].as_str()), (400, Some("ParameterNotFound")), "{answer}");
}

#[test]
fn a_file_that_is_no_document_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.json");
    std::fs::write(&file, r#"{"schemaVersion": "2.2"}"#).unwrap();
    let broken = format!("My-Database={}", file.display());
    run(&["local", "--document", &broken], &[]).assert_one_line(2, &["My-Database", "not a session document", "2.2"]);
    run(&["local", "--document", "My-Database"], &[]).assert_one_line(2, &["--document", "NAME=FILE"]);
    let missing = format!("My-Database={}", folder.path().join("missing.json").display());
    run(&["local", "--document", &missing], &[]).assert_one_line(2, &["--document", "missing.json"]);
}

#[test]
fn each_run_has_a_secret_of_its_own() {
    let (one, other) = (LocalManager::start(), LocalManager::start());
    let keys = |manager: &LocalManager| {
        let variables = manager.variables().into_iter();
        variables.filter(|(name, _)| name.contains("KEY")).map(|(_, value)| value.to_owned()).collect::<Vec<_>>()
    };
    assert!(keys(&one).iter().all(|key| !keys(&other).contains(key)));
    let ended = run(&["exec", TARGET, "--", "id"], &with_endpoint_of(&other, &one.variables()));
    ended.assert_one_line(4, &["security token"]);
    assert!(ended.stdout.is_empty(), "{ended:?}");
    for wrong in ["local-session-manager-takes-any-secret-0", "made-up"] {
        let mut variables = one.variables();
        variables.push(("AWS_SECRET_ACCESS_KEY", wrong));
        run(&["exec", TARGET, "--", "id"], &variables).assert_one_line(4, &["signature"]);
    }
    assert_eq!(run(&["exec", TARGET, "--", "exit 3"], &one.variables()).code, 3);
}

/// Returns `variables` with the endpoint of `manager`.
fn with_endpoint_of<'a>(manager: &'a LocalManager, variables: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let endpoint = manager.variables().into_iter().filter(|(name, _)| *name == "AWS_ENDPOINT_URL");
    variables.iter().copied().chain(endpoint).collect()
}

#[test]
fn insecure_credentials_are_loud() {
    let secure = LocalManager::start();
    assert!(!secure.stderr_line().contains("warning"));
    for which in ["fixed", "any"] {
        let manager = LocalManager::start_with(&["--insecure-credentials", which]);
        let line = manager.stderr_line();
        for part in ["warning: ", "--insecure-credentials", which, "run commands as you"] {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
        let mut variables = manager.variables();
        if which == "any" {
            variables.push(("AWS_SECRET_ACCESS_KEY", "made-up"));
        }
        assert_eq!(run(&["exec", TARGET, "--", "exit 3"], &variables).code, 3, "{which}");
    }
}

#[test]
fn without_an_address_it_listens_on_loopback_and_others_are_warned_of() {
    let endpoint = |options: &[&str]| {
        let manager = Cli::start(&[&["local"], options].concat(), &[]);
        let endpoint = std::iter::repeat_with(|| manager.line())
            .find_map(|line| line.strip_prefix("export AWS_ENDPOINT_URL=http://").map(str::to_owned));
        (endpoint.unwrap(), manager.error_line())
    };
    let (address, said) = endpoint(&[]);
    assert!(address.starts_with("127.0.0.1:") && !said.contains("warning"), "{address}: {said}");
    let (_, said) = endpoint(&["--listen", "0.0.0.0:0"]);
    assert!(said.contains("warning: other machines can connect to this port"), "{said}");
}
