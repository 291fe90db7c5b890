//! Access control: requests are signed with Signature Version 4. The signature is computed and compared with the request's.

use std::str;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::api::ApiError;
use crate::kms::random;

/// The credentials whose calls are accepted.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    key: Credentials,
    checked: bool,
}

/// Maximum difference between the clocks, as in AWS.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const SECURITY_TOKEN: &str = "x-amz-security-token";
const PROVIDER: &str = "ssm-local";

impl Access {
    /// Accepts callers that know a random secret, which is created now.
    pub(crate) fn secret() -> Self {
        let id: String = random::<16>().iter().map(|byte| char::from(base32(byte % 32))).collect();
        // 240 bits in 40 characters, as in AWS.
        let secret = Zeroizing::new(random::<30>());
        Self::fixed(&format!("AKIA{id}"), &STANDARD.encode(*secret))
    }

    /// Accepts callers that know these credentials.
    pub(crate) fn fixed(access_key_id: &str, secret_access_key: &str) -> Self {
        Self { key: Credentials::new(access_key_id, secret_access_key, None, None, PROVIDER), checked: true }
    }

    /// Accepts every caller.
    pub(crate) fn open() -> Self {
        Self {
            key: Credentials::new("AKIAANYBODYANYBODY00", "any-secret-will-do", None, None, PROVIDER),
            checked: false,
        }
    }

    /// Returns the accepted credentials.
    pub(crate) fn key(&self) -> &Credentials {
        &self.key
    }

    /// Verifies that a request to `service` was signed with the secret a short time ago and was not changed.
    ///
    /// The region of the scope is not checked, because there is one endpoint for all regions.
    ///
    /// # Errors
    /// Returns the exceptions of AWS.
    pub(crate) fn verify(&self, head: &Parts, body: &[u8], service: &str, now: SystemTime) -> Result<(), ApiError> {
        let authorization = head.headers.get(AUTHORIZATION);
        let authorization = authorization
            .ok_or_else(|| ApiError::new("MissingAuthenticationTokenException", "Missing Authentication Token"))?;
        if !self.checked {
            return Ok(());
        }
        let claim = authorization
            .to_str()
            .ok()
            .and_then(Claim::parse)
            .ok_or_else(|| incomplete("the Authorization header does not contain an AWS4-HMAC-SHA256 signature"))?;
        if claim.access_key_id != self.key.access_key_id() {
            let text = "The security token included in the request is invalid.";
            return Err(ApiError::new("UnrecognizedClientException", text));
        }
        let time = claim.time(head, now)?;
        if claim.service != service {
            return Err(invalid(format!("Credential should be scoped to correct service: '{service}'.")));
        }
        let expected = self.signature(head, body, &claim, time)?;
        if bool::from(expected.as_bytes().ct_eq(claim.signature.as_bytes())) {
            return Ok(());
        }
        Err(invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details.",
        ))
    }

    /// Returns the signature that the request should have.
    fn signature(&self, head: &Parts, body: &[u8], claim: &Claim<'_>, time: SystemTime) -> Result<String, ApiError> {
        let headers = claim.headers(head)?;
        let token = headers.iter().find(|(name, _)| *name == SECURITY_TOKEN).map(|(_, token)| (*token).to_owned());
        // The token is passed with the credentials, so that the signer's log does not contain it.
        let headers = headers.iter().copied().filter(|(name, _)| *name != SECURITY_TOKEN);
        let key = &self.key;
        let identity: Identity =
            Credentials::new(key.access_key_id(), key.secret_access_key(), token, None, PROVIDER).into();
        let mut settings = SigningSettings::default();
        // The client decides which headers are signed, so no header is excluded.
        settings.excluded_headers = None;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(claim.region)
            .name(claim.service)
            .time(time)
            .settings(settings)
            .build()
            .map_err(|error| incomplete(&error.to_string()))?
            .into();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = SignableRequest::new(head.method.as_str(), path, headers, SignableBody::Bytes(body));
        let signed =
            request.and_then(|request| sign(request, &params)).map_err(|error| incomplete(&error.to_string()))?;
        Ok(signed.into_parts().1)
    }
}

