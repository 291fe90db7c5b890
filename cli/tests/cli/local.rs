//! `local`: what it is set up with.

use serde_json::json;

use crate::common::{LocalManager, TARGET, run};

/// A document whose port is fixed: no parameter is defined.
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
    // As the service, it refuses what the document does not define.
    let (status, answer) = manager.answer("StartSession", &start(json!({ "portNumber": ["3306"] })));
    assert_eq!((status, answer["__type"].as_str()), (400, Some("ParameterNotFound")), "{answer}");
}

#[test]
fn a_file_that_is_no_document_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.json");
    std::fs::write(&file, r#"{"schemaVersion": "2.2"}"#).unwrap();
    let broken = format!("My-Database={}", file.display());
    run(&["local", "--document", &broken], &[]).assert_one_line(2, &["My-Database", "no session document", "2.2"]);
    run(&["local", "--document", "My-Database"], &[]).assert_one_line(2, &["--document", "NAME=FILE"]);
    let missing = format!("My-Database={}", folder.path().join("missing.json").display());
    run(&["local", "--document", &missing], &[]).assert_one_line(2, &["--document", "missing.json"]);
}
