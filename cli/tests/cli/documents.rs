//! Custom session documents, with a Session Manager that refuses undefined parameters as AWS's does.

use std::io::{Read, Write};
use std::process::Stdio;

use serde_json::json;
use ssm_local::Local;
use tokio::runtime::Runtime;

use crate::common::{CREDENTIALS, Cli, FakeApi, TARGET, connect, echo_server, run};

/// A Session Manager with one additional document, in this process.
struct Manager {
    runtime: Runtime,
    local: Option<Local>,
    environment: Vec<(&'static str, String)>,
}

impl Manager {
    fn with_document(name: &str, content: &serde_json::Value) -> Self {
        let runtime = Runtime::new().unwrap();
        let local = runtime.block_on(Local::builder().document(name, content.to_string()).start()).unwrap();
        Self { runtime, environment: local.environment(), local: Some(local) }
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(local) = self.local.take() {
            self.runtime.block_on(local.shutdown());
        }
    }
}

/// Returns a document for port sessions.
fn document(parameters: &serde_json::Value, properties: &serde_json::Value) -> serde_json::Value {
    let mut properties = properties.clone();
    properties["type"] = "LocalPortForwarding".into();
    json!({ "schemaVersion": "1.0", "sessionType": "Port", "parameters": parameters, "properties": properties })
}

fn assert_echoes(address: &str) {
    let mut stream = connect(address);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn a_document_gets_only_the_parameters_that_it_defines() {
    let port = echo_server().to_string();
    let text = json!({ "type": "String" });
    for (parameters, properties) in [
        (json!({}), json!({ "host": "localhost", "portNumber": port })),
        (json!({ "localPortNumber": text }), json!({ "portNumber": port, "localPortNumber": "{{ localPortNumber }}" })),
        (json!({ "portNumber": text }), json!({ "host": "127.0.0.1", "portNumber": "{{ portNumber }}" })),
        (
            json!({ "portNumber": text, "host": text }),
            json!({ "host": "{{ host }}", "portNumber": "{{ portNumber }}" }),
        ),
    ] {
        let manager = Manager::with_document("Own-Database", &document(&parameters, &properties));
        let spec = format!("0:localhost:{port}");
        let args = ["forward", "--target", TARGET, "-L", &spec, "--document-name", "Own-Database", "-o", "json"];
        let cli = Cli::start(&args, &manager.variables());
        let ready = cli.event("ready");
        assert_echoes(ready["address"].as_str().unwrap());
        cli.signal("TERM");
        let ended = cli.end();
        assert!(!ended.stdout.iter().any(|line| line.contains("warning")), "{ended:?}");
    }
}

#[test]
fn a_document_that_leads_elsewhere_is_told() {
    let port = echo_server().to_string();
    let manager =
        Manager::with_document("Own", &document(&json!({}), &json!({ "host": "127.0.0.1", "portNumber": port })));
    let args = ["forward", "--target", TARGET, "-L", "0:db.internal:1", "--document-name", "Own", "-o", "json"];
    let cli = Cli::start(&args, &manager.variables());
    assert_echoes(cli.event("ready")["address"].as_str().unwrap());
    let warning = cli.event("warning")["text"].as_str().unwrap().to_owned();
    for part in ["Own", "its host is 127.0.0.1, not db.internal", &format!("its portNumber is {port}, not 1")] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[test]
fn ssh_proxy_takes_a_document_without_parameters_whatever_its_name() {
    let name = "SSM-SessionManagerRunShell-Deploy";
    let properties = json!({ "portNumber": echo_server().to_string() });
    let content = json!({ "schemaVersion": "1.0", "sessionType": "Port", "properties": properties });
    let manager = Manager::with_document(name, &content);
    let args = ["ssh-proxy", TARGET, "--document-name", name];
    let mut cli = Cli::start_with(&args, &manager.variables(), |command| command.stdin(Stdio::piped()));
    cli.stdin.as_mut().unwrap().write_all(b"SSH-2.0-test\n").unwrap();
    assert_eq!(cli.line(), "SSH-2.0-test");
    cli.signal("TERM");
    assert_eq!(cli.end().code, 0);
}

#[test]
fn who_may_not_start_the_default_shell_is_told_to_name_it() {
    let denied = json!({ "__type": "AccessDeniedException", "Message": "not authorized to perform: ssm:StartSession" });
    let api = FakeApi::start(move |_, _| Some(("400 Bad Request", denied.to_string())));
    let url = api.url();
    let variables = [&CREDENTIALS[..], &[("AWS_ENDPOINT_URL", &url)]].concat();
    let hint = "--document-name SSM-SessionManagerRunShell";
    run(&["shell", TARGET], &variables)
        .assert_one_line(5, &["ssm:StartSession", "ssm:SessionDocumentAccessCheck", hint]);
    let named = run(&["shell", TARGET, "--document-name", "SSM-SessionManagerRunShell"], &variables);
    named.assert_one_line(5, &["ssm:StartSession"]);
    assert!(!named.stderr[0].contains("AccessCheck"), "{named:?}");
}
