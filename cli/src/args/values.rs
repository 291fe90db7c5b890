//! Parsers of single values. Each error states the expected value.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use ssm_forward::{Pacing, PoolSize, ProviderError, ServiceKind, ServiceSpec, TargetSpec, Url};
use ssm_local::{Faults, LocalTarget};

use super::Named;
use crate::local::{Document, EcsContainer};
use crate::spec;

const MIN_DURATION: Duration = Duration::from_millis(1);
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Parses a duration: a number of seconds, or numbers with units (`500ms`, `30s`, `1m30s`, `2h`).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let with_unit = if is_number { format!("{text}s") } else { text.to_owned() };
    match humantime::parse_duration(&with_unit) {
        Ok(duration) if (MIN_DURATION..=MAX_DURATION).contains(&duration) => Ok(duration),
        Ok(_) => Err("expected a duration from 1ms to 24h".into()),
        Err(_) => Err("expected a duration: seconds (30), or with units (500ms, 30s, 1m30s)".into()),
    }
}

/// Parses a size in bytes: a plain number, or a number with a unit (`1024`, `10MB`, `1MiB`).
fn size(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|_| "expected a size: bytes (1024), or with a unit (64KiB, 10MB)")?;
    match size.as_u64() {
        size if range.contains(&size) => Ok(size),
        _ => {
            let (min, max) = (ByteSize(*range.start()).display().iec(), ByteSize(*range.end()).display().iec());
            Err(format!("expected a size from {min} to {max}"))
        }
    }
}

/// Parses the maximum payload of a message, in bytes.
pub(super) fn payload_size(text: &str) -> Result<usize, String> {
    let size = size(text, &(64..=65_536))?;
    usize::try_from(size).map_err(|error| error.to_string())
}

/// Parses the number of bytes that `demo` transfers.
pub(super) fn transfer_size(text: &str) -> Result<u64, String> {
    size(text, &(1..=1 << 40))
}

pub(super) fn message_rate(text: &str) -> Result<Pacing, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Pacing::Auto),
        ("unlimited", _) => Ok(Pacing::Unlimited),
        (_, Ok(rate @ 1..=MAX_MESSAGE_RATE)) => Ok(Pacing::PerSecond(rate)),
        (_, Ok(0)) => Err("at a rate of 0 nothing could be sent".into()),
        _ => Err(format!("expected auto, unlimited or a number from 1 to {MAX_MESSAGE_RATE}")),
    }
}

const MAX_MESSAGE_RATE: u32 = 1_000_000;

pub(super) fn sessions(text: &str) -> Result<PoolSize, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(PoolSize::default()),
        (_, Ok(size @ 1..=MAX_SESSIONS)) => Ok(PoolSize::Fixed(size)),
        (_, Ok(0)) => Err("at least one session is needed to forward anything".into()),
        _ => Err(format!("expected auto or a number from 1 to {MAX_SESSIONS}")),
    }
}

/// Maximum number of sessions. With more sessions, this machine limits the rate and not the agents.
const MAX_SESSIONS: usize = 64;

/// Parses a port to connect to.
pub(super) fn remote_port(text: &str) -> Result<u16, String> {
    match local_port(text) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err("expected a port from 1 to 65535".into()),
    }
}

/// Parses a port to listen on; 0 selects a free port.
pub(super) fn local_port(text: &str) -> Result<u16, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).ok_or_else(|| "expected a port from 0 to 65535".into())
}

/// Parses an address to listen on: `[bind:]port`, as in `-L`.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    spec::parse_listen_address(text)
}

pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// Parses the URL of an API.
pub(super) fn endpoint_url(text: &str) -> Result<String, String> {
    let is_url = Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if is_url { Ok(text.to_owned()) } else { Err("expected a URL that begins with https:// or http://".into()) }
}

/// Parses a managed node: an id that StartSession may accept.
pub(super) fn target(text: &str) -> Result<String, String> {
    let _: TargetSpec = text.parse().map_err(|error: ProviderError| error.message)?;
    let is_printable = !text.contains(char::is_control);
    match is_printable && text.len() <= MAX_TARGET {
        true => Ok(text.to_owned()),
        false => Err(format!("a target has at most {MAX_TARGET} bytes and no control characters")),
    }
}

