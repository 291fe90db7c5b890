//! The common part of all commands that open tunnels: it looks up names, starts the output and reports failures.

use std::sync::Arc;

use ssm_forward::AwsProvider;

use super::Ended;
use crate::args::TunnelArgs;
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::local::{self, LocalManager};
use crate::output::{Output, Reporter, Style, Subject};
use crate::plan::{self, Planned, Requests};
use crate::relay;
use crate::shutdown::Shutdown;
use crate::terminal::AtTerminal;

/// Looks up the names on the command line, runs `serve` with the result, and reports a failure of either.
///
/// # Errors
/// Returns an error if the local Session Manager of `--local` cannot be started. Other failures are reported through the command's
/// output; their exit code is returned.
pub(crate) async fn command<F>(
    args: &TunnelArgs,
    style: Style,
    shutdown: &Shutdown,
    serve: F,
) -> Result<ExitCode, Failure>
where
    F: AsyncFnOnce(&Arc<AwsProvider>, Vec<Planned>, &Reporter) -> Result<ExitCode, Ended>,
{
    let requests = plan::requests(args);
    let options = || {
        let target = args.target().unwrap_or(local::DEFAULT_TARGET);
        connect::local_options_for_ports(target, relay::config(&args.relay).is_some())
    };
    let manager = LocalManager::start_if(args.aws.local, options).await?;
    let prepared = tokio::select! {
        prepared = prepare(args, requests, manager.as_ref()) => prepared,
        cause = shutdown.requested() => return Ok(cause.exit_code()),
    };
    let subject =
        |planned: &Planned| Subject { name: None, target: planned.target.clone(), spec: planned.spec.clone() };
    let subjects = prepared.iter().flat_map(|(_, planned)| planned).map(subject).collect();
    let output = Output::start(style, subjects, shutdown.clone());
    let served = match prepared {
        Ok((aws, planned)) => serve(&aws, planned, output.reporter()).await,
        Err(failure) => Err(failure.into()),
    };
    let code = match served {
        Ok(code) => {
            output.close(None).await;
            code
        }
        Err(Ended { forward, failure }) => {
            output.reporter().fail(forward, &failure);
            output.close(Some(&failure)).await;
            failure.code
        }
    };
    connect::stop(manager).await;
    Ok(code)
}

/// Reports a failure before any tunnel is known, in the command's output format. Returns the failure's exit code.
pub(crate) async fn fail(failure: &Failure, style: Style, shutdown: &Shutdown) -> ExitCode {
    let output = Output::start(style, Vec::new(), shutdown.clone());
    output.reporter().fail(None, failure);
    output.close(Some(failure)).await;
    failure.code
}

/// Looks up the names on the command line.
async fn prepare(
    args: &TunnelArgs,
    requests: Result<Requests, Failure>,
    manager: Option<&LocalManager>,
) -> Result<(Arc<AwsProvider>, Vec<Planned>), Failure> {
    let requests = requests?;
    let person = Arc::new(AtTerminal::new(false));
    let aws = connect::aws_or_local(&args.aws, manager, person).await?;
    let planned = plan::plan(args, requests, &aws).await?;
    Ok((aws, planned))
}
