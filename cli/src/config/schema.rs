//! The JSON schema of a configuration file, generated from the known keys.

use serde_json::{Map, Value, json};

use super::keys::{KEYS, Key, Shape};

/// Returns the schema. It uses draft 7, which editors support best.
pub(super) fn schema() -> Value {
    let defaults = properties(|key| key.may_be_default);
    let tunnel = properties(|_| true);
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Tunnels of aws-ssm-forward",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "include": {
                "description": "Other files to read, relative to this one.",
                "type": "array",
                "items": { "type": "string" }
            },
            "defaults": {
                "description": "Default values of all tunnels.",
                "type": "object",
                "additionalProperties": false,
                "properties": defaults
            },
            "tunnels": {
                "description": "The tunnels by name.",
                "type": "object",
                "propertyNames": { "pattern": "^[A-Za-z0-9_.][A-Za-z0-9_.-]*$" },
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": tunnel
                }
            }
        }
    })
}

fn properties(is_wanted: impl Fn(&Key) -> bool) -> Map<String, Value> {
    KEYS.iter().filter(|key| is_wanted(key)).map(|key| (key.name.to_owned(), property(key))).collect()
}

fn property(key: &Key) -> Value {
    let text = json!({ "type": ["string", "number"] });
    let mut property = match key.shape {
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::One => text,
        Shape::Many => json!({ "type": ["string", "number", "array"], "items": text }),
        Shape::Pairs => {
            json!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
        }
    };
    if let Some(property) = property.as_object_mut() {
        let about = key.about().split_whitespace().collect::<Vec<_>>().join(" ");
        property.insert("description".to_owned(), about.into());
    }
    property
}
