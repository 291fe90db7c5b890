//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ssm_local::{Fault, Faults};

use crate::local::{Document, EcsContainer};
use crate::spec::ForwardSpec;
use ssm_forward::{Pacing, PoolSize};

/// Forwards ports through AWS Systems Manager sessions.
#[derive(Debug, Parser)]
#[command(name = "aws-ssm-forward", version, about, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
}

const AFTER_HELP: &str = "\
Examples:
  aws-ssm-forward demo
  aws-ssm-forward forward --target i-0123456789abcdef0 -L 3306:db.internal:3306
  aws-ssm-forward forward --target i-0123456789abcdef0 -L 8080:80 -L unix:/tmp/db.sock:db.internal:5432
  aws-ssm-forward shell i-0123456789abcdef0
  aws-ssm-forward exec i-0123456789abcdef0 -- 'ps aux | wc -l'";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make ports of this machine reach hosts that a managed node can reach.
    Forward(Box<ForwardArgs>),
    /// Open a shell on a managed node.
    Shell(Box<ShellArgs>),
    /// Run a command on a managed node, and end with its exit code.
    Exec(Box<ExecArgs>),
    /// Connect standard input and output with a node's SSH server, for ssh's ProxyCommand.
    SshProxy(Box<SshProxyArgs>),
    /// Take the place of AWS's session-manager-plugin for the AWS CLI and other callers.
    Plugin {
        #[command(subcommand)]
        action: PluginAction,
    },
    /// Run a Session Manager on this machine, for trying and testing without AWS.
    Local(Box<LocalArgs>),
    /// Show it all at work without AWS: a private web service, reached through a tunnel.
    Demo(DemoArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell that reads it.
        shell: clap_complete::Shell,
    },
}

/// How much is told.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Verbosity {
    /// Print errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log to stderr: -v what happens, -vv details, -vvv more of them.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// `forward`.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The managed node that opens the connections: i-…, mi-…, ecs:CLUSTER/SERVICE[/CONTAINER] or ecs:CLUSTER_TASK_RUNTIME.
    #[arg(short, long, required_unless_present = "local", value_name = "ID")]
    pub(crate) target: Option<String>,
    /// What to forward: `[bind:]port:host:hostport`, `[bind:]port:hostport` for the node itself, `unix:/path:host:hostport`.
    ///
    /// As ssh's -L. May be given several times; each has a session of its own. Port 0 picks a free port. The default bind
    /// address is 127.0.0.1; '*' or an empty one is every IPv4 address of this machine. IPv6 addresses go in brackets.
    #[arg(short = 'L', required = true, value_name = "SPEC")]
    pub(crate) forwards: Vec<ForwardSpec>,
    /// Say ready only after the remote port has accepted a connection.
    #[arg(long)]
    pub(crate) wait_ready: bool,
    /// How long starting the session, its data channel and the handshake may take together.
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = parse_seconds)]
    pub(crate) connect_timeout: Duration,
    /// After a local program has sent everything: how long the answer may be silent before the far side is closed.
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = parse_seconds)]
    pub(crate) linger: Duration,
    /// Largest payload of one message towards the node. More than 1024 is faster if the node takes it.
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub(crate) payload_size: u32,
    /// How many messages a session may send per second: a number, auto (900 towards AWS, which is reported to cut at 1000), or
    /// unlimited.
    #[arg(long, value_name = "N|auto|unlimited", default_value = "auto", value_parser = parse_message_rate)]
    pub(crate) message_rate: Pacing,
    /// How many sessions share the connections of each -L: a number, or auto (up to 8, as they are needed).
    ///
    /// A node's agent sends at most about 0.7 MB/s per session; one connection stays in one session.
    #[arg(long, value_name = "N|auto", default_value = "1", value_parser = parse_sessions)]
    pub(crate) sessions: PoolSize,
    /// End when a session is gone for good, instead of starting a new one.
    #[arg(long)]
    pub(crate) no_restart: bool,
    /// How long a new connection waits while there is no session.
    #[arg(long, value_name = "SECS", default_value = "60", value_parser = parse_seconds)]
    pub(crate) hold: Duration,
    /// Keep sessions from timing out while nothing is forwarded.
    #[arg(long)]
    pub(crate) keep_alive: bool,
    /// Serve live figures as Prometheus text at http://ADDR/metrics.
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Lines for people, or one JSON event per line on stdout.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// Which account, and as whom. What is not given comes from the AWS_* variables and the configuration files.
#[derive(Debug, Args)]
#[command(next_help_heading = "AWS options")]
pub(crate) struct AwsArgs {
    /// A profile of the AWS configuration files.
    #[arg(long, value_name = "NAME", conflicts_with = "local")]
    pub(crate) profile: Option<String>,
    /// The region of the node, for example eu-central-1.
    #[arg(long, value_name = "NAME", conflicts_with = "local")]
    pub(crate) region: Option<String>,
    /// Call the SSM API at this URL instead of the region's.
    #[arg(long, value_name = "URL", conflicts_with = "local")]
    pub(crate) endpoint_url: Option<String>,
    /// Run a Session Manager in this process: no AWS is needed, and the node is this machine.
    #[arg(long)]
    pub(crate) local: bool,
    /// Trust this host with the session's token, beside AWS's own endpoints. May be given several times.
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_stream_host: Vec<String>,
}

