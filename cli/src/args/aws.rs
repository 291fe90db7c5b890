//! Options that select the account, the region and the endpoints of AWS.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use clap_complete::engine::ArgValueCandidates;
use ssm_forward::StreamEndpoint;

use super::values;
use crate::completion;

/// The options for the account and the identity. Missing values come from the AWS_* variables and the configuration files.
#[derive(Debug, Args)]
#[command(next_help_heading = "AWS")]
pub(crate) struct AwsArgs {
    /// Profile of the AWS configuration files.
    #[arg(long, value_name = "NAME", conflicts_with = "local", add = ArgValueCandidates::new(completion::profiles))]
    pub(crate) profile: Option<String>,
    /// Region of the node, for example eu-central-1.
    #[arg(long, value_name = "NAME", conflicts_with = "local", add = ArgValueCandidates::new(completion::regions))]
    pub(crate) region: Option<String>,
    /// URL of the SSM API, instead of the region's.
    #[arg(
        long,
        value_name = "URL",
        value_parser = values::endpoint_url,
        conflicts_with = "local",
        hide_short_help = true
    )]
    pub(crate) endpoint_url: Option<String>,
    /// PEM file of certificate authorities to trust in addition to the system's. Default: AWS_CA_BUNDLE.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "local", hide_short_help = true)]
    pub(crate) ca_bundle: Option<PathBuf>,
    /// Look up names again, even those that were found within the last minute.
    #[arg(long, conflicts_with = "local", hide_short_help = true)]
    pub(crate) refresh: bool,
    /// Use a Session Manager in this process, not AWS's.
    ///
    /// The managed node is this machine.
    #[arg(long)]
    pub(crate) local: bool,
    /// Send the session's token to this host too, besides AWS's own endpoints. May be repeated.
    #[arg(long, value_name = "HOST", value_parser = values::host_name, hide_short_help = true)]
    pub(crate) allow_stream_host: Vec<String>,
    /// Reach the data channel at this host instead of the stream URL's, for example the name of a private endpoint: HOST,
    /// HOST:PORT or a URL. Default: AWS_ENDPOINT_URL_SSMMESSAGES.
    #[arg(long, value_name = "HOST", hide_short_help = true)]
    pub(crate) stream_endpoint: Option<StreamEndpoint>,
}

/// The options for the account and the identity, of commands that only look things up.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "AWS")]
pub(crate) struct LookupAwsArgs {
    /// Profile of the AWS configuration files.
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(completion::profiles))]
    pub(crate) profile: Option<String>,
    /// Region, for example eu-central-1.
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(completion::regions))]
    pub(crate) region: Option<String>,
    /// URL of the SSM API, instead of the region's.
    #[arg(long, value_name = "URL", hide_short_help = true)]
    pub(crate) endpoint_url: Option<String>,
    /// PEM file of certificate authorities to trust in addition to the system's. Default: AWS_CA_BUNDLE.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub(crate) ca_bundle: Option<PathBuf>,
}
