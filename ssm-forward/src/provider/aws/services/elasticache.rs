//! ElastiCache: replication groups, clusters and serverless caches share one name space.

use serde::Deserialize;

use super::super::query::ELASTICACHE;
use super::super::xml::List;
use super::super::{AwsProvider, ProviderError};
use super::{Endpoint, ServiceEndpoint, SubnetGroup, endpoint, found};
use crate::ServiceSpec;

impl AwsProvider {
    pub(super) async fn find_cache(&self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let call = "DescribeReplicationGroups";
        let groups =
            self.query::<DescribeReplicationGroups>(ELASTICACHE, call, &[("ReplicationGroupId", &spec.name)]).await;
        if let Some(group) = found(groups)?.and_then(|answer| answer.result.groups.items.into_iter().next()) {
            let member = match group.members.items.first() {
                Some(member) => self.cache_cluster(member).await?,
                None => None,
            };
            let (vpc, security_groups) = match &member {
                Some(member) => (self.vpc_of_cache_subnets(member.subnet_group.as_deref()).await, member.groups()),
                None => (None, Vec::new()),
            };
            return Ok(ServiceEndpoint { vpc, security_groups, ..group.endpoint(spec)? });
        }
        if let Some(cluster) = self.cache_cluster(&spec.name).await? {
            let vpc = self.vpc_of_cache_subnets(cluster.subnet_group.as_deref()).await;
            let security_groups = cluster.groups();
            return Ok(ServiceEndpoint { vpc, security_groups, ..cluster.endpoint(spec)? });
        }
        let call = "DescribeServerlessCaches";
        let caches =
            self.query::<DescribeServerlessCaches>(ELASTICACHE, call, &[("ServerlessCacheName", &spec.name)]).await;
        match found(caches)?.and_then(|answer| answer.result.caches.items.into_iter().next()) {
            Some(cache) => cache.endpoint(spec),
            None => Err(self.no_service(spec, "cache")),
        }
    }

    async fn cache_cluster(&self, name: &str) -> Result<Option<CacheCluster>, ProviderError> {
        let parameters = [("CacheClusterId", name), ("ShowCacheNodeInfo", "true")];
        let answer = self.query::<DescribeCacheClusters>(ELASTICACHE, "DescribeCacheClusters", &parameters);
        Ok(found(answer.await)?.and_then(|answer| answer.result.clusters.items.into_iter().next()))
    }

    async fn vpc_of_cache_subnets(&self, group: Option<&str>) -> Option<String> {
        let group = group?;
        let parameters = [("CacheSubnetGroupName", group)];
        let call = self.query::<DescribeCacheSubnetGroups>(ELASTICACHE, "DescribeCacheSubnetGroups", &parameters);
        match call.await {
            Ok(answer) => answer.result.groups.items.into_iter().next().and_then(|group| group.vpc_id),
            Err(error) => {
                tracing::info!(%error, group, "the VPC is not known");
                None
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct DescribeReplicationGroups {
    #[serde(rename = "DescribeReplicationGroupsResult")]
    result: ReplicationGroups,
}

#[derive(Debug, Deserialize)]
struct ReplicationGroups {
    #[serde(rename = "ReplicationGroups", default)]
    groups: List<ReplicationGroup>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReplicationGroup {
    engine: Option<String>,
    configuration_endpoint: Option<Endpoint>,
    #[serde(rename = "MemberClusters", default)]
    members: List<String>,
    #[serde(default)]
    node_groups: List<NodeGroup>,
    #[serde(default)]
    transit_encryption_enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NodeGroup {
    primary_endpoint: Option<Endpoint>,
    reader_endpoint: Option<Endpoint>,
}

impl ReplicationGroup {
    /// With cluster mode, one endpoint describes all shards. Without it, a group has one endpoint for writing and one
    /// for reading.
    fn endpoint(self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let shard = self.node_groups.items.into_iter().next().unwrap_or_default();
        let of_shard = if spec.reader { shard.reader_endpoint } else { shard.primary_endpoint };
        let at = self.configuration_endpoint.or(of_shard).unwrap_or_default();
        let engine = self.engine.unwrap_or_else(|| "redis".to_owned());
        let tls = self.transit_encryption_enabled;
        Ok(ServiceEndpoint { tls, ..endpoint(spec, &engine, at.address, at.port)? })
    }
}

#[derive(Debug, Deserialize)]
struct DescribeCacheClusters {
    #[serde(rename = "DescribeCacheClustersResult")]
    result: CacheClusters,
}

#[derive(Debug, Deserialize)]
struct CacheClusters {
    #[serde(rename = "CacheClusters", default)]
    clusters: List<CacheCluster>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CacheCluster {
    engine: Option<String>,
    configuration_endpoint: Option<Endpoint>,
    #[serde(default)]
    cache_nodes: List<CacheNode>,
    #[serde(rename = "CacheSubnetGroupName")]
    subnet_group: Option<String>,
    #[serde(default)]
    security_groups: List<SecurityGroupMembership>,
    #[serde(default)]
    transit_encryption_enabled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SecurityGroupMembership {
    security_group_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CacheNode {
    endpoint: Option<Endpoint>,
}

impl CacheCluster {
    fn groups(&self) -> Vec<String> {
        self.security_groups.items.iter().filter_map(|group| group.security_group_id.clone()).collect()
    }

    fn endpoint(self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let first = self.cache_nodes.items.into_iter().next().and_then(|node| node.endpoint);
        let at = self.configuration_endpoint.or(first).filter(|_| !spec.reader).unwrap_or_default();
        let engine = self.engine.unwrap_or_else(|| "redis".to_owned());
        let tls = self.transit_encryption_enabled;
        Ok(ServiceEndpoint { tls, ..endpoint(spec, &engine, at.address, at.port)? })
    }
}

#[derive(Debug, Deserialize)]
struct DescribeCacheSubnetGroups {
    #[serde(rename = "DescribeCacheSubnetGroupsResult")]
    result: CacheSubnetGroups,
}

#[derive(Debug, Deserialize)]
struct CacheSubnetGroups {
    #[serde(rename = "CacheSubnetGroups", default)]
    groups: List<SubnetGroup>,
}

#[derive(Debug, Deserialize)]
struct DescribeServerlessCaches {
    #[serde(rename = "DescribeServerlessCachesResult")]
    result: ServerlessCaches,
}

#[derive(Debug, Deserialize)]
struct ServerlessCaches {
    #[serde(rename = "ServerlessCaches", default)]
    caches: List<ServerlessCache>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServerlessCache {
    engine: Option<String>,
    endpoint: Option<Endpoint>,
    reader_endpoint: Option<Endpoint>,
}

impl ServerlessCache {
    /// Its VPC can only be found by its subnets, through EC2.
    fn endpoint(self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let at = if spec.reader { self.reader_endpoint } else { self.endpoint }.unwrap_or_default();
        let engine = self.engine.unwrap_or_else(|| "redis".to_owned());
        Ok(ServiceEndpoint { tls: true, ..endpoint(spec, &engine, at.address, at.port)? })
    }
}
