//! A separate kubeconfig for a Kubernetes cluster behind a tunnel. The user's own file is never changed.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use ssm_forward::ServiceEndpoint;
use tempfile::NamedTempFile;

use crate::client_line::LocalEnd;
use crate::exit_code::{ExitCode, Failure};

/// The context's name. It identifies the files that this command may replace.
const CONTEXT: &str = "aws-ssm-forward";

/// Writes the kubeconfig to `path`. Only the user can read the file. kubectl gets its token from the AWS CLI.
///
/// # Errors
/// Returns an error if `path` is a file that this command did not write, or if the file cannot be written.
pub(crate) fn write(path: &Path, service: &ServiceEndpoint, region: &str, local: LocalEnd<'_>) -> Result<(), Failure> {
    let failed =
        |why: String| Failure::new(ExitCode::Output, "kubeconfig", format!("--kubeconfig {}: {why}", path.display()));
    if path.exists() && !is_ours(path) {
        return Err(failed("the file exists and was not written by this command; name another one".into()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = NamedTempFile::new_in(folder).map_err(|error| failed(error.to_string()))?;
    let text = format!("{:#}\n", config(service, region, local));
    file.write_all(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
    file.persist(path).map_err(|error| failed(error.to_string()))?;
    Ok(())
}

fn is_ours(path: &Path) -> bool {
    let text = std::fs::read(path).unwrap_or_default();
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    config.get("current-context").and_then(Value::as_str) == Some(CONTEXT)
}

/// Returns the kubeconfig. It is written as JSON, because every JSON document is also YAML.
fn config(service: &ServiceEndpoint, region: &str, local: LocalEnd<'_>) -> Value {
    let cluster = &service.spec.name;
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": CONTEXT,
        "contexts": [{ "name": CONTEXT, "context": { "cluster": cluster, "user": CONTEXT } }],
        "clusters": [{ "name": cluster, "cluster": {
            "server": format!("https://{}:{}", local.host, local.port),
            "tls-server-name": service.host,
            "certificate-authority-data": service.ca_data,
        } }],
        "users": [{ "name": CONTEXT, "user": { "exec": {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": "aws",
            "args": ["--region", region, "eks", "get-token", "--cluster-name", cluster, "--output", "json"],
            "interactiveMode": "IfAvailable",
        } } }],
    })
}
