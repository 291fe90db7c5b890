//! The session documents: which properties a session has, and what of them a caller may set.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A session document of AWS's, schema 1.0.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) name: &'static str,
    /// The JSON text.
    pub(crate) content: &'static str,
    pub(crate) body: Body,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Body {
    pub(crate) description: String,
    pub(crate) session_type: String,
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    properties: Value,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Parameter {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) description: String,
    pub(crate) default: Option<String>,
    allowed_pattern: Option<String>,
}

/// Why a document does not take the parameters.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParameterError {
    #[error("Parameter \"{parameter}\" is not defined in the document {document}.")]
    Unknown { document: &'static str, parameter: String },
    #[error("Parameter \"{0}\" is required.")]
    Missing(String),
    #[error("Parameter \"{parameter}\" has to match the pattern {pattern}.")]
    Mismatch { parameter: String, pattern: String },
}

/// The document of sessions that name none.
pub(crate) const DEFAULT: &str = "SSM-SessionManagerRunShell";

macro_rules! texts {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("../documents/", $name, ".json")))),+] };
}

const TEXTS: [(&str, &str); 8] = texts![
    "AWS-PasswordReset",
    "AWS-StartInteractiveCommand",
    "AWS-StartNonInteractiveCommand",
    "AWS-StartPortForwardingSession",
    "AWS-StartPortForwardingSessionToRemoteHost",
    "AWS-StartPortForwardingSessionToSocket",
    "AWS-StartSSHSession",
    "SSM-SessionManagerRunShell",
];

static DOCUMENTS: LazyLock<Vec<Document>> = LazyLock::new(|| {
    let parse = |(name, content)| Some(Document { name, content, body: serde_json::from_str(content).ok()? });
    TEXTS.into_iter().filter_map(parse).collect()
});

impl Document {
    /// All documents, by name.
    pub(crate) fn all() -> &'static [Self] {
        &DOCUMENTS
    }

    /// The document with this name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|document| document.name == name)
    }

    /// The properties of a session that is started with `given`.
    pub(crate) fn properties(&self, given: &BTreeMap<String, Vec<String>>) -> Result<Value, ParameterError> {
        if let Some(parameter) = given.keys().find(|name| !self.body.parameters.contains_key(*name)) {
            return Err(ParameterError::Unknown { document: self.name, parameter: parameter.clone() });
        }
        let mut values = BTreeMap::new();
        for (name, parameter) in &self.body.parameters {
            let value = given.get(name).map(|values| values.join(",")).or_else(|| parameter.default.clone());
            let value = value.ok_or_else(|| ParameterError::Missing(name.clone()))?;
            parameter.check(name, &value)?;
            values.insert(name.as_str(), value);
        }
        Ok(fill(&self.body.properties, &values))
    }
}

impl Parameter {
    fn check(&self, name: &str, value: &str) -> Result<(), ParameterError> {
        let Some(pattern) = &self.allowed_pattern else { return Ok(()) };
        if Regex::new(pattern).is_ok_and(|regex| regex.is_match(value)) {
            return Ok(());
        }
        Err(ParameterError::Mismatch { parameter: name.into(), pattern: pattern.clone() })
    }
}

fn fill(properties: &Value, values: &BTreeMap<&str, String>) -> Value {
    match properties {
        Value::String(text) => Value::String(fill_text(text, values)),
        Value::Array(items) => items.iter().map(|item| fill(item, values)).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| (key.clone(), fill(value, values)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// Puts values in place of `{{ name }}`, once: what comes in by a value is not looked at again.
fn fill_text(text: &str, values: &BTreeMap<&str, String>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, behind)) = after.split_once("}}") else { break };
        filled.push_str(before);
        filled.push_str(values.get(name.trim()).map_or("", String::as_str));
        rest = behind;
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str, value: &str) -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([(name.to_owned(), vec![value.to_owned()])])
    }

    #[test]
    fn every_document_and_pattern_is_well_formed() {
        assert_eq!(Document::all().len(), TEXTS.len());
        for document in Document::all() {
            for parameter in document.body.parameters.values() {
                if let Some(pattern) = &parameter.allowed_pattern {
                    Regex::new(pattern).unwrap();
                }
                if let Some(default) = &parameter.default {
                    parameter.check("default", default).unwrap();
                }
            }
        }
    }

    #[test]
    fn defaults_and_parameters_become_properties() {
        let document = Document::find("AWS-StartPortForwardingSessionToRemoteHost").unwrap();
        let parameters = BTreeMap::from([
            ("host".to_owned(), vec!["db.internal".to_owned()]),
            ("portNumber".to_owned(), vec!["5432".to_owned()]),
        ]);
        let expected = serde_json::json!({
            "host": "db.internal", "localPortNumber": "0", "portNumber": "5432", "type": "LocalPortForwarding",
        });
        assert_eq!(document.properties(&parameters).unwrap(), expected);
    }

    #[test]
    fn bad_parameters_are_named() {
        let document = Document::find("AWS-StartPortForwardingSession").unwrap();
        for port in ["0", "65536", "x", "", "22 "] {
            let error = document.properties(&given("portNumber", port)).unwrap_err();
            assert!(
                matches!(&error, ParameterError::Mismatch { parameter, .. } if parameter == "portNumber"),
                "{port}"
            );
        }
        for port in ["1", "22", "9999", "10000", "65535"] {
            assert_eq!(document.properties(&given("portNumber", port)).unwrap()["portNumber"], *port);
        }
        let unknown = document.properties(&given("host", "db")).unwrap_err();
        assert!(matches!(unknown, ParameterError::Unknown { parameter, .. } if parameter == "host"));
        let missing = Document::find("AWS-StartPortForwardingSessionToSocket").unwrap().properties(&BTreeMap::new());
        assert_eq!(missing.unwrap_err(), ParameterError::Missing("localUnixSocket".into()));
    }

    #[test]
    fn values_are_not_expanded_again() {
        let values = BTreeMap::from([("a", "{{ b }}".to_owned()), ("b", "secret".to_owned())]);
        assert_eq!(fill_text("<{{a}}|{{ b }}|{{ c }}>{{", &values), "<{{ b }}|secret|>{{");
    }
}
