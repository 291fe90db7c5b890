//! The caller's identity.

use serde::Deserialize;

use super::query::STS;
use super::{AwsProvider, ProviderError};

/// The owner of the credentials in use, according to STS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The account's id, twelve digits.
    pub account: String,
    /// The user or the role's session.
    pub arn: String,
}

impl AwsProvider {
    /// Asks STS for the caller's identity (GetCallerIdentity, which needs no permission).
    ///
    /// # Errors
    /// There are no credentials, they are not valid, or STS cannot be reached.
    pub async fn caller(&self) -> Result<Caller, ProviderError> {
        let answer: Answer = self.query(STS, "GetCallerIdentity", &[]).await?;
        Ok(Caller { account: answer.result.account, arn: answer.result.arn })
    }

    /// The region of all calls.
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