/// Returns one of the 32 characters of AWS's ids.
fn base32(digit: u8) -> u8 {
    match digit {
        0..26 => b'A' + digit,
        _ => b'2' + (digit - 26),
    }
}

/// The content of an Authorization header.
#[derive(Debug, PartialEq, Eq)]
struct Claim<'a> {
    access_key_id: &'a str,
    /// The date of the scope.
    day: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Claim<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let members = header.strip_prefix(ALGORITHM)?.split(',').map(str::trim);
        let members: Vec<_> = members.map(|member| member.split_once('=')).collect::<Option<_>>()?;
        let member = |wanted| members.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        let scope: Vec<_> = member("Credential")?.split('/').collect();
        let [access_key_id, day, region, service, "aws4_request"] = <[_; 5]>::try_from(scope).ok()? else {
            return None;
        };
        let signed_headers = member("SignedHeaders")?.split(';').collect();
        Some(Self { access_key_id, day, region, service, signed_headers, signature: member("Signature")? })
    }

    /// Returns the time of signing, if it is close enough to `now`.
    fn time(&self, head: &Parts, now: SystemTime) -> Result<SystemTime, ApiError> {
        let text = head.headers.get(DATE).and_then(|value| value.to_str().ok());
        let text =
            text.ok_or_else(|| incomplete("Authorization header requires existence of a 'X-Amz-Date' header."))?;
        let time = basic_time(text)
            .ok_or_else(|| incomplete(&format!("Date must be in ISO-8601 'basic format'. Got '{text}'.")))?;
        if !text.starts_with(self.day) || self.day.len() != 8 {
            return Err(invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{text}'.",
                self.day
            )));
        }
        let skew = now.duration_since(time).unwrap_or_else(|error| error.duration());
        if skew > MAX_SKEW {
            return Err(invalid(match time < now {
                true => format!("Signature expired: {text} is more than 5 min. ago."),
                false => format!("Signature not yet current: {text} is more than 5 min. from now."),
            }));
        }
        Ok(time)
    }

    /// Returns the signed headers. The headers that determine the request must be among them.
    fn headers<'h>(&self, head: &'h Parts) -> Result<Vec<(&'h str, &'h str)>, ApiError> {
        let is_signed = |name: &str| self.signed_headers.contains(&name);
        let decisive = |name: &&str| *name == HOST.as_str() || name.starts_with("x-amz-");
        let names = head.headers.keys().map(http::HeaderName::as_str);
        if let Some(name) = names.chain([HOST.as_str(), DATE]).filter(decisive).find(|name| !is_signed(name)) {
            return Err(invalid(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")));
        }
        // The signer also rejects a request without a host.
        if let Some(name) = self.signed_headers.iter().find(|&&name| !head.headers.contains_key(name)) {
            return Err(invalid(format!("'{name}' is a 'SignedHeader' but not in the request.")));
        }
        let signed = head.headers.iter().filter(|(name, _)| is_signed(name.as_str()));
        signed
            .map(|(name, value)| {
                Ok((
                    name.as_str(),
                    str::from_utf8(value.as_bytes()).map_err(|_| incomplete("a signed header is not text"))?,
                ))
            })
            .collect()
    }
}

/// Parses a time such as `20261124T160000Z`.
fn basic_time(text: &str) -> Option<SystemTime> {
    let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (year, day) = day.split_at_checked(4)?;
    let (month, day) = day.split_at_checked(2)?;
    let (hour, rest) = time.split_at_checked(2)?;
    let (minute, second) = rest.split_at_checked(2)?;
    let extended = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    DateTime::from_str(&extended, Format::DateTime).ok()?.try_into().ok()
}

fn incomplete(text: &str) -> ApiError {
    ApiError::new("IncompleteSignatureException", text)
}

fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::new("InvalidSignatureException", text)
}

#[cfg(test)]
mod tests;
