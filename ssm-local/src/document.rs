//! The session documents: the properties of a session, and the parameters that a caller may set.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The documents, by name.
#[derive(Clone, Debug)]
pub(crate) struct Documents(BTreeMap<String, Arc<Document>>);

/// A session document, schema 1.0.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) name: String,
    /// The JSON text.
    pub(crate) content: String,
    pub(crate) body: Body,
    /// Whether the document is one of AWS's documents.
    pub(crate) is_aws: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Body {
    #[serde(rename = "schemaVersion")]
    _schema_version: SchemaVersion,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(deserialize_with = "known_type")]
    pub(crate) session_type: String,
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    properties: Value,
    inputs: Option<Value>,
}

/// The schema versions of session documents.
#[derive(Debug, Deserialize)]
enum SchemaVersion {
    #[serde(rename = "1.0")]
    One,
}

/// The session types that a document may have.
const TYPES: [&str; 4] = ["Standard_Stream", "InteractiveCommands", "NonInteractiveCommands", PORT];
/// The only session type that runs no program.
pub(crate) const PORT: &str = "Port";

fn known_type<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match TYPES.contains(&text.as_str()) {
        true => Ok(text),
        false => {
            Err(serde::de::Error::custom(format!("unknown sessionType {text:?}; the types are: {}", TYPES.join(", "))))
        }
    }
}

fn text_or_list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Default {
        Text(String),
        List(Vec<String>),
    }
    Ok(Option::deserialize(deserializer)?.map(|default| match default {
        Default::Text(text) => text,
        Default::List(list) => list.join(","),
    }))
}

/// The preferences in a shell document that the local Session Manager supports. S3, CloudWatch and run-as are not supported.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Inputs {
    /// The KMS key; empty for no encryption.
    pub(crate) kms_key_id: String,
    pub(crate) shell_profile: ShellProfile,
}

/// Commands that are typed into a shell at its start.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ShellProfile {
    /// The commands for all Unix systems.
    pub(crate) linux: String,
}

/// The settings of a session.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The document's properties, with the parameters filled in.
    pub(crate) properties: Value,
    pub(crate) inputs: Inputs,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Parameter {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) description: String,
    /// The default value, which is a list for a StringList.
    #[serde(default, deserialize_with = "text_or_list")]
    pub(crate) default: Option<String>,
    allowed_pattern: Option<String>,
}

/// The reason why a document does not accept the parameters.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParameterError {
    #[error("Parameter \"{parameter}\" is not defined in the document {document}.")]
    Unknown { document: String, parameter: String },
    #[error("Parameter \"{0}\" is required.")]
    Missing(String),
    #[error("Parameter \"{parameter}\" has to match the pattern {pattern}.")]
    Mismatch { parameter: String, pattern: String },
    #[error("The document's inputs can't be read: {0}")]
    Inputs(String),
}

/// The document of sessions that are started without a document name.
pub(crate) const DEFAULT: &str = "SSM-SessionManagerRunShell";
/// The document that ExecuteCommand of ECS uses.
pub(crate) const ECS_EXECUTE: &str = "AmazonECS-ExecuteInteractiveCommand";

macro_rules! texts {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("../documents/", $name, ".json")))),+] };
}

const TEXTS: [(&str, &str); 9] = texts![
    "AWS-PasswordReset",
    "AWS-StartInteractiveCommand",
    "AWS-StartNonInteractiveCommand",
    "AWS-StartPortForwardingSession",
    "AWS-StartPortForwardingSessionToRemoteHost",
    "AWS-StartPortForwardingSessionToSocket",
    "AWS-StartSSHSession",
    "AmazonECS-ExecuteInteractiveCommand",
    "SSM-SessionManagerRunShell",
];

impl Default for Documents {
    /// Creates the collection with AWS's documents.
    fn default() -> Self {
        let parse = |(name, content): (&str, &str)| {
            let document = Document::parse(name.into(), content.into()).ok()?;
            Some((name.to_owned(), Arc::new(Document { is_aws: true, ..document })))
        };
        Self(TEXTS.into_iter().filter_map(parse).collect())
    }
}

impl Documents {
    /// Adds a document, or replaces the document with this name.
    pub(crate) fn insert(&mut self, name: String, content: String) -> Result<(), serde_json::Error> {
        let document = Document::parse(name, content)?;
        self.0.insert(document.name.clone(), Arc::new(document));
        Ok(())
    }

    /// Returns all documents, sorted by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Document> {
        self.0.values().map(|document| &**document)
    }

    /// Returns the document with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Document>> {
        self.0.get(name)
    }
}

impl Document {
    fn parse(name: String, content: String) -> Result<Self, serde_json::Error> {
        let body = serde_json::from_str(&content)?;
        Ok(Self { name, content, body, is_aws: false })
    }

