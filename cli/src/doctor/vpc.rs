//! Checks of the node's VPC: the endpoints of Systems Manager, and the security groups between the node and the service.

use ssm_forward::{NetworkPlace, SecurityGroup, Verdict, VpcEndpoint};

use super::facts::Facts;
use super::finding::{Finding, Outcome};
use crate::exit_code::ExitCode;

const HTTPS: u16 = 443;
/// The services that an agent needs. `ec2messages` is needed only by agents older than 3.3.40.0, and for Run Command.
const SERVICES: [&str; 2] = ["ssm", "ssmmessages"];

/// Checks the interface endpoints through which the node reaches Systems Manager.
pub(super) async fn endpoints(facts: &mut Facts) -> Outcome {
    let place = place(facts).await?;
    let aws = facts.signed_in()?;
    let unreadable = |error: &_| Finding::unreadable(error, "ec2:DescribeVpcEndpoints");
    let mut found = aws.vpc_endpoints(&place.vpc).await.map_err(|error| unreadable(&error))?;
    // EC2 still lists deleted endpoints for a while.
    found.retain(|endpoint| {
        SERVICES.contains(&endpoint.service.as_str()) && !endpoint.state.to_ascii_lowercase().starts_with("delet")
    });
    let (vpc, options, region) = (&place.vpc, facts.options(), aws.region());
    let create = |service: &str| {
        format!(
            "aws ec2 create-vpc-endpoint --vpc-id {vpc} --vpc-endpoint-type Interface --service-name \
             com.amazonaws.{region}.{service} --private-dns-enabled --subnet-ids SUBNET --security-group-ids GROUP{options}"
        )
    };
    if found.is_empty() {
        let saw = format!("{vpc} has no interface endpoints of Systems Manager: its nodes need access to the internet");
        return Ok(match facts.target.is_some() {
            true => Finding::fine(saw),
            false => SERVICES.iter().map(|service| create(service)).fold(Finding::warning(saw), Finding::remedy),
        });
    }
    let mut problems: Vec<(String, String)> = Vec::new();
    for service in SERVICES {
        match found.iter().find(|endpoint| endpoint.service == service) {
            None => problems.push((format!("none for {service}"), create(service))),
            Some(endpoint) => problems.extend(problem_of(facts, endpoint, &place).await?),
        }
    }
    let ids: Vec<_> = found.iter().map(|endpoint| format!("{} ({})", endpoint.id, endpoint.service)).collect();
    let saw = format!("{vpc} has {}", ids.join(", "));
    if problems.is_empty() {
        return Ok(Finding::fine(saw));
    }
    let texts: Vec<_> = problems.iter().map(|(what, _)| what.as_str()).collect();
    let finding = Finding::warning(format!("{saw}; {}", texts.join("; ")));
    Ok(problems.into_iter().map(|(_, remedy)| remedy).fold(finding, Finding::remedy))
}

/// Returns the reason why the node cannot use the endpoint, and the remedy.
async fn problem_of(
    facts: &Facts,
    endpoint: &VpcEndpoint,
    place: &NetworkPlace,
) -> Result<Option<(String, String)>, Finding> {
    let VpcEndpoint { id, state, .. } = endpoint;
    let options = facts.options();
    if state != "available" {
        let look = format!("aws ec2 describe-vpc-endpoints --vpc-endpoint-ids {id}{options}");
        return Ok(Some((format!("{id} is {state}"), look)));
    }
    if !endpoint.private_dns {
        let modify = format!("aws ec2 modify-vpc-endpoint --vpc-endpoint-id {id} --private-dns-enabled{options}");
        return Ok(Some((format!("{id} has no private DNS name, so that nodes do not find it"), modify)));
    }
    let groups = groups(facts, &endpoint.security_groups).await?;
    match SecurityGroup::let_in(&groups, HTTPS, &place.security_groups, place.address) {
        Verdict::Allowed => Ok(None),
        Verdict::Denied => {
            let names = endpoint.security_groups.first().zip(place.security_groups.first());
            Ok(names.map(|(group, source)| {
                (format!("{group} of {id} does not let the node in"), ingress_command(group, HTTPS, source, &options))
            }))
        }
        Verdict::Unknown => Err(Finding::unknown(format!(
            "whether {id} lets the node in depends on prefix lists or addresses that are not looked up"
        ))),
    }
}

