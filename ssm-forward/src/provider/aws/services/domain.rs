//! OpenSearch Service: domains.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::rest::OPENSEARCH;
use super::super::{AwsProvider, ProviderError};
use super::{ServiceEndpoint, endpoint, found};
use crate::ServiceSpec;

const HTTPS: u16 = 443;

impl AwsProvider {
    pub(super) async fn find_domain(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let answer =
            self.get::<DescribeDomain>(OPENSEARCH, "DescribeDomain", "/2021-01-01/opensearch/domain/", &spec.name);
        let Some(answer) = found(answer.await)? else { return Err(self.no_service(spec, "domain")) };
        let domain = answer.domain_status;
        let host = domain.endpoint.or_else(|| domain.endpoints.and_then(|mut endpoints| endpoints.remove("vpc")));
        let vpc = domain.vpc_options.unwrap_or_default();
        Ok(ServiceEndpoint {
            vpc: vpc.vpc_id,
            security_groups: vpc.security_group_ids,
            tls: true,
            ..endpoint(spec, "opensearch", host, Some(HTTPS))?
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeDomain {
    domain_status: Domain,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Domain {
    endpoint: Option<String>,
    endpoints: Option<BTreeMap<String, String>>,
    #[serde(rename = "VPCOptions")]
    vpc_options: Option<VpcOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VpcOptions {
    #[serde(rename = "VPCId")]
    vpc_id: Option<String>,
    #[serde(rename = "SecurityGroupIds")]
    security_group_ids: Vec<String>,
}
