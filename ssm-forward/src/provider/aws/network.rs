//! Network rules between a node and its destinations: security groups and VPC endpoints, as EC2 describes them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::query::EC2;
use super::xml::List;
use super::{AwsProvider, ProviderError};

/// The position of an instance in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkPlace {
    /// The VPC of the instance.
    pub vpc: String,
    /// The first private address of the instance.
    pub address: Option<IpAddr>,
    /// The security groups of the instance.
    pub security_groups: Vec<String>,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecurityGroup {
    /// The id, `sg-…`.
    pub id: String,
    /// Rules for incoming connections.
    pub ingress: Vec<SecurityRule>,
    /// Rules for outgoing connections.
    pub egress: Vec<SecurityRule>,
}

/// A rule of a security group. All rules allow connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecurityRule {
    /// The first and the last TCP port. `None`: the rule is not for TCP.
    pub ports: Option<(u16, u16)>,
    /// The groups at the other end.
    pub groups: Vec<String>,
    /// The networks at the other end.
    pub networks: Vec<IpNet>,
    /// Prefix lists at the other end. Their content is not looked up.
    pub lists: Vec<String>,
}

/// Whether security groups allow a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A rule allows it.
    Allowed,
    /// No rule allows it.
    Denied,
    /// A rule may allow it, but refers to information that is not available.
    Unknown,
}

/// An interface endpoint of a VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VpcEndpoint {
    /// The id, `vpce-…`.
    pub id: String,
    /// The service, for example `ssmmessages`.
    pub service: String,
    /// The state. `available` is the normal one.
    pub state: String,
    /// Whether the service's public name resolves to the endpoint inside the VPC.
    pub private_dns: bool,
    /// The security groups that apply to the endpoint.
    pub security_groups: Vec<String>,
}

impl SecurityRule {
    /// Whether the rule allows TCP to or from `port`, if the other end has these groups and this address.
    fn verdict(&self, port: u16, groups: &[String], address: Option<IpAddr>) -> Verdict {
        if !self.ports.is_some_and(|(first, last)| (first..=last).contains(&port)) {
            return Verdict::Denied;
        }
        let is_in = |network: &IpNet| network.prefix_len() == 0 || address.is_some_and(|at| network.contains(&at));
        if self.groups.iter().any(|group| groups.contains(group)) || self.networks.iter().any(is_in) {
            return Verdict::Allowed;
        }
        let may_be = !self.lists.is_empty() || (address.is_none() && !self.networks.is_empty());
        if may_be { Verdict::Unknown } else { Verdict::Denied }
    }
}

impl SecurityGroup {
    /// Whether any of these groups allows incoming TCP connections to `port` from a host with `groups` and `address`.
    pub fn let_in(all: &[Self], port: u16, groups: &[String], address: Option<IpAddr>) -> Verdict {
        best(all.iter().flat_map(|group| &group.ingress).map(|rule| rule.verdict(port, groups, address)))
    }

    /// Whether any of these groups allows outgoing TCP connections to `port` of a host with `groups` and `address`.
    pub fn let_out(all: &[Self], port: u16, groups: &[String], address: Option<IpAddr>) -> Verdict {
        best(all.iter().flat_map(|group| &group.egress).map(|rule| rule.verdict(port, groups, address)))
    }
}

fn best(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    verdicts.fold(Verdict::Denied, |best, verdict| match (best, verdict) {
        (Verdict::Allowed, _) | (_, Verdict::Allowed) => Verdict::Allowed,
        (Verdict::Unknown, _) | (_, Verdict::Unknown) => Verdict::Unknown,
        _ => Verdict::Denied,
    })
}

impl AwsProvider {
    /// Returns the position of an instance. `None` if EC2 knows no instance with this id, or if the instance is in no VPC.
    ///
    /// # Errors
    /// Returns the errors of EC2 (`ec2:DescribeInstances`).
    pub async fn network_place(&self, instance: &str) -> Result<Option<NetworkPlace>, ProviderError> {
        let found = self.instances(&[("instance-id", instance)]).await?;
        Ok(found.into_iter().next().and_then(|instance| {
            Some(NetworkPlace {
                vpc: instance.vpc_id.filter(|vpc| !vpc.is_empty())?,
                address: instance.private_ip_address,
                security_groups: instance.group_set.items.into_iter().map(|group| group.group_id).collect(),
            })
        }))
    }