    /// Returns the settings of a session that is started with the parameters `given`.
    pub(crate) fn settings(&self, given: &BTreeMap<String, Vec<String>>) -> Result<Settings, ParameterError> {
        if let Some(parameter) = given.keys().find(|name| !self.body.parameters.contains_key(*name)) {
            return Err(ParameterError::Unknown { document: self.name.clone(), parameter: parameter.clone() });
        }
        let mut values = BTreeMap::new();
        for (name, parameter) in &self.body.parameters {
            let value = given.get(name).map(|values| values.join(",")).or_else(|| parameter.default.clone());
            let value = value.ok_or_else(|| ParameterError::Missing(name.clone()))?;
            parameter.check(name, &value)?;
            values.insert(name.as_str(), value);
        }
        let inputs = self.body.inputs.as_ref().map(|inputs| serde_json::from_value(fill(inputs, &values))).transpose();
        Ok(Settings {
            properties: fill(&self.body.properties, &values),
            inputs: inputs.map_err(|error| ParameterError::Inputs(error.to_string()))?.unwrap_or_default(),
        })
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

/// Replaces each `{{ name }}` by its value, in one pass: inserted values are not searched again.
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
        let documents = Documents::default();
        assert_eq!(documents.all().count(), TEXTS.len());
        for document in documents.all() {
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
        let documents = Documents::default();
        let document = documents.find("AWS-StartPortForwardingSessionToRemoteHost").unwrap();
        let parameters = BTreeMap::from([
            ("host".to_owned(), vec!["db.internal".to_owned()]),
            ("portNumber".to_owned(), vec!["5432".to_owned()]),
        ]);
        let expected = serde_json::json!({
            "host": "db.internal", "localPortNumber": "0", "portNumber": "5432", "type": "LocalPortForwarding",
        });
        assert_eq!(document.settings(&parameters).unwrap().properties, expected);
    }

    #[test]
    fn documents_are_taken_as_the_service_takes_them() {
        let parse = |text: &str| Document::parse("Own".into(), text.into());
        let least = parse(r#"{"schemaVersion":"1.0","sessionType":"Standard_Stream"}"#).unwrap();
        assert_eq!(least.settings(&BTreeMap::new()).unwrap().properties, Value::Null);
        let listed = parse(
            r#"{"schemaVersion":"1.0","sessionType":"InteractiveCommands",
                "parameters":{"names":{"type":"StringList","default":["a","b"]}},
                "properties":{"linux":{"commands":"echo {{ names }}"}}}"#,
        );
        let properties = listed.unwrap().settings(&BTreeMap::new()).unwrap().properties;
        assert_eq!(properties["linux"]["commands"], "echo a,b");
        for bad in [
            r#"{"sessionType":"Standard_Stream"}"#,
            r#"{"schemaVersion":"9","sessionType":"Standard_Stream"}"#,
            r#"{"schemaVersion":"1.0","sessionType":"Nope"}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_parameters_are_named() {
        let documents = Documents::default();
        let document = documents.find("AWS-StartPortForwardingSession").unwrap();
        for port in ["0", "65536", "x", "", "22 "] {
            let error = document.settings(&given("portNumber", port)).unwrap_err();
            assert!(
                matches!(&error, ParameterError::Mismatch { parameter, .. } if parameter == "portNumber"),
                "{port}"
            );
        }
        for port in ["1", "22", "9999", "10000", "65535"] {
            let settings = document.settings(&given("portNumber", port)).unwrap();
            assert_eq!(settings.properties["portNumber"], *port);
        }
        let unknown = document.settings(&given("host", "db")).unwrap_err();
        assert!(matches!(unknown, ParameterError::Unknown { parameter, .. } if parameter == "host"));
        let document = documents.find("AWS-StartPortForwardingSessionToSocket").unwrap();
        let missing = document.settings(&BTreeMap::new());
        assert_eq!(missing.unwrap_err(), ParameterError::Missing("localUnixSocket".into()));
    }

    #[test]
    fn commands_become_properties_whatever_is_in_them() {
        let documents = Documents::default();
        for name in ["AWS-StartInteractiveCommand", "AWS-StartNonInteractiveCommand", ECS_EXECUTE] {
            let command = r#"echo "{{ command }}" '$HOME'; exit 3"#;
            let settings = documents.find(name).unwrap().settings(&given("command", command)).unwrap();
            assert_eq!(settings.properties["linux"]["commands"], command, "{name}");
        }
    }

    #[test]
    fn a_document_of_one_s_own_replaces_one_of_aws() {
        let mut documents = Documents::default();
        let content = r#"{"schemaVersion": "1.0", "sessionType": "Standard_Stream",
            "parameters": {"key": {"type": "String", "default": "alias/a"}},
            "inputs": {"kmsKeyId": "{{ key }}", "shellProfile": {"linux": "cd /"}}}"#;
        documents.insert(DEFAULT.into(), content.into()).unwrap();
        assert_eq!(documents.all().count(), TEXTS.len());
        let inputs = documents.find(DEFAULT).unwrap().settings(&given("key", "alias/b")).unwrap().inputs;
        assert_eq!((inputs.kms_key_id.as_str(), inputs.shell_profile.linux.as_str()), ("alias/b", "cd /"));
        assert!(documents.insert("x".into(), "{}".into()).is_err());
    }

    #[test]
    fn values_are_not_expanded_again() {
        let values = BTreeMap::from([("a", "{{ b }}".to_owned()), ("b", "secret".to_owned())]);
        assert_eq!(fill_text("<{{a}}|{{ b }}|{{ c }}>{{", &values), "<{{ b }}|secret|>{{");
    }
}
