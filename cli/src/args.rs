//! The command line.

mod aws;
mod config;
mod cp;
mod doctor;
mod forward;
mod help;
mod local;
mod lookup;
mod relay;
mod run;
mod session;
mod shared;
mod socks;
mod up;
mod values;

use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, FromArgMatches as _, Parser, Subcommand, ValueEnum, ValueHint};
use ssm_forward::TargetSpec;

pub(crate) use aws::{AwsArgs, LookupAwsArgs};
pub(crate) use config::{ConfigAction, ConfigArgs};
pub(crate) use cp::CpArgs;
pub(crate) use doctor::DoctorArgs;
pub(crate) use forward::{ForwardArgs, TunnelArgs};
pub(crate) use local::{DemoArgs, InsecureCredentials, LocalArgs, LocalProfile};
pub(crate) use lookup::{Listed, LsArgs, Named, PolicyArgs, PolicyFormat, TokenArgs};
pub(crate) use relay::{RelayAction, RelayArgs, RelayFeeds, RelayMode};
pub(crate) use run::{EnvStyle, RunArgs};
pub(crate) use session::{ExecArgs, NodeArgs, SessionArgs, SshProxyArgs};
pub(crate) use shared::{EventArgs, HostsArgs, PoolArgs};
pub(crate) use socks::SocksArgs;
pub(crate) use up::{LogsArgs, OpenArgs, StatusArgs, UpArgs};
pub(crate) use values::duration;

use crate::config::keys;
use crate::spec::ForwardSpec;

/// The command's name.
pub(crate) const NAME: &str = "aws-ssm-forward";

/// Forward ports through AWS Systems Manager sessions.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    max_term_width = 100,
    disable_help_flag = true,
    disable_help_subcommand = true,
    disable_version_flag = true,
    args = flags(),
    after_help = "Example:
  aws-ssm-forward forward i-0123456789abcdef0 -L 5432:db.internal:5432"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
}

/// The flags of clap. They get a separate heading, so that `-h` fits on one screen.
fn flags() -> [Arg; 2] {
    let flag = |name, short| Arg::new(name).long(name).short(short).help_heading("Output");
    [
        flag("help", 'h').global(true).action(ArgAction::Help).help("Print help; --help prints the full help"),
        flag("version", 'V').hide_short_help(true).action(ArgAction::Version).help("Print the version"),
    ]
}

