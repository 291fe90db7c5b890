//! Which parameters a session document accepts.

use std::collections::{BTreeMap, BTreeSet};

use aws_credential_types::Credentials;

use super::{AwsProvider, called_by};
use crate::{ProviderError, ProviderErrorKind, StartRequest};

/// In StartSession's form.
pub(super) type Parameters = BTreeMap<String, Vec<String>>;

/// The parameters to start a session with.
pub(super) struct Ways {
    pub(super) first: Parameters,
    /// To be used if the service refuses the first ones.
    pub(super) otherwise: Option<Parameters>,
}

impl AwsProvider {
    /// The requested parameters and those of the offered ones that the document defines. If the document cannot be
    /// read: first all offered ones, then none.
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
                tracing::debug!(%error, document, "the document's parameters are not known");
                Some(asked.clone())
            }
            // If the document does not exist, StartSession returns the error too.
            Err(error) if error.kind == ProviderErrorKind::Invalid => None,
            Err(error) => return Err(error),
        };
        Ok(Ways { first: asked.into_iter().chain(offered).collect(), otherwise })
    }

    /// The names of the parameters that a session document defines.
    ///
    /// # Errors
    /// There is no such document, or it may not be looked at (`ssm:DescribeDocument`).
    pub async fn document_parameters(&self, document: &str) -> Result<BTreeSet<String>, ProviderError> {
        self.renewing(|credentials| async move { self.defined(document, &credentials).await }).await
    }

    async fn defined(&self, document: &str, credentials: &Credentials) -> Result<BTreeSet<String>, ProviderError> {
        let call = self.client.describe_document().name(document).customize();
        let answer = call.config_override(called_by(credentials.clone())).send().await;
        let answer = answer.map_err(|error| self.error("DescribeDocument", &error))?;
        let described = answer.document.ok_or_else(|| self.missing("DescribeDocument", "Document"))?;
        Ok(described.parameters.unwrap_or_default().into_iter().filter_map(|parameter| parameter.name).collect())
    }
}

/// Both attempts were refused, and it is not known which of them was right.
pub(super) fn both(refused: &ProviderError, error: ProviderError) -> ProviderError {
    let message = format!("{}; with only the given parameters: {}", refused.message, error.message);
    ProviderError { message, ..error }
}