/// What StartSession is asked for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Session options")]
pub(crate) struct SessionArgs {
    /// A session document other than the one that fits.
    #[arg(long, value_name = "NAME")]
    pub(crate) document_name: Option<String>,
    /// A parameter of the document, instead of or beside those that it gets anyway. May be given several times.
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = parse_parameter)]
    pub(crate) parameters: Vec<(String, String)>,
    /// Shown in the session's history.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// `shell`.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// The managed node: i-…, mi-…, ecs:CLUSTER/SERVICE[/CONTAINER] or ecs:CLUSTER_TASK_RUNTIME.
    #[arg(required_unless_present = "local", value_name = "TARGET")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The managed node, as for shell.
    #[arg(required_unless_present = "local", value_name = "TARGET")]
    pub(crate) target: Option<String>,
    /// Run it on a terminal of the node: it can ask and be answered, but no exit code comes back.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Give it standard input, which is read to its end first; at most 256 MiB.
    #[arg(short = 'i', long, conflicts_with = "tty")]
    pub(crate) stdin: bool,
    /// The command: one argument is a line for sh on the node, several are its words as they are.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// `ssh-proxy`.
#[derive(Debug, Args)]
pub(crate) struct SshProxyArgs {
    /// The managed node, as for shell.
    #[arg(required_unless_present = "local", value_name = "TARGET")]
    pub(crate) target: Option<String>,
    /// The port of its SSH server.
    #[arg(default_value_t = 22)]
    pub(crate) port: u16,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// `plugin`.
#[derive(Debug, Subcommand)]
pub(crate) enum PluginAction {
    /// Put this program where the AWS CLI looks for session-manager-plugin.
    Install {
        /// The folder; without it, where one is found in PATH, else /usr/local/bin.
        #[arg(long, value_name = "DIR")]
        dir: Option<std::path::PathBuf>,
        /// Copy this program instead of linking to it.
        #[arg(long)]
        copy: bool,
    },
    /// Put back what stood there before.
    Uninstall {
        /// The folder that it was installed in.
        #[arg(long, value_name = "DIR")]
        dir: Option<std::path::PathBuf>,
    },
}

/// `local`.
#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// Where to listen; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// How its agent behaves: without limits, or at the pace of the real one.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: LocalProfile,
    /// The id of its only managed node.
    #[arg(long, value_name = "ID", default_value = crate::local::DEFAULT_TARGET)]
    pub(crate) target: String,
    /// The version that its agent claims.
    #[arg(long, value_name = "VERSION")]
    pub(crate) agent_version: Option<String>,
    /// A host that only its agent knows, for -L PORT:NAME:HOSTPORT. May be given several times.
    #[arg(long = "host", value_name = "NAME=ADDR", value_parser = parse_host)]
    pub(crate) hosts: Vec<(String, IpAddr)>,
    /// An ECS task that commands can be executed in; its container is this machine. May be given several times.
    #[arg(long = "ecs-task", value_name = "CLUSTER/SERVICE/TASK/CONTAINER", value_parser = parse_ecs_container)]
    pub(crate) ecs_containers: Vec<EcsContainer>,
    /// A session document of its own (schema 1.0, JSON), or one in place of AWS's with that name. May be given several times.
    #[arg(long = "document", value_name = "NAME=FILE", value_parser = read_document)]
    pub(crate) documents: Vec<Document>,
    /// Encrypt shells and commands with this key of its own KMS, for example alias/lab.
    #[arg(long, value_name = "ID")]
    pub(crate) kms_key: Option<String>,
    /// Let something go wrong: EFFECT[,key=value]..., for example bye,every=30s or drop,probability=0.01.
    ///
    /// May be given several times, and adds to those of --faults. docs/faults.md lists all.
    #[arg(long = "fault", value_name = "SPEC")]
    pub(crate) more_faults: Vec<Fault>,
    /// Let go wrong what this JSON file says: {"seed": 7, "faults": ["bye,every=30s", ...]}.
    #[arg(long, value_name = "FILE", value_parser = read_faults)]
    pub(crate) faults: Option<Faults>,
    /// What everything random about faults follows from.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
}

