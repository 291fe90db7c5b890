//! The options of `socks`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::{AwsArgs, PoolArgs, RelayArgs, SessionArgs, values};
use crate::completion;
use crate::socks::Pattern;

/// The arguments of `socks`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Forwarding")]
pub(crate) struct SocksArgs {
    /// The managed node by id, name or tag, or ecs:CLUSTER/SERVICE.
    ///
    /// i-…, mi-…, tag:Key=Value[,Key=Value], a Name tag, a private address or DNS name, asg:NAME, or
    /// ecs:CLUSTER/SERVICE[/CONTAINER].
    #[arg(required_unless_present = "local", value_name = "TARGET", help_heading = "Arguments", value_parser = values::target, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) target: Option<String>,
    /// Where to listen.
    ///
    /// The default bind address is 127.0.0.1.
    #[arg(
        short = 'D',
        value_name = "[BIND:]PORT",
        default_value = "1080",
        value_parser = values::listen_address,
        allow_negative_numbers = true
    )]
    pub(crate) listen: SocketAddr,
    /// Destinations that may be reached; by default all.
    ///
    /// The option may be repeated. A host, *.DOMAIN, an address, a network (10.0.0.0/8) or *; each may have a port: *.internal:443.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow: Vec<Pattern>,
    /// Destinations that may not be reached, even if --allow includes them. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]", hide_short_help = true)]
    pub(crate) deny: Vec<Pattern>,
    /// Serve http://…/proxy.pac, with which browsers use the proxy for this domain and its subdomains. May be repeated.
    #[arg(long = "pac", value_name = "DOMAIN", value_parser = values::host_name, hide_short_help = true)]
    pub(crate) pac: Vec<String>,
    /// Without a relay: end the sessions to a destination that has had no connection for this long.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5m",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) idle: Duration,
    /// Without a relay: how many destinations may have sessions at the same time.
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u16).range(1..), hide_short_help = true)]
    pub(crate) max_destinations: u16,
    /// Time limit until a destination has accepted a connection.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) connect_timeout: Duration,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
}
