//! `forward`: all `-L` listen before the first session starts. The first failure, or a signal, ends all forwards.

use tokio::task::JoinSet;

use crate::args::{ForwardArgs, Verbosity};
use crate::exit_code::{ExitCode, Failure};
use crate::figures::{self, Metrics};
use crate::hosts::HostsFile;
use crate::output::Style;
use crate::shutdown::Shutdown;
use crate::tunnels::{self, Tunnels, command};
use crate::{config, hosts};

/// Runs the command. Failures are reported through the command's output, as text or JSON.
///
/// # Errors
/// Returns an error if the signal handlers cannot be installed.
pub(crate) async fn run(args: &ForwardArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let style =
        Style { format: args.events.output, quiet: verbosity.quiet, logging: verbosity.verbose > 0, beside: false };
    let named = match config::of_forward(&args.tunnel) {
        Ok(named) => named,
        Err(failure) => return Ok(tunnels::fail(&failure, style, &shutdown).await),
    };
    let tunnel = named.as_ref().map_or(&args.tunnel, |named| &named.args);
    // sudo may ask for a password, so the hosts file is opened before anything else is printed.
    let hosts = match args.names.hosts {
        true => tokio::select! {
            opened = HostsFile::open() => match opened {
                Ok(hosts) => Some(hosts),
                Err(failure) => return Ok(tunnels::fail(&failure, style, &shutdown).await),
            },
            cause = shutdown.requested() => return Ok(cause.exit_code()),
        },
        false => None,
    };
    let code = command(tunnel, style, &shutdown, async |aws, mut planned, reporter| {
        let metrics = match args.events.metrics {
            Some(address) => Some(Metrics::bind(address).await?),
            None => None,
        };
        let names = match &hosts {
            Some(_) => hosts::assign(&mut planned, "--hosts")?,
            None => Vec::new(),
        };
        hosts::tell(&mut planned, &names);
        let tunnels = Tunnels::bind(tunnel, aws, planned, reporter).await?;
        let _entries = match &hosts {
            Some(hosts) => Some(hosts.put(0, names).await?),
            None => None,
        };
        let stats = tunnels.stats();
        let look = move || stats.iter().map(|(spec, stats)| (spec.clone(), stats.snapshot())).collect::<Vec<_>>();
        let unnamed = look.clone();
        let mut watching = JoinSet::new();
        let reporter = reporter.clone();
        let live = move || unnamed().into_iter().map(|(_, now)| now).collect();
        watching.spawn(figures::report_rates(live, move |figures| reporter.figures(figures)));
        if let Some(metrics) = metrics {
            watching.spawn(metrics.serve(look));
        }
        let all_ready = tunnels.run(&shutdown).await?;
        Ok(match shutdown.cause() {
            Some(cause) if !all_ready => cause.exit_code(),
            _ => ExitCode::Ok,
        })
    })
    .await;
    if let Some(hosts) = hosts {
        hosts.close().await;
    }
    code
}
