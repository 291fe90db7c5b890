//! Finds out which parameters a session document accepts.

use std::collections::{BTreeMap, BTreeSet};

use aws_credential_types::Credentials;

use super::{AwsProvider, called_by};
use crate::{ProviderError, ProviderErrorKind, StartRequest};

/// Parameters in the form of StartSession.
pub(super) type Parameters = BTreeMap<String, Vec<String>>;

/// The parameters for the attempts to start a session.
pub(super) struct ParameterSets {
    pub(super) first: Parameters,
    /// The parameters of the second attempt, if the service refuses the first ones.
    pub(super) otherwise: Option<Parameters>,
}

impl AwsProvider {
    /// Returns the requested parameters, and the offered parameters that the document defines. If the document cannot be read, the
    /// first attempt has all offered parameters, and the second attempt has none.
    pub(super) async fn parameter_sets(
        &self,
        request: &StartRequest,
        credentials: &Credentials,
    ) -> Result<ParameterSets, ProviderError> {
        let asked = request.parameters.clone();
        let mut offered = request.offered.clone();
        offered.retain(|name, _| !asked.contains_key(name));
        let Some(document) = request.document.as_deref().filter(|_| !offered.is_empty()) else {
            return Ok(ParameterSets { first: asked, otherwise: None });
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
        Ok(ParameterSets { first: asked.into_iter().chain(offered).collect(), otherwise })
    }

    /// Returns the names of the parameters that a session document defines.
    ///
    /// # Errors
    /// Returns an error if the document does not exist, or if reading it is not allowed (`ssm:DescribeDocument`).
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

/// Joins the errors of both attempts, because it is not known which attempt was the right one.
pub(super) fn both_refused(refused: &ProviderError, error: ProviderError) -> ProviderError {
    let message = format!("{}; with only the given parameters: {}", refused.message, error.message);
    ProviderError { message, ..error }
}
