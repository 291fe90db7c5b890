//! SigV4 signatures of upgrade requests. `docs/protocol.md`, OPEN-4 … OPEN-6.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

/// The service's name in the signature.
const SERVICE: &str = "ssmmessages";
/// The characters that are encoded: all except the unreserved ones of RFC 3986.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Query keys that show that a URL is already signed.
const PRESIGNED: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// Whether the URL contains a signature in its query.
pub(crate) fn is_presigned(url: &Url) -> bool {
    url.query_pairs().any(|(key, _)| PRESIGNED.iter().any(|name| key.eq_ignore_ascii_case(name)))
}

/// Returns the headers that sign a GET of `url`: `authorization`, `x-amz-date` and, for temporary credentials,
/// `x-amz-security-token`.
///
/// # Errors
/// Returns the signer's error in one line, without secrets.
pub(crate) fn sign_upgrade(
    url: &Url,
    region: &str,
    credentials: Credentials,
    time: SystemTime,
) -> Result<HeaderMap, String> {
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::NoHeader;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(time)
        .settings(settings)
        .build()
        .map_err(|error| error.to_string())?
        .into();
    let uri = canonical_uri(url);
    let host = host_header(url);
    let request = SignableRequest::new("GET", uri, [("host", host.as_str())].into_iter(), SignableBody::Bytes(b""))
        .map_err(|error| error.to_string())?;
    let (instructions, _) = sign(request, &params).map_err(|error| error.to_string())?.into_parts();
    let (headers, _) = instructions.into_parts();
    let mut map = HeaderMap::new();
    for header in headers {
        let name = HeaderName::try_from(header.name()).map_err(|error| error.to_string())?;
        let mut value = HeaderValue::try_from(header.value()).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
}

/// Returns the URL in the form that the service signs: `+` in the query is a space, and all characters are encoded again by RFC
/// 3986. The request line keeps the original bytes.
fn canonical_uri(url: &Url) -> String {
    let encode = |text: &str| utf8_percent_encode(text, STRICT).to_string();
    let query: Vec<String> =
        url.query_pairs().map(|(key, value)| format!("{}={}", encode(&key), encode(&value))).collect();
    format!("https://{}{}?{}", host_header(url), url.path(), query.join("&"))
}

fn host_header(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 2026-01-01T00:00:00Z.
    const TIME: Duration = Duration::from_secs(1_767_225_600);

    fn authorization(url: &str, region: &str, token: Option<&str>) -> (String, HeaderMap) {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), None, "test");
        let url = Url::parse(url).unwrap();
        let headers = sign_upgrade(&url, region, credentials, SystemTime::UNIX_EPOCH + TIME).unwrap();
        (headers["authorization"].to_str().unwrap().to_owned(), headers)
    }

    /// The vector `sigv4_open_data_channel`, which the official agent's own signature confirmed.
    #[test]
    fn a_plus_in_the_cell_number_is_signed_as_a_blank() {
        let url = "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/user-0123456789abcdef0?role=publish_subscribe&cell-number=AAEAAa5+Lu4/II4==";
        let (authorization, headers) = authorization(url, "us-east-1", Some("SESSIONTOKENEXAMPLE"));
        assert_eq!(
            authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/ssmmessages/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-security-token, \
             Signature=cabece494c8af2f7ed79d9cf149ef957255c14d9b7c6902d6732847f59f389ef"
        );
        assert_eq!(headers["x-amz-date"], "20260101T000000Z");
        assert_eq!(headers["x-amz-security-token"], "SESSIONTOKENEXAMPLE");
        assert_eq!(headers.len(), 3);
    }

    /// The vector `sigv4_no_token`.
    #[test]
    fn long_lived_credentials_sign_without_a_token() {
        let url =
            "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/user-0123456789abcdef0?role=publish_subscribe";
        let (authorization, headers) = authorization(url, "eu-west-1", None);
        assert!(
            authorization.ends_with(
                "SignedHeaders=host;x-amz-date, Signature=769f8e6602186e93f5e950773d907bcccbbbd74289e54e85d6ae0e64144847a1"
            ),
            "{authorization}"
        );
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn presigned_urls_are_known_by_their_query() {
        let presigned = |text| is_presigned(&Url::parse(text).unwrap());
        assert!(presigned("wss://h.example/?role=x&X-Amz-Signature=abc"));
        assert!(!presigned("wss://h.example/?role=publish_subscribe&cell-number=X"));
    }
}
