//! The options of the commands that work without AWS: `local` and `demo`.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum, ValueHint};
use ssm_local::{Fault, Faults, LocalTarget};

use super::values;
use crate::local::{Document, EcsContainer};

/// The arguments of `local`.
#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// Port or address:port to listen on; port 0 picks a free one.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        value_parser = values::listen_address,
        allow_negative_numbers = true
    )]
    pub(crate) listen: SocketAddr,
    /// Pace of the agent.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: LocalProfile,
    /// Id of the managed node.
    #[arg(long, value_name = "ID", default_value = crate::local::DEFAULT_TARGET, value_parser = values::target)]
    pub(crate) target: String,
    /// Another managed node, with tags: i-0a,Name=web,Env=test. With offline at the end, its agent is not connected. May be
    /// repeated.
    #[arg(long = "node", value_name = "ID[,KEY=VALUE...][,offline]", value_parser = values::node, hide_short_help = true)]
    pub(crate) nodes: Vec<LocalTarget>,
    /// Version that the agent reports.
    #[arg(long, value_name = "VERSION", hide_short_help = true)]
    pub(crate) agent_version: Option<String>,
    /// A host that only the agent knows, for -L PORT:NAME:HOSTPORT. May be repeated.
    #[arg(long = "host", value_name = "NAME=ADDR", value_parser = values::host, hide_short_help = true)]
    pub(crate) hosts: Vec<(String, IpAddr)>,
    /// An ECS task that can execute commands; its container is this machine. May be repeated.
    #[arg(long = "ecs-task", value_name = "CLUSTER/SERVICE/TASK/CONTAINER", value_parser = values::ecs_container, hide_short_help = true)]
    pub(crate) ecs_containers: Vec<EcsContainer>,
    /// A session document (schema 1.0, JSON), in addition to AWS's or in place of one. May be repeated.
    #[arg(long = "document", value_name = "NAME=FILE", value_parser = values::document, hide_short_help = true)]
    pub(crate) documents: Vec<Document>,
    /// Encrypt shells and commands with this key of a local KMS, for example alias/lab.
    #[arg(long, value_name = "ID", hide_short_help = true)]
    pub(crate) kms_key: Option<String>,
    /// For tests: accept fixed, publicly known credentials, or any credentials. Anyone who can connect can then run commands as
    /// you.
    #[arg(long, value_enum, value_name = "WHICH", hide_short_help = true)]
    pub(crate) insecure_credentials: Option<InsecureCredentials>,
    /// Inject a fault, for example drop,probability=0.01.
    ///
    /// The form is EFFECT[,key=value]...; the option may be repeated. These faults are added to those of --faults. docs/faults.md lists all effects.
    #[arg(long = "fault", value_name = "SPEC")]
    pub(crate) more_faults: Vec<Fault>,
    /// Inject the faults of this JSON file: {"seed": 7, "faults": ["bye,every=30s", ...]}.
    #[arg(long, value_name = "FILE", value_parser = values::faults_file, value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub(crate) faults: Option<Faults>,
    /// Seed of the random generator for faults.
    #[arg(long, value_name = "NUMBER", value_parser = values::seed, allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) seed: Option<u64>,
}

/// The arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Exit after the measurement instead of waiting for Ctrl-C.
    #[arg(long)]
    pub(crate) once: bool,
    /// Bytes to transfer each way, for example 100MiB or 1GB.
    #[arg(long, default_value = "100MiB", value_parser = values::transfer_size, allow_negative_numbers = true)]
    pub(crate) size: u64,
    /// Local port; 0 picks a free one.
    #[arg(long, default_value_t = 0, value_parser = values::local_port, allow_negative_numbers = true)]
    pub(crate) port: u16,
    /// Pace of the agent.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: LocalProfile,
}

/// Credentials that do not protect the local Session Manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InsecureCredentials {
    /// The same in every run.
    Fixed,
    /// Signatures are not checked.
    Any,
}

/// How the agent of the local Session Manager behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LocalProfile {
    /// No artificial limits.
    #[default]
    Fast,
    /// 1024 bytes and a pause of 1 ms per message, like the real agent.
    Real,
}
