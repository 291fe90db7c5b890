//! Sessions by name. The node and the service are looked up for each session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use url::Url;

use super::{
    AwsProvider, BoxFuture, DataKey, Node, ProviderError, ProviderErrorKind, ServiceEndpoint, SessionProvider,
    SessionTicket, StartRequest,
};
use crate::{ServiceSpec, TargetSpec};

/// The node of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeSource {
    /// This target, in the form that StartSession accepts or [`AwsProvider`] looks up.
    Fixed(String),
    /// Any node of this name that is online: the node of the previous session if it is one of them, otherwise the first by id.
    AnyOf(TargetSpec),
    /// Any node that is online in the VPC of the service: the node of the previous session if it is one of them, otherwise the
    /// first by id whose agent can forward to other hosts.
    InVpcOfService,
}

/// A provider that looks up the node and the destination by name for each session. So a tunnel continues to work when its instance
/// is replaced, or when the endpoint of a database moves to another host.
#[derive(Debug)]
pub struct NamedProvider {
    aws: Arc<AwsProvider>,
    source: NodeSource,
    service: Option<ServiceSpec>,
    found: Mutex<Found>,
}

/// The result of the last lookup.
#[derive(Debug, Default)]
struct Found {
    last: Option<Destination>,
    /// The origin of the last node, if no session has been started on it yet.
    unused: Option<Origin>,
}

/// The origin of the information about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// An answer of AWS.
    Aws,
    /// The provider's [`LookupCache`](super::LookupCache), so the node may not exist any longer.
    Cache,
}

/// The destination of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Destination {
    /// The managed node, as StartSession accepts it.
    pub node: String,
    /// Information about the node, if it was looked up.
    pub details: Option<Node>,
    /// The service behind the node, if one was requested.
    pub service: Option<ServiceEndpoint>,
}

impl NamedProvider {
    /// Creates a provider that uses `aws`. If there is a service, its host and port replace the parameters `host` and `portNumber`
    /// of each request that has a `host`. Makes no call yet.
    pub fn new(aws: Arc<AwsProvider>, source: NodeSource, service: Option<ServiceSpec>) -> Self {
        Self { aws, source, service, found: Mutex::default() }
    }

    /// Looks up the destination of the next session. The next started session uses the result without another lookup.
    /// The node may come from the provider's [`LookupCache`](super::LookupCache).
    ///
    /// # Errors
    /// Returns an error if nothing has the name, or if no node of this name is online, and the errors of the API.
    pub async fn find(&self) -> Result<Destination, ProviderError> {
        let (found, origin) = self.look_up(Origin::Cache).await?;
        *self.found() = Found { last: Some(found.clone()), unused: Some(origin) };
        Ok(found)
    }

    /// Returns the destination of the session that is about to start. If the session replaces another one, something has changed,
    /// so AWS is called.
    async fn destination(&self) -> Result<(Destination, Origin), ProviderError> {
        if let Found { last: Some(last), unused } = &mut *self.found()
            && let Some(origin) = unused.take()
        {
            return Ok((last.clone(), origin));
        }
        self.look_up_again().await.map(|found| (found, Origin::Aws))
    }

