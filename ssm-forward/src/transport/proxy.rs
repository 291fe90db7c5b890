//! The way through an HTTP proxy.

use std::fmt;
use std::sync::Arc;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{StreamUrl, TransportError};

/// Which hosts are reached through a proxy, and which one. This machine never is.
#[derive(Clone)]
pub struct Proxies(Arc<Matcher>);

impl Proxies {
    /// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say, by the rules of curl: the same as for the API's
    /// calls.
    pub fn from_env() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    /// Everything goes through `proxy`, for example `http://user:password@proxy.example:3128`, except the hosts, domains
    /// and networks in the comma-separated list `except`.
    pub fn all(proxy: &str, except: &str) -> Self {
        Self(Arc::new(Matcher::builder().all(proxy.to_owned()).no(except.to_owned()).build()))
    }

    /// Everything is reached directly.
    pub fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }

    /// The proxy on the way to the URL's host, if there is one.
    pub(super) fn to(&self, url: &StreamUrl) -> Option<Proxy> {
        if url.is_loopback() {
            return None;
        }
        let scheme = if url.is_secure() { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{}/", url.authority()).parse().ok()?;
        self.0.intercept(&uri).map(Proxy)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One proxy.
#[derive(Debug)]
pub(super) struct Proxy(Intercept);

/// Longest answer of a proxy to CONNECT, in bytes.
const MAX_ANSWER: usize = 16 << 10;

impl Proxy {
    /// Host and port to connect to.
    ///
    /// # Errors
    /// Only proxies that are spoken to in clear text are known.
    pub(super) fn address(&self) -> Result<(&str, u16), TransportError> {
        let uri = self.0.uri();
        match uri.scheme_str() {
            Some("http") => Ok((self.host(), uri.port_u16().unwrap_or(80))),
            other => Err(self.failed(format!("{}: is not supported; use http:", other.unwrap_or_default()))),
        }
    }

    fn host(&self) -> &str {
        self.0.uri().host().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// Asks for a tunnel to `authority` (`host:port`); after it, what `stream` carries is between the two ends.
    ///
    /// # Errors
    /// The proxy refused, or is none.
    pub(super) async fn tunnel(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        authority: &str,
    ) -> Result<(), TransportError> {
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
        if let Some(credentials) = self.0.basic_auth() {
            request.extend([b"Proxy-Authorization: ", credentials.as_bytes(), b"\r\n"].concat());
        }
        request.extend(b"\r\n");
        stream.write_all(&request).await.map_err(|error| self.failed(error.to_string()))?;
        let answer = read_head(stream).await.map_err(|error| self.failed(error.to_string()))?;
        match answer.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)) {
            Some(status) if status.starts_with('2') => Ok(()),
            Some("407") => Err(self.failed("it wants a login: put user:password@ into the proxy's URL".into())),
            Some(status) => Err(self.failed(format!("it refused a tunnel to {authority} with HTTP {status}"))),
            None => Err(self.failed("it does not answer as an HTTP proxy".into())),
        }
    }

    fn failed(&self, cause: String) -> TransportError {
        TransportError::Unreachable { host: format!("the proxy {}", self.host()), cause }
    }
}

/// Reads up to the empty line, byte by byte: what follows belongs to the tunnel.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_ANSWER {
            let what = format!("its answer to CONNECT has no end within {} KiB", MAX_ANSWER >> 10);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::StreamUrlPolicy;
    use super::*;

    fn proxy(proxies: &Proxies, url: &str) -> Option<Proxy> {
        proxies.to(&StreamUrl::parse(url, &StreamUrlPolicy::AnyHost).unwrap())
    }

    #[test]
    fn every_host_but_the_excluded_and_this_machine_is_behind_the_proxy() {
        let proxies = Proxies::all("proxy.example:3128", "direct.example, .corp, 10.0.0.0/8");
        for (url, through) in [
            ("wss://ssmmessages.eu-west-1.amazonaws.com/", true),
            ("ws://ssm.example/", true),
            ("wss://indirect.example/", true),
            ("wss://direct.example:8443/", false),
            ("wss://a.direct.example/", false),
            ("wss://ssm.corp/", false),
            ("wss://10.1.2.3/", false),
            ("wss://11.1.2.3/", true),
            ("ws://127.0.0.1:8080/", false),
            ("ws://127.1.2.3/", false),
            ("wss://localhost/", false),
            ("ws://[::1]:1/", false),
        ] {
            assert_eq!(proxy(&proxies, url).is_some(), through, "{url}");
        }
        assert!(proxy(&Proxies::all("proxy.example", "*"), "wss://ssm.example/").is_none());
        assert!(proxy(&Proxies::none(), "wss://ssm.example/").is_none());
    }

    #[test]
    fn a_proxy_is_an_address_and_perhaps_a_login() {
        let to = |text: &str| proxy(&Proxies::all(text, ""), "wss://ssm.example/").unwrap();
        assert_eq!(to("proxy.example:3128").address().unwrap(), ("proxy.example", 3128));
        assert_eq!(to("http://proxy.example").address().unwrap(), ("proxy.example", 80));
        assert_eq!(to("http://[::1]:3128").address().unwrap(), ("::1", 3128));
        for unsupported in ["https://proxy.example", "socks5://proxy.example:1080"] {
            let error = to(unsupported).address().unwrap_err().to_string();
            assert!(error.contains("the proxy proxy.example") && error.contains("use http:"), "{error}");
        }
        let secret = format!("{:?}", Proxies::all("http://user:pa%20ss@proxy.example", ""));
        assert!(secret.contains("proxy.example") && !secret.contains("pa"), "{secret}");
    }
}