/// `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End after the measurement instead of waiting for Ctrl-C.
    #[arg(long)]
    pub(crate) once: bool,
    /// How much to move each way: bytes, or with a unit (KiB, MiB, GiB, KB, MB, GB).
    #[arg(long, default_value = "100MiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// The local port; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// How the agent behaves: without limits, or at the pace of the real one.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: LocalProfile,
}

/// Who reads the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON event per line on stdout.
    Json,
}

/// How the agent of the local Session Manager behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LocalProfile {
    /// No artificial limit.
    #[default]
    Fast,
    /// 1024 bytes and a pause of 1 ms per message, as the real agent.
    Real,
}

/// Parses the command line of this process; whatever is wrong with it is told in one line, with exit code 2.
pub(crate) fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| match one_line(&error) {
        Some(line) => {
            eprintln!("error: {line}");
            std::process::exit(crate::exit_code::ExitCode::Usage.number().into())
        }
        None => error.exit(),
    })
}

/// A usage error as one line; clap would spread it over many. `None`: it is no error, or the help says it better.
fn one_line(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ErrorKind};
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            None
        }
        ErrorKind::ValueValidation => {
            let argument = error.get(ContextKind::InvalidArg)?.to_string();
            let value = error.get(ContextKind::InvalidValue)?.to_string();
            let option = argument.split_whitespace().next()?;
            let why = std::error::Error::source(error)?;
            Some(format!("{option} '{value}': {why}"))
        }
        _ => {
            let text = error.render().to_string();
            let paragraphs = text.strip_prefix("error: ").unwrap_or(&text).split("\n\n");
            let told = paragraphs.filter(|paragraph| !paragraph.starts_with("For more information"));
            let told: Vec<_> = told.map(|told| told.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            Some(format!("{}; see --help", told.join("; ").replace("Usage:", "usage:")))
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text.parse().map_err(|_| "expected a whole number of seconds".to_owned())?;
    match seconds {
        1..=86_400 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("expected 1 to 86400 seconds".into()),
    }
}

fn parse_message_rate(text: &str) -> Result<Pacing, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Pacing::Auto),
        ("unlimited", _) => Ok(Pacing::Unlimited),
        (_, Ok(rate @ 1..=MAX_MESSAGE_RATE)) => Ok(Pacing::PerSecond(rate)),
        (_, Ok(0)) => Err("at a rate of 0 nothing could be sent".into()),
        _ => Err(format!("expected auto, unlimited or a number from 1 to {MAX_MESSAGE_RATE}")),
    }
}

const MAX_MESSAGE_RATE: u32 = 1_000_000;

fn parse_sessions(text: &str) -> Result<PoolSize, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(PoolSize::Auto { max: MAX_AUTO_SESSIONS }),
        (_, Ok(size @ 1..=MAX_SESSIONS)) => Ok(PoolSize::Fixed(size)),
        (_, Ok(0)) => Err("at least one session is needed to forward anything".into()),
        _ => Err(format!("expected auto or a number from 1 to {MAX_SESSIONS}")),
    }
}

/// Beyond it, this machine is what limits rather than the agents.
const MAX_SESSIONS: usize = 64;
const MAX_AUTO_SESSIONS: usize = 8;

fn read_faults(path: &str) -> Result<Faults, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Faults::from_json(&text).map_err(|error| error.to_string())
}