    /// Returns the rules of security groups.
    ///
    /// # Errors
    /// Returns the errors of EC2 (`ec2:DescribeSecurityGroups`).
    pub async fn security_groups(&self, ids: &[String]) -> Result<Vec<SecurityGroup>, ProviderError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = (1..=ids.len()).map(|at| format!("GroupId.{at}")).collect();
        let parameters: Vec<_> = keys.iter().map(String::as_str).zip(ids.iter().map(String::as_str)).collect();
        let answer: Groups = self.query(EC2, "DescribeSecurityGroups", &parameters).await?;
        Ok(answer.security_group_info.items.into_iter().map(Group::read).collect())
    }

    /// Returns the interface endpoints of a VPC.
    ///
    /// # Errors
    /// Returns the errors of EC2 (`ec2:DescribeVpcEndpoints`).
    pub async fn vpc_endpoints(&self, vpc: &str) -> Result<Vec<VpcEndpoint>, ProviderError> {
        let parameters = [("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", vpc)];
        let answer: Endpoints = self.query(EC2, "DescribeVpcEndpoints", &parameters).await?;
        let endpoints = answer.vpc_endpoint_set.items.into_iter();
        Ok(endpoints.filter(|endpoint| endpoint.vpc_endpoint_type == "Interface").map(Endpoint::read).collect())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Groups {
    #[serde(default)]
    security_group_info: List<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    group_id: String,
    #[serde(default)]
    ip_permissions: List<Permission>,
    #[serde(default)]
    ip_permissions_egress: List<Permission>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Permission {
    ip_protocol: String,
    from_port: Option<i64>,
    to_port: Option<i64>,
    #[serde(default)]
    groups: List<Peer>,
    #[serde(default)]
    ip_ranges: List<Range>,
    #[serde(default)]
    ipv6_ranges: List<Range6>,
    #[serde(default)]
    prefix_list_ids: List<PrefixList>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    group_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    cidr_ip: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range6 {
    cidr_ipv6: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PrefixList {
    prefix_list_id: String,
}

impl Group {
    fn read(self) -> SecurityGroup {
        let rules = |list: List<Permission>| list.items.into_iter().map(Permission::read).collect();
        SecurityGroup {
            id: self.group_id,
            ingress: rules(self.ip_permissions),
            egress: rules(self.ip_permissions_egress),
        }
    }
}

impl Permission {
    fn read(self) -> SecurityRule {
        let port = |port: Option<i64>| port.and_then(|port| u16::try_from(port).ok());
        let ports = match self.ip_protocol.as_str() {
            "-1" => Some((0, u16::MAX)),
            "tcp" | "6" => Some((port(self.from_port).unwrap_or(0), port(self.to_port).unwrap_or(u16::MAX))),
            _ => None,
        };
        let networks = self.ip_ranges.items.into_iter().map(|range| range.cidr_ip);
        let networks = networks.chain(self.ipv6_ranges.items.into_iter().map(|range| range.cidr_ipv6));
        SecurityRule {
            ports,
            groups: self.groups.items.into_iter().filter_map(|peer| peer.group_id).collect(),
            networks: networks.filter_map(|network| network.parse().ok()).collect(),
            lists: self.prefix_list_ids.items.into_iter().map(|list| list.prefix_list_id).collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoints {
    #[serde(default)]
    vpc_endpoint_set: List<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    vpc_endpoint_id: String,
    #[serde(default)]
    vpc_endpoint_type: String,
    service_name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    private_dns_enabled: bool,
    #[serde(default)]
    group_set: List<Peer>,
}

impl Endpoint {
    /// Converts an endpoint. EC2 names its service `com.amazonaws.REGION.NAME`.
    fn read(self) -> VpcEndpoint {
        let service = self.service_name.rsplit('.').next().unwrap_or_default().to_owned();
        VpcEndpoint {
            id: self.vpc_endpoint_id,
            service,
            state: self.state,
            private_dns: self.private_dns_enabled,
            security_groups: self.group_set.items.into_iter().filter_map(|group| group.group_id).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of EC2, cut to the parts that are read.
    const GROUPS: &str = "<DescribeSecurityGroupsResponse><securityGroupInfo><item><groupId>sg-db</groupId><ipPermissions>\
        <item><ipProtocol>tcp</ipProtocol><fromPort>3306</fromPort><toPort>3306</toPort><groups><item><userId>1</userId>\
        <groupId>sg-node</groupId></item></groups><ipRanges/><prefixListIds/></item>\
        <item><ipProtocol>tcp</ipProtocol><fromPort>5432</fromPort><toPort>5440</toPort><groups/><ipRanges><item>\
        <cidrIp>10.0.0.0/16</cidrIp></item></ipRanges></item>\
        <item><ipProtocol>udp</ipProtocol><fromPort>6379</fromPort><toPort>6379</toPort><groups/><ipRanges><item>\
        <cidrIp>0.0.0.0/0</cidrIp></item></ipRanges></item>\
        <item><ipProtocol>tcp</ipProtocol><fromPort>22</fromPort><toPort>22</toPort><prefixListIds><item>\
        <prefixListId>pl-1</prefixListId></item></prefixListIds></item></ipPermissions><ipPermissionsEgress><item>\
        <ipProtocol>-1</ipProtocol><groups/><ipRanges><item><cidrIp>0.0.0.0/0</cidrIp></item></ipRanges></item>\
        </ipPermissionsEgress></item></securityGroupInfo></DescribeSecurityGroupsResponse>";

    #[test]
    fn rules_let_through_what_they_name() {
        let read: Groups = quick_xml::de::from_str(GROUPS).unwrap();
        let all: Vec<_> = read.security_group_info.items.into_iter().map(Group::read).collect();
        let node = ["sg-node".to_owned()];
        let near = Some("10.0.1.5".parse().unwrap());
        for (port, groups, address, verdict) in [
            (3306, &node[..], None, Verdict::Allowed),
            (3306, &[], near, Verdict::Denied),
            (3307, &node, near, Verdict::Denied),
            (5433, &[], near, Verdict::Allowed),
            (5433, &[], Some("10.1.0.1".parse().unwrap()), Verdict::Denied),
            (5433, &[], None, Verdict::Unknown),
            (6379, &node, near, Verdict::Denied),
            (22, &node, near, Verdict::Unknown),
        ] {
            assert_eq!(SecurityGroup::let_in(&all, port, groups, address), verdict, "{port} {groups:?} {address:?}");
        }
        assert_eq!(SecurityGroup::let_out(&all, 3306, &[], None), Verdict::Allowed);
        assert_eq!(SecurityGroup::let_out(&[], 3306, &[], None), Verdict::Denied);
    }
}
