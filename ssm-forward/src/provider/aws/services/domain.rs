//! Domains of OpenSearch Service.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::rest::OPENSEARCH;
use super::super::{AwsProvider, ProviderError};
use super::{ServiceEndpoint, ServiceSummary, endpoint, found};
use crate::{ServiceKind, ServiceSpec};

const HTTPS: u16 = 443;

impl AwsProvider {
    /// Returns all domains in the region.
    pub(super) async fn list_domains(&self) -> Result<Vec<ServiceSummary>, ProviderError> {
        let names: ListDomainNames = self.get_list(OPENSEARCH, "ListDomainNames", "/2021-01-01/domain", &[]).await?;
        let mut domains = Vec::new();
        for DomainName { domain_name } in names.domain_names {
            // The domain may have been deleted in the meantime.
            if let Some(domain) = self.domain(&domain_name).await? {
                domains.push(domain.summary(domain_name));
            }
        }
        Ok(domains)
    }

    async fn domain(&self, name: &str) -> Result<Option<Domain>, ProviderError> {
        let path = "/2021-01-01/opensearch/domain/";
        let answer = self.get::<DescribeDomain>(OPENSEARCH, "DescribeDomain", path, name).await;
        Ok(found(answer)?.map(|answer| answer.domain_status))
    }

    pub(super) async fn find_domain(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let Some(mut domain) = self.domain(&spec.name).await? else { return Err(self.no_service(spec, "domain")) };
        let vpc = domain.vpc_options.take().unwrap_or_default();
        let host = domain.host();
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
    /// For example `OpenSearch_2.11` or `Elasticsearch_7.10`.
    engine_version: Option<String>,
    domain_processing_status: Option<String>,
    #[serde(default)]
    created: bool,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    processing: bool,
}

impl Domain {
    fn host(self) -> Option<String> {
        self.endpoint.or_else(|| self.endpoints.and_then(|mut endpoints| endpoints.remove("vpc")))
    }

    /// Returns the status. Some answers contain no status text, only flags.
    fn status(&self) -> String {
        let of_flags = match self {
            Self { deleted: true, .. } => "deleting",
            Self { created: false, .. } => "creating",
            Self { processing: true, .. } => "processing",
            _ => "active",
        };
        self.domain_processing_status.as_deref().unwrap_or(of_flags).to_lowercase()
    }

    fn summary(self, name: String) -> ServiceSummary {
        let engine = self.engine_version.as_deref().and_then(|version| version.split('_').next());
        let (engine, status) = (engine.unwrap_or("opensearch").to_lowercase(), self.status());
        let at = self.host().map(|host| format!("{host}:{HTTPS}"));
        ServiceSummary::new(ServiceKind::OpenSearch, name, engine, status, at)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListDomainNames {
    #[serde(default)]
    domain_names: Vec<DomainName>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DomainName {
    domain_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VpcOptions {
    #[serde(rename = "VPCId")]
    vpc_id: Option<String>,
    #[serde(rename = "SecurityGroupIds")]
    security_group_ids: Vec<String>,
}
