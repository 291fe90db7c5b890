//! The options of `run`.

use std::ffi::OsString;

use clap::{Args, ValueEnum, ValueHint};

use super::TunnelArgs;

/// The arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) tunnel: TunnelArgs,
    /// The command and its arguments; by default your shell.
    ///
    /// {host}, {port} and {addr} in its arguments become the address of the tunnel. If there are several tunnels, write
    /// {NAME.host}, {NAME.port} and {NAME.addr}. {{host}} is a literal {host}.
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments, help_heading = "Arguments", display_order = 1000)]
    pub(crate) command: Vec<OsString>,
    /// Which variables to set for database clients; auto follows the engine.
    ///
    /// auto chooses by the engine of a service, otherwise by the remote port (5432, 3306 or 6379). postgres sets PGHOST to the
    /// remote name and PGHOSTADDR to the tunnel; postgres-local sets PGHOST to the tunnel, for clients that do not know
    /// PGHOSTADDR, such as pgx and node-postgres.
    #[arg(long, value_enum, default_value_t, value_name = "STYLE", help_heading = "Command", hide_short_help = true)]
    pub(crate) env: EnvStyle,
    /// Resolve the names of the remote hosts to the tunnels (Linux).
    ///
    /// Only the command sees these names. Each host gets its own loopback address, where its tunnels listen on the ports of
    /// the services. The command gets an /etc/hosts with these addresses. Root is not needed, but the kernel must allow
    /// user namespaces.
    #[arg(long, help_heading = "Forwarding")]
    pub(crate) real_names: bool,
}

/// The environment variables that are set for database clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EnvStyle {
    /// By the service's engine, otherwise by the remote port.
    #[default]
    Auto,
    /// No variables.
    None,
    /// PGHOST (the remote name), PGHOSTADDR, PGPORT.
    Postgres,
    /// PGHOST (the tunnel), PGPORT.
    PostgresLocal,
    /// MYSQL_HOST, MYSQL_TCP_PORT.
    Mysql,
    /// REDIS_URL.
    Redis,
}
