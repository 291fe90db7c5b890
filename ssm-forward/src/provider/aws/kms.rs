//! The data key of an encrypted session.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use ssm_proto::{DataKey, PlaintextKey};

use super::json::KMS;
use super::{AwsProvider, ProviderError};
use crate::Secret;

/// Length of two AES-256 keys, one for each direction.
const KEY_BYTES: u32 = 64;
const CALL: &str = "GenerateDataKey";

impl AwsProvider {
    /// Creates a data key by a call of KMS, with the credentials of the session.
    pub(super) async fn data_key(
        &self,
        key_id: &str,
        context: &BTreeMap<String, String>,
    ) -> Result<DataKey, ProviderError> {
        let question = Question { key_id, number_of_bytes: KEY_BYTES, encryption_context: context };
        let answer: Answer = self.ask(KMS, CALL, &question).await?;
        let api = self.apis.signed(KMS.service).await?;
        let missing = |field| api.named(CALL, "").answered_without(field);
        let plaintext = STANDARD.decode(answer.plaintext.unwrap_or_default().expose()).map(Secret::new).ok();
        let plaintext = plaintext.and_then(|bytes| PlaintextKey::new(bytes.expose()));
        let ciphertext = STANDARD.decode(answer.ciphertext_blob.unwrap_or_default()).ok();
        Ok(DataKey {
            plaintext: plaintext.ok_or_else(|| missing("a Plaintext of 64 bytes"))?,
            ciphertext: ciphertext.filter(|bytes| !bytes.is_empty()).ok_or_else(|| missing("CiphertextBlob"))?.into(),
        })
    }
}

impl AwsProvider {
    /// Checks whether KMS allows the caller to create a data key with `key_id`. Does not create a key.
    ///
    /// # Errors
    /// Returns an error if KMS refuses, or cannot be reached.
    pub async fn may_encrypt(&self, key_id: &str) -> Result<(), ProviderError> {
        let question = DryRun { key_id, number_of_bytes: KEY_BYTES, dry_run: true };
        match self.ask::<IgnoredAny>(KMS, CALL, &question).await {
            // For a dry run that would succeed, AWS returns this error.
            Err(error) if error.message.contains("DryRunOperation") => Ok(()),
            answer => answer.map(drop),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DryRun<'a> {
    key_id: &'a str,
    number_of_bytes: u32,
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question<'a> {
    key_id: &'a str,
    number_of_bytes: u32,
    encryption_context: &'a BTreeMap<String, String>,
}

/// Both fields are in Base64.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    plaintext: Option<Secret>,
    ciphertext_blob: Option<String>,
}
