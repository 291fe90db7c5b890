//! Decides which hosts are reached through a proxy, and through which one.

mod except;
mod tunnel;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use except::Except;

use super::TransportError;
use super::route::Place;
use crate::Secret;

/// Rules that define which hosts are reached through a proxy, and through which one. This machine and the metadata services of
/// instances and containers (`169.254.0.0/16`, `fd00:ec2::/32`) are always reached directly.
#[derive(Clone, Debug)]
pub struct Proxies(Arc<Rules>);

#[derive(Debug, Default)]
struct Rules {
    http: Option<Configured>,
    https: Option<Configured>,
    except: Except,
}

/// The text of a proxy setting, and where it was configured.
#[derive(Clone)]
struct Configured {
    url: Secret,
    named_by: String,
}

/// Omits the login, which the URL of a proxy may contain.
impl fmt::Debug for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.expose();
        let at = url.rfind('@').map_or(0, |at| at + 1);
        write!(f, "{} of {}", url.get(at..).unwrap_or_default(), self.named_by)
    }
}

impl Proxies {
    /// Reads the configuration from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`. It is the same for the API's calls and
    /// the data channel. A name in lower case takes precedence over the same name in upper case. The first variable that is set is
    /// used; if it is empty, there is no proxy.
    ///
    /// In a CGI program, `HTTP_PROXY` is ignored, because the sender of a request can set it.
    pub fn from_env() -> Self {
        let is_cgi = std::env::var_os("REQUEST_METHOD").is_some();
        let http = if is_cgi { &["http_proxy"][..] } else { &["http_proxy", "HTTP_PROXY"] };
        let all = ["all_proxy", "ALL_PROXY"];
        let except = first(["no_proxy", "NO_PROXY"]);
        Self(Arc::new(Rules {
            http: first(http.iter().copied().chain(all)),
            https: first(["https_proxy", "HTTPS_PROXY"].into_iter().chain(all)),
            except: except.map_or_else(Except::default, |list| Except::new(list.url.expose())),
        }))
    }

    /// Returns rules by which every host is reached through `proxy`, for example `http://user:password@proxy.example:3128`, except
    /// the hosts, domains and networks in the comma-separated list `except`.
    pub fn all(proxy: &str, except: &str) -> Self {
        let proxy = Some(Configured { url: proxy.into(), named_by: "set by the program".to_owned() });
        Self(Arc::new(Rules { http: proxy.clone(), https: proxy, except: Except::new(except) }))
    }

    /// Returns rules by which every host is reached directly.
    pub fn none() -> Self {
        Self(Arc::default())
    }

    /// Returns the proxy for a destination, if there is one.
    ///
    /// # Errors
    /// Returns an error if the configuration is not a valid proxy.
    pub(crate) fn to(&self, place: &Place) -> Result<Option<Proxy>, TransportError> {
        let configured = if place.secure { &self.0.https } else { &self.0.http };
        match configured {
            Some(configured) if !is_near(&place.host) && !self.0.except.covers(&place.host, place.port) => {
                Proxy::new(configured).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Returns the value of the first variable that is set, unless it is empty.
fn first(names: impl IntoIterator<Item = &'static str>) -> Option<Configured> {
    let mut names = names.into_iter();
    let (name, url) = names.find_map(|name| std::env::var(name).ok().map(|url| (name, url)))?;
    let url = Secret::new(url);
    let url = Secret::from(url.expose().trim());
    (!url.expose().is_empty()).then(|| Configured { url, named_by: name.to_owned() })
}

/// Whether a host must be reached directly: this machine, and the metadata services of an instance.
fn is_near(host: &str) -> bool {
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || matches!(address.segments(), [0xfd00, 0xec2, ..]),
        Err(_) => {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            host == "localhost" || host.ends_with(".localhost")
        }
    }
}

/// A proxy. It is displayed as its host and port, and where it was configured, but never with its login.
pub(crate) struct Proxy {
    kind: ProxyKind,
    place: Place,
    login: Option<Login>,
    named_by: String,
}

struct Login {
    user: String,
    password: Secret,
}

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProxyKind {
    /// HTTP with CONNECT. The connection to the proxy can use TLS.
    Http,
    /// SOCKS5. The proxy resolves the name of the host, for `socks5h` and also for `socks5`, because this machine often cannot.
    Socks5,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.place, self.named_by)
    }
}

impl Proxy {
    fn new(configured: &Configured) -> Result<Self, TransportError> {
        let Configured { url, named_by } = configured;
        let refused = |cause: String| TransportError::Configuration(format!("the proxy ({named_by}): {cause}"));
        let url = url.expose();
        let url = Secret::new(if url.contains("://") { url.clone() } else { format!("http://{url}") });
        let url = Url::parse(url.expose()).map_err(|error| refused(format!("it is not a URL ({error})")))?;
        let (kind, secure, port) = match url.scheme() {
            "http" => (ProxyKind::Http, false, 80),
            "https" => (ProxyKind::Http, true, 443),
            "socks5" | "socks5h" | "socks" => (ProxyKind::Socks5, false, 1080),
            other => {
                return Err(refused(format!("{other}: is not supported; http:, https:, socks5: and socks5h: are")));
            }
        };
        let host = match url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string().trim_matches(['[', ']']).to_owned(),
            None => return Err(refused("it has no host".into())),
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = (!url.username().is_empty() || url.password().is_some()).then(|| Login {
            user: decoded(url.username()),
            password: decoded(url.password().unwrap_or_default()).into(),
        });
        let place = Place { host, port: url.port().unwrap_or(port), secure };
        Ok(Self { kind, place, login, named_by: named_by.clone() })
    }

