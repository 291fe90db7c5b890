//! The local ends of the tunnels as the command sees them: their names, and the environment variables that contain their addresses.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ssm_forward::LocalAddr;

use crate::args::EnvStyle;
use crate::client_line::{Family, family};
use crate::hosts::Name;
use crate::tunnels::Tunnel;

/// The local end of a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// The name in `{NAME.host}`. In environment variables it is in capitals.
    pub(crate) name: String,
    /// The address to which clients connect.
    pub(crate) at: Address,
    /// The remote host, if it is not the node itself.
    pub(crate) remote: Option<String>,
    /// The kind of the remote service, if it is known.
    pub(crate) family: Option<Family>,
    /// Whether clients must use TLS.
    pub(crate) tls: bool,
    /// The file that contains a password for the service's client.
    pub(crate) login_file: Option<PathBuf>,
}

/// An address to which clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A TCP port. `host` may be a name; `address` is the IP address of `host`.
    Tcp { host: String, address: String, port: u16 },
    /// A Unix socket.
    Unix(PathBuf),
}

impl Default for Address {
    fn default() -> Self {
        Self::Unix(PathBuf::new())
    }
}

impl End {
    /// Returns the local end of a tunnel. `names` are the host names that the command resolves to addresses of tunnels.
    pub(crate) fn of(tunnel: &Tunnel, names: &[Name]) -> Self {
        let remote = &tunnel.spec().remote;
        let seen_as = remote.host.as_deref().map(|host| host.trim_end_matches('.'));
        let seen_as = seen_as.filter(|host| names.iter().any(|name| name.name.eq_ignore_ascii_case(host)));
        let at = match tunnel.local_addr() {
            LocalAddr::Tcp(address) => {
                let ip = if address.ip().is_unspecified() { "127.0.0.1".into() } else { address.ip().to_string() };
                let host = seen_as.map_or_else(|| ip.clone(), str::to_owned);
                Address::Tcp { host, address: ip, port: address.port() }
            }
            LocalAddr::Unix(path) => Address::Unix(path),
            _ => Address::default(),
        };
        let service = tunnel.service();
        let name = match (service, &remote.host) {
            (Some(service), _) => service.spec.name.clone(),
            (None, Some(host)) => host.clone(),
            (None, None) => format!("port_{}", remote.port),
        };
        Self {
            name: as_name(&name),
            at,
            remote: remote.host.clone(),
            family: service.map_or_else(|| family_of_port(remote.port), |service| family(&service.engine)),
            tls: service.is_some_and(|service| service.tls),
            login_file: tunnel.login_file(),
        }
    }

    /// Returns `host:port`, or the path of the socket.
    pub(crate) fn addr(&self) -> String {
        match &self.at {
            Address::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port, .. } => format!("{host}:{port}"),
            Address::Unix(path) => path.display().to_string(),
        }
    }
}

/// Returns `NO_PROXY` and `no_proxy` with `names` added, if a proxy is configured. A proxy cannot resolve these names to the
/// tunnels, because only this machine knows these addresses.
pub(crate) fn without_proxy(names: &[Name], variable: impl Fn(&str) -> Option<String>) -> BTreeMap<String, OsString> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    if names.is_empty() || !proxies.into_iter().any(|name| set(name).is_some()) {
        return BTreeMap::new();
    }
    let ours = names.iter().map(|name| name.name.clone());
    let both = ["NO_PROXY", "no_proxy"].map(|name| {
        let list: Vec<_> = set(name).into_iter().chain(ours.clone()).collect();
        (name.to_owned(), list.join(",").into())
    });
    both.into()
}

/// Makes the names unique. Local ends with the same name get the remote port as a suffix. If this is not enough, they also get
/// their position in the list.
pub(crate) fn distinguish(ends: &mut [End], ports: &[u16]) {
    let is_shared = |ends: &[End], name: &str| ends.iter().filter(|end| end.name == name).count() > 1;
    let before = ends.to_vec();
    for (end, port) in ends.iter_mut().zip(ports).filter(|(end, _)| is_shared(&before, &end.name)) {
        end.name = format!("{}_{port}", end.name);
    }
    let before = ends.to_vec();
    for (index, end) in ends.iter_mut().enumerate().filter(|(_, end)| is_shared(&before, &end.name)) {
        end.name = format!("{}_{}", end.name, index + 1);
    }
}

