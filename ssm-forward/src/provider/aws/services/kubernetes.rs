//! EKS: the API servers of Kubernetes clusters.

use serde::Deserialize;
use url::Url;

use super::super::rest::EKS;
use super::super::{AwsProvider, ProviderError};
use super::{ServiceEndpoint, endpoint, found};
use crate::ServiceSpec;

impl AwsProvider {
    pub(super) async fn find_kubernetes(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let answer = self.get::<DescribeCluster>(EKS, "DescribeCluster", "/clusters/", &spec.name);
        let Some(answer) = found(answer.await)? else { return Err(self.no_service(spec, "cluster")) };
        let cluster = answer.cluster;
        let url = cluster.endpoint.as_deref().and_then(|endpoint| Url::parse(endpoint).ok());
        let host = url.as_ref().and_then(|url| url.host_str()).map(str::to_owned);
        let port = url.as_ref().and_then(Url::port_or_known_default);
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
    certificate_authority: Option<CertificateAuthority>,
    resources_vpc_config: Option<VpcConfig>,
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
