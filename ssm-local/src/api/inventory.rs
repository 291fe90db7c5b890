//! GetInventory: the data that the nodes report about themselves. There is one type of inventory, AWS:InstanceInformation.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Outcome;
use super::error::ApiError;
use super::input::{Page, one_of};
use super::instances::{ADDRESS, computer_name, resource_type};
use crate::broker::Broker;
use crate::target::LocalTarget;

/// The input of GetInventory. Aggregators and result attributes are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Input {
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    key: String,
    values: Vec<String>,
    #[serde(rename = "Type")]
    kind: Option<String>,
}

const TYPE: &str = "AWS:InstanceInformation";

pub(super) fn get(broker: &Broker, input: Input) -> Outcome {
    let page = Page::new("inventory", input.max_results, 1..=50, input.next_token.as_deref())?;
    let mut found: Vec<_> = broker.targets().iter().map(describe).collect();
    for filter in &input.filters {
        filter.apply(&mut found)?;
    }
    let (part, next) = page.cut(found);
    let entities: Vec<_> = part.into_iter().map(entity).collect();
    Ok(match next {
        Some(next) => json!({ "Entities": entities, "NextToken": next }),
        None => json!({ "Entities": entities }),
    })
}

/// Returns the data that the agent of a node reports; all values are strings.
fn describe(target: &LocalTarget) -> Map<String, Value> {
    let members = [
        ("AgentType", "amazon-ssm-agent"),
        ("AgentVersion", target.version()),
        ("ComputerName", computer_name(target)),
        ("InstanceId", target.id()),
        ("InstanceStatus", if target.is_connected() { "Active" } else { "ConnectionLost" }),
        ("IpAddress", ADDRESS),
        ("PlatformName", "Local"),
        ("PlatformType", "Linux"),
        ("PlatformVersion", "1"),
        ("ResourceType", resource_type(target)),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn entity(content: Map<String, Value>) -> Value {
    let id = content.get("InstanceId").cloned();
    json!({ "Id": id, "Data": { TYPE: { "TypeName": TYPE, "SchemaVersion": "1.0", "Content": [content] } } })
}

impl Filter {
    /// Keeps only the entries that have one of the values.
    fn apply(&self, found: &mut Vec<Map<String, Value>>) -> Result<(), ApiError> {
        let kind = self.kind.as_deref().unwrap_or("Equal");
        one_of("type", kind, &["Equal", "NotEqual", "BeginWith", "LessThan", "GreaterThan", "Exists"])?;
        let attribute = self.key.strip_prefix(TYPE).and_then(|rest| rest.strip_prefix('.'));
        let attribute = attribute.ok_or_else(|| ApiError::new("InvalidFilter", format!("no filter {}", self.key)))?;
        found.retain(|content| {
            let value = content.get(attribute).and_then(Value::as_str);
            let any = |holds: fn(&str, &str) -> bool| {
                value.is_some_and(|value| self.values.iter().any(|wanted| holds(value, wanted)))
            };
            match kind {
                "NotEqual" => !any(|value, wanted| value == wanted),
                "BeginWith" => any(|value, wanted| value.starts_with(wanted)),
                "LessThan" => any(|value, wanted| value < wanted),
                "GreaterThan" => any(|value, wanted| value > wanted),
                "Exists" => value.is_some(),
                _ => any(|value, wanted| value == wanted),
            }
        });
        Ok(())
    }
}
