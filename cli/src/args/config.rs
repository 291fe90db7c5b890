//! The arguments of `config`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

/// The arguments of `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Check the configuration files, and list their tunnels.
    Check {
        /// Tunnels and groups. Default: all.
        #[arg(value_name = "NAME|GROUP")]
        names: Vec<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Write a configuration file. It asks questions at a terminal, and otherwise writes an example.
    Init {
        /// Write .aws-ssm-forward.toml in the current folder, for a project.
        #[arg(long, conflicts_with = "config")]
        project: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the path of the user's configuration file.
    Path,
    /// Print the JSON schema of the configuration file, for editors.
    Schema,
}

/// The option for the configuration file.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file to use instead of the default ones.
    ///
    /// The default ones are the user's and the project's.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
}