fn parse_parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE, for example portNumber=3306".into()),
    }
}

fn parse_host(text: &str) -> Result<(String, IpAddr), String> {
    let host = text.split_once('=').filter(|(name, _)| !name.is_empty());
    host.and_then(|(name, address)| Some((name.to_owned(), address.parse().ok()?)))
        .ok_or_else(|| "expected NAME=ADDR, for example db.internal=127.0.0.1".into())
}

fn read_document(text: &str) -> Result<Document, String> {
    let named = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = named.ok_or("expected NAME=FILE, for example My-Database=document.json")?;
    let content = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    Ok(Document { name: name.into(), content })
}

fn parse_ecs_container(text: &str) -> Result<EcsContainer, String> {
    let names: Vec<_> = text.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match <[String; 4]>::try_from(names) {
        Ok([cluster, service, task, container]) => Ok(EcsContainer { cluster, service, task, container }),
        Err(_) => {
            Err("expected CLUSTER/SERVICE/TASK/CONTAINER, for example prod/web/0123456789abcdef0123456789abcdef/app"
                .into())
        }
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err("expected a size such as 100MiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a size such as 100MiB".to_owned())?;
    match number.checked_mul(factor) {
        Some(size @ 1..=MAX_SIZE) => Ok(size),
        _ => Err("expected a size from 1 byte to 1 TiB".into()),
    }
}

const MAX_SIZE: u64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_their_units() {
        for (text, size) in [("1", 1), ("100MiB", 100 << 20), ("4 mib", 4 << 20), ("2MB", 2_000_000), ("1g", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "0", "MiB", "-1", "1.5MiB", "4XB", "99999999999999999999", "2048GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parameters_keep_whole_values() {
        assert_eq!(parse_parameter("a=b=c,d"), Ok(("a".into(), "b=c,d".into())));
        assert_eq!(parse_parameter("a="), Ok(("a".into(), String::new())));
        assert!(parse_parameter("a").is_err() && parse_parameter("=b").is_err());
    }

    #[test]
    fn hosts_and_tasks_are_whole() {
        assert_eq!(parse_host("db.internal=::1"), Ok(("db.internal".into(), "::1".parse().unwrap())));
        assert!(["db", "=::1", "db=x", "db="].iter().all(|text| parse_host(text).is_err()));
        assert!(parse_ecs_container("prod/web/1/app").is_ok());
        assert!(
            ["prod/web/1", "prod/web/1/app/x", "prod//1/app", ""].iter().all(|text| parse_ecs_container(text).is_err())
        );
    }

    #[test]
    fn a_refused_value_is_one_line() {
        let error = Cli::try_parse_from(["aws-ssm-forward", "forward", "-t", "i-1", "-L", "80"]).unwrap_err();
        let line = one_line(&error).unwrap();
        assert!(line.starts_with("-L '80': the remote port is missing"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn faults_are_read_from_the_command_line_and_from_a_file() {
        let parse = |args: &[&str]| Cli::try_parse_from(["aws-ssm-forward", "local"].iter().chain(args));
        let cli = parse(&["--seed", "7", "--fault", "bye,every=30s", "--fault", "end,text=So long, all"]).unwrap();
        let Command::Local(args) = cli.command else { panic!("another command") };
        assert_eq!((args.seed, args.more_faults.len()), (Some(7), 2));
        let line = one_line(&parse(&["--fault", "drop,chance=1"]).unwrap_err()).unwrap();
        assert_eq!(line, "--fault 'drop,chance=1': drop takes no \"chance\"");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("faults.json");
        std::fs::write(&path, r#"{"seed": 3, "faults": ["reset"]}"#).unwrap();
        let cli = parse(&["--faults", path.to_str().unwrap()]).unwrap();
        let Command::Local(args) = cli.command else { panic!("another command") };
        assert_eq!(args.faults, Some(Faults::new().seed(3).with("reset".parse().unwrap())));
    }

    #[test]
    fn a_target_is_needed_unless_local() {
        let parse = |args: &[&str]| Cli::try_parse_from(["aws-ssm-forward", "forward", "-L", "1:2"].iter().chain(args));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--target", "i-1"]).is_ok());
        assert!(parse(&["--local"]).is_ok());
        assert!(parse(&["--local", "--region", "eu-central-1"]).is_err());
    }
}
