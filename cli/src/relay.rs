//! The relay on the node: how a forwarder uses it, and `relay status` and `relay remove`.

use std::sync::Arc;

use ssm_forward::{RelayConfig, RelayReport, StartRequest};
use ssm_relay_programs::PROGRAMS;

use crate::args::{NodeArgs, RelayAction, RelayArgs, RelayFeeds, RelayMode};
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::terminal::AtTerminal;
use crate::{console, untrusted};

/// Returns the relay configuration for the options of the command line; `None` without a relay.
pub(crate) fn config(args: &RelayArgs) -> Option<RelayConfig> {
    let ephemeral = match args.mode? {
        RelayMode::Keep => false,
        RelayMode::Ephemeral => true,
        RelayMode::Off => return None,
    };
    Some(RelayConfig { programs: PROGRAMS, ephemeral, feeds: args.feeds == RelayFeeds::Auto })
}

/// Runs `relay status` or `relay remove`.
///
/// # Errors
/// Returns an error if the command on the node cannot be run.
pub(crate) async fn run(action: RelayAction) -> Result<ExitCode, Failure> {
    let (RelayAction::Status(args) | RelayAction::Remove(args)) = &action;
    let target = args.target.as_deref().unwrap_or(local::DEFAULT_TARGET);
    let manager = LocalManager::start_if(args.aws.local, || connect::local_options(target)).await?;
    let outcome = ask(&action, args, target, manager.as_ref()).await;
    connect::stop(manager).await;
    let RelayReport { lines } = outcome?;
    if lines.is_empty() {
        console::note(&format!("no relay on {target}"));
    }
    lines.iter().for_each(|line| console::say(format!("{}\n", untrusted::line(line))));
    Ok(ExitCode::Ok)
}

async fn ask(
    action: &RelayAction,
    args: &NodeArgs,
    target: &str,
    manager: Option<&LocalManager>,
) -> Result<RelayReport, Failure> {
    let aws = connect::aws_or_local(&args.aws, manager, Arc::new(AtTerminal::new(false))).await?;
    let provider = connect::named(&aws, target, &args.session).await?;
    let session = connect::session_config(&aws, &args.aws.allow_stream_host, args.aws.stream_endpoint.clone())?;
    let request =
        StartRequest { target: target.to_owned(), reason: args.session.reason.clone(), ..StartRequest::default() };
    let report = match action {
        RelayAction::Status(_) => ssm_forward::relay_status(provider, &request, &session).await,
        RelayAction::Remove(_) => ssm_forward::relay_remove(provider, &request, &session).await,
    };
    report.map_err(|why| Failure::new(ExitCode::SessionLost, "relay", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn this_build_carries_a_small_program_for_this_machine() {
        let own = PROGRAMS.iter().find(|program| program.machine == std::env::consts::ARCH).unwrap();
        assert_eq!(own.sha256.len(), 64);
        assert!((100_000..1_500_000).contains(&own.gzip.len()), "{} bytes", own.gzip.len());
    }

    #[test]
    fn off_is_off() {
        let with = |mode, feeds| config(&RelayArgs { mode, feeds });
        let config = |mode| with(mode, RelayFeeds::Auto);
        let keep = Some(RelayMode::Keep);
        assert!(config(keep).unwrap().feeds && !with(keep, RelayFeeds::Off).unwrap().feeds);
        assert!(config(None).is_none() && config(Some(RelayMode::Off)).is_none());
        assert!(
            config(Some(RelayMode::Ephemeral)).unwrap().ephemeral && !config(Some(RelayMode::Keep)).unwrap().ephemeral
        );
    }
}
