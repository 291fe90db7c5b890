//! Operations of KMS, for the two ends of an encrypted session.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::input::{length, one_of, required};
use super::{Outcome, parse, unknown};
use crate::broker::Broker;
use crate::kms::{Context, Kms, KmsError, random};

pub(super) fn dispatch(broker: &Broker, operation: &str, body: &[u8]) -> Outcome {
    match operation {
        "GenerateDataKey" => generate_data_key(broker.kms(), parse(body)?),
        "Decrypt" => decrypt(broker.kms(), parse(body)?),
        _ => Err(unknown()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GenerateInput {
    key_id: Option<String>,
    number_of_bytes: Option<i64>,
    key_spec: Option<String>,
    #[serde(default)]
    encryption_context: Context,
    #[serde(default)]
    dry_run: bool,
}

/// Maximum length of a data key in bytes.
const MAX_KEY: usize = 1024;

fn generate_data_key(kms: &Kms, input: GenerateInput) -> Outcome {
    let key_id = key_id(input.key_id.as_deref())?;
    let size = size(input.number_of_bytes, input.key_spec.as_deref())?;
    let bytes = zeroize::Zeroizing::new(random::<MAX_KEY>());
    let plaintext = bytes.get(..size).unwrap_or_default();
    let (arn, ciphertext) = kms.encrypt(key_id, &input.encryption_context, plaintext)?;
    if input.dry_run {
        let text = "The request would have succeeded, but the DryRun option is set.";
        return Err(ApiError::new("DryRunOperationException", text));
    }
    Ok(json!({
        "KeyId": arn,
        "Plaintext": STANDARD.encode(plaintext),
        "CiphertextBlob": STANDARD.encode(ciphertext),
    }))
}

fn size(number_of_bytes: Option<i64>, key_spec: Option<&str>) -> Result<usize, ApiError> {
    match (number_of_bytes, key_spec) {
        (Some(number), None) => {
            usize::try_from(number).ok().filter(|size| (1..=MAX_KEY).contains(size)).ok_or_else(|| {
                ApiError::constraint("numberOfBytes", Some(&number.to_string()), "have value between 1 and 1024")
            })
        }
        (None, Some(spec)) => {
            one_of("keySpec", spec, &["AES_256", "AES_128"])?;
            Ok(if spec == "AES_128" { 16 } else { 32 })
        }
        _ => Err(ApiError::new("ValidationException", "Please specify either number of bytes or key spec.")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptInput {
    key_id: Option<String>,
    ciphertext_blob: Option<String>,
    #[serde(default)]
    encryption_context: Context,
}

fn decrypt(kms: &Kms, input: DecryptInput) -> Outcome {
    let ciphertext = required("ciphertextBlob", input.ciphertext_blob.as_deref())?;
    let ciphertext = STANDARD
        .decode(ciphertext)
        .map_err(|_| ApiError::new("SerializationException", "CiphertextBlob is not base64."))?;
    let (arn, plaintext) = kms.decrypt(input.key_id.as_deref(), &input.encryption_context, &ciphertext)?;
    Ok(json!({
        "KeyId": arn,
        "Plaintext": STANDARD.encode(&*plaintext),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn key_id(given: Option<&str>) -> Result<&str, ApiError> {
    let key_id = required("keyId", given)?;
    length("keyId", key_id, 1..=2048)?;
    Ok(key_id)
}

impl From<KmsError> for ApiError {
    fn from(error: KmsError) -> Self {
        let text = error.to_string();
        // Each text begins with the exception's name. A message follows after `: ` if AWS's exception has one.
        let message = text.split_once(": ").map_or("", |(_, message)| message);
        let code = match error {
            KmsError::NotFound(_) => "NotFoundException",
            KmsError::InvalidCiphertext => "InvalidCiphertextException",
            KmsError::IncorrectKey => "IncorrectKeyException",
        };
        Self::new(code, message)
    }
}