/// The subcommand.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Forward local ports to hosts that a managed node can reach.
    #[command(after_help = "Examples:
  aws-ssm-forward forward i-0123456789abcdef0 -L 8080:db.internal:80
  aws-ssm-forward forward rds:example-db")]
    Forward(Box<ForwardArgs>),
    /// Open tunnels of the configuration file, all in one process.
    ///
    /// Each tunnel is restarted on its own when it fails. With -d the process runs in the background. The commands
    /// status, logs, down, restart and reload control it.
    #[command(after_help = "Examples:
  aws-ssm-forward up
  aws-ssm-forward up -d orders-db web")]
    Up(Box<UpArgs>),
    /// Show the tunnels that are open.
    Status(StatusArgs),
    /// Print what happened to open tunnels.
    Logs(LogsArgs),
    /// Close open tunnels.
    Down(OpenArgs),
    /// Close open tunnels and open them again.
    Restart(OpenArgs),
    /// Read the configuration file again and apply the changes to open tunnels.
    Reload,
    /// Check or write the configuration file of tunnels.
    #[command(after_help = "Examples:
  aws-ssm-forward config init
  aws-ssm-forward config check")]
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Run a command on this machine with open tunnels, and exit with its exit code.
    #[command(after_help = "Example:
  aws-ssm-forward run web -L 0:db.internal:5432 -- psql -h {host} -p {port}")]
    Run(Box<RunArgs>),
    /// Reach every host of a node's network through a SOCKS and HTTP proxy.
    #[command(after_help = "Examples:
  aws-ssm-forward socks i-0123456789abcdef0
  curl --proxy socks5h://127.0.0.1:1080 http://web.internal/
  aws-ssm-forward socks web -D 8888 --allow '*.internal' --pac internal")]
    Socks(Box<SocksArgs>),
    /// Open a shell on a managed node.
    #[command(after_help = "Examples:
  aws-ssm-forward shell i-0123456789abcdef0
  aws-ssm-forward shell ecs:prod/web/app --profile ops")]
    Shell(Box<NodeArgs>),
    /// Run a command on a managed node and exit with its exit code.
    #[command(after_help = "Examples:
  aws-ssm-forward exec i-0123456789abcdef0 -- 'ps aux | wc -l'
  aws-ssm-forward exec i-0123456789abcdef0 -- systemctl status nginx")]
    Exec(Box<ExecArgs>),
    /// Copy files to and from a managed node.
    #[command(after_help = "Examples:
  aws-ssm-forward cp i-0123456789abcdef0:/var/log/app.log .
  tar -c . | aws-ssm-forward cp - ecs:prod/web/app:/tmp/all.tar")]
    Cp(Box<CpArgs>),
    /// Connect stdin and stdout to a node's SSH server (ProxyCommand).
    #[command(after_help = "Example, in ~/.ssh/config:
  Host i-* mi-*
    ProxyCommand aws-ssm-forward ssh-proxy %h %p")]
    SshProxy(Box<SshProxyArgs>),
    /// List managed nodes, databases and other services, or containers.
    #[command(after_help = "Examples:
  aws-ssm-forward ls
  aws-ssm-forward ls rds --profile staging
  aws-ssm-forward ls ecs -o json")]
    Ls(LsArgs),
    /// Print a token that logs in to an RDS database.
    #[command(after_help = "Example:
  aws-ssm-forward token rds:example-db --user app")]
    Token(TokenArgs),
    /// Print the smallest IAM policy that allows the given targets and forwards.
    #[command(after_help = "Example:
  aws-ssm-forward policy tag:Role=bastion rds:example-db --db-user app")]
    Policy(Box<PolicyArgs>),
    /// Find out why sessions fail, and how to fix it.
    #[command(after_help = "Examples:
  aws-ssm-forward doctor rds:example-db
  aws-ssm-forward doctor web -L 3306:db.internal:3306 --profile staging")]
    Doctor(Box<DoctorArgs>),
    /// List or remove the relays of a managed node (forward --relay).
    Relay {
        #[command(subcommand)]
        action: Box<RelayAction>,
    },
    /// Replace AWS's session-manager-plugin.
    Plugin {
        #[command(subcommand)]
        action: PluginAction,
    },
    /// Run a local Session Manager, for experiments and tests without AWS.
    Local(Box<LocalArgs>),
    /// Show a tunnel to a private web service, without AWS.
    Demo(DemoArgs),
    /// Write the man pages into a folder.
    #[command(hide = true)]
    Man {
        /// The folder.
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:
  source <(aws-ssm-forward completions bash)      # in ~/.bashrc
  source <(aws-ssm-forward completions zsh)       # in ~/.zshrc, after compinit
  aws-ssm-forward completions fish | source       # in config.fish")]
    Completions {
        /// The shell that reads the script.
        shell: clap_complete::Shell,
    },
}

/// The options for the amount of output.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Verbosity {
    /// Print errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose", hide_short_help = true)]
    pub(crate) quiet: bool,
    /// Log to stderr; -vv and -vvv log more.
    ///
    /// -v logs the profile, the source of the credentials, the endpoint, the proxy, the agent's version and each
    /// connection. -vv adds protocol events. -vvv adds every message. Tokens, credentials and forwarded bytes are never
    /// logged.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// `plugin`.
#[derive(Debug, Subcommand)]
pub(crate) enum PluginAction {
    /// Put this program where the AWS CLI looks for session-manager-plugin.
    Install {
        /// Folder; by default where the plugin is found in PATH, else /usr/local/bin.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Copy this program instead of linking to it.
        #[arg(long)]
        copy: bool,
        /// Only add an alias to the AWS CLI, so that `aws forward …` runs this program's `forward`.
        #[arg(long, conflicts_with_all = ["dir", "copy"])]
        alias: bool,
    },
    /// Remove this program and restore the previous plugin.
    Uninstall {
        /// Folder of the installation.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Only remove the alias of the AWS CLI.
        #[arg(long, conflicts_with = "dir")]
        alias: bool,
    },
}

