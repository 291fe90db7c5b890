//! Prepares the command line and the files for the client of a service, when the tunnel's local address is known.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ssm_forward::{AwsProvider, LocalAddr, ServiceEndpoint, ServiceKind};

use crate::args::TunnelArgs;
use crate::client_line::{self, Client, Family, LocalEnd, RDS_CA_URL, family};
use crate::exit_code::{ExitCode, Failure};
use crate::iam_auth::LoginFile;
use crate::kubeconfig;

/// The lines for one service, and its login file. Dropping this value removes the login file.
pub(crate) struct ClientHint {
    /// Lines to print when the tunnel is ready.
    pub(crate) lines: Vec<String>,
    /// The login file; `None` without `--iam-auth`.
    pub(crate) login: Option<LoginFile>,
}

/// Prepares what a client of `service` needs. The tunnel listens on `local`.
///
/// # Errors
/// Returns an error if a requested file cannot be written, if the service does not support it, or if it is requested for a tunnel
/// that listens on a Unix socket.
pub(crate) async fn prepare(
    args: &TunnelArgs,
    aws: &Arc<AwsProvider>,
    service: &ServiceEndpoint,
    local: &LocalAddr,
) -> Result<ClientHint, Failure> {
    let usage = |text: String| Err(Failure::new(ExitCode::Usage, "usage", text));
    let LocalAddr::Tcp(address) = local else {
        return match args.iam_auth.is_some() || args.kubeconfig.is_some() {
            true => usage("--iam-auth and --kubeconfig need a TCP port, not a Unix socket".to_owned()),
            false => Ok(ClientHint { lines: Vec::new(), login: None }),
        };
    };
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let local = LocalEnd { host: &host, port: address.port() };
    let user = args.iam_auth.as_ref().filter(|_| service.spec.kind == ServiceKind::Rds);
    let login = match user {
        Some(user) => Some(LoginFile::create(aws.clone(), service.clone(), user, local).await?),
        None => None,
    };
    let kubeconfig = args.kubeconfig.as_deref().filter(|_| service.spec.kind == ServiceKind::Eks);
    if let Some(path) = kubeconfig {
        kubeconfig::write(path, service, aws.region(), local)?;
    }
    let ca = args.rds_ca.clone().unwrap_or_else(default_ca);
    let password_file = login.as_ref().map(LoginFile::path);
    let client =
        Client { local, ca: &ca, user: user.map(String::as_str), password_file: password_file.as_deref(), kubeconfig };
    let mut lines: Vec<_> = client_line::command_line(service, &client).into_iter().collect();
    if needs_ca(service) && !ca.exists() {
        lines.insert(0, download(&ca));
    }
    Ok(ClientHint { lines, login })
}

/// Whether the client needs a CA bundle. The system's trust store does not contain the RDS CAs.
fn needs_ca(service: &ServiceEndpoint) -> bool {
    matches!(family(&service.engine), Some(Family::MySql | Family::Postgres | Family::SqlServer | Family::MongoDb))
}

/// Returns the command line that downloads the CA bundle to `ca`.
fn download(ca: &Path) -> String {
    let file = ca.display().to_string();
    let file = shlex::try_quote(&file).map_or_else(|_| file.clone(), Into::into);
    format!("curl --create-dirs -o {file} {RDS_CA_URL}")
}

/// Returns `$XDG_DATA_HOME/aws-ssm-forward/rds-ca.pem`. `$XDG_DATA_HOME` is `~/.local/share` by default.
fn default_ca() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    data.unwrap_or_default().join("aws-ssm-forward").join("rds-ca.pem")
}
