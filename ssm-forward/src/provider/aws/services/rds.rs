//! RDS: instances, and Aurora clusters.

use std::fmt::Debug;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::query::RDS;
use super::super::xml::List;
use super::super::{AwsProvider, ProviderError};
use super::{Endpoint, ServiceEndpoint, ServiceSummary, SubnetGroup, endpoint, found};
use crate::{ServiceKind, ServiceSpec};

/// Maximum number of pages that are read. A page has 100 items.
const MAX_PAGES: usize = 20;

impl AwsProvider {
    /// Returns all instances and clusters of RDS in the region.
    pub(super) async fn list_rds(&self) -> Result<Vec<ServiceSummary>, ProviderError> {
        let mut found = Vec::new();
        let mut marker = None;
        for _ in 0..MAX_PAGES {
            let page: DescribeDbClusters = self.page("DescribeDBClusters", marker.as_deref()).await?;
            found.extend(page.result.clusters.items.into_iter().map(DbCluster::summary));
            marker = page.result.marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                break;
            }
        }
        for _ in 0..MAX_PAGES {
            let page: DescribeDbInstances = self.page("DescribeDBInstances", marker.as_deref()).await?;
            found.extend(page.result.instances.items.into_iter().map(DbInstance::summary));
            marker = page.result.marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn page<O>(&self, call: &'static str, marker: Option<&str>) -> Result<O, ProviderError>
    where
        O: DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let parameters: Vec<_> = marker.map(|marker| ("Marker", marker)).into_iter().collect();
        self.query(RDS, call, &parameters).await
    }

    pub(super) async fn find_rds(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        if !spec.reader
            && let Some(instance) = self.db_instance(&spec.name).await?
        {
            return instance.endpoint(spec);
        }
        let cluster = found(
            self.query::<DescribeDbClusters>(RDS, "DescribeDBClusters", &[("DBClusterIdentifier", &spec.name)]).await,
        )?;
        let Some(cluster) = cluster.and_then(|answer| answer.result.clusters.items.into_iter().next()) else {
            return Err(self.no_service(spec, "DB instance or cluster"));
        };
        let vpc = match &cluster.subnet_group {
            Some(group) => self.vpc_of_db_subnets(group).await,
            None => None,
        };
        cluster.endpoint(spec, vpc)
    }

    async fn db_instance(&self, name: &str) -> Result<Option<DbInstance>, ProviderError> {
        let answer =
            self.query::<DescribeDbInstances>(RDS, "DescribeDBInstances", &[("DBInstanceIdentifier", name)]).await;
        Ok(found(answer)?.and_then(|answer| answer.result.instances.items.into_iter().next()))
    }

    /// Returns the VPC of a subnet group. An unknown VPC is not an error, because the user may name the node.
    async fn vpc_of_db_subnets(&self, group: &str) -> Option<String> {
        let parameters = [("DBSubnetGroupName", group)];
        match self.query::<DescribeDbSubnetGroups>(RDS, "DescribeDBSubnetGroups", &parameters).await {
            Ok(answer) => answer.result.groups.items.into_iter().next().and_then(|group| group.vpc_id),
            Err(error) => {
                tracing::info!(%error, group, "the VPC is not known");
                None
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct DescribeDbInstances {
    #[serde(rename = "DescribeDBInstancesResult")]
    result: DbInstances,
}

#[derive(Debug, Deserialize)]
struct DbInstances {
    #[serde(rename = "DBInstances", default)]
    instances: List<DbInstance>,
    #[serde(rename = "Marker")]
    marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DbInstance {
    #[serde(rename = "DBInstanceIdentifier")]
    identifier: String,
    engine: String,
    #[serde(rename = "DBInstanceStatus", default)]
    status: String,
    endpoint: Option<Endpoint>,
    #[serde(rename = "DBSubnetGroup")]
    subnet_group: Option<SubnetGroup>,
    #[serde(rename = "VpcSecurityGroups", default)]
    security_groups: List<SecurityGroupMembership>,
    #[serde(rename = "IAMDatabaseAuthenticationEnabled", default)]
    iam_auth: bool,
    #[serde(rename = "DbiResourceId")]
    resource_id: Option<String>,
    master_username: Option<String>,
    #[serde(rename = "DBName")]
    database: Option<String>,
}

impl DbInstance {
    fn endpoint(self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let at = self.endpoint.unwrap_or_default();
        Ok(ServiceEndpoint {
            vpc: self.subnet_group.and_then(|group| group.vpc_id),
            security_groups: ids(self.security_groups),
            resource_id: self.resource_id,
            iam_auth: self.iam_auth,
            tls: true,
            user: self.master_username,
            database: self.database,
            ..endpoint(spec, &self.engine, at.address, at.port)?
        })
    }

    fn summary(self) -> ServiceSummary {
        let at = self.endpoint.and_then(Endpoint::text);
        ServiceSummary::new(ServiceKind::Rds, self.identifier, self.engine, self.status, at)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SecurityGroupMembership {
    vpc_security_group_id: String,
}

fn ids(groups: List<SecurityGroupMembership>) -> Vec<String> {
    groups.items.into_iter().map(|group| group.vpc_security_group_id).collect()
}

#[derive(Debug, Deserialize)]
struct DescribeDbClusters {
    #[serde(rename = "DescribeDBClustersResult")]
    result: DbClusters,
}

#[derive(Debug, Deserialize)]
struct DbClusters {
    #[serde(rename = "DBClusters", default)]
    clusters: List<DbCluster>,
    #[serde(rename = "Marker")]
    marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DbCluster {
    #[serde(rename = "DBClusterIdentifier")]
    identifier: String,
    engine: String,
    #[serde(default)]
    status: String,
    endpoint: Option<String>,
    reader_endpoint: Option<String>,
    port: Option<u16>,
    #[serde(rename = "DBSubnetGroup")]
    subnet_group: Option<String>,
    #[serde(rename = "VpcSecurityGroups", default)]
    security_groups: List<SecurityGroupMembership>,
    #[serde(rename = "IAMDatabaseAuthenticationEnabled", default)]
    iam_auth: bool,
    #[serde(rename = "DbClusterResourceId")]
    resource_id: Option<String>,
    master_username: Option<String>,
    database_name: Option<String>,
}

impl DbCluster {
    fn endpoint(self, spec: &ServiceSpec, vpc: Option<String>) -> Result<ServiceEndpoint, ProviderError> {
        let host = if spec.reader { self.reader_endpoint } else { self.endpoint };
        Ok(ServiceEndpoint {
            vpc,
            security_groups: ids(self.security_groups),
            resource_id: self.resource_id,
            iam_auth: self.iam_auth,
            tls: true,
            user: self.master_username,
            database: self.database_name,
            ..endpoint(spec, &self.engine, host, self.port)?
        })
    }

    fn summary(self) -> ServiceSummary {
        let at = self.endpoint.zip(self.port).map(|(host, port)| format!("{host}:{port}"));
        ServiceSummary::new(ServiceKind::Rds, self.identifier, self.engine, self.status, at)
    }
}

#[derive(Debug, Deserialize)]
struct DescribeDbSubnetGroups {
    #[serde(rename = "DescribeDBSubnetGroupsResult")]
    result: DbSubnetGroups,
}

#[derive(Debug, Deserialize)]
struct DbSubnetGroups {
    #[serde(rename = "DBSubnetGroups", default)]
    groups: List<SubnetGroup>,
}
