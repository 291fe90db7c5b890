//! The options of `relay`, and `--relay`.

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use super::{AwsArgs, SessionArgs, values};
use crate::completion;

/// What becomes of the relay's program on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RelayMode {
    /// It stays there for the next time.
    Keep,
    /// No file is left there.
    Ephemeral,
    /// No relay.
    Off,
}

/// `relay`.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayAction {
    /// List the relays that lie and run on a node.
    Status(RelayTarget),
    /// End the relays of a node and remove their files.
    Remove(RelayTarget),
}

/// The node whose relays are meant.
#[derive(Debug, Args)]
pub(crate) struct RelayTarget {
    /// The managed node by id, name or tag, or ecs:CLUSTER/SERVICE.
    #[arg(required_unless_present = "local", value_name = "TARGET", value_parser = values::target, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}
