//! Operations on managed nodes.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::input::{Page, length, required};
use super::{Outcome, timestamp};
use crate::broker::Broker;
use crate::target::LocalTarget;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StatusInput {
    target: Option<String>,
}

pub(super) fn connection_status(broker: &Broker, input: StatusInput) -> Outcome {
    let target = required("target", input.target.as_deref())?;
    length("target", target, 1..=400)?;
    let connected = broker.target(target).is_some_and(|target| target.is_connected());
    Ok(json!({ "Target": target, "Status": if connected { "connected" } else { "notconnected" } }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DescribeInput {
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    instance_information_filter_list: Vec<OldFilter>,
}

/// A filter, whose key can also be a tag.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    key: String,
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldFilter {
    key: String,
    value_set: Vec<String>,
}

pub(super) fn describe(broker: &Broker, input: DescribeInput) -> Outcome {
    if !input.filters.is_empty() && !input.instance_information_filter_list.is_empty() {
        let text = "Filters and InstanceInformationFilterList can't be used together.";
        return Err(ApiError::new("ValidationException", text));
    }
    let page = Page::new("instances", input.max_results, 5..=50, input.next_token.as_deref())?;
    let targets = broker.targets();
    let mut found: Vec<&LocalTarget> = targets.iter().collect();
    for filter in &input.filters {
        apply(&mut found, &filter.key, &filter.values)?;
    }
    for filter in &input.instance_information_filter_list {
        if filter.key.starts_with("tag") {
            return Err(ApiError::filter_key(&filter.key));
        }
        apply(&mut found, &filter.key, &filter.value_set)?;
    }
    let (part, next) = page.cut(found);
    let list: Vec<Value> = part.into_iter().map(describe_one).collect();
    Ok(match next {
        Some(next) => json!({ "InstanceInformationList": list, "NextToken": next }),
        None => json!({ "InstanceInformationList": list }),
    })
}

/// Keeps the targets whose key has one of the values.
fn apply(found: &mut Vec<&LocalTarget>, key: &str, values: &[String]) -> Result<(), ApiError> {
    if values.is_empty() || values.len() > 100 {
        return Err(ApiError::new("InvalidInstanceInformationFilterValue", "A filter accepts 1 to 100 values."));
    }
    if let Some(tag) = key.strip_prefix("tag:") {
        found.retain(|target| target.tags().get(tag).is_some_and(|value| values.contains(value)));
        return Ok(());
    }
    if key == "tag-key" {
        found.retain(|target| values.iter().any(|tag| target.tags().contains_key(tag)));
        return Ok(());
    }
    let property: fn(&LocalTarget) -> &str = match key {
        "InstanceIds" => |target| target.id(),
        "AgentVersion" => |target| target.version(),
        "PingStatus" => |target| ping_status(target),
        "PlatformTypes" | "PlatformType" => |_| "Linux",
        "ResourceType" => |target| resource_type(target),
        "ActivationIds" | "IamRole" | "AssociationStatus" | "SourceIds" | "SourceTypes" => |_| "",
        other => return Err(ApiError::filter_key(other)),
    };
    found.retain(|target| values.iter().any(|value| value == property(target)));
    Ok(())
}

fn ping_status(target: &LocalTarget) -> &'static str {
    if target.is_connected() { "Online" } else { "ConnectionLost" }
}

pub(super) fn resource_type(target: &LocalTarget) -> &'static str {
    if target.id().starts_with("mi-") { "ManagedInstance" } else { "EC2Instance" }
}

fn describe_one(target: &LocalTarget) -> Value {
    json!({
        "InstanceId": target.id(),
        "PingStatus": ping_status(target),
        "LastPingDateTime": timestamp(SystemTime::now()),
        "AgentVersion": target.version(),
        "IsLatestVersion": false,
        "PlatformType": "Linux",
        "PlatformName": "Local",
        "PlatformVersion": "1",
        "ResourceType": resource_type(target),
        "IPAddress": ADDRESS,
        "ComputerName": computer_name(target),
    })
}

/// The address of all nodes, because they are this machine.
pub(super) const ADDRESS: &str = "127.0.0.1";

pub(super) fn computer_name(target: &LocalTarget) -> &str {
    target.tags().get("Name").map_or("local", String::as_str)
}