/// The format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Lines of text for the user.
    #[default]
    Text,
    /// One JSON event per line on stdout.
    Json,
}

/// Parses the command line of this process. On an error, prints it in one line and exits with exit code 2.
pub(crate) fn parse() -> Cli {
    let parsed = help::command().try_get_matches().and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        let words = match &mut cli.command {
            Command::Forward(args) => Some(&mut args.tunnel.given),
            Command::Run(args) => Some(&mut args.tunnel.given),
            Command::Up(args) => Some(&mut args.given),
            _ => None,
        };
        if let (Some(words), Some((_, matches))) = (words, matches.subcommand()) {
            *words = keys::given(matches);
        }
        Ok(cli)
    });
    parsed.unwrap_or_else(|error| match one_line(&error) {
        Some(line) => {
            eprintln!("error: {line}");
            std::process::exit(crate::exit_code::ExitCode::Usage.number().into())
        }
        None => error.exit(),
    })
}

/// Returns a usage error as one line; clap would print several lines. `None` if the error is a request for help or the version, or
/// if clap's help is the better answer.
pub(crate) fn one_line(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ErrorKind};
    let is_target = |word: &str| word.parse().is_ok_and(|target: TargetSpec| !matches!(target, TargetSpec::Name(_)));
    let is_forward = |word: &str| word.parse::<ForwardSpec>().is_ok();
    let invalid =
        |kind, is_known: fn(&str) -> bool| error.get(kind).map(ToString::to_string).filter(|word| is_known(word));
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            None
        }
        ErrorKind::ValueValidation => {
            let argument = error.get(ContextKind::InvalidArg)?.to_string();
            let value = error.get(ContextKind::InvalidValue)?.to_string();
            let option = argument.split_whitespace().next()?.trim_matches(['[', ']', '<', '>', '.']);
            let why = std::error::Error::source(error)?;
            Some(format!("{option} '{value}': {why}"))
        }
        ErrorKind::InvalidSubcommand if let Some(word) = invalid(ContextKind::InvalidSubcommand, is_target) => {
            Some(format!("a command is missing before '{word}', for example: {NAME} shell {word}; see --help"))
        }
        ErrorKind::UnknownArgument if let Some(word) = invalid(ContextKind::InvalidArg, is_forward) => {
            Some(format!("-L is missing before '{word}'; see --help"))
        }
        _ => {
            let text = error.render().to_string();
            let paragraphs = text.strip_prefix("error: ").unwrap_or(&text).split("\n\n");
            // No option accepts a value that looks like an option, so the tip on how to pass one is useless.
            let useless = ["For more information", "  tip: to pass"];
            let told = paragraphs.filter(|paragraph| !useless.iter().any(|start| paragraph.starts_with(start)));
            let told: Vec<_> = told.map(|told| told.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            Some(format!("{}; see --help", told.join("; ").replace("Usage:", "usage:")))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use ssm_local::Faults;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_refused_value_is_one_line() {
        let error = Cli::try_parse_from(["aws-ssm-forward", "forward", "-t", "i-1", "-L", "80"]).unwrap_err();
        let line = one_line(&error).unwrap();
        assert!(line.starts_with("-L '80': the remote port is missing"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn faults_are_read_from_the_command_line_and_from_a_file() {
        let parse = |args: &[&str]| Cli::try_parse_from(["aws-ssm-forward", "local"].iter().chain(args));
        let cli = parse(&["--seed", "7", "--fault", "bye,every=30s", "--fault", "end,text=So long, all"]).unwrap();
        let Command::Local(args) = cli.command else { panic!("another command") };
        assert_eq!((args.seed, args.more_faults.len()), (Some(7), 2));
        let line = one_line(&parse(&["--fault", "drop,chance=1"]).unwrap_err()).unwrap();
        assert_eq!(line, "--fault 'drop,chance=1': drop has no key \"chance\"");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("faults.json");
        std::fs::write(&path, r#"{"seed": 3, "faults": ["reset"]}"#).unwrap();
        let cli = parse(&["--faults", path.to_str().unwrap()]).unwrap();
        let Command::Local(args) = cli.command else { panic!("another command") };
        assert_eq!(args.faults, Some(Faults::new().seed(3).with("reset".parse().unwrap())));
    }
}
