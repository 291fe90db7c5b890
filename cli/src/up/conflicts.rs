//! Checks for conflicts between tunnels, before any tunnel is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ssm_forward::{ForwardError, ListenAddr};

use super::control::Process;
use crate::activation;
use crate::config::Tunnel;
use crate::exit_code::{ExitCode, Failure};
use crate::hosts;
use crate::spec::ForwardRequest;

/// Checks that no two of the tunnels listen on the same address. With `hosts`, each host name gets its own address, so that these
/// tunnels do not conflict.
///
/// # Errors
/// Returns an error that names two tunnels with the same address.
pub(super) fn check(tunnels: &[Tunnel], hosts: bool) -> Result<(), Failure> {
    let mut seen: Vec<(&str, &ListenAddr)> = Vec::new();
    for tunnel in tunnels {
        let Some(listen) = listen(tunnel, hosts) else { continue };
        if let Some((other, _)) = seen.iter().find(|(_, other)| collide(other, listen)) {
            let text = format!(
                "the tunnels `{other}` and `{}` both listen on {listen}; give one of them another `local`",
                tunnel.name
            );
            return Err(Failure::new(ExitCode::Usage, "conflict", text));
        }
        seen.push((&tunnel.name, listen));
    }
    Ok(())
}

/// Checks that no other process listens on the addresses of the tunnels. With `hosts`, tunnels to host names are not checked,
/// because they get free addresses.
///
/// # Errors
/// Returns an error if an address is in use.
pub(super) fn check_free(tunnels: &[Tunnel], hosts: bool) -> Result<(), Failure> {
    for tunnel in tunnels {
        if let Some(listen @ ListenAddr::Tcp(address)) = listen(tunnel, hosts)
            && activation::listener(listen).is_none()
            && let Err(source) = std::net::TcpListener::bind(address)
        {
            let failure = Failure::from(ForwardError::Listen { address: address.to_string(), source: source.into() });
            return Err(Failure { message: format!("the tunnel `{}`: {}", tunnel.name, failure.message), ..failure });
        }
    }
    Ok(())
}

/// Checks that each socket from systemd belongs to a tunnel. Connections of another socket would not be served.
///
/// # Errors
/// Returns an error that names the address of another socket.
pub(super) fn check_passed(tunnels: &[Tunnel], hosts: bool) -> Result<(), Failure> {
    let mut addresses = activation::addresses();
    match addresses.find(|address| !tunnels.iter().any(|tunnel| listen(tunnel, hosts) == Some(address))) {
        Some(address) => {
            let text =
                format!("systemd has opened a socket on {address}, but no tunnel has this address as its `local`");
            Err(Failure::new(ExitCode::Config, "activation", text))
        }
        None => Ok(()),
    }
}

/// Checks that none of the tunnels is open in another process.
///
/// # Errors
/// Returns an error that names such a tunnel and its process.
pub(super) fn check_others(tunnels: &[Tunnel], others: &[Process]) -> Result<(), Failure> {
    for Tunnel { name, .. } in tunnels {
        if let Some(other) = others.iter().find(|other| other.has(name)) {
            let (pid, folder) = (other.status.pid, &other.status.folder);
            let text = format!(
                "the tunnel `{name}` is open already, in process {pid} (started in {folder}); `down {name}` closes it"
            );
            return Err(Failure::new(ExitCode::Listen, "already_open", text));
        }
    }
    Ok(())
}

/// Returns the local address of a tunnel; `None` if it is chosen later.
fn listen(tunnel: &Tunnel, hosts: bool) -> Option<&ListenAddr> {
    let request = tunnel.args.forwards.first()?;
    let gets_name = match request {
        ForwardRequest::Plain(spec) => hosts::gets_name(spec),
        ForwardRequest::Service(_) => true,
    };
    let is_usual =
        |listen: &ListenAddr| matches!(listen, ListenAddr::Tcp(address) if address.ip() == Ipv4Addr::LOCALHOST);
    request.listen().filter(|listen| !(hosts && gets_name && is_usual(listen)))
}

fn collide(a: &ListenAddr, b: &ListenAddr) -> bool {
    match (a, b) {
        (ListenAddr::Tcp(a), ListenAddr::Tcp(b)) => a.port() == b.port() && a.port() != 0 && overlap(*a, *b),
        (a, b) => a == b,
    }
}

/// Whether two addresses conflict on the same port. An unspecified address includes all addresses of its family; on most systems,
/// `[::]` includes the IPv4 addresses too.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    a.ip() == b.ip() || covers(a.ip(), b.ip()) || covers(b.ip(), a.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_include_each_other_collide() {
        let address = |text: &str| ListenAddr::Tcp(text.parse().unwrap());
        for (a, b, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("0.0.0.0:80", "127.0.0.2:80", true),
            ("127.0.0.2:80", "[::]:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(collide(&address(a), &address(b)), expected, "{a} {b}");
            assert_eq!(collide(&address(b), &address(a)), expected, "{b} {a}");
        }
        let socket = |path: &str| ListenAddr::Unix(path.into());
        assert!(collide(&socket("/a"), &socket("/a")) && !collide(&socket("/a"), &socket("/b")));
    }
}
