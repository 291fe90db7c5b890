//! EKS: API servers of Kubernetes clusters.

use serde::Deserialize;
use url::Url;

use super::super::rest::EKS;
use super::super::{AwsProvider, ProviderError};
use super::{ServiceEndpoint, ServiceSummary, endpoint, found};
use crate::{ServiceKind, ServiceSpec};

/// Maximum number of pages that are read. A page has 100 clusters.
const MAX_PAGES: usize = 20;

impl AwsProvider {
    /// Returns all clusters in the region.
    pub(super) async fn list_kubernetes(&self) -> Result<Vec<ServiceSummary>, ProviderError> {
        let (mut found, mut next) = (Vec::new(), None::<String>);
        for _ in 0..MAX_PAGES {
            let mut parameters = vec![("maxResults", "100")];
            parameters.extend(next.as_deref().map(|next| ("nextToken", next)));
            let page: ListClusters = self.get_list(EKS, "ListClusters", "/clusters", &parameters).await?;
            for name in page.clusters {
                // The cluster may have been deleted in the meantime.
                if let Some(cluster) = self.cluster(&name).await? {
                    found.push(cluster.summary(name));
                }
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn cluster(&self, name: &str) -> Result<Option<Cluster>, ProviderError> {
        let answer = self.get::<DescribeCluster>(EKS, "DescribeCluster", "/clusters/", name).await;
        Ok(found(answer)?.map(|answer| answer.cluster))
    }

    pub(super) async fn find_kubernetes(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let Some(cluster) = self.cluster(&spec.name).await? else { return Err(self.no_service(spec, "cluster")) };
        let (host, port) = cluster.at().unzip();
        let vpc = cluster.resources_vpc_config.unwrap_or_default();
        Ok(ServiceEndpoint {
            vpc: vpc.vpc_id,
            security_groups: vpc.cluster_security_group_id.into_iter().chain(vpc.security_group_ids).collect(),
            tls: true,
            ca_data: cluster.certificate_authority.and_then(|authority| authority.data),
            ..endpoint(spec, "kubernetes", host, port)?
        })
    }
}

#[derive(Debug, Deserialize)]
struct DescribeCluster {
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cluster {
    endpoint: Option<String>,
    #[serde(default)]
    status: String,
    certificate_authority: Option<CertificateAuthority>,
    resources_vpc_config: Option<VpcConfig>,
}

impl Cluster {
    fn at(&self) -> Option<(String, u16)> {
        let url = Url::parse(self.endpoint.as_deref()?).ok()?;
        Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
    }

    fn summary(self, name: String) -> ServiceSummary {
        let at = self.at().map(|(host, port)| format!("{host}:{port}"));
        ServiceSummary::new(ServiceKind::Eks, name, "kubernetes", self.status.to_lowercase(), at)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListClusters {
    #[serde(default)]
    clusters: Vec<String>,
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CertificateAuthority {
    data: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VpcConfig {
    vpc_id: Option<String>,
    cluster_security_group_id: Option<String>,
    security_group_ids: Vec<String>,
}
