//! The options of `run`.

use std::ffi::OsString;

use clap::{Args, ValueEnum, ValueHint};

use super::TunnelArgs;

/// `run`.
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
    /// Which variables of a database's clients are set; auto follows the engine.
    ///
    /// auto sets those of the engine of a service, and of the port if it is 5432, 3306 or 6379. postgres sets PGHOST to the
    /// remote name and PGHOSTADDR to the tunnel; postgres-local sets PGHOST to the tunnel, for clients that do not know
    /// PGHOSTADDR, such as pgx and node-postgres.
    #[arg(long, value_enum, default_value_t, value_name = "STYLE", help_heading = "Command", hide_short_help = true)]
    pub(crate) env: EnvStyle,
    /// Make the remote hosts' names lead to the tunnels (Linux).
    ///
    /// This holds for the command alone. Each host gets a loopback address of its own, at which its tunnels listen on the services' own ports. The command gets an
    /// /etc/hosts that says so. It needs no root, but a kernel that allows user namespaces.
    #[arg(long, help_heading = "Forwarding")]
    pub(crate) real_names: bool,
}

/// Which variables of a database's clients are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EnvStyle {
    /// Those that fit the service's engine, or else the remote port.
    #[default]
    Auto,
    /// None.
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