/// Checks whether the node's security groups allow traffic to the service, and the service's groups allow traffic from the node.
pub(super) async fn security_groups(facts: &mut Facts) -> Outcome {
    let service = facts.service()?.clone();
    let place = place(facts).await?;
    if service.security_groups.is_empty() {
        return Err(Finding::unknown(format!("the security groups of {} are not known", service.spec)));
    }
    let options = facts.options();
    let (inner, outer) = (groups(facts, &service.security_groups).await?, groups(facts, &place.security_groups).await?);
    let port = service.port;
    let (theirs, ours) = (service.security_groups.join(", "), place.security_groups.join(", "));
    let (their, our) = (service.security_groups.first(), place.security_groups.first());
    let verdicts = (
        SecurityGroup::let_out(&outer, port, &service.security_groups, None),
        SecurityGroup::let_in(&inner, port, &place.security_groups, place.address),
    );
    match verdicts {
        (Verdict::Denied, _) => {
            let saw = format!("{ours} of the node does not allow traffic to port {port} of {}", service.spec);
            let remedy = our.zip(their).map(|(our, their)| egress_command(our, port, their, &options));
            Err(Finding::failed(ExitCode::RemotePort, saw).remedies(remedy))
        }
        (_, Verdict::Denied) => {
            let saw = format!("{theirs} of {} does not accept port {port} from the node ({ours})", service.spec);
            let remedy = their.zip(our).map(|(their, our)| ingress_command(their, port, our, &options));
            let elsewhere = "the node is in another VPC: select one in the same VPC with --target".to_owned();
            let elsewhere = Some(elsewhere).filter(|_| service.vpc.as_deref() != Some(&place.vpc));
            Err(Finding::failed(ExitCode::RemotePort, saw).remedies(remedy.into_iter().chain(elsewhere)))
        }
        (Verdict::Allowed, Verdict::Allowed) => {
            Ok(Finding::fine(format!("{ours} of the node may connect to port {port} of {theirs}")))
        }
        _ => Err(Finding::unknown(format!(
            "whether {ours} may connect to port {port} of {theirs} depends on prefix lists or addresses that are not looked up"
        ))),
    }
}

fn egress_command(group: &str, port: u16, peer: &str, options: &str) -> String {
    format!(
        "aws ec2 authorize-security-group-egress --group-id {group} --ip-permissions \
         'IpProtocol=tcp,FromPort={port},ToPort={port},UserIdGroupPairs=[{{GroupId={peer}}}]'{options}"
    )
}

fn ingress_command(group: &str, port: u16, source: &str, options: &str) -> String {
    format!(
        "aws ec2 authorize-security-group-ingress --group-id {group} --protocol tcp --port {port} --source-group {source}\
         {options}"
    )
}

async fn place(facts: &Facts) -> Result<NetworkPlace, Finding> {
    let instance = facts.instance()?;
    let found = facts.signed_in()?.network_place(instance).await;
    let place = found.map_err(|error| Finding::unreadable(&error, "ec2:DescribeInstances"))?;
    place.ok_or_else(|| Finding::unknown(format!("EC2 reports no VPC for {instance}")))
}

async fn groups(facts: &Facts, ids: &[String]) -> Result<Vec<SecurityGroup>, Finding> {
    let found = facts.signed_in()?.security_groups(ids).await;
    found.map_err(|error| Finding::unreadable(&error, "ec2:DescribeSecurityGroups"))
}
