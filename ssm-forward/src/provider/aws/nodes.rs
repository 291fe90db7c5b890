//! Finds managed nodes by name, with the information of Systems Manager, and of EC2 if that is not sufficient.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_sdk_ssm::types::{InstanceInformation, InstanceInformationStringFilter, PingStatus};
use aws_smithy_types::DateTime;
use serde::{Deserialize, Serialize};
use ssm_proto::Version;

use super::super::named::choose;
use super::cache::Found;
use super::instances::Instance;
use super::{AwsProvider, ProviderError, ProviderErrorKind, called_by};
use crate::TargetSpec;

/// A node that Systems Manager knows.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Node {
    /// The target for StartSession.
    pub id: String,
    /// The Name tag, or the name of the hybrid activation, if known.
    pub name: Option<String>,
    /// The host name that its operating system reports.
    pub computer_name: Option<String>,
    /// The private address.
    pub address: Option<String>,
    /// The operating system, for example `Amazon Linux 2023`.
    pub platform: Option<String>,
    /// The version of the agent.
    pub agent_version: Option<String>,
    /// Whether sessions can be started on the node.
    pub online: bool,
    /// When the agent last contacted the service.
    pub last_ping: Option<SystemTime>,
}

/// Minimum version of agents that forward to other hosts, according to AWS's documentation of
/// AWS-StartPortForwardingSessionToRemoteHost.
const REMOTE_HOST_VERSION: [u64; 3] = [3, 1, 1374];

impl Node {
    /// Whether the agent is new enough to forward to other hosts. An unknown version counts as new enough.
    pub fn forwards_to_hosts(&self) -> bool {
        let Some(version) = &self.agent_version else { return true };
        let parts: Vec<u64> = version.split('.').map_while(|part| part.parse().ok()).take(3).collect();
        parts.as_slice() >= REMOTE_HOST_VERSION.as_slice()
    }

    /// Whether the agent carries several connections in one session. An unknown version counts as new enough.
    pub fn multiplexes(&self) -> bool {
        self.agent_version
            .as_deref()
            .is_none_or(|version| Version::new(version).client_sees_newer_than(Version::AGENT_MUX))
    }

    /// Returns `online`, or since when the node has been offline.
    pub fn connection(&self) -> String {
        match (self.online, self.last_ping) {
            (true, _) => "online".to_owned(),
            (false, Some(at)) => format!("offline since {}", DateTime::from(at)),
            (false, None) => "offline".to_owned(),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        let known = [&self.name, &self.address].into_iter().flatten().map(String::as_str).collect::<Vec<_>>();
        if known.is_empty() { Ok(()) } else { write!(f, " ({})", known.join(", ")) }
    }
}

/// Maximum number of pages that are read. A page has 50 nodes. If an account has more nodes, a tag or an id must be used.
const MAX_PAGES: usize = 40;
/// Maximum number of values in one filter.
const MAX_VALUES: usize = 100;
/// The tag with which EC2 marks the instances of an Auto Scaling group.
const GROUP_TAG: &str = "aws:autoscaling:groupName";

const CALL: &str = "DescribeInstanceInformation";

impl AwsProvider {
    /// Returns the nodes that `spec` names. Online nodes come first; each part is ordered by id. Returns an empty list if Systems
    /// Manager knows none.
    ///
    /// Queries only Systems Manager, except for a name or an address that Systems Manager does not know.
    ///
    /// # Errors
    /// Returns the errors of the API, or an error if the spec is a container.
    pub async fn find_nodes(&self, spec: &TargetSpec) -> Result<Vec<Node>, ProviderError> {
        let mut nodes = match spec {
            TargetSpec::Tags(tags) => self.nodes_with_tags(tags).await?,
            TargetSpec::AutoScalingGroup(group) => {
                self.nodes_with_tags(&[(GROUP_TAG.to_owned(), group.clone())]).await?
            }
            TargetSpec::Name(name) => self.nodes_named(name).await?,
            TargetSpec::Address(address) => self.nodes_at(*address).await?,
            TargetSpec::Id(id) => self.describe_nodes(vec![filter("InstanceIds", [id])]).await?,
            TargetSpec::Ecs(_) => {
                let message = format!("{spec} is a container, not a managed node");
                return Err(ProviderError { kind: ProviderErrorKind::Invalid, message });
            }
        };
        nodes.sort_by(|a, b| b.online.cmp(&a.online).then_with(|| a.id.cmp(&b.id)));
        nodes.dedup_by(|a, b| a.id == b.id);
        let mut names = names(&nodes);
        names.extend((!nodes.is_empty()).then(|| spec.to_string()));
        self.remember_nodes(spec.to_string(), &nodes, names).await;
        Ok(nodes)
    }

