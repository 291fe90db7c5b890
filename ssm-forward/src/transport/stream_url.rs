//! Decides to which hosts a session's token may be sent. `docs/protocol.md`, OPEN-1.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use url::{Host, Position, Url};

use super::{Place, TransportError};

/// The hosts to which the session's token may be sent, in addition to AWS's own and this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamUrlPolicy {
    /// AWS's Session Manager endpoints (public, FIPS, dual-stack, VPC endpoints) over TLS, and loopback.
    #[default]
    AwsOrLoopback,
    /// Also these hosts: private names of VPC endpoints, test servers.
    AlsoHosts(Vec<String>),
    /// Every host, with and without TLS. Anyone who can forge the answer to StartSession gets the token. For tests.
    AnyHost,
}

/// The URL of the data channel. It is checked before the token is sent.
#[derive(Clone)]
pub struct StreamUrl {
    url: Url,
}

/// Omits the query, because the query of a presigned URL is secret.
impl fmt::Debug for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamUrl({}://{}{})", self.url.scheme(), self.place(), self.url.path())
    }
}

impl StreamUrl {
    /// Checks the scheme and the host.
    ///
    /// # Errors
    /// [`TransportError::StreamUrl`], whose message contains the host and how to allow it.
    pub fn parse(text: &str, policy: &StreamUrlPolicy) -> Result<Self, TransportError> {
        let stream_url = Self::unchecked(text)?;
        let host = stream_url.host();
        if stream_url.is_loopback()
            || (stream_url.is_secure() && region_of_host(&host).is_some())
            || policy.allows(&host)
        {
            return Ok(stream_url);
        }
        Err(TransportError::StreamUrl(format!(
            "the stream URL's host {host:?} is not an AWS Session Manager endpoint, so it does not get the session's token; \
             if you trust it, allow it with --allow-stream-host {host} (session-manager-plugin: \
             AWS_SSM_FORWARD_ALLOW_STREAM_HOSTS={host})"
        )))
    }

    /// Parses like [`StreamUrl::parse`], but replaces the URL's host by the host of `endpoint`, if there is one. A configured
    /// endpoint is trusted.
    ///
    /// # Errors
    /// Returns the same errors as [`StreamUrl::parse`].
    pub fn parse_at(
        text: &str,
        policy: &StreamUrlPolicy,
        endpoint: Option<&StreamEndpoint>,
    ) -> Result<Self, TransportError> {
        match endpoint {
            None => Self::parse(text, policy),
            Some(endpoint) => Ok(Self { url: endpoint.replace(&Self::unchecked(text)?.url)? }),
        }
    }

    fn unchecked(text: &str) -> Result<Self, TransportError> {
        let url = Url::parse(text)
            .map_err(|error| TransportError::StreamUrl(format!("the stream URL is not a URL ({error})")))?;
        if !matches!(url.scheme(), "ws" | "wss") {
            let text = format!("the stream URL's scheme is {:?}; Session Manager uses wss", url.scheme());
            return Err(TransportError::StreamUrl(text));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TransportError::StreamUrl(
                "the stream URL contains a login, which Session Manager's never does".into(),
            ));
        }
        Ok(Self { url })
    }

    /// Returns the region of a stream URL, if it is an endpoint of AWS.
    pub fn aws_region(text: &str) -> Option<String> {
        region_of(&Url::parse(text).ok()?)
    }

    /// Returns the URL.
    pub fn as_url(&self) -> &Url {
        &self.url
    }

    /// Whether the connection is encrypted.
    fn is_secure(&self) -> bool {
        self.url.scheme() == "wss"
    }

    /// Returns the host without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> String {
        match self.url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// Returns the destination of the connection.
    pub(super) fn place(&self) -> Place {
        let secure = self.is_secure();
        Place { host: self.host(), port: self.url.port().unwrap_or(if secure { 443 } else { 80 }), secure }
    }

    /// Whether the URL's host is this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// The host of the data channel, if it differs from the stream URL's host: for example the name of a private endpoint to which the
/// public name does not resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEndpoint {
    /// `wss://HOST[:PORT]` or `ws://…`.
    url: Url,
}

impl FromStr for StreamEndpoint {
    type Err = String;

