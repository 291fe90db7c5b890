//! The destination of a port session's connections. The destination is resolved once, when the session begins.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ssm_proto::PortProperties;
use tokio::net::TcpStream;

/// The destination's addresses, in the order in which they are tried.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    addresses: Vec<SocketAddr>,
}

/// Addresses that a remote host must not have (PORT-8): metadata, DNS, time and endpoints of the node's own cloud.
const DENIED_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 169, 253),
    Ipv4Addr::new(169, 254, 169, 123),
    Ipv4Addr::new(169, 254, 169, 250),
    Ipv4Addr::new(169, 254, 169, 251),
];
const DENIED_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x123),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x240),
];

impl Destination {
    /// Resolves the destination in the document's properties.
    ///
    /// # Errors
    /// Returns the official agent's text if the host is unknown or forbidden, or if there is no port.
    pub(super) fn resolve(properties: &PortProperties, hosts: &BTreeMap<String, Vec<IpAddr>>) -> Result<Self, String> {
        let port = properties.port_number.as_deref().unwrap_or_default();
        let port = port.parse().map_err(|_| format!("Unable to parse port number {port:?}"))?;
        let ips = match properties.host.as_deref().filter(|host| !host.is_empty()) {
            None => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Some(host) => {
                let ips = lookup(host, hosts).ok_or_else(|| format!("lookup {host}: no such host"))?;
                if ips.iter().any(is_denied) {
                    return Err(format!("Forwarding to IP address {host} is forbidden."));
                }
                ips
            }
        };
        Ok(Self { addresses: ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect() })
    }

    /// Connects to the first address that accepts the connection.
    pub(super) async fn dial(&self) -> io::Result<TcpStream> {
        let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, "missing address");
        for address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => failure = io::Error::new(error.kind(), format!("dial tcp {address}: {error}")),
            }
        }
        Err(failure)
    }
}

fn lookup(host: &str, hosts: &BTreeMap<String, Vec<IpAddr>>) -> Option<Vec<IpAddr>> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if let Some(addresses) = hosts.get(&name) {
        return Some(addresses.clone());
    }
    match name.parse() {
        Ok(address) => Some(vec![address]),
        Err(_) if name == "localhost" => Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        Err(_) => None,
    }
}

fn is_denied(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => DENIED_V4.contains(&address),
        IpAddr::V6(address) => DENIED_V6.contains(&address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(host: Option<&str>) -> Result<Vec<SocketAddr>, String> {
        let hosts = BTreeMap::from([
            ("db.internal".to_owned(), vec![Ipv4Addr::new(127, 0, 0, 2).into()]),
            ("metadata".to_owned(), vec![DENIED_V4[0].into()]),
        ]);
        let properties = PortProperties {
            port_number: Some("80".into()),
            host: host.map(str::to_owned),
            ..PortProperties::default()
        };
        Destination::resolve(&properties, &hosts).map(|destination| destination.addresses)
    }

    #[test]
    fn names_are_those_of_the_session_manager_and_localhost() {
        let local: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(resolve(None).unwrap()[0], local);
        assert_eq!(resolve(Some("localhost")).unwrap()[0], local);
        assert_eq!(resolve(Some("DB.internal.")).unwrap(), ["127.0.0.2:80".parse().unwrap()]);
        assert_eq!(resolve(Some("::1")).unwrap(), ["[::1]:80".parse().unwrap()]);
        assert_eq!(resolve(Some("elsewhere")).unwrap_err(), "lookup elsewhere: no such host");
    }

    #[test]
    fn metadata_addresses_are_forbidden_by_any_name() {
        for host in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "metadata"] {
            assert_eq!(resolve(Some(host)).unwrap_err(), format!("Forwarding to IP address {host} is forbidden."));
        }
    }
}