    /// Returns the nodes that [`AwsProvider::find_nodes`] found within the last minute, if they are in the
    /// [`LookupCache`](super::LookupCache).
    pub async fn remembered_nodes(&self, spec: &TargetSpec) -> Option<Vec<Node>> {
        self.remembered(spec.to_string()).await
    }

    /// Stores the nodes if one of them is online. Offline nodes alone are not stored, because they may come online at any moment.
    async fn remember_nodes(&self, what: String, nodes: &[Node], names: Vec<String>) {
        let lasts = nodes.iter().any(|node| node.online);
        self.remember(Found { nodes: lasts.then(|| (what, nodes.to_vec())), names }).await;
    }

    /// Returns all nodes of the account in the region, ordered by id, with their Name tags if the caller may query EC2.
    ///
    /// # Errors
    /// Returns the errors of Systems Manager.
    pub async fn list_nodes(&self) -> Result<Vec<Node>, ProviderError> {
        let mut nodes = self.describe_nodes(Vec::new()).await?;
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        if nodes.iter().any(|node| node.name.is_none() && node.id.starts_with("i-")) {
            match self.instances(&[]).await {
                Ok(instances) => nodes.iter_mut().for_each(|node| node.learn_name(&instances)),
                Err(error) => tracing::info!(%error, "the nodes' Name tags are not known"),
            }
        }
        self.remember(Found { nodes: None, names: names(&nodes) }).await;
        Ok(nodes)
    }

    /// Returns a node of this name that is online: `previous` if it is one of them, otherwise the first by id.
    ///
    /// # Errors
    /// Returns an error if there is no such node, or if none is online, and the errors of the API.
    pub async fn any_node(&self, spec: &TargetSpec, previous: Option<&str>) -> Result<Node, ProviderError> {
        let nodes = self.find_nodes(spec).await?;
        match choose(&nodes, previous) {
            Some(node) => Ok(node.clone()),
            None => Err(self.no_node(spec, &nodes).await),
        }
    }

    /// Describes why none of `nodes`, the nodes that `spec` names, can be used: there is none, or none is online.
    pub async fn no_node(&self, spec: &TargetSpec, nodes: &[Node]) -> ProviderError {
        let (place, named) = (self.place(), spec.to_string());
        if !nodes.is_empty() {
            let offline: Vec<_> = nodes.iter().map(|node| format!("{node}, {}", node.connection())).collect();
            let message = format!(
                "no managed node that {named:?} names is online in {place}: {}; start it, or find out why its SSM agent \
                 is not connected",
                offline.join("; ")
            );
            return ProviderError { kind: ProviderErrorKind::NotConnected, message };
        }
        let unmanaged = self.unmanaged_instances(spec).await.unwrap_or_default();
        let message = match unmanaged.as_slice() {
            [] => format!(
                "no managed node is named {named:?} in {place}: check the name, the region and the profile; \
                 aws-ssm-forward ls lists the existing nodes"
            ),
            instances => format!(
                "{named:?} is {} in {place}, which Systems Manager does not manage: it needs a running SSM agent, an \
                 instance profile with AmazonSSMManagedInstanceCore, and network access to Systems Manager's endpoints",
                instances.join(", ")
            ),
        };
        ProviderError { kind: ProviderErrorKind::NotFound, message }
    }

    /// Returns where names are looked up, for error messages: `eu-west-1 (profile "staging")`.
    pub fn place(&self) -> String {
        match self.profile_name() {
            Some(profile) => format!("{} (profile {profile:?})", self.settings.region),
            None => self.settings.region.clone(),
        }
    }

    /// Returns the nodes in a VPC that are online, ordered by id.
    ///
    /// # Errors
    /// Returns the errors of Systems Manager and EC2.
    pub async fn nodes_in_vpc(&self, vpc: &str) -> Result<Vec<Node>, ProviderError> {
        let instances = self.instances(&[("vpc-id", vpc), ("instance-state-name", "running")]).await?;
        let mut nodes = self.describe_nodes(vec![filter("PingStatus", ["Online"])]).await?;
        nodes.retain(|node| instances.iter().any(|instance| instance.instance_id == node.id));
        nodes.iter_mut().for_each(|node| node.learn_name(&instances));
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        self.remember_nodes(vpc.to_owned(), &nodes, Vec::new()).await;
        Ok(nodes)
    }

    async fn nodes_with_tags(&self, tags: &[(String, String)]) -> Result<Vec<Node>, ProviderError> {
        let filters = tags.iter().map(|(key, value)| filter(format!("tag:{key}"), [value])).collect();
        let mut nodes = self.describe_nodes(filters).await?;
        if let Some((_, name)) = tags.iter().find(|(key, _)| key == "Name") {
            nodes.iter_mut().for_each(|node| node.name = Some(name.clone()));
        }
        Ok(nodes)
    }

