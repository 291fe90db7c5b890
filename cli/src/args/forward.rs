//! The options of `forward`.

use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::{AwsArgs, EventArgs, HostsArgs, PoolArgs, RelayArgs, SessionArgs, values};
use crate::completion;
use crate::spec::ForwardRequest;

/// The arguments of `forward`.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    #[command(flatten)]
    pub(crate) tunnel: TunnelArgs,
    #[command(flatten)]
    pub(crate) names: HostsArgs,
    #[command(flatten)]
    pub(crate) events: EventArgs,
}

/// The options of every command that opens tunnels.
#[derive(Debug, Args)]
#[command(next_help_heading = "Forwarding")]
pub(crate) struct TunnelArgs {
    /// A managed node (id, name, tag), a service (rds:NAME) or a tunnel.
    ///
    /// Without -L it may be the name of a tunnel of the configuration file.
    ///
    /// A node is i-…, mi-…, tag:Key=Value[,Key=Value], a Name tag, a private address or DNS name, asg:NAME, or
    /// ecs:CLUSTER/SERVICE[/CONTAINER]. A service is rds:NAME, elasticache:NAME, opensearch:NAME or eks:NAME:
    /// without --target a managed node in its VPC is chosen. With --local the node may be omitted.
    #[arg(value_name = "TARGET", help_heading = "Arguments", value_parser = values::target_or_service, add = ArgValueCandidates::new(completion::targets_and_tunnels))]
    target: Option<String>,
    /// The managed node, where TARGET is a service or is omitted.
    #[arg(short, long = "target", value_name = "NODE", value_parser = values::target, hide_short_help = true, add = ArgValueCandidates::new(completion::targets))]
    target_option: Option<String>,
    /// Where to listen, and where connections go.
    #[arg(
        short = 'L',
        value_name = "SPEC",
        allow_hyphen_values = true,
        help = "[bind:]port:host:hostport, or [bind:]port:hostport",
        long_help = "[bind:]port:host:hostport, or [bind:]port:hostport for a port of the node itself, or [[bind:]port:]rds:NAME \
                     for a service.

The syntax is that of ssh's -L. For a Unix socket write unix:/path:host:hostport. The option may be repeated: each -L has \
                     sessions of its own. Port 0 picks a free port. The default bind address is 127.0.0.1; '*' or an empty \
                     one is every IPv4 address of this machine. IPv6 addresses go in brackets."
    )]
    pub(crate) forwards: Vec<ForwardRequest>,
    /// Log in to an RDS database as USER with IAM authentication.
    ///
    /// A file that only you can read holds the token while the tunnel runs; the client's command line names it. The database
    /// must have IAM authentication enabled.
    #[arg(long, value_name = "USER", value_parser = clap::builder::NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub(crate) iam_auth: Option<String>,
    /// File with the certificate authorities of RDS, for the client's command line.
    ///
    /// By default rds-ca.pem in the folder aws-ssm-forward of the user's data folder.
    #[arg(long, value_name = "FILE", env = "AWS_SSM_FORWARD_RDS_CA", value_hint = clap::ValueHint::FilePath, hide_short_help = true)]
    pub(crate) rds_ca: Option<std::path::PathBuf>,
    /// Write a kubeconfig for an eks:CLUSTER to this file.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, hide_short_help = true)]
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    /// Wait until the remote port accepts a connection.
    #[arg(long)]
    pub(crate) wait_ready: bool,
    /// Time limit until a forward is ready, --wait-ready included.
    ///
    /// A duration is a number of seconds (30), or has units (500ms, 30s, 1m30s).
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) connect_timeout: Duration,
    /// After the local program has finished sending, reset the connection when the remote end is silent for this long.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) linger: Duration,
    /// How long a new connection waits while there is no session.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) hold: Duration,
    /// Exit when a session is permanently lost, instead of starting a new one.
    #[arg(long, hide_short_help = true)]
    pub(crate) no_restart: bool,
    /// Configuration file of tunnels, instead of the user's and the project's.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, hide_short_help = true)]
    pub(crate) config: Option<std::path::PathBuf>,
    /// The options of the command line as words. They take precedence over those of a tunnel in the configuration file.
    #[arg(skip)]
    pub(crate) given: Vec<std::ffi::OsString>,
    /// If set, the first connection starts the session, and the session ends after this time without a connection.
    #[arg(skip)]
    pub(crate) lazy: Option<Duration>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Prevent the idle timeout of the sessions.
    #[arg(long, help_heading = "Session", hide_short_help = true)]
    pub(crate) keep_alive: bool,
    /// Largest payload of a message to the node, from 64 bytes to 64KiB.
    ///
    /// More than 1024 bytes is faster if the node's agent accepts it.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1024",
        value_parser = values::payload_size,
        allow_negative_numbers = true,
        help_heading = "Session",
        hide_short_help = true
    )]
    pub(crate) payload_size: usize,
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
}

impl TunnelArgs {
    /// Returns the managed node or the service, given as an argument or as an option.
    pub(crate) fn target(&self) -> Option<&str> {
        self.target.as_deref().or(self.target_option.as_deref())
    }

    /// Returns the managed node, if the argument names a service.
    pub(crate) fn via(&self) -> Option<&str> {
        self.target_option.as_deref().filter(|_| self.target.is_some())
    }
}