    /// Returns the address of the proxy itself.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether HTTP requests without TLS are sent directly to the proxy, instead of through a tunnel.
    pub(crate) fn takes_requests(&self) -> bool {
        self.kind == ProxyKind::Http
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(proxies: &Proxies, host: &str) -> Option<Proxy> {
        proxies.to(&Place { host: host.into(), port: 443, secure: true }).unwrap()
    }

    #[test]
    fn every_host_but_the_excluded_and_this_machine_is_behind_the_proxy() {
        let proxies = Proxies::all("proxy.example:3128", "direct.example, .corp, 10.0.0.0/8");
        for (host, through) in [
            ("ssmmessages.eu-west-1.amazonaws.com", true),
            ("indirect.example", true),
            ("direct.example", false),
            ("a.direct.example", false),
            ("ssm.corp", false),
            ("10.1.2.3", false),
            ("11.1.2.3", true),
            ("127.0.0.1", false),
            ("127.1.2.3", false),
            ("localhost", false),
            ("LocalHost.", false),
            ("a.localhost", false),
            ("localhost.example", true),
            ("::1", false),
            ("169.254.169.254", false),
            ("169.254.170.2", false),
            ("169.253.0.1", true),
            ("fd00:ec2::254", false),
            ("fd00:ec2::23", false),
            ("fd00:ec3::254", true),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
        ] {
            assert_eq!(to(&proxies, host).is_some(), through, "{host}");
        }
        assert!(to(&Proxies::all("proxy.example", "*"), "ssm.example").is_none());
        assert!(to(&Proxies::none(), "ssm.example").is_none());
    }

    #[test]
    fn a_proxy_is_an_address_and_perhaps_a_login() {
        let proxy = |text: &str| to(&Proxies::all(text, ""), "ssm.example").unwrap();
        for (text, kind, secure, place) in [
            ("proxy.example:3128", ProxyKind::Http, false, "proxy.example:3128"),
            ("http://proxy.example", ProxyKind::Http, false, "proxy.example:80"),
            ("HTTP://proxy.example/", ProxyKind::Http, false, "proxy.example:80"),
            ("http://[fd00::1]:3128", ProxyKind::Http, false, "[fd00::1]:3128"),
            ("https://proxy.example", ProxyKind::Http, true, "proxy.example:443"),
            ("socks5://proxy.example", ProxyKind::Socks5, false, "proxy.example:1080"),
            ("socks5h://proxy.example:9050", ProxyKind::Socks5, false, "proxy.example:9050"),
            ("socks5h://[::1]:9050", ProxyKind::Socks5, false, "[::1]:9050"),
        ] {
            let proxy = proxy(text);
            assert_eq!(
                (proxy.kind, proxy.place.secure, proxy.place.to_string().as_str()),
                (kind, secure, place),
                "{text}"
            );
        }
        let login = proxy("http://user:pa%20ss@proxy.example").login.unwrap();
        assert_eq!((login.user.as_str(), login.password.expose().as_str()), ("user", "pa ss"));
    }

    #[test]
    fn the_login_is_never_shown() {
        let proxies = Proxies::all("http://user:pa%20ss@proxy.example", "");
        for shown in [format!("{proxies:?}"), to(&proxies, "ssm.example").unwrap().to_string()] {
            assert!(shown.contains("proxy.example") && !shown.contains("pa"), "{shown}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_named_with_its_place() {
        for (text, part) in [
            ("gopher://x:secret@y", "gopher: is not supported"),
            ("http://", "not a URL"),
            ("http://a:b:c", "not a URL"),
        ] {
            let place = Place { host: "ssm.example".into(), port: 443, secure: true };
            let error = Proxies::all(text, "").to(&place).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("set by the program"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
