//! The environment of a measurement: a Session Manager in a separate process, a destination in this process, and
//! optionally a delay between client and Session Manager.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use ssm_local::{Faults, Local, LocalTarget};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::destination::Destination;
use super::process::{Process, until_terminated};
use super::relay::Relay;
use super::{Profile, ServeArgs, Surroundings};
use crate::{Result, say};

/// The managed node.
pub(super) const TARGET: &str = "i-0123456789abcdef0";
/// The private host that only the agent resolves.
pub(super) const HOST: &str = "bench.internal";

/// A Session Manager and a destination, for one run.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) destination: Destination,
    environment: BTreeMap<String, String>,
    api: SocketAddr,
    manager: Process,
    /// Home folder of the node's programs.
    _home: TempDir,
    /// Whether sessions may run commands.
    pub(super) commands: bool,
    _relay: Option<Relay>,
}

/// A session that was started through the API.
#[derive(Debug)]
pub(super) struct Started {
    /// StartSession's answer.
    pub(super) answer: String,
    /// StartSession's request.
    pub(super) request: String,
    /// Duration of the call.
    pub(super) elapsed: Duration,
}

impl Place {
    /// Starts the environment. With `commands`, sessions may run commands on the node, and the API requires its own
    /// credentials.
    pub(super) async fn start(profile: Profile, surroundings: &Surroundings, commands: bool) -> Result<Self> {
        let destination = Destination::start().await?;
        let home = tempfile::tempdir()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--profile", profile.name()]).env("HOME", home.path()).env_remove("XDG_CACHE_HOME");
        command.args(commands.then_some("--commands"));
        command.args(surroundings.faults.iter().flat_map(|fault| ["--fault", fault]));
        let (manager, mut environment) =
            Process::start(command, |line| serde_json::from_str::<BTreeMap<String, String>>(line).ok()).await?;
        let endpoint = environment.get(ENDPOINT).and_then(|url| url.strip_prefix("http://"));
        let mut api: SocketAddr = endpoint.ok_or("the Session Manager has no endpoint")?.parse()?;
        let delay = surroundings.delay.max(profile.delay());
        let relay = if delay.is_zero() { None } else { Some(Relay::start(api, delay).await?) };
        if let Some(relay) = &relay {
            api = relay.address();
            environment.insert(ENDPOINT.into(), format!("http://{api}"));
        }
        Ok(Self { destination, environment, api, manager, _home: home, commands, _relay: relay })
    }

    /// Configures a client's process for this environment, and hides this machine's configuration from the process.
    pub(super) fn point(&self, command: &mut Command) {
        for name in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(name);
        }
        command.envs(&self.environment);
        command.envs([("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")]);
        command.envs([("AWS_EC2_METADATA_DISABLED", "true")]);
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.api)
    }

    pub(super) fn region(&self) -> &str {
        self.environment.get("AWS_REGION").map_or("us-east-1", String::as_str)
    }

    /// Calls StartSession directly, as the AWS CLI does before it starts its plugin.
    pub(super) async fn start_session(&self) -> Result<Started> {
        let port = self.destination.address().port().to_string();
        let request = json!({
            "Target": TARGET,
            "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
            "Parameters": { "host": [HOST], "portNumber": [port], "localPortNumber": ["0"] },
        })
        .to_string();
        let began = Instant::now();
        let answer = call(self.api, "StartSession", &request).await?;
        Ok(Started { answer, request, elapsed: began.elapsed() })
    }

    pub(super) async fn stop(self) {
        self.manager.stop().await;
    }
}

const ENDPOINT: &str = "AWS_ENDPOINT_URL";

async fn call(api: SocketAddr, operation: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(api).await?;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: {api}\r\nconnection: close\r\ncontent-type: application/x-amz-json-1.1\r\n\
         x-amz-target: AmazonSSM.{operation}\r\nauthorization: AWS4-HMAC-SHA256 Credential=bench\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") && body.starts_with('{') => Ok(body.to_owned()),
        _ => Err(format!("{operation} failed: {answer}").into()),
    }
}

/// The Session Manager's process, which [`Place::start`] starts.
pub(crate) async fn serve(args: ServeArgs) -> Result<()> {
    super::allow_many_files();
    // The allocator keeps freed memory, as in the command `local`.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 20)));
    let faults = args.faults.iter().map(|fault| fault.parse()).collect::<std::result::Result<Vec<_>, _>>()?;
    let faults = faults.into_iter().fold(Faults::new(), Faults::with);
    let builder = Local::builder().target(LocalTarget::new(TARGET)).profile(args.profile.of_agent());
    let builder = if args.commands { builder } else { builder.any_credentials().ports_only() };
    let local = builder.faults(faults).host(HOST, [std::net::Ipv4Addr::LOCALHOST]).start().await?;
    let environment: BTreeMap<_, _> = local.environment().into_iter().collect();
    say(&json!(environment).to_string());
    until_terminated().await?;
    local.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profiles_have_the_names_that_serve_takes() {
        use clap::ValueEnum as _;
        for profile in Profile::value_variants() {
            assert_eq!(Profile::from_str(profile.name(), false), Ok(*profile));
        }
    }
}
