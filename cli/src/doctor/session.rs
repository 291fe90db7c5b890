//! Checks with a trial session: whether a session starts, whether the node connects to the port, and whether the service sends a
//! greeting.

use std::sync::Arc;
use std::time::Duration;

use ssm_forward::{ProviderErrorKind, Session, SessionProvider, StartRequest, StreamError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::account::document_name;
use super::facts::Facts;
use super::finding::{Finding, Outcome};
use crate::client_line::{Family, family};
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::tunnels;

/// Time limit for API, data channel and handshake together.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// Time limit for the answer of the port. A firewall that drops packets causes no answer at all.
const PORT_TIMEOUT: Duration = Duration::from_secs(10);
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// The port on the node if no port is given. The check does not connect to it.
const ANY_PORT: u16 = 22;
/// The reason of the session, which the session history shows.
const REASON: &str = "aws-ssm-forward doctor";

/// Starts a session, in the same way as `forward`.
pub(super) async fn start(facts: &mut Facts) -> Outcome {
    let target = facts.target()?.to_owned();
    if facts.query.options.no_session {
        return Err(Finding::skipped("--no-session"));
    }
    let aws = facts.ssm()?;
    // Without its endpoint, a service has no port.
    let remote = match facts.query.service {
        Some(_) => Some(facts.remote()?),
        None => facts.remote().ok(),
    };
    let (host, port) = match &remote {
        Some(remote) => (tunnels::document(remote).1, remote.port),
        None => (None, ANY_PORT),
    };
    let parameters = host.map(|host| ("host".to_owned(), vec![host])).into_iter();
    let request = StartRequest {
        target: target.clone(),
        document: Some(document_name(facts).to_owned()),
        parameters: parameters.chain([("portNumber".to_owned(), vec![port.to_string()])]).collect(),
        reason: Some(REASON.to_owned()),
        ..StartRequest::default()
    };
    let options = &facts.query.options;
    let config = connect::session_config(&aws, &options.allow_stream_host, options.stream_endpoint.clone());
    let mut config = config.map_err(|failure| Finding::failed(failure.code, failure.message))?;
    config.start_timeout = START_TIMEOUT;
    let provider: Arc<dyn SessionProvider> = aws;
    let started = Session::start(provider, &request, config, |_| {}, |_| {}).await;
    let session = started.map_err(|error| {
        let denied = matches!(&error, ssm_forward::ForwardError::Provider(error) if error.kind == ProviderErrorKind::AccessDenied);
        let failure = Failure::from(error);
        let finding = Finding::failed(failure.code, failure.message);
        if denied { finding.remedy(policy(facts, &target)) } else { finding }
    })?;
    let saw = format!("a session on {target} started (agent {}) and was ended again", session.agent_version());
    facts.session = Some(session);
    Ok(Finding::fine(saw))
}

/// Returns the command that prints the missing policy.
fn policy(facts: &Facts, target: &str) -> String {
    let service = facts.query.service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
    let forward = facts.query.remote.as_ref().map(|remote| match &remote.host {
        Some(_) => format!(" -L 0:{remote}"),
        None => format!(" -L 0:{}", remote.port),
    });
    let forward = forward.unwrap_or_default();
    format!("see the policy that is needed: aws-ssm-forward policy {target}{service}{forward}{}", facts.options())
}

/// Returns the trial session.
fn session(facts: &Facts) -> Result<&Session, Finding> {
    facts.target()?;
    facts.session.as_ref().ok_or_else(|| Finding::skipped("needs \"session\""))
}

/// Checks whether the node can connect to the port.
pub(super) async fn port(facts: &mut Facts) -> Outcome {
    facts.target()?;
    let remote = facts.remote()?;
    let probed = timeout(PORT_TIMEOUT, session(facts)?.probe()).await;
    let failed = |what: String| Finding::failed(ExitCode::RemotePort, what);
    let check = match tunnels::document(&remote).1 {
        Some(host) => format!("on the node: timeout 5 bash -c '</dev/tcp/{host}/{}'", remote.port),
        None => format!("on the node: sudo ss -ltnp 'sport = :{}'", remote.port),
    };
    match probed {
        // This agent only reports failures, so the absence of a failure proves little.
        Ok(Ok(())) if facts.node.as_ref().is_some_and(|node| !node.multiplexes()) => {
            facts.port_answers = true;
            Err(Finding::unknown(format!("the agent reported no failure for {remote}; it cannot report a success")))
        }
        Ok(Ok(())) => {
            facts.port_answers = true;
            Ok(Finding::fine(format!("the node connects to {remote}")))
        }
        Ok(Err(StreamError::Refused)) => Err(failed(format!(
            "the node cannot connect to {remote}: nothing listens there, its name is not known to the node, or a firewall \
             refuses it"
        ))
        .remedy(check)),
        Ok(Err(error)) => Err(failed(format!("{remote}: {error}")).remedy(check)),
        Err(_) => Err(failed(format!(
            "{remote} did not answer the node within {} s: a security group, a network ACL or a firewall drops the packets",
            PORT_TIMEOUT.as_secs()
        ))
        .remedy(check)),
    }
}

/// Checks whether the server is of the expected kind.
pub(super) async fn greeting(facts: &mut Facts) -> Outcome {
    let remote = facts.remote()?;
    let session = session(facts)?;
    if !facts.port_answers {
        return Err(Finding::skipped("needs \"port\""));
    }
    let engine = facts.service.as_ref().map(|service| service.engine.clone());
    let Some(protocol) = Protocol::of(engine.as_deref(), remote.port) else {
        let what = engine.unwrap_or_else(|| format!("port {}", remote.port));
        return Err(Finding::skipped(format!("no service greets at once as {what}")));
    };
    let name = protocol.name();
    let answer = timeout(GREETING_TIMEOUT, protocol.greet(session)).await;
    let Ok(answer) = answer else {
        let saw = format!("{remote} accepted the connection, but sent nothing within {} s", GREETING_TIMEOUT.as_secs());
        return Ok(
            Finding::warning(saw).remedy(format!("see whether {name} is overloaded, or looks up its clients' names"))
        );
    };
    match answer.as_deref().map(|bytes| protocol.read(bytes)) {
        Ok(Some(text)) => Ok(Finding::fine(text)),
        Ok(None) => Err(Finding::failed(ExitCode::RemotePort, format!("the server at {remote} is not {name}"))
            .remedy("check the host and the port")),
        Err(error) => Err(Finding::failed(ExitCode::RemotePort, format!("{remote}: {error}"))),
    }
}

/// Protocols whose servers identify themselves at once, or answer a harmless question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    MySql,
    Postgres,
    Ssh,
}

