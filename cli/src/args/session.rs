//! The options of the commands that use one session (`shell`, `exec`, `ssh-proxy`), and the options of every session.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;

use super::{AwsArgs, values};
use crate::completion;

/// The options of the StartSession request.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Session")]
pub(crate) struct SessionArgs {
    /// If several nodes have this name, use any of them that is online.
    #[arg(long, hide_short_help = true)]
    pub(crate) any: bool,
    /// Session document to use instead of the default one.
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub(crate) document_name: Option<String>,
    /// Set or replace a parameter of the document. May be repeated.
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = values::parameter, hide_short_help = true)]
    pub(crate) parameters: Vec<(String, String)>,
    /// Reason, shown in the session history.
    #[arg(long, value_name = "TEXT", hide_short_help = true)]
    pub(crate) reason: Option<String>,
    /// How long to wait for a node that is not connected yet, for example because it is booting. Default: not at all.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) wait_connected: Option<Duration>,
}

/// The arguments of `shell`, `relay status` and `relay remove`: a node and the options of the session.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The managed node by id, name or tag, or ecs:CLUSTER/SERVICE.
    ///
    /// i-…, mi-…, tag:Key=Value[,Key=Value], a Name tag, a private address or DNS name, asg:NAME, or
    /// ecs:CLUSTER/SERVICE[/CONTAINER].
    #[arg(required_unless_present = "local", value_name = "TARGET", value_parser = values::target, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// The arguments of `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The managed node by id, name or tag, or ecs:CLUSTER/SERVICE.
    ///
    /// i-…, mi-…, tag:Key=Value[,Key=Value], a Name tag, a private address or DNS name, asg:NAME, or
    /// ecs:CLUSTER/SERVICE[/CONTAINER].
    #[arg(required_unless_present = "local", value_name = "TARGET", value_parser = values::target, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) target: Option<String>,
    /// Run it in a terminal on the node; its exit code is not reported.
    ///
    /// `-it` does the same: a terminal always passes input.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Pass standard input to the command.
    ///
    /// All of it is read first, at most 256 MiB.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// A command line for sh, or a program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// The arguments of `ssh-proxy`.
#[derive(Debug, Args)]
pub(crate) struct SshProxyArgs {
    /// The managed node by id, name or tag, or ecs:CLUSTER/SERVICE.
    ///
    /// i-…, mi-…, tag:Key=Value[,Key=Value], a Name tag, a private address or DNS name, asg:NAME, or
    /// ecs:CLUSTER/SERVICE[/CONTAINER].
    #[arg(required_unless_present = "local", value_name = "TARGET", value_parser = values::target, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) target: Option<String>,
    /// Port of the SSH server.
    #[arg(default_value_t = 22, value_parser = values::remote_port, allow_negative_numbers = true)]
    pub(crate) port: u16,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}
