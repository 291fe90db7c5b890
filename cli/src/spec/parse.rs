//! Parses a `-L`, whose parts are separated by colons.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ssm_forward::{ListenAddr, ProviderError, ServiceSpec};

use super::{Remote, SpecError};

/// Splits a `-L` into the local address and the service. Returns `None` if the text does not contain a service. In `rds:3306`,
/// `rds` is the name of a host, because a number follows.
pub(super) fn split_service(text: &str) -> Option<(&str, Result<ServiceSpec, ProviderError>)> {
    let starts = std::iter::once(0).chain(text.match_indices(':').map(|(at, _)| at + 1));
    starts.filter_map(|at| text.split_at_checked(at)).find_map(|(listen, rest)| {
        let service = ServiceSpec::of_text(rest)?;
        let is_port = rest.split_once(':').is_some_and(|(_, name)| name.parse::<u16>().is_ok());
        (!is_port).then(|| (listen.strip_suffix(':').unwrap_or(listen), service))
    })
}

/// Parses a local address: `port`, `bind:port` or `unix:/path`.
pub(super) fn parse_listen(text: &str) -> Result<ListenAddr, SpecError> {
    match text.strip_prefix("unix:") {
        Some("") => refuse("the path of the Unix socket is empty"),
        Some(path) => Ok(ListenAddr::Unix(PathBuf::from(path))),
        None => parse_socket_addr(text, "it has too many parts before the service").map(ListenAddr::Tcp),
    }
}

/// Parses `[bind:]port`. `too_many` is the error for more parts.
fn parse_socket_addr(text: &str, too_many: &str) -> Result<SocketAddr, SpecError> {
    let parts = split(text)?;
    let (bind, port) = match parts.as_slice() {
        [port] => (IpAddr::V4(Ipv4Addr::LOCALHOST), *port),
        [bind, port] => (parse_bind(*bind)?, *port),
        _ => return refuse(too_many),
    };
    Ok(SocketAddr::new(bind, parse_port("local", port)?))
}

/// Parses `[bind:]port:host:hostport`, `[bind:]port:hostport`, `unix:/path:host:hostport` or `unix:/path:hostport`.
pub(super) fn parse_ends(text: &str) -> Result<(ListenAddr, Remote), SpecError> {
    let (listen, rest) = match text.strip_prefix("unix:") {
        Some(rest) => parse_unix(rest)?,
        None => parse_tcp(text)?,
    };
    Ok((listen, parse_remote(&rest)?))
}

/// Parses `[bind:]port`, for listeners that are not forwards.
///
/// # Errors
/// Returns a text with the problem and the accepted forms.
pub(crate) fn parse_listen_address(text: &str) -> Result<SocketAddr, String> {
    parse_socket_addr(text, "it has too many parts").map_err(|SpecError(what)| {
        format!("{what}; expected [bind:]port, for example 9090 or 127.0.0.1:9090 (IPv6 addresses in brackets)")
    })
}

fn refuse<T>(what: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError(what.into()))
}

/// Parses the path of a Unix socket. Returns the remaining parts too.
fn parse_unix(text: &str) -> Result<(ListenAddr, Vec<Part<'_>>), SpecError> {
    let Some((path, rest)) = text.split_once(':') else {
        return refuse("the remote port is missing after the socket's path");
    };
    if path.is_empty() {
        return refuse("the path of the Unix socket is empty");
    }
    Ok((ListenAddr::Unix(PathBuf::from(path)), split(rest)?))
}

/// Parses `[bind:]port`. Returns the remaining parts too. If the first part is not a number, it is the address to bind.
fn parse_tcp(text: &str) -> Result<(ListenAddr, Vec<Part<'_>>), SpecError> {
    let mut parts = split(text)?;
    let has_bind = parts.len() > 1 && !parts.first().is_some_and(Part::is_number);
    let bind = if has_bind { parse_bind(parts.remove(0))? } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let port = parse_port("local", parts.remove(0))?;
    if parts.is_empty() {
        return refuse("the remote port is missing");
    }
    Ok((ListenAddr::Tcp(SocketAddr::new(bind, port)), parts))
}

/// Parses `hostport` or `host:hostport`.
fn parse_remote(parts: &[Part<'_>]) -> Result<Remote, SpecError> {
    let (host, port) = match parts {
        [port] => (None, *port),
        [host, port] => (Some(parse_host(*host)?), *port),
        _ => return refuse("it has too many parts"),
    };
    match parse_port("remote", port)? {
        0 => refuse("the remote port can't be 0"),
        port => Ok(Remote { host, port }),
    }
}

/// A part between two colons, without its brackets.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    text: &'a str,
    bracketed: bool,
}

impl Part<'_> {
    fn is_number(&self) -> bool {
        !self.bracketed && !self.text.is_empty() && self.text.bytes().all(|byte| byte.is_ascii_digit())
    }
}

/// Splits at the colons that are not in brackets.
fn split(text: &str) -> Result<Vec<Part<'_>>, SpecError> {
    let mut parts = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (part, after) = match text.strip_prefix('[') {
            Some(inner) => {
                let Some((inside, after)) = inner.split_once(']') else {
                    return refuse("a bracket is not closed");
                };
                if !after.is_empty() && !after.starts_with(':') {
                    return refuse(format!("'{after}' after a bracket"));
                }
                (Part { text: inside, bracketed: true }, after.strip_prefix(':'))
            }
            None => {
                let (part, after) = text.split_once(':').map_or((text, None), |(part, after)| (part, Some(after)));
                (Part { text: part, bracketed: false }, after)
            }
        };
        parts.push(part);
        rest = after;
    }
    Ok(parts)
}

fn parse_bind(part: Part<'_>) -> Result<IpAddr, SpecError> {
    match part.text {
        _ if part.bracketed => parse_ipv6(part.text).map(IpAddr::V6),
        "" | "*" => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(IpAddr::V4(address)),
            Err(_) => {
                refuse(format!("'{text}' is neither a local port nor an address to bind (an IP, '*', localhost)"))
            }
        },
    }
}

fn parse_host(part: Part<'_>) -> Result<String, SpecError> {
    if part.bracketed {
        return parse_ipv6(part.text).map(|address| address.to_string());
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match part.text {
        "" => refuse("the remote host is empty"),
        text if text.bytes().all(is_name) => Ok(text.to_owned()),
        text => refuse(format!("'{text}' is not a host name or an address")),
    }
}

fn parse_ipv6(text: &str) -> Result<Ipv6Addr, SpecError> {
    text.parse().or_else(|_| refuse(format!("'{text}' is not an IPv6 address")))
}

fn parse_port(which: &str, part: Part<'_>) -> Result<u16, SpecError> {
    match part.text.parse() {
        Ok(port) if part.is_number() => Ok(port),
        _ if part.text.is_empty() => refuse(format!("the {which} port is missing")),
        _ if part.is_number() => refuse(format!("the {which} port {} is above 65535", part.text)),
        _ => refuse(format!("the {which} port '{}' is not a number", part.text)),
    }
}
