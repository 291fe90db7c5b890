//! The options of the commands that look things up: `ls`, `token`, `policy`.

use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use ssm_forward::{ServiceSpec, TargetSpec};

use super::{LookupAwsArgs, OutputFormat, values};
use crate::completion;
use crate::spec::ForwardSpec;

/// The arguments of `ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// What to list.
    #[arg(value_enum, default_value_t)]
    pub(crate) what: Listed,
    /// text, or json: an array of objects.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) output: OutputFormat,
    #[command(flatten)]
    pub(crate) aws: LookupAwsArgs,
}

/// What `ls` lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Listed {
    /// Managed nodes.
    #[default]
    Nodes,
    /// Instances and clusters of RDS.
    Rds,
    /// Caches of ElastiCache.
    #[value(name = "elasticache")]
    ElastiCache,
    /// Domains of OpenSearch Service.
    #[value(name = "opensearch")]
    OpenSearch,
    /// Kubernetes clusters of EKS.
    Eks,
    /// Containers of running ECS tasks.
    Ecs,
}

impl Listed {
    /// Returns the name for use in a sentence.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Nodes => "managed nodes",
            Self::Rds => "databases of RDS",
            Self::ElastiCache => "caches of ElastiCache",
            Self::OpenSearch => "domains of OpenSearch Service",
            Self::Eks => "Kubernetes clusters of EKS",
            Self::Ecs => "running ECS tasks",
        }
    }
}

/// The arguments of `token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The database: rds:NAME or rds:NAME:reader.
    #[arg(value_name = "DATABASE", value_parser = values::database, add = ArgValueCandidates::new(completion::databases))]
    pub(crate) database: ServiceSpec,
    /// The database user.
    #[arg(long, value_name = "USER", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) user: String,
    #[command(flatten)]
    pub(crate) aws: LookupAwsArgs,
}

/// The arguments of `policy`.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// Managed nodes (by id, name or tag) and services (rds:NAME).
    #[arg(value_name = "TARGET|SERVICE", value_parser = values::named, add = ArgValueCandidates::new(completion::targets))]
    pub(crate) names: Vec<Named>,
    /// A forward to allow; may be repeated.
    #[arg(short = 'L', value_name = "SPEC")]
    pub(crate) forwards: Vec<ForwardSpec>,
    /// Allow shells.
    #[arg(long)]
    pub(crate) shell: bool,
    /// Allow commands and `cp`.
    #[arg(long, hide_short_help = true)]
    pub(crate) exec: bool,
    /// Allow ssh.
    #[arg(long, hide_short_help = true)]
    pub(crate) ssh: bool,
    /// Allow what forward --relay needs.
    #[arg(long, hide_short_help = true)]
    pub(crate) relay: bool,
    /// A database user to log in as; may be repeated.
    #[arg(long = "db-user", value_name = "USER", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) database_users: Vec<String>,
    /// The account, instead of the credentials' own.
    #[arg(long, value_name = "ID", value_parser = values::account, hide_short_help = true)]
    pub(crate) account: Option<String>,
    /// json, or terraform: a data source.
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(crate) output: PolicyFormat,
    #[command(flatten)]
    pub(crate) aws: LookupAwsArgs,
}

/// A node or a service.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    Target(TargetSpec),
    Service(ServiceSpec),
}

/// The output format of `policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyFormat {
    #[default]
    Json,
    Terraform,
}
