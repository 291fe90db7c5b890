//! ElastiCache: replication groups, clusters and serverless caches, which share one name space.

use serde::Deserialize;

use super::super::query::ELASTICACHE;
use super::super::xml::List;
use super::super::{AwsProvider, ProviderError};
use super::{Endpoint, ServiceEndpoint, ServiceSummary, SubnetGroup, endpoint, found};
use crate::{ServiceKind, ServiceSpec};

/// Maximum number of pages that are read. A page has 100 or 50 items.
const MAX_PAGES: usize = 20;

impl AwsProvider {
    /// Returns all replication groups, clusters outside of a group, and serverless caches in the region.
    pub(super) async fn list_caches(&self) -> Result<Vec<ServiceSummary>, ProviderError> {
        let mut found = Vec::new();
        let mut marker = None;
        for _ in 0..MAX_PAGES {
            let parameters: Vec<_> = page("Marker", marker.as_deref()).collect();
            let answer: DescribeReplicationGroups =
                self.query(ELASTICACHE, "DescribeReplicationGroups", &parameters).await?;
            found.extend(answer.result.groups.items.into_iter().map(ReplicationGroup::summary));
            marker = answer.result.marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                break;
            }
        }
        for _ in 0..MAX_PAGES {
            let mut parameters =
                vec![("ShowCacheNodeInfo", "true"), ("ShowCacheClustersNotInReplicationGroups", "true")];
            parameters.extend(page("Marker", marker.as_deref()));
            let answer: DescribeCacheClusters = self.query(ELASTICACHE, "DescribeCacheClusters", &parameters).await?;
            let clusters = answer.result.clusters.items.into_iter();
            found.extend(clusters.filter(|cluster| cluster.group.is_none()).map(CacheCluster::summary));
            marker = answer.result.marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                break;
            }
        }
        for _ in 0..MAX_PAGES {
            let parameters: Vec<_> = page("NextToken", marker.as_deref()).collect();
            let answer: DescribeServerlessCaches =
                self.query(ELASTICACHE, "DescribeServerlessCaches", &parameters).await?;
            found.extend(answer.result.caches.items.into_iter().map(ServerlessCache::summary));
            marker = answer.result.next_token.filter(|token| !token.is_empty());
            if marker.is_none() {
                break;
            }
        }
        Ok(found)
    }

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

/// Returns the parameter for the next page.
fn page<'a>(name: &'a str, marker: Option<&'a str>) -> impl Iterator<Item = (&'a str, &'a str)> {
    marker.map(|marker| (name, marker)).into_iter()
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
    #[serde(rename = "Marker")]
    marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReplicationGroup {
    #[serde(rename = "ReplicationGroupId")]
    id: String,
    #[serde(default)]
    status: String,
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
    /// Returns the endpoint of a group. With cluster mode, one endpoint serves all shards. Without it, a group has one endpoint for
    /// writing and one for reading.
    fn endpoint(self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let (engine, tls) = (engine(self.engine.as_deref()), self.transit_encryption_enabled);
        let at = self.at(spec.reader).unwrap_or_default();
        Ok(ServiceEndpoint { tls, ..endpoint(spec, &engine, at.address, at.port)? })
    }

    fn at(self, reader: bool) -> Option<Endpoint> {
        let shard = self.node_groups.items.into_iter().next().unwrap_or_default();
        let of_shard = if reader { shard.reader_endpoint } else { shard.primary_endpoint };
        self.configuration_endpoint.or(of_shard)
    }

    fn summary(self) -> ServiceSummary {
        let (id, engine, status) = (self.id.clone(), engine(self.engine.as_deref()), self.status.clone());
        ServiceSummary::new(ServiceKind::ElastiCache, id, engine, status, self.at(false).and_then(Endpoint::text))
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
    #[serde(rename = "Marker")]
    marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CacheCluster {
    #[serde(rename = "CacheClusterId")]
    id: String,
    #[serde(rename = "CacheClusterStatus", default)]
    status: String,
    #[serde(rename = "ReplicationGroupId")]
    group: Option<String>,
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
        let (engine, tls) = (engine(self.engine.as_deref()), self.transit_encryption_enabled);
        let at = self.at().filter(|_| !spec.reader).unwrap_or_default();
        Ok(ServiceEndpoint { tls, ..endpoint(spec, &engine, at.address, at.port)? })
    }

    fn at(self) -> Option<Endpoint> {
        let first = self.cache_nodes.items.into_iter().next().and_then(|node| node.endpoint);
        self.configuration_endpoint.or(first)
    }

    fn summary(self) -> ServiceSummary {
        let (id, engine, status) = (self.id.clone(), engine(self.engine.as_deref()), self.status.clone());
        ServiceSummary::new(ServiceKind::ElastiCache, id, engine, status, self.at().and_then(Endpoint::text))
    }
}

/// Returns the engine. ElastiCache omits it in some answers about Redis.
fn engine(known: Option<&str>) -> String {
    known.unwrap_or("redis").to_owned()
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
    #[serde(rename = "NextToken")]
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServerlessCache {
    #[serde(rename = "ServerlessCacheName")]
    name: String,
    #[serde(default)]
    status: String,
    engine: Option<String>,
    endpoint: Option<Endpoint>,
    reader_endpoint: Option<Endpoint>,
}

impl ServerlessCache {
    /// Returns the endpoint without its VPC, which could only be found through EC2, by the subnets.
    fn endpoint(self, spec: &ServiceSpec) -> Result<ServiceEndpoint, ProviderError> {
        let at = if spec.reader { self.reader_endpoint } else { self.endpoint }.unwrap_or_default();
        let engine = engine(self.engine.as_deref());
        Ok(ServiceEndpoint { tls: true, ..endpoint(spec, &engine, at.address, at.port)? })
    }

    fn summary(self) -> ServiceSummary {
        let (engine, at) = (engine(self.engine.as_deref()), self.endpoint.and_then(Endpoint::text));
        ServiceSummary::new(ServiceKind::ElastiCache, self.name, engine, self.status, at)
    }
}
