//! IAM database authentication: a token in place of a password.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{AwsProvider, ProviderError, ServiceEndpoint};
use crate::{ProviderErrorKind, Secret};

/// A password for one database user, derived from the caller's credentials. It is secret.
#[derive(Clone)]
#[non_exhaustive]
pub struct DatabaseToken {
    text: Secret,
    /// Until when a connection can be opened with the token. Open connections are not affected.
    pub expires: SystemTime,
}

impl DatabaseToken {
    /// Returns the token, which is the password that the database's client sends.
    pub fn as_str(&self) -> &str {
        self.text.expose()
    }
}

impl fmt::Debug for DatabaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Maximum time for which RDS accepts a token. If the credentials expire earlier, the token expires with them.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// The characters that botocore escapes: all except the unreserved ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl AwsProvider {
    /// Returns a token with which `user` can log in to the RDS database at `service`. The token is signed locally, without a call
    /// of AWS.
    ///
    /// The database must have IAM authentication enabled, `user` must be allowed to use it, and the credentials need
    /// `rds-db:connect`. RDS checks all of this when the client logs in.
    ///
    /// # Errors
    /// Returns an error if there are no credentials.
    pub async fn database_token(&self, service: &ServiceEndpoint, user: &str) -> Result<DatabaseToken, ProviderError> {
        let credentials = self.credentials.current().await?;
        let host = format!("{}:{}", service.host, service.port);
        token(&host, &self.settings.region, user, credentials, SystemTime::now()).map_err(|error| ProviderError {
            kind: ProviderErrorKind::Invalid,
            message: format!("the token for {} cannot be signed: {error}", service.spec),
        })
    }
}

/// Creates the token: a presigned request without its scheme, identical to the token of other AWS tools.
fn token(
    host: &str,
    region: &str,
    user: &str,
    credentials: Credentials,
    now: SystemTime,
) -> Result<DatabaseToken, String> {
    let credentials_end = credentials.expiry();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFETIME);
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|error| error.to_string())?
        .into();
    let user = utf8_percent_encode(user, ESCAPED);
    let url = format!("https://{host}/?Action=connect&DBUser={user}");
    let request = SignableRequest::new("GET", &url, [("host", host)].into_iter(), SignableBody::Bytes(&[]))
        .map_err(|error| error.to_string())?;
    let (instructions, _) = sign(request, &params).map_err(|error| error.to_string())?.into_parts();
    let (_, mut query) = instructions.into_parts();
    // The order is the one that botocore uses.
    query.sort_by_key(|(name, _)| (*name == "X-Amz-Signature", *name == "X-Amz-Security-Token", *name));
    let query: Vec<_> =
        query.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ESCAPED))).collect();
    let text = Secret::new(format!("{host}/?Action=connect&DBUser={user}&{}", query.join("&")));
    let expires = credentials_end.map_or(now + LIFETIME, |end| end.min(now + LIFETIME));
    Ok(DatabaseToken { text, expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-01T00:00:00Z.
    const NOW: Duration = Duration::from_secs(1_767_225_600);
    const HOST: &str = "db.abc.eu-west-1.rds.amazonaws.com:3306";

    fn signed(user: &str, session_token: Option<&str>) -> DatabaseToken {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIDEXAMPLE", secret, session_token.map(str::to_owned), None, "test");
        token(HOST, "eu-west-1", user, credentials, SystemTime::UNIX_EPOCH + NOW).unwrap()
    }

    /// The expected values are the ones that botocore computes for the same clock and credentials.
    #[test]
    fn it_is_byte_for_byte_what_botocore_makes() {
        let start = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20260101%2Feu-west-1%2Frds-db%2F\
                     aws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host";
        let temporary = "&X-Amz-Security-Token=SESSION%2FTOKEN%2BEXAMPLE%3D%3D";
        for (user, written, token, written_token, signature) in [
            ("app", "app", None, "", "6ee624cdfbd3e5425629a2677a83884d2f66eedac2d52eec3d32f8a5401f50a8"),
            (
                "user+name@x y",
                "user%2Bname%40x%20y",
                None,
                "",
                "631c4f84b5a58238217d4e09570730808ac00d4be4825424f184d0144ecc2d32",
            ),
            (
                "app",
                "app",
                Some("SESSION/TOKEN+EXAMPLE=="),
                temporary,
                "c2b08ccdb162379e65f0e32cdd92830ad09b9824e2fa71308f86c8bea0b90b74",
            ),
        ] {
            let expected =
                format!("{HOST}/?Action=connect&DBUser={written}&{start}{written_token}&X-Amz-Signature={signature}");
            assert_eq!(signed(user, token).as_str(), expected);
        }
    }

    #[test]
    fn it_ends_with_the_credentials() {
        let now = SystemTime::UNIX_EPOCH + NOW;
        assert_eq!(signed("app", None).expires, now + LIFETIME);
        let soon = now + Duration::from_secs(60);
        let credentials = Credentials::new("AKIDEXAMPLE", "x", None, Some(soon), "test");
        assert_eq!(token(HOST, "eu-west-1", "app", credentials, now).unwrap().expires, soon);
    }

    #[test]
    fn it_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", signed("app", None)).contains("Signature"));
    }
}
