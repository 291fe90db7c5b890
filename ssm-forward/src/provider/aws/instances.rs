//! EC2 instances, for information that Systems Manager does not have about a node.

use std::net::IpAddr;

use serde::Deserialize;

use super::query::EC2;
use super::xml::List;
use super::{AwsProvider, ProviderError};
use crate::TargetSpec;

/// Maximum number of pages that are read. A page has 1000 instances.
const MAX_PAGES: usize = 40;

impl AwsProvider {
    /// Returns the instances with this name or address that EC2 knows but Systems Manager does not, as texts like `i-… (stopped)`.
    ///
    /// # Errors
    /// Returns the errors of EC2.
    pub async fn unmanaged_instances(&self, spec: &TargetSpec) -> Result<Vec<String>, ProviderError> {
        let address;
        let filters = match spec {
            TargetSpec::Name(name) => vec![("tag:Name", name.as_str())],
            TargetSpec::Address(at) => {
                address = at.to_string();
                vec![("private-ip-address", address.as_str())]
            }
            _ => return Ok(Vec::new()),
        };
        let instances = self.instances(&filters).await?;
        let live = instances.into_iter().filter(|instance| instance.state() != "terminated");
        Ok(live.map(|instance| format!("{} ({})", instance.instance_id, instance.state())).collect())
    }

    /// Returns the instances that match all filters.
    pub(super) async fn instances(&self, filters: &[(&str, &str)]) -> Result<Vec<Instance>, ProviderError> {
        let named: Vec<(String, &str)> = filters
            .iter()
            .enumerate()
            .flat_map(|(at, (name, value))| {
                let at = at + 1;
                [(format!("Filter.{at}.Name"), *name), (format!("Filter.{at}.Value.1"), *value)]
            })
            .collect();
        let (mut instances, mut next) = (Vec::new(), None::<String>);
        for _ in 0..MAX_PAGES {
            let mut parameters: Vec<(&str, &str)> = named.iter().map(|(key, value)| (key.as_str(), *value)).collect();
            parameters.push(("MaxResults", "1000"));
            parameters.extend(next.as_deref().map(|next| ("NextToken", next)));
            let page: Reservations = self.query(EC2, "DescribeInstances", &parameters).await?;
            let found = page.reservation_set.items.into_iter().flat_map(|reservation| reservation.instances_set.items);
            instances.extend(found);
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        Ok(instances)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reservations {
    #[serde(default)]
    reservation_set: List<Reservation>,
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reservation {
    #[serde(default)]
    instances_set: List<Instance>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance {
    pub(super) instance_id: String,
    pub(super) vpc_id: Option<String>,
    pub(super) private_ip_address: Option<IpAddr>,
    #[serde(default)]
    pub(super) group_set: List<Group>,
    instance_state: Option<InstanceState>,
    #[serde(default)]
    tag_set: List<Tag>,
}

/// A security group of an instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    pub(super) group_id: String,
}

#[derive(Debug, Deserialize)]
struct InstanceState {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

impl Instance {
    pub(super) fn name(&self) -> Option<&str> {
        self.tag_set.items.iter().find(|tag| tag.key == "Name").map(|tag| &*tag.value).filter(|name| !name.is_empty())
    }

    fn state(&self) -> &str {
        self.instance_state.as_ref().map_or("unknown", |state| &state.name)
    }
}
