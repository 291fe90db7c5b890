//! The clients that are compared, and how each is started.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::Profile;
use super::place::{HOST, Place, TARGET};
use super::process::Process;
use crate::Result;

/// A client as given on the command line: a kind, optionally the program's path, optionally further arguments.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// The name as given on the command line.
    pub(super) label: String,
    pub(super) kind: Kind,
    program: PathBuf,
    args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// This project's command, with `forward`.
    Ours,
    /// Any program with the interface of AWS's session-manager-plugin.
    Plugin,
    /// The crate aws-ssm-bridge, through `benches/bridge`.
    Bridge,
    /// A WebSocket with only the digests and the acknowledgements: the upper limit of any client.
    Limit,
    /// Two plain TCP relays in series: as many processes on the path as with a tunnel, but no tunnel.
    Hops,
    /// No tunnel.
    Tcp,
}

/// A client that is running and ready.
#[derive(Debug)]
pub(super) struct Running {
    /// The client's local ports: one per session, unless the client distributes connections itself.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) processes: Vec<Process>,
}

impl FromStr for Client {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let first = words.next().ok_or("a client needs a name")?;
        let (kind, path) = first.split_once(':').map_or((first, None), |(kind, path)| (kind, Some(path)));
        let (kind, default) = match kind {
            "ours" => (Kind::Ours, Some(beside_this("aws-ssm-forward")?)),
            "plugin" => (Kind::Plugin, Some(beside_this("aws-ssm-forward")?)),
            "bridge" => (Kind::Bridge, Some(beside_this("bench-bridge")?)),
            "limit" => (Kind::Limit, None),
            "hops" => (Kind::Hops, None),
            "tcp" => (Kind::Tcp, None),
            other => return Err(format!("there is no client {other}: ours, plugin, bridge, limit, hops, tcp").into()),
        };
        let program = path.map(PathBuf::from).or(default).unwrap_or_default();
        Ok(Self { label: text.to_owned(), kind, program, args: words.map(str::to_owned).collect() })
    }
}

/// Builds this project's command with this program's profile if this program runs under `cargo run`, because otherwise
/// an outdated binary could be measured.
pub(super) async fn build_ours(clients: &[Client]) -> Result<()> {
    let ours = beside_this("aws-ssm-forward")?;
    if !clients.iter().any(|client| client.program == ours) {
        return Ok(());
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        let folder = ours.parent().and_then(Path::file_name).unwrap_or_default();
        let profile = if folder == "debug" { OsStr::new("dev") } else { folder };
        let mut command = Command::new(cargo);
        command.args(["build", "--package", "aws-ssm-forward", "--profile"]).arg(profile);
        if !command.status().await?.success() {
            return Err("aws-ssm-forward could not be built".into());
        }
    }
    match ours.exists() {
        true => Ok(()),
        false => Err(format!("there is no {}: cargo build --release -p aws-ssm-forward", ours.display()).into()),
    }
}

