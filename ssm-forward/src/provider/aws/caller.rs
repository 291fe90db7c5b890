//! The caller's identity.

use serde::Deserialize;

use super::query::STS;
use super::{AwsProvider, ProviderError};

/// The identity that the credentials belong to, according to STS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The account id, twelve digits.
    pub account: String,
    /// The ARN of the user or of the role's session.
    pub arn: String,
}

impl AwsProvider {
    /// Calls STS for the caller's identity (GetCallerIdentity, which needs no permission).
    ///
    /// # Errors
    /// Returns an error if there are no credentials, if they are not valid, or if STS cannot be reached.
    pub async fn caller(&self) -> Result<Caller, ProviderError> {
        let answer: Answer = self.query(STS, "GetCallerIdentity", &[]).await?;
        Ok(Caller { account: answer.result.account, arn: answer.result.arn })
    }

    /// Returns the region of all calls.
    pub fn region(&self) -> &str {
        &self.settings.region
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "GetCallerIdentityResult")]
    result: Identity,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Identity {
    account: String,
    arn: String,
}
