//! The `cp` command: copies files between this machine and a node, over sessions that run commands. The node needs `sh` and the
//! usual tools.

mod control;
mod destination;
mod digest;
mod download;
mod lanes;
mod list;
mod local;
mod node;
mod place;
mod report;
mod script;
mod stream;
mod upload;
mod wire;

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use crate::args::{CpArgs, Verbosity};
use crate::console;
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;
use node::Node;
use place::{LocalEnd, Plan};
use report::Report;

/// Options of the whole copy.
#[derive(Clone, Debug)]
struct Options {
    target: String,
    recursive: bool,
    preserve: bool,
    /// Maximum number of sessions at the same time.
    sessions: usize,
}

/// Runs the `cp` command.
///
/// # Errors
/// Returns one failure, with its cause and a remedy. Failures of other files are already printed.
pub(crate) async fn run(args: &CpArgs, verbosity: Verbosity) -> Result<ExitCode, Failure> {
    let plan = Plan::parse(&args.paths, args.aws.local)?;
    // Reads the umask before other threads create files.
    destination::umask();
    let shutdown = Shutdown::on_signals().map_err(Failure::internal)?;
    let (Plan::Down { target, .. } | Plan::Up { target, .. }) = &plan;
    let options = Options {
        target: target.clone(),
        recursive: args.recursive,
        preserve: args.preserve,
        sessions: usize::from(args.sessions),
    };
    let report = Report::new(verbosity.quiet);
    let sources = match &plan {
        Plan::Up { sources, .. } => upload::sources(sources, &options, &report)?,
        Plan::Down { .. } => Vec::new(),
    };
    let node = Arc::new(Node::find(target, args, verbosity, &shutdown).await?);
    let copy = async {
        match &plan {
            Plan::Down { sources, destination, .. } => down(&node, sources, destination, &options, &report).await,
            Plan::Up { destination, .. } => {
                upload::run(node.clone(), sources, destination, &options, report.clone()).await
            }
        }
    };
    let ended = tokio::select! {
        ended = report.watch(copy) => match (ended, report.end()) {
            (Err(failure), reported) => {
                reported.err().iter().for_each(|last| console::note(&format!("error: {last}")));
                Err(failure)
            }
            (Ok(()), reported) => reported.map(|()| ExitCode::Ok),
        },
        cause = shutdown.requested() => {
            if !verbosity.quiet {
                console::note("stopped; run the same command again to continue");
            }
            Ok(cause.exit_code())
        }
    };
    node.close().await;
    ended
}

async fn down(
    node: &Arc<Node>,
    sources: &[place::RemotePath],
    destination: &LocalEnd,
    options: &Options,
    report: &Arc<Report>,
) -> Result<(), Failure> {
    match destination {
        LocalEnd::Stream => stream::to_stdout(node, sources, report).await,
        LocalEnd::Path(path) if is_special(path) => stream::to_special(node, sources, path, report).await,
        LocalEnd::Path(path) => download::run(node.clone(), sources, path, options, report.clone()).await,
    }
}

/// Whether `path` is a device or a pipe, which must not be replaced by a file.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_char_device() || kind.is_block_device() || kind.is_fifo()
    })
}
