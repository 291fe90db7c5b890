//! Checks of the service, the node, and the node's agent.

use ssm_forward::{NamedProvider, Node, NodeSource, ProviderErrorKind, ServiceKind, TargetSpec};

use super::facts::Facts;
use super::finding::{Finding, Outcome};
use crate::exit_code::ExitCode;

/// Looks up the service.
pub(super) async fn service(facts: &mut Facts) -> Outcome {
    let Some(spec) = facts.query.service.clone() else {
        return Err(Finding::skipped("no service is named, such as rds:NAME"));
    };
    let aws = facts.signed_in()?;
    let found = aws.find_service(&spec).await;
    let service = found.map_err(|error| {
        let kind = error.kind;
        let permission = if error.message.contains("rds:") { "rds:DescribeDBInstances" } else { "" };
        let finding = Finding::broken(error, permission);
        match kind {
            // `ls` does not list other services.
            ProviderErrorKind::NotFound if spec.kind == ServiceKind::Rds => {
                finding.remedy(format!("aws-ssm-forward ls {}{}", spec.kind.prefix(), facts.options()))
            }
            ProviderErrorKind::AccessDenied => {
                finding.remedy(format!("aws-ssm-forward policy {spec}{}", facts.options()))
            }
            _ => finding,
        }
    })?;
    let vpc = service.vpc.as_deref().unwrap_or("an unknown VPC");
    let saw = format!("{spec} is {}:{} ({}) in {vpc}", service.host, service.port, service.engine);
    facts.service = Some(service);
    Ok(Finding::fine(saw))
}

/// Finds the node, and checks whether it is online.
pub(super) async fn target(facts: &mut Facts) -> Outcome {
    match (facts.query.target.clone(), facts.query.service.clone()) {
        (Some(TargetSpec::Ecs(spec)), _) => {
            let found =
                facts.ssm()?.resolve_ecs(&spec).await.map_err(|error| Finding::broken(error, "ecs:DescribeTasks"))?;
            let saw = format!("{spec} is the container {} of the task {}", found.container, found.task);
            facts.target = Some(found.target);
            Ok(Finding::fine(saw))
        }
        (Some(TargetSpec::Id(id)), _) if !is_node(&id) => {
            facts.ssm()?;
            facts.target = Some(id.clone());
            Ok(Finding::unknown(format!("{id} is passed to Session Manager unchanged")))
        }
        (Some(spec), _) => find_named(facts, &spec).await,
        (None, Some(_)) => find_in_vpc(facts).await,
        (None, None) => Err(Finding::skipped("no managed node is named")),
    }
}

/// Finds a node by its id, name or tag.
async fn find_named(facts: &mut Facts, spec: &TargetSpec) -> Outcome {
    let aws = facts.ssm()?;
    let nodes =
        aws.find_nodes(spec).await.map_err(|error| Finding::broken(error, "ssm:DescribeInstanceInformation"))?;
    if let TargetSpec::Id(id) = spec {
        facts.instance = Some(id.clone()).filter(|id| id.starts_with("i-"));
    }
    let online = nodes.iter().filter(|node| node.online).count();
    let Some(node) = nodes.first().filter(|node| node.online) else {
        if let Some(node) = nodes.first() {
            store_node(facts, node);
        }
        let error = aws.no_node(spec, &nodes).await;
        return Err(with_offline_remedies(Finding::broken(error, ""), facts));
    };
    store_node(facts, node);
    facts.target = Some(node.id.clone());
    let saw = format!("{node} is online");
    match online {
        1 => Ok(Finding::fine(saw)),
        several => {
            let saw = format!("{several} online nodes have this name; {saw}, and is checked here");
            Ok(Finding::warning(saw).remedy("select one by its id, or use any of them with --any"))
        }
    }
}

/// Finds a node in the service's VPC, in the same way as `forward`.
async fn find_in_vpc(facts: &mut Facts) -> Outcome {
    let service = facts.service()?.spec.clone();
    let provider = NamedProvider::new(facts.ssm()?, NodeSource::InVpcOfService, Some(service.clone()));
    let found = provider
        .find()
        .await
        .map_err(|error| with_offline_remedies(Finding::broken(error, "ec2:DescribeInstances"), facts))?;
    let Some(node) = found.details else { return Err(Finding::unknown("which node was chosen is not known")) };
    store_node(facts, &node);
    facts.target = Some(node.id.clone());
    Ok(Finding::fine(format!("{node} is online in the VPC of {service}")))
}

/// Stores the node in the facts.
fn store_node(facts: &mut Facts, node: &Node) {
    facts.instance = Some(node.id.clone()).filter(|id| id.starts_with("i-"));
    facts.node = Some(node.clone());
}

/// Adds remedies for a node that is offline.
fn with_offline_remedies(finding: Finding, facts: &Facts) -> Finding {
    let options = facts.options();
    let finding = finding.remedy(format!("list the nodes: aws-ssm-forward ls{options}"));
    match &facts.instance {
        Some(id) => finding
            .remedy(format!("aws ec2 start-instances --instance-ids {id}{options}"))
            .remedy("the instance profile needs the policy AmazonSSMManagedInstanceCore")
            .remedy("on the node: sudo systemctl restart amazon-ssm-agent"),
        None => finding,
    }
}

fn is_node(id: &str) -> bool {
    id.starts_with("i-") || id.starts_with("mi-")
}

/// Checks whether the agent's version supports what is requested.
pub(super) async fn agent(facts: &mut Facts) -> Outcome {
    let target = facts.target()?;
    let Some(node) = &facts.node else {
        return Err(Finding::skipped(format!(
            "Systems Manager lists no agent of {target}; \"session\" shows its version"
        )));
    };
    let Some(version) = &node.agent_version else {
        return Err(Finding::unknown(format!("Systems Manager does not know the version of the agent of {target}")));
    };
    let update =
        format!("aws ssm send-command --document-name AWS-UpdateSSMAgent --instance-ids {target}{}", facts.options());
    let to_host = facts.remote().is_ok_and(|remote| remote.host.is_some());
    if to_host && !node.forwards_to_hosts() {
        let saw = format!("{version} cannot forward to hosts other than the node; version 3.1.1374 or later can");
        return Err(Finding::failed(ExitCode::Channel, saw).remedy(update));
    }
    if !node.multiplexes() {
        let saw = format!("{version} carries one connection at a time, and cannot keep idle sessions alive");
        return Ok(Finding::warning(saw).remedy(update));
    }
    Ok(Finding::fine(format!("version {version}")))
}
