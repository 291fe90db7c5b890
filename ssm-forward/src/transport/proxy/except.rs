//! The hosts in `NO_PROXY`.

use std::net::IpAddr;

use ipnet::IpNet;

/// Hosts that are reached directly.
#[derive(Clone, Debug, Default)]
pub(super) struct Except(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug)]
enum Hosts {
    All,
    /// A domain and all names below it.
    Domain(String),
    Network(IpNet),
}

impl Except {
    /// Parses a list of names (`host`, `.domain`, `*.domain`), addresses and networks (`10.0.0.0/8`), separated by commas or
    /// spaces. Each can have a port. Other entries are ignored.
    pub(super) fn new(list: &str) -> Self {
        Self(list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()).filter_map(Entry::new).collect())
    }

    pub(super) fn covers(&self, host: &str, port: u16) -> bool {
        self.0.iter().any(|entry| entry.port.is_none_or(|only| only == port) && entry.hosts.cover(host))
    }
}

impl Entry {
    fn new(text: &str) -> Option<Self> {
        if let Some(network) = network(text) {
            return Some(Self { hosts: Hosts::Network(network), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let hosts = match network(host) {
            Some(network) => Hosts::Network(network),
            None if host == "*" => Hosts::All,
            None => Hosts::Domain(domain(host)?),
        };
        Some(Self { hosts, port })
    }
}

/// Parses a network. An address is a network with one member.
fn network(text: &str) -> Option<IpNet> {
    let bare = text.trim_matches(['[', ']']);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(address.to_canonical().into());
    }
    let (address, bits) = text.split_once('/')?;
    format!("{}/{bits}", address.trim_matches(['[', ']'])).parse().ok()
}

fn domain(text: &str) -> Option<String> {
    let domain = text.trim_start_matches('*').trim_matches('.');
    (!domain.is_empty() && !domain.contains('/')).then(|| domain.to_ascii_lowercase())
}

impl Hosts {
    fn cover(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Domain(domain) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Network(network) => {
                host.parse::<IpAddr>().is_ok_and(|address| network.contains(&address.to_canonical()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_networks_and_ports() {
        let except = Except::new(
            "a.example,.b.example , *.c.example 10.0.0.0/8,192.0.2.7,[fd00::]/16,::5,d.example:8443,bad/x,[::7]:8443,10.9.0.0/33,\
             192.0.3.0/24:8443",
        );
        for (host, port, covered) in [
            ("a.example", 443, true),
            ("x.A.example.", 443, true),
            ("xa.example", 443, false),
            ("b.example", 443, true),
            ("x.c.example", 443, true),
            ("10.200.0.1", 443, true),
            ("::ffff:10.200.0.1", 443, true),
            ("11.0.0.1", 443, false),
            ("192.0.2.7", 443, true),
            ("192.0.2.8", 443, false),
            ("192.0.3.8", 8443, true),
            ("192.0.3.8", 443, false),
            ("fd00:1::1", 443, true),
            ("fd01::1", 443, false),
            ("::5", 443, true),
            ("::7", 8443, true),
            ("::7", 443, false),
            ("d.example", 8443, true),
            ("d.example", 443, false),
            ("bad", 443, false),
        ] {
            assert_eq!(except.covers(host, port), covered, "{host}:{port}");
        }
        assert!(Except::new("*").covers("x", 1) && Except::new("0.0.0.0/0").covers("1.2.3.4", 1));
        assert!(!Except::new(" , ,.").covers("x", 1));
    }
}
