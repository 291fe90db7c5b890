//! Operations on the session documents.

use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::input::{Page, one_of, pattern, required};
use super::session::DOCUMENT_NAME;
use super::{Outcome, set, timestamp};
use crate::broker::Broker;
use crate::document::Document;

const ACCOUNT: &str = "123456789012";
const VERSION: &str = "1";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DocumentInput {
    name: Option<String>,
    document_version: Option<String>,
    document_format: Option<String>,
}

impl DocumentInput {
    fn find<'a>(&self, broker: &'a Broker) -> Result<&'a Document, ApiError> {
        let name = required("name", self.name.as_deref())?;
        pattern("name", name, DOCUMENT_NAME)?;
        let document = broker.documents().find(name).ok_or_else(|| ApiError::no_document(name))?;
        match self.document_version.as_deref() {
            None | Some(VERSION | "$LATEST" | "$DEFAULT") => Ok(document),
            Some(version) => {
                let text = format!("Document with name {name} has no version {version}.");
                Err(ApiError::new("InvalidDocumentVersion", text))
            }
        }
    }
}

pub(super) fn get(broker: &Broker, input: DocumentInput) -> Outcome {
    let document = input.find(broker)?;
    if let Some(format) = &input.document_format {
        one_of("documentFormat", format, &["JSON"])?;
    }
    Ok(json!({
        "Name": document.name,
        "CreatedDate": timestamp(UNIX_EPOCH),
        "DocumentVersion": VERSION,
        "Status": "Active",
        "Content": document.content,
        "DocumentType": "Session",
        "DocumentFormat": "JSON",
    }))
}

pub(super) fn describe(broker: &Broker, input: DocumentInput) -> Outcome {
    let document = input.find(broker)?;
    let parameters = document.body.parameters.iter().map(|(name, parameter)| {
        let mut description = json!({ "Name": name, "Type": parameter.kind, "Description": parameter.description });
        if let Some(default) = &parameter.default {
            set(&mut description, "DefaultValue", json!(default));
        }
        description
    });
    let parameters: Vec<Value> = parameters.collect();
    Ok(json!({ "Document": {
        "Name": document.name,
        "Owner": owner(document),
        "CreatedDate": timestamp(UNIX_EPOCH),
        "Status": "Active",
        "DocumentVersion": VERSION,
        "Description": document.body.description,
        "Parameters": parameters,
        "PlatformTypes": ["Linux"],
        "DocumentType": "Session",
        "SchemaVersion": "1.0",
        "LatestVersion": VERSION,
        "DefaultVersion": VERSION,
        "DocumentFormat": "JSON",
        "Tags": [],
    } }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListInput {
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    key: String,
    #[serde(default)]
    values: Vec<String>,
}

pub(super) fn list(broker: &Broker, input: ListInput) -> Outcome {
    let page = Page::new("documents", input.max_results, 1..=50, input.next_token.as_deref())?;
    let mut found: Vec<&Document> = broker.documents().all().collect();
    for Filter { key, values } in &input.filters {
        let has = |text: &str| values.iter().any(|value| value == text);
        match key.as_str() {
            "Name" => found.retain(|document| values.iter().any(|value| document.name.starts_with(value.as_str()))),
            "Owner" => found.retain(|document| has(owner(document))),
            "PlatformTypes" => found.retain(|_| has("Linux")),
            "DocumentType" => found.retain(|_| has("Session")),
            other => return Err(ApiError::filter_key(other)),
        }
    }
    let (part, next) = page.cut(found);
    let identifiers: Vec<Value> = part.into_iter().map(identify).collect();
    Ok(match next {
        Some(next) => json!({ "DocumentIdentifiers": identifiers, "NextToken": next }),
        None => json!({ "DocumentIdentifiers": identifiers }),
    })
}

fn owner(document: &Document) -> &'static str {
    if document.is_aws { "Amazon" } else { ACCOUNT }
}

fn identify(document: &Document) -> Value {
    json!({
        "Name": document.name,
        "Owner": owner(document),
        "PlatformTypes": ["Linux"],
        "DocumentVersion": VERSION,
        "DocumentType": "Session",
        "SchemaVersion": "1.0",
        "DocumentFormat": "JSON",
        "Tags": [],
    })
}
