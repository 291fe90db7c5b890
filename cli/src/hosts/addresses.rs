//! Assigns a loopback address to each remote name, so that each service can use its own port.
//!
//! On Linux, all of 127.0.0.0/8 belongs to this machine.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ssm_forward::ListenAddr;

use crate::exit_code::{ExitCode, Failure};
use crate::plan::Planned;
use crate::spec::ForwardSpec;

/// A remote name and the local address on which its tunnels listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) address: Ipv4Addr,
    pub(crate) name: String,
}

/// Number of addresses that are tried for one name.
const ATTEMPTS: u8 = 32;

/// Changes the tunnel of each remote name so that it listens on the name's own loopback address: at the remote port, or at the
/// local port if one was given. Tunnels to one host share its address. Tunnels to the node itself, or to an address, are not
/// changed. `option` is the option that requests this, for messages.
///
/// # Errors
/// Returns an error if no tunnel has a remote name, if a tunnel listens on a Unix socket or an IPv6 address, or if its port is not
/// free on any address.
pub(crate) fn assign(planned: &mut [Planned], option: &str) -> Result<Vec<Name>, Failure> {
    let mut hosts: BTreeMap<String, Vec<&mut SocketAddr>> = BTreeMap::new();
    let mut names = Vec::new();
    for Planned { spec, .. } in planned {
        let Some(name) = spec.remote.host.as_deref().and_then(as_name) else { continue };
        let ListenAddr::Tcp(address) = &mut spec.listen else {
            let text = format!("-L {}: {option} needs a TCP port, not a Unix socket", spec.text);
            return Err(Failure::new(ExitCode::Usage, "usage", text));
        };
        if address.port() == 0 {
            address.set_port(spec.remote.port);
        }
        match address {
            SocketAddr::V4(v4) if *v4.ip() == Ipv4Addr::LOCALHOST => hosts.entry(name).or_default().push(address),
            // The user gave this address.
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => names.push(Name { address: Ipv4Addr::LOCALHOST, name }),
            SocketAddr::V4(v4) => names.push(Name { address: *v4.ip(), name }),
            SocketAddr::V6(_) => {
                let text = format!("-L {}: {option} needs a local IPv4 address, or no local address", spec.text);
                return Err(Failure::new(ExitCode::Usage, "usage", text));
            }
        }
    }
    for (name, listens) in hosts {
        let ports: Vec<_> = listens.iter().map(|address| address.port()).collect();
        let address = free_address(&name, &ports)?;
        listens.into_iter().for_each(|listen| listen.set_ip(address.into()));
        names.push(Name { address, name });
    }
    names.dedup();
    if names.is_empty() {
        let text = format!("{option} needs a tunnel to a host with a name; an address is not a name");
        return Err(Failure::new(ExitCode::Usage, "usage", text));
    }
    Ok(names)
}

/// Whether [`assign`] gives this tunnel a name and an address.
pub(crate) fn gets_name(spec: &ForwardSpec) -> bool {
    spec.remote.host.as_deref().is_some_and(|host| as_name(host).is_some())
        && matches!(spec.listen, ListenAddr::Tcp(SocketAddr::V4(_)))
}

/// Adds the addresses to the descriptions of the tunnels.
pub(crate) fn tell(planned: &mut [Planned], names: &[Name]) {
    for planned in planned {
        let name = planned.spec.remote.host.as_deref().and_then(as_name);
        if let Some(found) = names.iter().find(|found| Some(&found.name) == name.as_ref()) {
            let text = format!("on this machine {} is {}", found.name, found.address);
            planned.found =
                Some(planned.found.take().map_or_else(|| text.clone(), |before| format!("{before}; {text}")));
        }
    }
}

/// Returns the host as a name for a hosts file; `None` for addresses and for `localhost`.
pub(super) fn as_name(host: &str) -> Option<String> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    (is_plain && !is_address && !name.is_empty() && name != "localhost").then_some(name)
}

/// Returns an address on which all these ports are free. The same name always gets the same address, unless a port is in use on it.
fn free_address(name: &str, ports: &[u16]) -> Result<Ipv4Addr, Failure> {
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        let address = candidate(name, attempt);
        let taken = ports.iter().find_map(|&port| {
            let at = SocketAddrV4::new(address, port);
            TcpListener::bind(at).err().map(|error| (at, error))
        });
        match taken {
            None => return Ok(address),
            Some((at, error)) if error.kind() == ErrorKind::AddrInUse => last = Some((at, error)),
            Some((at, error)) => return Err(cannot_listen(at, &error)),
        }
    }
    Err(last.map_or_else(|| Failure::internal("no address was tried"), |(at, error)| cannot_listen(at, &error)))
}

/// Returns an address of 127.64.0.0/10, which other programs rarely use.
fn candidate(name: &str, attempt: u8) -> Ipv4Addr {
    let digest: [u8; 32] = Sha256::new().chain_update(name).chain_update([attempt]).finalize().into();
    let [second, third, fourth, ..] = digest;
    Ipv4Addr::new(127, 64 + second % 64, third, fourth.clamp(1, 254))
}

fn cannot_listen(at: SocketAddrV4, error: &std::io::Error) -> Failure {
    let port = at.port();
    let text = match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "cannot listen on {at}: a port below 1024 needs root, or: sudo sysctl \
             net.ipv4.ip_unprivileged_port_start={port}; or give another local port, as in -L 8{port:03}:host:{port}"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "cannot listen on {at}: this system has only the loopback address 127.0.0.1; use {{host}} and {{port}} instead"
        ),
        _ => format!("cannot listen on {at}: {error}"),
    };
    Failure::new(ExitCode::Listen, "listen", text)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_address_and_a_taken_one_is_passed_over() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let first = free_address("db.example", &[free]).unwrap();
        assert_eq!(free_address("db.example", &[free]).unwrap(), first);
        assert_ne!(free_address("other.example", &[free]).unwrap(), first);
        let _taken = TcpListener::bind((first, free)).unwrap();
        assert_ne!(free_address("db.example", &[free]).unwrap(), first);
    }

    #[test]
    fn only_names_get_an_address() {
        for host in ["10.0.0.1", "::1", "localhost", "Localhost.", "", "a b", "a\nb", "a#b"] {
            assert_eq!(as_name(host), None, "{host}");
        }
        assert_eq!(as_name("My_DB-1.Example.").as_deref(), Some("my_db-1.example"));
    }
}