    /// Parses `HOST`, `HOST:PORT` or a URL without a path and with one of the schemes `https`, `wss`, `http` and `ws`.
    /// The last two are without TLS.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = |cause: &str| format!("{text:?} is not a stream endpoint: {cause}");
        let form = "it is HOST, HOST:PORT or https://HOST[:PORT]";
        let (scheme, rest) = text.split_once("://").unwrap_or(("wss", text));
        let scheme = match scheme {
            "https" | "wss" => "wss",
            "http" | "ws" => "ws",
            _ => return Err(refused(form)),
        };
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|error| refused(&format!("{form} ({error})")))?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let has_login = !url.username().is_empty() || url.password().is_some();
        if is_bare && !has_login { Ok(Self { url }) } else { Err(refused(form)) }
    }
}

impl StreamEndpoint {
    /// Returns `wss://HOST[:PORT]/`, or `ws://…`.
    pub fn as_url(&self) -> &Url {
        &self.url
    }

    fn replace(&self, url: &Url) -> Result<Url, TransportError> {
        let rest = &url[Position::BeforePath..Position::AfterQuery];
        let text = format!("{}{rest}", &self.url[..Position::BeforePath]);
        Url::parse(&text).map_err(|error| TransportError::StreamUrl(format!("the stream URL is not a URL ({error})")))
    }
}

impl StreamUrlPolicy {
    fn allows(&self, host: &str) -> bool {
        match self {
            Self::AwsOrLoopback => false,
            Self::AlsoHosts(hosts) => {
                hosts.iter().any(|allowed| allowed.trim_matches(['[', ']']).eq_ignore_ascii_case(host))
            }
            Self::AnyHost => true,
        }
    }
}

/// Suffixes of the AWS partitions; the ones of dual-stack endpoints are last. `tests/real/endpoints.py` compares them with
/// botocore's.
const PARTITIONS: [&str; 14] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "csp.hci.ic.gov",
    "cloud.adc-e.uk",
    "api.aws",
    "api.amazonwebservices.com.cn",
    "api.amazonwebservices.eu",
    "api.aws.ic.gov",
    "api.aws.scloud",
    "api.aws.hci.ic.gov",
    "api.cloud-aws.adc-e.uk",
];

/// Returns the region of AWS's endpoint at a host: `ssmmessages[-fips].REGION.SUFFIX`, or `vpce-ID.ssmmessages.REGION.vpce.SUFFIX`.
fn region_of_host(host: &str) -> Option<&str> {
    PARTITIONS.iter().filter_map(|suffix| host.strip_suffix(suffix)?.strip_suffix('.')).find_map(|rest| {
        let labels: Vec<&str> = rest.split('.').collect();
        match *labels.as_slice() {
            ["ssmmessages" | "ssmmessages-fips", region] => Some(region),
            [endpoint, "ssmmessages" | "ssmmessages-fips", region, "vpce"] if endpoint.starts_with("vpce-") => {
                Some(region)
            }
            _ => None,
        }
        .filter(|region| !region.is_empty())
    })
}

