//! The lists that decide which destinations clients may reach.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// A host and a port to which a client requests a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    /// A host name in lower case without a trailing dot, or an IP address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Destination {
    /// Creates a destination from a client's request. Returns `None` if `host` is not a valid host or `port` is 0.
    pub(crate) fn new(host: &str, port: u16) -> Option<Self> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let is_plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let is_name = is_plain && !host.is_empty() && host.len() <= 253 && !ends_in_number(&host);
        ((is_name || host.parse::<IpAddr>().is_ok()) && port != 0).then_some(Self { host, port })
    }
}

/// Whether some resolvers interpret a name as an address, such as `0xa9fea9fe`. Such names are refused, because the lists cannot
/// match the address.
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    match last.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// An entry of a list: a host, `*.DOMAIN`, an address, a network or `*`, each with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    All,
    One(String),
    /// The hosts of `*.DOMAIN`. Contains the domain with its leading dot.
    Below(String),
    Net(IpNet),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected a host, *.DOMAIN, an address, a network or *, as in *.internal:443, not {text:?}");
        let (host, port) = match (text.strip_prefix('['), text.rsplit_once(':')) {
            (Some(rest), _) => match rest.split_once(']').ok_or_else(expected)? {
                (host, "") => (host, None),
                (host, port) => (host, Some(port.strip_prefix(':').ok_or_else(expected)?)),
            },
            // An IPv6 address or network without brackets.
            (None, Some((before, _))) if before.contains(':') => (text, None),
            (None, Some((host, port))) => (host, Some(port)),
            (None, None) => (text, None),
        };
        let port = match port {
            Some(port) => Some(port.parse().ok().filter(|&port: &u16| port != 0).ok_or_else(expected)?),
            None => None,
        };
        let hosts = match (host, host.strip_prefix('*')) {
            ("*", _) => Hosts::All,
            (_, Some(domain)) if domain.starts_with('.') && Destination::new(domain, 1).is_some() => {
                Hosts::Below(domain.trim_end_matches('.').to_ascii_lowercase())
            }
            _ if host.contains('/') => Hosts::Net(host.parse().map_err(|_| expected())?),
            _ => match (host.parse::<IpAddr>(), Destination::new(host, 1)) {
                (Ok(address), _) => Hosts::Net(address.into()),
                (_, Some(host)) => Hosts::One(host.host),
                _ => return Err(expected()),
            },
        };
        Ok(Self { hosts, port })
    }
}

impl Pattern {
    fn matches(&self, destination: &Destination) -> bool {
        self.port.is_none_or(|port| port == destination.port)
            && match &self.hosts {
                Hosts::All => true,
                Hosts::One(host) => *host == destination.host,
                Hosts::Below(domain) => destination.host.ends_with(domain),
                Hosts::Net(net) => {
                    destination.host.parse().is_ok_and(|address: IpAddr| net.contains(&address.to_canonical()))
                }
            }
    }
}

/// The lists of allowed and denied destinations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) allow: Vec<Pattern>,
    pub(crate) deny: Vec<Pattern>,
}

/// The destinations that serve the node's own credentials. They are protected, because any web page in a browser that uses the
/// proxy can request any destination.
const METADATA: [&str; 4] = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "instance-data.ec2.internal"];

impl Access {
    /// Whether clients may reach a destination. `deny` takes precedence over `allow`. The addresses of the node's metadata are
    /// permitted only if an entry of `allow` other than `*` matches them.
    pub(crate) fn permits(&self, destination: &Destination) -> bool {
        let among = |list: &[Pattern]| list.iter().any(|pattern| pattern.matches(destination));
        let named = self.allow.iter().any(|pattern| pattern.hosts != Hosts::All && pattern.matches(destination));
        let is_metadata =
            METADATA.iter().any(|text| text.parse().is_ok_and(|pattern: Pattern| pattern.matches(destination)));
        !among(&self.deny) && (self.allow.is_empty() || among(&self.allow)) && (!is_metadata || named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allow: &[&str], deny: &[&str], host: &str, port: u16) -> bool {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Access { allow: list(allow), deny: list(deny) }.permits(&Destination::new(host, port).unwrap())
    }

    #[test]
    fn what_is_allowed_and_not_denied_may_be_reached() {
        for (allow, deny, host, wanted) in [
            (&[][..], &[][..], "db.internal", true),
            (&["*.internal"], &[], "DB.internal.", true),
            (&["*.internal"], &[], "internal", false),
            (&["*.internal"], &[], "evilinternal", false),
            (&["db.internal"], &[], "db.internal", true),
            (&["db.internal"], &[], "db2.internal", false),
            (&["*.internal:443"], &[], "db.internal", true),
            (&["*.internal:80"], &[], "db.internal", false),
            (&["10.0.0.0/8"], &[], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "::ffff:10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "11.1.2.3", false),
            (&["10.1.2.3"], &[], "10.1.2.3", true),
            (&["fd00::/8"], &[], "fd12::1", true),
            (&["[fd12::1]:443"], &[], "fd12::1", true),
            (&["*"], &["secret.internal"], "secret.internal", false),
            (&["secret.internal"], &["*:443"], "secret.internal", false),
            (&[], &[], "169.254.169.254", false),
            (&["*"], &[], "169.254.169.254", false),
            (&["169.254.169.254"], &[], "169.254.169.254", true),
        ] {
            assert_eq!(permits(allow, deny, host, 443), wanted, "{allow:?} {deny:?} {host}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", ":443", "a b", "*x", "*.", "10.0.0.0/33", "host:0", "host:x", "[::1", "host:99999"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_no_destination() {
        let numbers = ["0xa9fea9fe", "2852039166", "169.254.43518", "0251.0376.0251.0376", "a.0x"];
        for (host, port) in
            [("", 1), ("a b", 1), ("a\n", 1), ("host", 0), (".", 1)].into_iter().chain(numbers.map(|host| (host, 1)))
        {
            assert_eq!(Destination::new(host, port), None, "{host}");
        }
        assert_eq!(Destination::new("fd00::1", 443).unwrap().to_string(), "[fd00::1]:443");
    }
}
