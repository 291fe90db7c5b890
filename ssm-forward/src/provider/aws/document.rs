//! Which parameters a session document takes.

use std::collections::{BTreeMap, BTreeSet};

use aws_credential_types::Credentials;

use super::{AwsProvider, called_by};
use crate::{ProviderError, ProviderErrorKind, StartRequest};

/// As StartSession takes them.
pub(super) type Parameters = BTreeMap<String, Vec<String>>;

/// What to start a session with.
pub(super) struct Ways {
    pub(super) first: Parameters,
    /// If the service refuses the first.
    pub(super) otherwise: Option<Parameters>,
}

impl AwsProvider {
    /// What was asked for and, of what was offered, what the document defines. Where nobody may look into the document: all,
    /// or else none of what was offered.
    pub(super) async fn ways(&self, request: &StartRequest, credentials: &Credentials) -> Result<Ways, ProviderError> {
        let asked = request.parameters.clone();
        let mut offered = request.offered.clone();
        offered.retain(|name, _| !asked.contains_key(name));
        let Some(document) = request.document.as_deref().filter(|_| !offered.is_empty()) else {
            return Ok(Ways { first: asked, otherwise: None });
        };
        let otherwise = match self.defined(document, credentials).await {
            Ok(defined) => {
                offered.retain(|name, _| defined.contains(name));
                None
            }
            Err(error) if error.kind == ProviderErrorKind::AccessDenied => {
                tracing::debug!(%error, document, "nobody knows the document's parameters");
                Some(asked.clone())
            }
            // A document that is not there: StartSession says so too.
            Err(error) if error.kind == ProviderErrorKind::Invalid => None,
            Err(error) => return Err(error),
        };
        Ok(Ways { first: asked.into_iter().chain(offered).collect(), otherwise })
    }

    /// The names of the parameters that the document defines.
    async fn defined(&self, document: &str, credentials: &Credentials) -> Result<BTreeSet<String>, ProviderError> {
        let call = self.client.describe_document().name(document).customize();
        let answer = call.config_override(called_by(credentials.clone())).send().await;
        let answer = answer.map_err(|error| self.error("DescribeDocument", &error))?;
        let described = answer.document.ok_or_else(|| self.missing("DescribeDocument", "Document"))?;
        Ok(described.parameters.unwrap_or_default().into_iter().filter_map(|parameter| parameter.name).collect())
    }
}

/// Both ways were refused, and which of them was the right one is not known.
pub(super) fn both(refused: &ProviderError, error: ProviderError) -> ProviderError {
    let message = format!("{}; with none but the parameters given: {}", refused.message, error.message);
    ProviderError { message, ..error }
}