/// Returns the region of `url`, if it is an endpoint of AWS.
pub(crate) fn region_of(url: &Url) -> Option<String> {
    region_of_host(url.host_str()?).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_session_manager_and_this_machine_get_the_token() {
        let good = [
            "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/x?role=publish_subscribe",
            "wss://ssmmessages-fips.us-gov-west-1.amazonaws.com/",
            "wss://ssmmessages.cn-north-1.amazonaws.com.cn/",
            "wss://ssmmessages.eusc-de-east-1.amazonaws.eu/",
            "wss://ssmmessages.eu-west-1.api.aws/",
            "wss://ssmmessages.us-iso-east-1.c2s.ic.gov/",
            "wss://ssmmessages.us-isob-east-1.sc2s.sgov.gov/",
            "wss://ssmmessages.us-isof-south-1.csp.hci.ic.gov/",
            "wss://ssmmessages.eu-isoe-west-1.cloud.adc-e.uk/",
            "wss://ssmmessages.cn-north-1.api.amazonwebservices.com.cn/",
            "wss://ssmmessages.eusc-de-east-1.api.amazonwebservices.eu/",
            "wss://ssmmessages-fips.us-iso-east-1.api.aws.ic.gov/",
            "wss://vpce-0abc-1.ssmmessages.cn-north-1.vpce.amazonaws.com.cn/",
            "wss://SSMMessages.eu-west-1.amazonaws.com:443/",
            "wss://vpce-0abc-1.ssmmessages.eu-west-1.vpce.amazonaws.com/",
            "ws://127.0.0.1:8080/",
            "wss://localhost:8080/",
            "ws://[::1]:1/",
        ];
        for url in good {
            assert!(StreamUrl::parse(url, &StreamUrlPolicy::default()).is_ok(), "{url}");
        }
        let bad = [
            "",
            "not a url",
            "https://ssmmessages.us-east-1.amazonaws.com/",
            "ws://ssmmessages.us-east-1.amazonaws.com/",
            "wss://ssmmessages.us-east-1.amazonaws.com.evil.example/",
            "wss://evil-ssmmessages.us-east-1.amazonaws.com/",
            "wss://ec2.us-east-1.amazonaws.com/",
            "wss://ssmmessages.us-east-1.amazonaws.com@evil.example/",
            "wss://10.0.0.1/",
            "wss://bucket.s3.amazonaws.com/",
            "wss://vpce-0abc-1.execute-api.eu-west-1.vpce.amazonaws.com/",
            "wss://ssmmessages.amazonaws.com/",
            "wss://ssmmessages..amazonaws.com/",
            "wss://a.ssmmessages.eu-west-1.amazonaws.com/",
            "wss://user:secret@ssmmessages.us-east-1.amazonaws.com/",
            "wss://localhost.evil.example/",
            "wss://127.0.0.1.evil.example/",
            "ws://[fd00::1]/",
        ];
        for url in bad {
            let error = StreamUrl::parse(url, &StreamUrlPolicy::default()).unwrap_err();
            assert!(matches!(error, TransportError::StreamUrl(_)), "{url}");
        }
    }

    #[test]
    fn other_hosts_can_be_allowed_by_name() {
        let policy = StreamUrlPolicy::AlsoHosts(vec!["ssm.corp.example".into()]);
        assert!(StreamUrl::parse("wss://SSM.corp.example/", &policy).is_ok());
        let refused = StreamUrl::parse("wss://other.example/", &policy).unwrap_err().to_string();
        assert!(
            refused.contains("\"other.example\"") && refused.contains("--allow-stream-host other.example"),
            "{refused}"
        );
        for written in ["fd00::1", "[fd00::1]"] {
            let policy = StreamUrlPolicy::AlsoHosts(vec![written.into()]);
            assert!(StreamUrl::parse("wss://[fd00::1]:8443/", &policy).is_ok(), "{written}");
        }
        assert!(StreamUrl::parse("ws://other.example/", &StreamUrlPolicy::AnyHost).is_ok());
    }

    #[test]
    fn the_query_is_kept_to_the_letter_and_out_of_logs() {
        let text =
            "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/s?role=publish_subscribe&cell-number=A+b/c==";
        let url = StreamUrl::parse(text, &StreamUrlPolicy::default()).unwrap();
        assert_eq!(url.as_url().as_str(), text);
        let logged = format!("{url:?}");
        assert!(logged.ends_with("amazonaws.com:443/v1/data-channel/s)"), "{logged}");
    }

    #[test]
    fn the_region_is_part_of_the_name() {
        let region = |text| region_of(&Url::parse(text).unwrap());
        for (url, expected) in [
            ("wss://ssmmessages.eu-west-1.amazonaws.com/x", Some("eu-west-1")),
            ("wss://ssmmessages-fips.us-gov-west-1.amazonaws.com/", Some("us-gov-west-1")),
            ("wss://vpce-0a-1.ssmmessages.ap-south-1.vpce.amazonaws.com/", Some("ap-south-1")),
            ("wss://ssmmessages.cn-north-1.api.amazonwebservices.com.cn/", Some("cn-north-1")),
            ("wss://ssm.corp.example/", None),
            ("ws://127.0.0.1:1/", None),
        ] {
            assert_eq!(region(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_named_endpoint_takes_the_place_of_the_host_and_nothing_else() {
        let text = "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s?role=x&cell-number=A+b/c==";
        let at = |endpoint: &str| {
            let endpoint = endpoint.parse().unwrap();
            StreamUrl::parse_at(text, &StreamUrlPolicy::default(), Some(&endpoint)).unwrap().as_url().to_string()
        };
        let rest = "/v1/data-channel/s?role=x&cell-number=A+b/c==";
        for (endpoint, start) in [
            (
                "vpce-0a-1.ssmmessages.eu-west-1.vpce.amazonaws.com",
                "wss://vpce-0a-1.ssmmessages.eu-west-1.vpce.amazonaws.com",
            ),
            ("https://ssm.corp.example:8443/", "wss://ssm.corp.example:8443"),
            ("ssm.corp.example:443", "wss://ssm.corp.example"),
            ("ws://10.0.0.1:80", "ws://10.0.0.1"),
        ] {
            assert_eq!(at(endpoint), format!("{start}{rest}"));
        }
        for bad in ["", "https://", "ftp://x", "x/y", "https://a:b@x", "https://x?y", "a b"] {
            assert!(bad.parse::<StreamEndpoint>().is_err(), "{bad}");
        }
        let elsewhere = StreamUrl::parse_at("wss://evil.example/x", &StreamUrlPolicy::default(), None);
        assert!(elsewhere.is_err());
    }

    const WORDS: &[&str] = &[
        "wss://",
        "ws://",
        "https://",
        "ssmmessages.",
        "eu-west-1",
        ".amazonaws.com",
        ".amazonaws.com.evil.example",
        "evil.example",
        "@",
        ":",
        "443",
        "/",
        "\\",
        "?",
        "#",
        "vpce-1.",
        "vpce.",
        "127.0.0.1",
        "[::1]",
        "localhost",
        "%2e",
        "%00",
        ".",
        "-",
        "\t",
        "。",
        "user:pass@",
    ];

    proptest::proptest! {
        #[test]
        fn no_url_leads_the_token_elsewhere(text in crate::random_text::of_words(WORDS)) {
            outcome_of(&text);
        }
    }

    #[test]
    fn no_url_of_the_corpus_leads_the_token_elsewhere() {
        let seeds: [&[u8]; 7] = [
            b"wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s-1?role=publish_subscribe",
            b"wss://ssmmessages-fips.us-gov-west-1.amazonaws.com/v1/data-channel/s-1",
            b"wss://vpce-0.ssmmessages.eu-west-1.vpce.amazonaws.com/x",
            b"ws://127.0.0.1:8080/v1/data-channel/s-1",
            b"ws://[::1]/x",
            b"wss://user:pass@localhost/",
            b"https://ssmmessages.cn-north-1.amazonaws.com.cn.evil.example/",
        ];
        crate::replay::corpus("stream_url", &seeds, 5000, |input| outcome_of(&String::from_utf8_lossy(input)));
    }

    /// Checks that for any URL, the token is sent only to this machine or, over TLS, to AWS. Returns a summary of the results.
    fn outcome_of(text: &str) -> String {
        let url = match StreamUrl::parse(text, &StreamUrlPolicy::AwsOrLoopback) {
            Ok(url) => {
                let host = url.host();
                let suffix = PARTITIONS.iter().position(|suffix| {
                    host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')) && host.contains("ssmmessages")
                });
                assert!((suffix.is_some() && url.is_secure()) || url.is_loopback(), "{text:?} leads to {host}");
                assert!(url.as_url().username().is_empty() && url.as_url().password().is_none(), "{text:?}");
                // One letter for each partition.
                suffix
                    .and_then(|at| u8::try_from(at).ok())
                    .map_or_else(|| "loopback".into(), |at| char::from(b'a' + at).to_string())
            }
            Err(error) => format!("{error:?}"),
        };
        let endpoint = match text.parse::<StreamEndpoint>() {
            Ok(endpoint) => {
                let replaced = endpoint.replace(&Url::parse("wss://x/v1/s-1?role=a").unwrap()).unwrap();
                assert_eq!(replaced.host(), endpoint.as_url().host(), "{text:?}");
                assert!(replaced.as_str().ends_with("/v1/s-1?role=a"), "{replaced}");
                "an endpoint".into()
            }
            Err(error) => format!("{error:?}"),
        };
        format!("{url}|{endpoint}")
    }
}
