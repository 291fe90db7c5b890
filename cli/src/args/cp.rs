//! The options of `cp`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use super::{AwsArgs, SessionArgs, values};

/// The arguments of `cp`.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Sources and, at the end, the destination: TARGET:PATH on one side, local paths on the other.
    ///
    /// TARGET is as for `shell`; with --local it may be empty. A relative path on the node starts at the home
    /// directory. `-` is standard input or output. An argument with a slash before its first colon is a local path.
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"], value_hint = clap::ValueHint::AnyPath)]
    pub(crate) paths: Vec<OsString>,
    /// Copy directories; symbolic links in them stay links.
    #[arg(short, long, help_heading = "Copying")]
    pub(crate) recursive: bool,
    /// Keep permissions and modification times.
    #[arg(short, long, help_heading = "Copying")]
    pub(crate) preserve: bool,
    /// Sessions that carry data at the same time, from 1 to 16. Small copies use fewer.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u8).range(1..=16),
        hide_short_help = true,
        help_heading = "Copying"
    )]
    pub(crate) sessions: u8,
    #[command(flatten)]
    pub(crate) aws: AwsArgs,
    /// If several nodes have this name, use any of them that is online.
    #[arg(long, hide_short_help = true, help_heading = "Session")]
    pub(crate) any: bool,
    /// Reason, shown in the session history.
    #[arg(long, value_name = "TEXT", hide_short_help = true, help_heading = "Session")]
    pub(crate) reason: Option<String>,
    /// How long to wait for a node that is not connected yet, for example because it is booting. Default: not at all.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = values::duration,
        allow_negative_numbers = true,
        hide_short_help = true,
        help_heading = "Session"
    )]
    pub(crate) wait_connected: Option<Duration>,
}

impl CpArgs {
    /// Returns the options of the copy's sessions. Their documents are those of commands; their parameters are set by this program.
    pub(crate) fn session(&self) -> SessionArgs {
        SessionArgs {
            any: self.any,
            document_name: None,
            parameters: Vec::new(),
            reason: self.reason.clone(),
            wait_connected: self.wait_connected,
        }
    }
}