/// Converts a text to a name for environment variables, in lower case.
pub(crate) fn as_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

fn family_of_port(port: u16) -> Option<Family> {
    match port {
        5432 => Some(Family::Postgres),
        3306 => Some(Family::MySql),
        6379 => Some(Family::Redis),
        _ => None,
    }
}

/// Returns the environment variables for the command. If several tunnels set the same variable, the first one takes precedence.
/// `kubeconfig` is the file that was written for a cluster.
pub(crate) fn variables(
    ends: &[End],
    style: EnvStyle,
    user: Option<&str>,
    kubeconfig: Option<&Path>,
) -> BTreeMap<String, OsString> {
    let mut variables = BTreeMap::new();
    let mut set = |name: String, value: OsString| {
        variables.entry(name).or_insert(value);
    };
    for end in ends {
        let prefixes = [format!("SSM_FORWARD_{}_", end.name.to_ascii_uppercase()), "SSM_FORWARD_".into()];
        for prefix in prefixes.iter().take(if ends.len() == 1 { 2 } else { 1 }) {
            set(format!("{prefix}ADDR"), end.addr().into());
            if let Address::Tcp { host, port, .. } = &end.at {
                set(format!("{prefix}HOST"), host.into());
                set(format!("{prefix}PORT"), port.to_string().into());
            }
            if let Some(file) = &end.login_file {
                set(format!("{prefix}LOGIN_FILE"), file.into());
            }
        }
        of_client(end, style, user).into_iter().for_each(|(name, value)| set(name.to_owned(), value));
    }
    if let Some(kubeconfig) = kubeconfig {
        set("KUBECONFIG".into(), kubeconfig.into());
    }
    variables
}