/// Parses a managed node, or a service behind a node.
pub(super) fn target_or_service(text: &str) -> Result<String, String> {
    match ServiceSpec::of_text(text) {
        Some(service) => service.map(|_| text.to_owned()).map_err(|error| error.message),
        None => target(text),
    }
}

/// Parses a node or a service.
pub(super) fn named(text: &str) -> Result<Named, String> {
    let message = |error: ProviderError| error.message;
    match ServiceSpec::of_text(text) {
        Some(service) => service.map(Named::Service).map_err(message),
        None => target(text).and_then(|text| text.parse().map(Named::Target).map_err(message)),
    }
}

/// A database that accepts tokens.
pub(super) fn database(text: &str) -> Result<ServiceSpec, String> {
    let service: ServiceSpec = text.parse().map_err(|error: ProviderError| error.message)?;
    match service.kind {
        ServiceKind::Rds => Ok(service),
        _ => Err("only RDS databases accept tokens: rds:NAME".to_owned()),
    }
}

/// An account's id.
pub(super) fn account(text: &str) -> Result<String, String> {
    match text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(text.to_owned()),
        false => Err("expected the twelve digits of an account's id".to_owned()),
    }
}

/// The API's own limit.
const MAX_TARGET: usize = 400;

pub(super) fn faults_file(path: &str) -> Result<Faults, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Faults::from_json(&text).map_err(|error| error.to_string())
}

pub(super) fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE, for example portNumber=3306".into()),
    }
}

/// Parses the name or address of a host, without a scheme, a port or a path.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_host = (!text.is_empty() && text.bytes().all(is_name)) || text.parse::<IpAddr>().is_ok();
    let text = is_host.then(|| text.to_owned());
    text.ok_or_else(|| "expected the name of a host, without https://, a port or a path".into())
}

pub(super) fn host(text: &str) -> Result<(String, IpAddr), String> {
    let host = text.split_once('=').filter(|(name, _)| !name.is_empty());
    host.and_then(|(name, address)| Some((name.to_owned(), address.parse().ok()?)))
        .ok_or_else(|| "expected NAME=ADDR, for example db.internal=127.0.0.1".into())
}

/// Parses a node of the local Session Manager: `ID[,KEY=VALUE…][,offline]`.
pub(super) fn node(text: &str) -> Result<LocalTarget, String> {
    let mut parts = text.split(',');
    let id = target(parts.next().unwrap_or_default())?;
    // The node has no name unless one is given: the default name is that of the first node.
    let mut node = LocalTarget::new(&id).tag("Name", &id);
    for part in parts {
        node = match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => node.tag(key, value),
            None if part == "offline" => node.disconnected(),
            _ => return Err(format!("{part:?} is neither KEY=VALUE nor offline, for example i-0a,Name=web,offline")),
        };
    }
    Ok(node)
}

pub(super) fn document(text: &str) -> Result<Document, String> {
    let named = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = named.ok_or("expected NAME=FILE, for example My-Database=document.json")?;
    let content = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    Ok(Document { name: name.into(), content })
}

