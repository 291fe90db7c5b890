//! Determines the managed node. Names are looked up before the first session starts.

use std::io::{IsTerminal, stderr, stdin};
use std::time::Duration;

use dialoguer::FuzzySelect;
use dialoguer::theme::ColorfulTheme;
use ssm_forward::{
    AwsProvider, ForwardError, Node, NodeSource, ProviderError, ProviderErrorKind, TargetSpec, await_target,
};

use crate::exit_code::{ExitCode, Failure};
use crate::output::awaiting;
use crate::{console, untrusted};

/// The node for the sessions of a command. With `any`, any online node of the name is used without asking.
///
/// # Errors
/// There is no such node, none is online, or several are and nobody can choose one.
pub(crate) async fn source(aws: &AwsProvider, spec: &TargetSpec, any: bool) -> Result<NodeSource, Failure> {
    if !spec.is_name() {
        return Ok(NodeSource::Fixed(spec.to_string()));
    }
    if any || spec.means_any() { Ok(NodeSource::AnyOf(spec.clone())) } else { only_one(aws, spec).await }
}

/// Waits up to `patience` until a node of this name is online. A node that boots is not known at first.
///
/// # Errors
/// There was none, or the lookup fails for another reason.
pub(crate) async fn await_online(aws: &AwsProvider, spec: &TargetSpec, patience: Duration) -> Result<(), Failure> {
    if patience.is_zero() || !spec.is_name() {
        return Ok(());
    }
    let name = spec.to_string();
    let waiting = |cause: &str| console::note(&awaiting(&name, &untrusted::line(cause), patience));
    let look = || async {
        aws.any_node(spec, None).await.map(drop).map_err(|error| match error.kind {
            ProviderErrorKind::NotFound => {
                ForwardError::Provider(ProviderError { kind: ProviderErrorKind::NotConnected, ..error })
            }
            _ => error.into(),
        })
    };
    Ok(await_target(&name, patience, waiting, look).await?)
}

/// The only online node of the name, or the one that a person chooses.
async fn only_one(aws: &AwsProvider, spec: &TargetSpec) -> Result<NodeSource, Failure> {
    let only = |nodes: &Vec<Node>| nodes.iter().filter(|node| node.online).count() == 1;
    let nodes = match aws.remembered_nodes(spec).await.filter(only) {
        Some(nodes) => nodes,
        None => aws.find_nodes(spec).await?,
    };
    let online: Vec<Node> = nodes.iter().filter(|node| node.online).cloned().collect();
    match online.as_slice() {
        [] => Err(aws.no_node(spec, &nodes).await.into()),
        // If only one node has the name, each session uses the node that has it then.
        [_] => Ok(NodeSource::AnyOf(spec.clone())),
        _ if stdin().is_terminal() && stderr().is_terminal() => choose(spec, online).await.map(NodeSource::Fixed),
        _ => {
            let list: Vec<_> = online.iter().map(describe).collect();
            let text = format!(
                "{:?} names {} managed nodes that are online in {}: {}; use one of their ids, or --any for any of them",
                spec.to_string(),
                online.len(),
                aws.place(),
                list.join("; ")
            );
            Err(Failure::new(ExitCode::Usage, "ambiguous", text))
        }
    }
}

/// Lets the person at the terminal choose; typing filters the list.
async fn choose(spec: &TargetSpec, nodes: Vec<Node>) -> Result<String, Failure> {
    let prompt = format!("{spec} names {} managed nodes; type to filter, Enter selects one", nodes.len());
    let lines: Vec<_> = nodes.iter().map(describe).collect();
    let chosen = tokio::task::spawn_blocking(move || {
        FuzzySelect::with_theme(&ColorfulTheme::default()).with_prompt(prompt).items(&lines).default(0).interact_opt()
    });
    match chosen.await.map_err(Failure::internal)? {
        Ok(Some(index)) => nodes
            .into_iter()
            .nth(index)
            .map(|node| node.id)
            .ok_or_else(|| Failure::internal("the prompt returned an unknown line")),
        Ok(None) => Err(Failure::new(ExitCode::Interrupted, "stopped", "no managed node was chosen")),
        Err(error) => {
            Err(Failure::new(ExitCode::Interrupted, "stopped", format!("no managed node was chosen: {error}")))
        }
    }
}

/// A node in one line.
fn describe(node: &Node) -> String {
    let agent = node.agent_version.as_deref().unwrap_or("unknown");
    untrusted::line(&format!("{node}, agent {agent}, {}", node.connection()))
}
