//! The options of `relay`, and `--relay`.

use clap::{Args, Subcommand, ValueEnum};

use super::NodeArgs;

/// What happens to the relay's program on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RelayMode {
    /// The program stays on the node for the next use.
    Keep,
    /// No file stays on the node.
    Ephemeral,
    /// No relay is used.
    Off,
}

/// Whether downloads through a relay use command sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RelayFeeds {
    /// Use command sessions if they make a download faster.
    Auto,
    /// Do not use command sessions.
    Off,
}

/// The option `--relay` and its related option.
#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// Carry connections with a small program on the node, which is faster. =ephemeral leaves no file there.
    ///
    /// The program is copied to the node (about 1 MB, once) and started by AWS-StartInteractiveCommand. One connection
    /// is spread over all sessions, and text is compressed. If it cannot be started, the tunnel works without it.
    #[arg(
        id = "relay",
        long,
        value_name = "MODE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "keep",
        help_heading = "Session",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub(crate) mode: Option<RelayMode>,
    /// With --relay: let large downloads also use command sessions, which are faster, or turn that off.
    ///
    /// The node's agent does not slow down the output of a command. When a download keeps all sessions busy, one session of
    /// AWS-StartNonInteractiveCommand is tried, and further ones while they help. The tunnel works without them.
    #[arg(
        id = "relay_feeds",
        long = "relay-feeds",
        value_name = "MODE",
        default_value = "auto",
        help_heading = "Session",
        hide_short_help = true
    )]
    pub(crate) feeds: RelayFeeds,
}

/// The arguments of `relay`.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayAction {
    /// List the files of relays and the running relays on a node.
    Status(NodeArgs),
    /// Stop the relays on a node and remove their files.
    Remove(NodeArgs),
}