pub(super) fn ecs_container(text: &str) -> Result<EcsContainer, String> {
    let names: Vec<_> = text.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match <[String; 4]>::try_from(names) {
        Ok([cluster, service, task, container]) => Ok(EcsContainer { cluster, service, task, container }),
        Err(_) => {
            Err("expected CLUSTER/SERVICE/TASK/CONTAINER, for example prod/web/0123456789abcdef0123456789abcdef/app"
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_tags_and_may_be_offline() {
        let web = LocalTarget::new("i-0a").tag("Name", "web").tag("Env", "a=b");
        assert_eq!(node("i-0a,Name=web,Env=a=b"), Ok(web.clone()));
        assert_eq!(node("i-0a,Name=web,Env=a=b,offline"), Ok(web.disconnected()));
        for text in ["", "i-0a,away", "i-0a,=x", "i-0a,"] {
            assert!(node(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units_or_are_seconds() {
        for (text, milliseconds) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("1m", 60_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("500ms", 500),
            ("1.5", 1500),
            ("1.5s", 1500),
            ("2h", 7_200_000),
            ("1day", 86_400_000),
            ("1ms", 1),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["0", "0s", "100us", "25h", "86401", "99999999999999999999", "99999999999y"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", " ", "soon", "-1", "-1s", "1x", "s", ".", "1..2s", "1e3"] {
            assert!(duration(text).unwrap_err().contains("1m30s"), "{text}");
        }
    }

    #[test]
    fn sizes_have_units_or_are_bytes() {
        let all = 1..=u64::MAX;
        for (text, bytes) in [
            ("1", 1),
            ("100MiB", 100 << 20),
            ("4 mib", 4 << 20),
            ("2MB", 2_000_000),
            ("2mb", 2_000_000),
            ("1.5KiB", 1536),
            ("1Gi", 1 << 30),
            ("10k", 10_000),
        ] {
            assert_eq!(size(text, &all), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1 parsec", "4XB", "0x10", "1.5.5MB"] {
            assert!(size(text, &all).unwrap_err().contains("10MB"), "{text}");
        }
        assert_eq!(payload_size("64KiB"), Ok(65_536));
        assert_eq!(payload_size("10MB"), Err("expected a size from 64 B to 64.0 KiB".into()));
        assert!(["0", "63", "65537", "99999999999999999999"].iter().all(|text| payload_size(text).is_err()));
        assert!(["0", "2048GiB"].iter().all(|text| transfer_size(text).is_err()));
    }

    #[test]
    fn addresses_to_listen_on_may_be_a_port_alone() {
        for (text, address) in [
            ("9090", "127.0.0.1:9090"),
            ("0", "127.0.0.1:0"),
            ("127.0.0.2:9090", "127.0.0.2:9090"),
            ("localhost:9090", "127.0.0.1:9090"),
            ("*:9090", "0.0.0.0:9090"),
            (":9090", "0.0.0.0:9090"),
            ("[::1]:9090", "[::1]:9090"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["", "-1", "metrics", "70000", "10.0.0.1", "db:9090", "127.0.0.1:", "1:2:3", "::1:9090"] {
            assert!(listen_address(text).unwrap_err().contains("[bind:]port"), "{text}");
        }
    }

    #[test]
    fn ports_are_numbers_in_their_range() {
        assert_eq!((local_port("0"), local_port("65535"), remote_port("22")), (Ok(0), Ok(65535), Ok(22)));
        for text in ["", "-1", "+1", "65536", "ssh", "22 "] {
            assert!(local_port(text).is_err() && remote_port(text).is_err(), "{text}");
        }
        assert!(remote_port("0").is_err());
    }

    #[test]
    fn a_target_is_an_id_or_a_name() {
        for text in [
            "i-1",
            "mi-0123456789abcdef0",
            "ecs:prod/web",
            "sagemaker-cluster:abc_worker-i-1",
            "db.internal",
            "tag:A=b",
        ] {
            assert_eq!(target(text), Ok(text.to_owned()));
        }
        for text in ["", " ", "i-0123 ", "i-1\n", ":x", "[::1]", "tag:x", "ecs:a"] {
            let error = target(text).unwrap_err();
            assert!(error.contains("ecs:CLUSTER/SERVICE") || error.contains("tag:Key=Value"), "{text:?}: {error}");
        }
        assert!(target(&format!("ecs:{}", "x".repeat(MAX_TARGET))).is_err());
    }

    #[test]
    fn parameters_keep_whole_values() {
        assert_eq!(parameter("a=b=c,d"), Ok(("a".into(), "b=c,d".into())));
        assert_eq!(parameter("a="), Ok(("a".into(), String::new())));
        assert!(parameter("a").is_err() && parameter("=b").is_err());
    }

    #[test]
    fn a_host_is_neither_a_url_nor_an_authority() {
        for text in ["vpce-0123.ssmmessages.eu-west-1.vpce.amazonaws.com", "10.0.0.7", "fd00::7", "my_host"] {
            assert_eq!(host_name(text), Ok(text.to_owned()));
        }
        assert!(["", "https://a.b", "a.b:443", "a.b/", "a b", "*"].iter().all(|text| host_name(text).is_err()));
    }

    #[test]
    fn hosts_and_tasks_are_whole() {
        assert_eq!(host("db.internal=::1"), Ok(("db.internal".into(), "::1".parse().unwrap())));
        assert!(["db", "=::1", "db=x", "db="].iter().all(|text| host(text).is_err()));
        assert!(ecs_container("prod/web/1/app").is_ok());
        assert!(["prod/web/1", "prod/web/1/app/x", "prod//1/app", ""].iter().all(|text| ecs_container(text).is_err()));
    }
}
