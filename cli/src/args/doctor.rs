//! The options of `doctor`.

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use ssm_forward::StreamEndpoint;

use super::{LookupAwsArgs, OutputFormat, values};
use crate::completion;
use crate::spec::ForwardRequest;

/// The arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The managed node, or a service such as rds:NAME.
    ///
    /// Without one, only what all sessions need is checked. With a service, a managed node in its VPC is chosen unless --target
    /// names one.
    #[arg(value_name = "TARGET|SERVICE", value_parser = values::target_or_service, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) target: Option<String>,
    /// The managed node, where the first argument is a service or is omitted.
    #[arg(short = 't', long = "target", value_name = "NODE", value_parser = values::target, hide_short_help = true, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) node: Option<String>,
    /// A forward to check, in the syntax of `forward`.
    #[arg(short = 'L', value_name = "SPEC", allow_hyphen_values = true)]
    pub(crate) forward: Option<ForwardRequest>,
    /// Skip the checks that need a session.
    #[arg(long)]
    pub(crate) no_session: bool,
    /// text, or json: one object with all checks.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) aws: LookupAwsArgs,
    /// Send the session's token to this host too, besides AWS's own endpoints. May be repeated.
    #[arg(long, value_name = "HOST", value_parser = values::host_name, help_heading = "AWS", hide_short_help = true)]
    pub(crate) allow_stream_host: Vec<String>,
    /// Reach the data channel at this host instead of the stream URL's.
    #[arg(long, value_name = "HOST", help_heading = "AWS", hide_short_help = true)]
    pub(crate) stream_endpoint: Option<StreamEndpoint>,
}