    async fn nodes_named(&self, name: &str) -> Result<Vec<Node>, ProviderError> {
        let tagged = self.nodes_with_tags(&[("Name".to_owned(), name.to_owned())]).await?;
        if !tagged.is_empty() {
            return Ok(tagged);
        }
        let mut nodes = self.describe_nodes(Vec::new()).await?;
        nodes.retain(|node| {
            let names = [&node.name, &node.computer_name];
            names.into_iter().flatten().any(|known| known.eq_ignore_ascii_case(name))
        });
        if nodes.is_empty() && name.contains('.') {
            return self.nodes_of_instances(&[("private-dns-name", name)]).await;
        }
        Ok(nodes)
    }

    async fn nodes_at(&self, address: IpAddr) -> Result<Vec<Node>, ProviderError> {
        let mut nodes = self.describe_nodes(Vec::new()).await?;
        nodes.retain(|node| node.address.as_deref().and_then(|text| text.parse().ok()) == Some(address));
        match address {
            // Only EC2 knows the secondary addresses of an instance.
            IpAddr::V4(_) if nodes.is_empty() => {
                self.nodes_of_instances(&[("network-interface.addresses.private-ip-address", &address.to_string())])
                    .await
            }
            _ => Ok(nodes),
        }
    }

    /// Returns the managed nodes among the instances that EC2 finds. Returns an empty list if the caller may not query EC2.
    async fn nodes_of_instances(&self, filters: &[(&str, &str)]) -> Result<Vec<Node>, ProviderError> {
        let instances = match self.instances(filters).await {
            Ok(instances) => instances,
            Err(error) if error.kind == ProviderErrorKind::AccessDenied => {
                tracing::info!(%error, "EC2 cannot be queried");
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let ids: BTreeSet<_> = instances.iter().map(|instance| &instance.instance_id).take(MAX_VALUES).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut nodes = self.describe_nodes(vec![filter("InstanceIds", ids)]).await?;
        nodes.iter_mut().for_each(|node| node.learn_name(&instances));
        Ok(nodes)
    }

    /// Reads all pages of DescribeInstanceInformation.
    async fn describe_nodes(&self, filters: Vec<InstanceInformationStringFilter>) -> Result<Vec<Node>, ProviderError> {
        self.renewing(|credentials| {
            let filters = filters.clone();
            async move {
                let (mut nodes, mut next) = (Vec::new(), None);
                for _ in 0..MAX_PAGES {
                    let page = self
                        .client
                        .describe_instance_information()
                        .set_filters((!filters.is_empty()).then(|| filters.clone()))
                        .max_results(50)
                        .set_next_token(next)
                        .customize()
                        .config_override(called_by(credentials.clone()))
                        .send()
                        .await
                        .map_err(|error| self.error(CALL, &error))?;
                    nodes.extend(page.instance_information_list.unwrap_or_default().into_iter().filter_map(Node::of));
                    next = page.next_token.filter(|token| !token.is_empty());
                    if next.is_none() {
                        return Ok(nodes);
                    }
                }
                let most = MAX_PAGES * 50;
                let message = format!("there are more than {most} managed nodes: name one by its id or by a tag");
                Err(ProviderError { kind: ProviderErrorKind::Invalid, message })
            }
        })
        .await
    }
}

/// Returns the ids and the Name tags.
fn names(nodes: &[Node]) -> Vec<String> {
    nodes.iter().flat_map(|node| std::iter::once(node.id.clone()).chain(node.name.clone())).collect()
}

fn filter<T: Into<String>>(
    key: impl Into<String>,
    values: impl IntoIterator<Item = T>,
) -> InstanceInformationStringFilter {
    let values = values.into_iter().map(Into::into).collect();
    let filter = InstanceInformationStringFilter::builder().key(key).set_values(Some(values)).build();
    filter.expect("the key and the values are set")
}

impl Node {
    fn of(information: InstanceInformation) -> Option<Self> {
        let known = |text: Option<String>| text.filter(|text| !text.is_empty());
        let platform = match (known(information.platform_name), known(information.platform_version)) {
            (Some(name), Some(version)) => Some(format!("{name} {version}")),
            (name, _) => name,
        };
        let last_ping = information.last_ping_date_time.map(|at| at.secs()).and_then(|secs| u64::try_from(secs).ok());
        Some(Self {
            id: known(information.instance_id)?,
            name: known(information.name),
            computer_name: known(information.computer_name),
            address: known(information.ip_address),
            platform,
            agent_version: known(information.agent_version),
            online: information.ping_status == Some(PingStatus::Online),
            last_ping: last_ping.map(|secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs)),
        })
    }

    fn learn_name(&mut self, instances: &[Instance]) {
        let instance = instances.iter().find(|instance| instance.instance_id == self.id);
        if let Some(name) = instance.and_then(Instance::name) {
            self.name = Some(name.to_owned());
        }
    }
}
