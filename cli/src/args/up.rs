//! The arguments of `up` and of the commands that communicate with a running `up`.

use std::ffi::OsString;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::{AwsArgs, ConfigArgs, EventArgs, HostsArgs, OutputFormat};
use crate::completion;

/// The arguments of `up`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tunnels")]
pub(crate) struct UpArgs {
    /// Tunnels and groups of the configuration file. Default: all.
    #[arg(value_name = "NAME|GROUP", help_heading = "Arguments", add = ArgValueCandidates::new(completion::tunnels_and_groups))]
    pub(crate) names: Vec<String>,
    /// Run in the background.
    ///
    /// The command ends when all tunnels are open.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Set for the process in the background itself.
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
    /// Print lines instead of the live view.
    #[arg(long, hide_short_help = true)]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) hosts: HostsArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The options of the command line as words. They take precedence over the configuration file.
    #[arg(skip)]
    pub(crate) given: Vec<OsString>,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) events: EventArgs,
}

/// A selection of open tunnels.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Tunnels that are open. Default: all.
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completion::open_tunnels))]
    pub(crate) names: Vec<String>,
}

/// The arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// text, or json: an array of objects.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) output: OutputFormat,
}

/// The arguments of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Keep printing new lines.
    #[arg(short, long)]
    pub(crate) follow: bool,
}
