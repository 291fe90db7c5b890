//! Looks up databases and other services by name: their endpoints, and the information that their clients need.

mod domain;
mod elasticache;
mod kubernetes;
mod rds;

use serde::Deserialize;

use super::cache::Found;
use super::{AwsProvider, ProviderError, ProviderErrorKind};
use crate::{ServiceKind, ServiceSpec};

/// The endpoint of a service, as seen by a managed node in its VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceEndpoint {
    /// The requested service.
    pub spec: ServiceSpec,
    /// The engine as AWS names it: `mysql`, `aurora-postgresql`, `redis`, `opensearch`, `kubernetes`…
    pub engine: String,
    /// The name of the host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The VPC, if known.
    pub vpc: Option<String>,
    /// The security groups that apply to the service, as far as they are known.
    pub security_groups: Vec<String>,
    /// RDS: the id in IAM policies, `db-…` or `cluster-…`.
    pub resource_id: Option<String>,
    /// RDS: whether IAM database authentication is enabled.
    pub iam_auth: bool,
    /// Whether clients must use TLS. RDS always offers it.
    pub tls: bool,
    /// RDS: the name of the master user.
    pub user: Option<String>,
    /// RDS: the name of the first database.
    pub database: Option<String>,
    /// EKS: the PEM text of the certificate authority, in Base64.
    pub ca_data: Option<String>,
}

/// A service in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceSummary {
    /// The spec that selects this service.
    pub spec: ServiceSpec,
    /// The engine as AWS names it.
    pub engine: String,
    /// The state, as AWS names it.
    pub status: String,
    /// `host:port`. `None` if the service has no endpoint yet.
    pub endpoint: Option<String>,
}

impl AwsProvider {
    /// Looks up a service.
    ///
    /// # Errors
    /// [`ProviderErrorKind::NotFound`] if there is no service of this name in the region, or the errors of the API.
    pub async fn find_service(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let found = match spec.kind {
            ServiceKind::Rds => self.find_rds(spec).await,
            ServiceKind::ElastiCache => self.find_cache(spec).await,
            ServiceKind::OpenSearch => self.find_domain(spec).await,
            ServiceKind::Eks => self.find_kubernetes(spec).await,
        }?;
        self.remember(Found { nodes: None, names: vec![spec.to_string()] }).await;
        Ok(found)
    }

    /// Returns all services of a kind in the region.
    ///
    /// # Errors
    /// Returns the errors of the API.
    pub async fn list_services(&self, kind: ServiceKind) -> Result<Vec<ServiceSummary>, ProviderError> {
        let services = match kind {
            ServiceKind::Rds => self.list_rds().await,
            ServiceKind::ElastiCache => self.list_caches().await,
            ServiceKind::OpenSearch => self.list_domains().await,
            ServiceKind::Eks => self.list_kubernetes().await,
        }?;
        let names = services.iter().map(|service| service.spec.to_string()).collect();
        self.remember(Found { nodes: None, names }).await;
        Ok(services)
    }

    fn no_service(&self, spec: &ServiceSpec, what: &str) -> ProviderError {
        let (name, place) = (&spec.name, self.place());
        let message = format!("there is no {what} {name:?} in {place}: check the name, the region and the profile");
        ProviderError { kind: ProviderErrorKind::NotFound, message }
    }
}

/// Converts a "not found" error to `None`.
fn found<O>(answer: Result<O, ProviderError>) -> Result<Option<O>, ProviderError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind == ProviderErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn endpoint(
    spec: &ServiceSpec,
    engine: &str,
    host: Option<String>,
    port: Option<u16>,
) -> Result<ServiceEndpoint, ProviderError> {
    let (Some(host), Some(port)) = (host.filter(|host| !host.is_empty()), port) else {
        let role = if spec.reader { "reader " } else { "" };
        let message = format!("{spec} has no {role}endpoint: it is being created or deleted, or has none of this kind");
        return Err(ProviderError { kind: ProviderErrorKind::NotFound, message });
    };
    Ok(ServiceEndpoint {
        spec: spec.clone(),
        engine: engine.to_owned(),
        host,
        port,
        vpc: None,
        security_groups: Vec::new(),
        resource_id: None,
        iam_auth: false,
        tls: false,
        user: None,
        database: None,
        ca_data: None,
    })
}

impl ServiceSummary {
    fn new(
        kind: ServiceKind,
        name: String,
        engine: impl Into<String>,
        status: impl Into<String>,
        endpoint: Option<String>,
    ) -> Self {
        let spec = ServiceSpec { kind, name, reader: false };
        Self { spec, engine: engine.into(), status: status.into(), endpoint }
    }
}

/// An endpoint, as most services describe it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    address: Option<String>,
    port: Option<u16>,
}

impl Endpoint {
    fn text(self) -> Option<String> {
        Some(format!("{}:{}", self.address?, self.port?))
    }
}

/// A subnet group, as described by RDS and ElastiCache.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SubnetGroup {
    vpc_id: Option<String>,
}