/// Returns the path of another program of the same build, which is in the same folder as this program.
fn beside_this(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

impl Client {
    /// Returns the version that the client reports.
    pub(super) async fn version(&self) -> Option<String> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Ours => {}
            Kind::Plugin => drop(command.arg0(PLUGIN)),
            Kind::Bridge => return Some("aws-ssm-bridge 0.6.0".into()),
            Kind::Limit | Kind::Hops | Kind::Tcp => return None,
        }
        let output = command.arg("--version").output().await.ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Whether the agent's pace affects the client.
    pub(super) fn has_agent(&self) -> bool {
        !matches!(self.kind, Kind::Limit | Kind::Hops | Kind::Tcp)
    }

    /// Whether the client uses a relay on the node.
    pub(super) fn has_relay(&self) -> bool {
        self.kind == Kind::Ours && self.args.iter().any(|arg| arg == RELAY)
    }

    /// The number of sessions in the client's arguments.
    fn sessions(&self) -> Option<usize> {
        let at = self.args.iter().position(|arg| arg == "--sessions")?;
        self.args.get(at + 1)?.parse().ok()
    }

    /// Starts the client with this number of sessions, or with its own default.
    pub(super) async fn start(&self, place: &Place, profile: Profile, sessions: Option<usize>) -> Result<Running> {
        match self.kind {
            Kind::Ours => {
                let (process, address) = self.start_ours(place, profile, sessions).await?;
                Ok(Running { addresses: vec![address], processes: vec![process] })
            }
            Kind::Plugin | Kind::Bridge => {
                let mut running = Running { addresses: Vec::new(), processes: Vec::new() };
                for _ in 0..sessions.unwrap_or(1) {
                    let (process, address) = match self.kind {
                        Kind::Plugin => self.start_plugin(place).await?,
                        _ => self.start_bridge(place).await?,
                    };
                    running.addresses.push(address);
                    running.processes.push(process);
                }
                Ok(running)
            }
            Kind::Hops => start_hops(place).await,
            Kind::Tcp => Ok(Running { addresses: vec![place.destination.address()], processes: Vec::new() }),
            Kind::Limit => Err("the limit program has no port".into()),
        }
    }

    async fn start_ours(
        &self,
        place: &Place,
        profile: Profile,
        sessions: Option<usize>,
    ) -> Result<(Process, SocketAddr)> {
        // A relay resolves names by this machine's resolver, not by the agent's.
        let host = if self.has_relay() { "127.0.0.1" } else { HOST };
        let forward = format!("0:{host}:{}", place.destination.address().port());
        let mut command = Command::new(&self.program);
        command.args(["forward", "--target", TARGET, "-L", &forward, "--output", "json"]);
        command.args(profile.arguments());
        if let Some(sessions) = sessions.filter(|_| self.sessions().is_none()) {
            command.args(["--sessions", &sessions.to_string()]);
        }
        command.args(&self.args);
        place.point(&mut command);
        // A connection stays in its session. Therefore no connection may be opened before all sessions exist.
        let (mut missing, mut address) = (self.sessions().or(sessions).unwrap_or(1), None);
        let (process, address) = Process::start(command, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            match event.get("event")?.as_str()? {
                "session_started" => missing = missing.saturating_sub(1),
                "ready" => address = event.get("address")?.as_str()?.parse().ok(),
                // Without the relay, the figures would be those of another client.
                "warning" if self.has_relay() => return Some(Err(event.get("text")?.as_str()?.to_owned())),
                _ => {}
            }
            address.filter(|_| missing == 0).map(Ok)
        })
        .await?;
        Ok((process, address?))
    }

    async fn start_plugin(&self, place: &Place) -> Result<(Process, SocketAddr)> {
        let session = place.start_session().await?;
        let mut command = Command::new(&self.program);
        // Our own command has the plugin's interface only under the plugin's name.
        command.arg0(PLUGIN);
        let endpoint = place.endpoint();
        command.args([&session.answer, place.region(), "StartSession", "", &session.request, &endpoint]);
        command.args(&self.args);
        place.point(&mut command);
        Process::start(command, opened).await
    }

    async fn start_bridge(&self, place: &Place) -> Result<(Process, SocketAddr)> {
        if !self.program.exists() {
            let path = self.program.display();
            return Err(format!("{path} is missing: build benches/bridge and give its path as bridge:PATH").into());
        }
        let mut command = Command::new(&self.program);
        command.args([TARGET, HOST, &place.destination.address().port().to_string()]).args(&self.args);
        place.point(&mut command);
        Process::start(command, opened).await
    }
}

async fn start_hops(place: &Place) -> Result<Running> {
    let (mut to, mut processes) = (place.destination.address(), Vec::new());
    for _ in 0..2 {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["hop", "--to", &to.to_string()]);
        let (process, address) = Process::start(command, opened).await?;
        to = address;
        processes.push(process);
    }
    Ok(Running { addresses: vec![to], processes })
}

const RELAY: &str = "--relay";
const PLUGIN: &str = "session-manager-plugin";

/// Parses the line that reports the port, in the official client's format.
fn opened(line: &str) -> Option<SocketAddr> {
    let (port, _) = line.trim().strip_prefix("Port ")?.split_once(" opened")?;
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?)))
}

impl Running {
    /// CPU time of all the client's processes so far; `None` if it has no process.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.sum(Process::cpu)
    }

    /// Resident memory of all the client's processes, in bytes.
    pub(super) fn resident(&self) -> Option<u64> {
        self.sum(Process::resident)
    }

    /// The part of the resident memory that is not file-backed, in bytes.
    pub(super) fn anonymous(&self) -> Option<u64> {
        self.sum(Process::anonymous)
    }

    fn sum<T: std::ops::Add<Output = T>>(&self, of: impl Fn(&Process) -> Option<T>) -> Option<T> {
        let mut figures = self.processes.iter().map(of);
        let first = figures.next()??;
        figures.try_fold(first, |sum, figure| Some(sum + figure?))
    }

    pub(super) async fn stop(self) {
        for process in self.processes {
            process.stop().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_a_kind_a_program_and_arguments() {
        let client: Client = "ours:/opt/aws-ssm-forward --sessions 8".parse().unwrap();
        assert_eq!((client.kind, client.program.as_path()), (Kind::Ours, "/opt/aws-ssm-forward".as_ref()));
        assert_eq!((client.sessions(), client.has_relay()), (Some(8), false));
        let relayed: Client = "ours --relay --sessions 16".parse().unwrap();
        assert_eq!((relayed.sessions(), relayed.has_relay()), (Some(16), true));
        assert!("other".parse::<Client>().is_err());
        assert!("".parse::<Client>().is_err());
    }

    #[test]
    fn the_port_is_found_in_the_words_of_the_official_client() {
        let address = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 4711)));
        assert_eq!(opened("Port 4711 opened for sessionId bench-1."), address);
        assert_eq!(opened("Waiting for connections..."), None);
        assert_eq!(opened("Port x opened for sessionId bench-1."), None);
    }
}