    async fn look_up_again(&self) -> Result<Destination, ProviderError> {
        let (found, _) = self.look_up(Origin::Aws).await?;
        self.found().last = Some(found.clone());
        Ok(found)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up the node and the service. The node may come from the cache if `best` is [`Origin::Cache`].
    async fn look_up(&self, best: Origin) -> Result<(Destination, Origin), ProviderError> {
        let service = match &self.service {
            Some(spec) => Some(self.aws.find_service(spec).await?),
            None => None,
        };
        let previous = self.found().last.as_ref().map(|last| last.node.clone());
        let previous = previous.as_deref();
        if let NodeSource::Fixed(target) = &self.source {
            return Ok((Destination { node: target.clone(), details: None, service }, Origin::Aws));
        }
        let cached = match best {
            Origin::Cache => self.cached_node(service.as_ref(), previous).await,
            Origin::Aws => None,
        };
        let (node, origin) = match (cached, &self.source) {
            (Some(node), _) => (node, Origin::Cache),
            (None, NodeSource::AnyOf(spec)) => (self.aws.any_node(spec, previous).await?, Origin::Aws),
            (None, _) => (self.node_in_vpc(service.as_ref(), previous).await?, Origin::Aws),
        };
        Ok((Destination { node: node.id.clone(), details: Some(node), service }, origin))
    }

    async fn cached_node(&self, service: Option<&ServiceEndpoint>, previous: Option<&str>) -> Option<Node> {
        let nodes = match &self.source {
            NodeSource::Fixed(_) => return None,
            NodeSource::AnyOf(spec) => self.aws.remembered_nodes(spec).await?,
            NodeSource::InVpcOfService => {
                let mut nodes = self.aws.remembered(service?.vpc.clone()?).await?;
                nodes.retain(Node::forwards_to_hosts);
                nodes
            }
        };
        choose(&nodes, previous).cloned()
    }

    async fn start_at(&self, request: &StartRequest, to: Destination) -> Result<SessionTicket, ProviderError> {
        let Destination { node, service, .. } = to;
        let mut request = StartRequest { target: node.clone(), ..request.clone() };
        let leads_to_host = request.parameters.contains_key("host") || request.offered.contains_key("host");
        if let Some(service) = service.filter(|_| leads_to_host) {
            for (name, value) in [("host", service.host), ("portNumber", service.port.to_string())] {
                // For a custom document, the parameters are only offered, because it may not define them.
                let is_offered = request.offered.contains_key(name);
                let place = if is_offered { &mut request.offered } else { &mut request.parameters };
                place.insert(name.to_owned(), vec![value]);
            }
        }
        let ticket = self.aws.start(&request).await?;
        Ok(SessionTicket { target: ticket.target.or(Some(node)), ..ticket })
    }

    async fn node_in_vpc(
        &self,
        service: Option<&ServiceEndpoint>,
        previous: Option<&str>,
    ) -> Result<Node, ProviderError> {
        let Some((service, vpc)) = service.and_then(|service| Some((service, service.vpc.as_deref()?))) else {
            let service = self.service.as_ref().map_or_else(String::new, |spec| format!(" of {spec}"));
            let message = format!("the VPC{service} is not known: name the managed node that reaches it with --target");
            return Err(ProviderError { kind: ProviderErrorKind::Invalid, message });
        };
        let mut nodes = self.aws.nodes_in_vpc(vpc).await?;
        nodes.retain(Node::forwards_to_hosts);
        choose(&nodes, previous).cloned().ok_or_else(|| {
            let (spec, place) = (&service.spec, self.aws.place());
            let message = format!(
                "no managed node is online in {vpc}, the VPC of {spec}, in {place}: start one whose security group may \
                 reach the service, or name a node with --target"
            );
            ProviderError { kind: ProviderErrorKind::NotConnected, message }
        })
    }
}

/// Whether the error may mean that the node does not exist any longer. `AccessDenied` is included because a policy with conditions
/// on tags denies access to an instance that does not exist.
fn is_about_the_node(error: &ProviderError) -> bool {
    use ProviderErrorKind as Kind;
    matches!(error.kind, Kind::NotConnected | Kind::NotFound | Kind::Invalid | Kind::AccessDenied)
}

/// Chooses the node of the previous session if it is online, otherwise the first node that is online.
pub(super) fn choose<'a>(nodes: &'a [Node], previous: Option<&str>) -> Option<&'a Node> {
    let mut online = nodes.iter().filter(|node| node.online);
    let same = previous.and_then(|id| online.clone().find(|node| node.id == id));
    same.or_else(|| online.next())
}

impl SessionProvider for NamedProvider {
    fn start<'a>(&'a self, request: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        Box::pin(async move {
            let (destination, origin) = self.destination().await?;
            let node = destination.node.clone();
            match self.start_at(request, destination).await {
                Err(refused) if origin == Origin::Cache && is_about_the_node(&refused) => {
                    tracing::info!(%refused, node, "the node is looked up again");
                    let found = self.look_up_again().await?;
                    if found.node == node { Err(refused) } else { self.start_at(request, found).await }
                }
                started => started,
            }
        })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        SessionProvider::resume(&*self.aws, session_id)
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        SessionProvider::terminate(&*self.aws, session_id)
    }

    fn sign_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        self.aws.sign_upgrade(url)
    }

    fn sign_refused_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        self.aws.sign_refused_upgrade(url)
    }

    fn data_key<'a>(
        &'a self,
        key_id: &'a str,
        context: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<DataKey, ProviderError>> {
        SessionProvider::data_key(&*self.aws, key_id, context)
    }
}