impl Protocol {
    /// Selects a protocol by the engine of a service, otherwise by the port.
    fn of(engine: Option<&str>, port: u16) -> Option<Self> {
        match engine {
            Some(engine) => match family(engine)? {
                Family::MySql => Some(Self::MySql),
                Family::Postgres => Some(Self::Postgres),
                _ => None,
            },
            None => match port {
                22 => Some(Self::Ssh),
                3306 => Some(Self::MySql),
                5432 => Some(Self::Postgres),
                _ => None,
            },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::MySql => "MySQL",
            Self::Postgres => "PostgreSQL",
            Self::Ssh => "an SSH server",
        }
    }

    /// Returns what is sent to make the server answer. For PostgreSQL, an SSLRequest: a length and a code.
    fn probe(self) -> &'static [u8] {
        match self {
            Self::Postgres => &[0, 0, 0, 8, 4, 210, 22, 47],
            _ => &[],
        }
    }

    /// Returns the first bytes that the server sends.
    async fn greet(self, session: &Session) -> std::io::Result<Vec<u8>> {
        let mut stream = session.open_stream().await?;
        stream.write_all(self.probe()).await?;
        let mut bytes = vec![0; 1024];
        let length = stream.read(&mut bytes).await?;
        bytes.truncate(length);
        stream.close();
        Ok(bytes)
    }

    /// Returns the description of a greeting, or `None` if the bytes are none.
    fn read(self, bytes: &[u8]) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::MySql => match bytes.get(4..)? {
                // Protocol version 10, and the server's version up to a zero.
                [10, rest @ ..] => {
                    let version = rest.split(|&byte| byte == 0).next()?;
                    Some(format!("MySQL {} greets", text(version)))
                }
                // An error in the place of the greeting: the code, and the text.
                [255, _, _, rest @ ..] => Some(format!("MySQL refuses the node: {}", text(rest))),
                _ => None,
            },
            Self::Postgres => match bytes {
                b"S" => Some("PostgreSQL answers, and supports TLS".to_owned()),
                b"N" => Some("PostgreSQL answers, without TLS".to_owned()),
                [b'E', ..] => Some("PostgreSQL answers".to_owned()),
                _ => None,
            },
            Self::Ssh => {
                let line = bytes.split(|&byte| byte == b'\n').next()?;
                line.starts_with(b"SSH-").then(|| format!("{} greets", text(line).trim_end()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_are_told_from_other_bytes() {
        let mysql = b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0rest";
        assert_eq!(Protocol::MySql.read(mysql).as_deref(), Some("MySQL 8.0.36 greets"));
        let blocked = b"\x10\0\0\0\xff\x69\x04Host is blocked";
        assert_eq!(Protocol::MySql.read(blocked).as_deref(), Some("MySQL refuses the node: Host is blocked"));
        assert_eq!(Protocol::Postgres.read(b"S").as_deref(), Some("PostgreSQL answers, and supports TLS"));
        assert_eq!(Protocol::Ssh.read(b"SSH-2.0-OpenSSH_9.2\r\n").as_deref(), Some("SSH-2.0-OpenSSH_9.2 greets"));
        for protocol in [Protocol::MySql, Protocol::Postgres, Protocol::Ssh] {
            assert_eq!(protocol.read(b"HTTP/1.1 400 Bad Request"), None);
            assert_eq!(protocol.read(b""), None);
        }
    }

    #[test]
    fn the_engine_goes_before_the_port() {
        assert_eq!(Protocol::of(Some("aurora-postgresql"), 3306), Some(Protocol::Postgres));
        assert_eq!(Protocol::of(Some("redis"), 3306), None);
        assert_eq!(Protocol::of(None, 3306), Some(Protocol::MySql));
        assert_eq!(Protocol::of(None, 80), None);
    }
}
