//! Options that several commands share.

use std::net::SocketAddr;

use clap::Args;
use ssm_forward::{Pacing, PoolSize};

use super::{OutputFormat, values};

/// The options for the output about open tunnels.
#[derive(Debug, Args)]
pub(crate) struct EventArgs {
    /// text, or json: one event per line on stdout.
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub(crate) output: OutputFormat,
    /// Serve live figures as Prometheus text at http://ADDR/metrics.
    ///
    /// ADDR is a port, or an address and a port. The default address is 127.0.0.1.
    #[arg(
        long,
        value_name = "ADDR",
        value_parser = values::listen_address,
        allow_negative_numbers = true,
        help_heading = "Output",
        hide_short_help = true
    )]
    pub(crate) metrics: Option<SocketAddr>,
}

/// The option for names of remote hosts.
#[derive(Debug, Args)]
pub(crate) struct HostsArgs {
    /// Resolve the names of the remote hosts to the tunnels, on the whole machine (Linux).
    ///
    /// Each host gets its own loopback address, where its tunnels listen on the ports of the services. The names are in a
    /// marked block of /etc/hosts while the command runs. Only root can write there: sudo asks for your password.
    #[arg(long, help_heading = "Forwarding", hide_short_help = true)]
    pub(crate) hosts: bool,
}

/// The number of sessions and the rate of each.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    /// Number of sessions that share the connections to a destination, or auto (up to 8, as they are needed).
    ///
    /// A node's agent sends at most about 0.7 MB/s per session. A connection whose program does not read blocks the other
    /// connections of its session. Each connection uses one session, so a single connection never needs a second one.
    #[arg(
        long,
        value_name = "N|auto",
        default_value = "auto",
        value_parser = values::sessions,
        allow_negative_numbers = true,
        help_heading = "Session",
        hide_short_help = true
    )]
    pub(crate) sessions: PoolSize,
    /// Messages that a session may send per second: a number, auto or unlimited.
    ///
    /// auto is 900 for AWS, which reportedly closes data channels above 1000, and unlimited for this machine.
    #[arg(
        long,
        value_name = "N|auto|unlimited",
        default_value = "auto",
        value_parser = values::message_rate,
        allow_negative_numbers = true,
        help_heading = "Session",
        hide_short_help = true
    )]
    pub(crate) message_rate: Pacing,
}