/// Returns the variables that the usual clients of a database read.
fn of_client(end: &End, style: EnvStyle, user: Option<&str>) -> Vec<(&'static str, OsString)> {
    let Address::Tcp { host, address, port } = &end.at else { return Vec::new() };
    let style = match (style, end.family) {
        (EnvStyle::Auto, Some(Family::Postgres)) => EnvStyle::Postgres,
        (EnvStyle::Auto, Some(Family::MySql)) => EnvStyle::Mysql,
        (EnvStyle::Auto, Some(Family::Redis)) => EnvStyle::Redis,
        (EnvStyle::Auto, _) => EnvStyle::None,
        (style, _) => style,
    };
    let mut variables: Vec<(&'static str, OsString)> = Vec::new();
    match style {
        EnvStyle::Auto | EnvStyle::None => {}
        EnvStyle::Mysql => variables.extend([("MYSQL_HOST", host.into()), ("MYSQL_TCP_PORT", port.to_string().into())]),
        EnvStyle::Redis => {
            let scheme = if end.tls { "rediss" } else { "redis" };
            variables.push(("REDIS_URL", format!("{scheme}://{}", end.addr()).into()));
        }
        EnvStyle::PostgresLocal => variables.push(("PGHOST", host.into())),
        // libpq verifies the certificate against PGHOST, and connects to PGHOSTADDR.
        EnvStyle::Postgres => match &end.remote {
            Some(remote) => variables.extend([("PGHOST", remote.into()), ("PGHOSTADDR", address.into())]),
            None => variables.push(("PGHOST", host.into())),
        },
    }
    if matches!(style, EnvStyle::Postgres | EnvStyle::PostgresLocal) {
        variables.push(("PGPORT", port.to_string().into()));
        if let (Some(file), Some(user)) = (&end.login_file, user) {
            variables.extend([("PGPASSFILE", file.into()), ("PGUSER", user.into())]);
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(name: &str, family: Option<Family>) -> End {
        let at = Address::Tcp { host: "127.0.0.1".into(), address: "127.0.0.1".into(), port: 40001 };
        End { name: name.into(), at, remote: Some(format!("{name}.example")), family, ..End::default() }
    }

    fn of(ends: &[End], style: EnvStyle) -> Vec<String> {
        let variables = variables(ends, style, Some("app"), None);
        variables.iter().map(|(name, value)| format!("{name}={}", value.display())).collect()
    }

    #[test]
    fn one_tunnel_needs_no_name_and_an_engine_has_its_variables() {
        assert_eq!(
            of(&[end("cache", Some(Family::Redis))], EnvStyle::Auto),
            [
                "REDIS_URL=redis://127.0.0.1:40001",
                "SSM_FORWARD_ADDR=127.0.0.1:40001",
                "SSM_FORWARD_CACHE_ADDR=127.0.0.1:40001",
                "SSM_FORWARD_CACHE_HOST=127.0.0.1",
                "SSM_FORWARD_CACHE_PORT=40001",
                "SSM_FORWARD_HOST=127.0.0.1",
                "SSM_FORWARD_PORT=40001",
            ]
        );
    }

    #[test]
    fn the_first_tunnel_of_an_engine_has_its_variables() {
        let mut first = end("db", Some(Family::Postgres));
        first.login_file = Some("/run/pgpass".into());
        let text = of(&[first, end("other", Some(Family::Postgres)), end("my", Some(Family::MySql))], EnvStyle::Auto);
        for part in
            ["PGHOST=db.example", "PGHOSTADDR=127.0.0.1", "PGPORT=40001", "PGPASSFILE=/run/pgpass", "PGUSER=app"]
        {
            assert!(text.iter().any(|line| line == part), "{part}: {text:?}");
        }
        assert!(text.iter().any(|line| line == "MYSQL_HOST=127.0.0.1"), "{text:?}");
        assert!(text.iter().any(|line| line == "SSM_FORWARD_DB_LOGIN_FILE=/run/pgpass"), "{text:?}");
        assert!(!text.iter().any(|line| line.starts_with("SSM_FORWARD_HOST")), "{text:?}");
    }

    #[test]
    fn the_style_is_a_matter_of_choice() {
        let has =
            |style, wanted: &str| of(&[end("db", Some(Family::Postgres))], style).iter().any(|line| line == wanted);
        assert!(has(EnvStyle::PostgresLocal, "PGHOST=127.0.0.1"));
        assert!(has(EnvStyle::Mysql, "MYSQL_TCP_PORT=40001") && !has(EnvStyle::Mysql, "PGPORT=40001"));
        assert!(!has(EnvStyle::None, "PGPORT=40001"));
    }

    #[test]
    fn a_proxy_is_not_asked_for_what_only_this_machine_knows() {
        let names = [Name { address: std::net::Ipv4Addr::LOCALHOST, name: "db.example".into() }];
        let with = |name: &'static str, value: &'static str| {
            let list = without_proxy(&names, move |asked| (asked == name).then(|| value.to_owned()));
            list.get("NO_PROXY").map(|list| list.to_string_lossy().into_owned())
        };
        assert_eq!(with("NO_PROXY", "localhost"), None);
        assert_eq!(with("https_proxy", "http://p:1").as_deref(), Some("db.example"));
        let both = without_proxy(&names, |_| Some("x".into()));
        assert_eq!(both.get("no_proxy").and_then(|list| list.to_str()), Some("x,db.example"));
    }

    #[test]
    fn tunnels_that_share_a_name_are_told_apart() {
        let mut ends = [end("db", None), end("db", None), end("other", None)];
        distinguish(&mut ends, &[80, 443, 80]);
        assert_eq!(ends.each_ref().map(|end| end.name.as_str()), ["db_80", "db_443", "other"]);
        let mut ends = [end("db", None), end("db", None)];
        distinguish(&mut ends, &[80, 80]);
        assert_eq!(ends.each_ref().map(|end| end.name.as_str()), ["db_80_1", "db_80_2"]);
    }
}
