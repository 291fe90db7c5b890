//! Selects the managed node. Names are looked up before the first session starts.

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

/// Returns the node for the sessions of a command. With `any`, any online node with the name is used without a question.
///
/// # Errors
/// Returns an error if no node has the name, if none of them is online, or if several are online and the user cannot be asked.
pub(crate) async fn source(aws: &AwsProvider, spec: &TargetSpec, any: bool) -> Result<NodeSource, Failure> {
    if !spec.is_name() {
        return Ok(NodeSource::Fixed(spec.to_string()));
    }
    if any || spec.means_any() { Ok(NodeSource::AnyOf(spec.clone())) } else { only_one(aws, spec).await }
}

/// Waits up to `patience` until a node with this name is online. A node that is booting is at first not registered, so a name
/// that is not found is not an error until then.
///
/// # Errors
/// Returns an error if no such node is online in time, or if the look-up fails for another reason.
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

/// Returns the only online node with the name, or lets the user choose one of several.
async fn only_one(aws: &AwsProvider, spec: &TargetSpec) -> Result<NodeSource, Failure> {
    let only = |nodes: &Vec<Node>| nodes.iter().filter(|node| node.online).count() == 1;
    let nodes = match aws.remembered_nodes(spec).await.filter(only) {
        Some(nodes) => nodes,
        None => aws.find_nodes(spec).await?,
    };
    let online: Vec<Node> = nodes.iter().filter(|node| node.online).cloned().collect();
    match online.as_slice() {
        [] => Err(aws.no_node(spec, &nodes).await.into()),
        // The name is kept instead of the id, so that each session uses the node that has the name at that time.
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

/// Lets the user choose a node at the terminal. Typing filters the list.
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

/// Describes a node in one line.
fn describe(node: &Node) -> String {
    let agent = node.agent_version.as_deref().unwrap_or("unknown");
    untrusted::line(&format!("{node}, agent {agent}, {}", node.connection()))
}
