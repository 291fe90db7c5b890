//! The value of `-L`, in ssh's syntax.

mod parse;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ssm_forward::{ListenAddr, ProviderError, ServiceEndpoint, ServiceSpec};

pub(crate) use parse::parse_listen_address;
use parse::{parse_ends, parse_listen, split_service};

/// The value of `-L` before names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ForwardRequest {
    /// A `-L` that contains the port, and the host if it is not the node itself.
    Plain(ForwardSpec),
    /// A `-L` that names a service.
    Service(ServiceForward),
}

/// A `-L` to a service by name: `[[bind:]port:]rds:NAME`, `unix:/path:rds:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceForward {
    /// The local address. `None` means the service's own port on loopback if it is free, otherwise any free port.
    pub(crate) listen: Option<ListenAddr>,
    /// The destination.
    pub(crate) service: ServiceSpec,
    /// The original text.
    pub(crate) text: String,
}

impl ForwardRequest {
    /// Returns the original text.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Plain(spec) => &spec.text,
            Self::Service(service) => &service.text,
        }
    }

    /// Returns the local address, if the text contains one.
    pub(crate) fn listen(&self) -> Option<&ListenAddr> {
        match self {
            Self::Plain(spec) => Some(&spec.listen),
            Self::Service(service) => service.listen.as_ref(),
        }
    }
}

impl FromStr for ForwardRequest {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let Some((listen, service)) = split_service(text) else { return text.parse().map(Self::Plain) };
        let service = service.map_err(|error: ProviderError| SpecError(error.message))?;
        let listen = match listen {
            "" => None,
            listen => Some(parse_listen(listen)?),
        };
        Ok(Self::Service(ServiceForward { listen, service, text: text.to_owned() }))
    }
}

impl ServiceForward {
    /// Returns the forward to the service's current endpoint.
    pub(crate) fn at(&self, endpoint: &ServiceEndpoint) -> ForwardSpec {
        let own = || ListenAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, free_or_any(endpoint.port))));
        ForwardSpec {
            listen: self.listen.clone().unwrap_or_else(own),
            remote: Remote { host: Some(endpoint.host.clone()), port: endpoint.port },
            text: self.text.clone(),
        }
    }
}

/// Returns `port` if it is free on loopback, otherwise 0.
fn free_or_any(port: u16) -> u16 {
    match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => port,
        Err(_) => 0,
    }
}

/// One `-L`: the local address and the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardSpec {
    /// The local address.
    pub(crate) listen: ListenAddr,
    /// The destination.
    pub(crate) remote: Remote,
    /// The original text.
    pub(crate) text: String,
}

/// A destination, as seen from the managed node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// A host that the node can reach; `None` is the node itself.
    pub(crate) host: Option<String>,
    /// The port of the host.
    pub(crate) port: u16,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
            None => write!(f, "port {}", self.port),
        }
    }
}

/// Minimum length of a host name that AWS's session document for remote hosts accepts.
const MIN_HOST_LENGTH: usize = 3;

impl Remote {
    /// Checks whether AWS's documents accept the destination, before a request is made.
    ///
    /// # Errors
    /// Returns the reason why they would reject it.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.host {
            Some(host) if host.len() < MIN_HOST_LENGTH => Err(format!(
                "the host '{host}' is too short: AWS's session document requires at least {MIN_HOST_LENGTH} characters; \
                 use its full name or its address"
            )),
            _ => Ok(()),
        }
    }
}

impl ForwardSpec {
    /// Whether programs on other machines can connect.
    pub(crate) fn is_exposed(&self) -> bool {
        matches!(&self.listen, ListenAddr::Tcp(address) if !address.ip().is_loopback())
    }
}

impl FromStr for ForwardSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (listen, remote) = parse_ends(text)?;
        Ok(Self { listen, remote, text: text.to_owned() })
    }
}

/// The reason why a `-L` is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; expected [bind:]port:host:hostport, [bind:]port:hostport for the node itself, or unix:/path:host:hostport \
     (IPv6 addresses in brackets)"
)]
pub(crate) struct SpecError(String);

impl SpecError {
    /// Returns the problem, without the list of forms that `-L` accepts.
    pub(crate) fn what(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_stand_in_the_place_of_hosts() {
        let service = |text: &str| match text.parse::<ForwardRequest>().unwrap() {
            ForwardRequest::Service(forward) => {
                (forward.listen.map(|listen| listen.to_string()), forward.service.to_string())
            }
            ForwardRequest::Plain(spec) => panic!("{spec:?}"),
        };
        assert_eq!(service("rds:db"), (None, "rds:db".into()));
        assert_eq!(service("3307:rds:db:reader"), (Some("127.0.0.1:3307".into()), "rds:db:reader".into()));
        assert_eq!(service("127.0.0.2:0:eks:prod"), (Some("127.0.0.2:0".into()), "eks:prod".into()));
        assert_eq!(service("[::1]:1:elasticache:c"), (Some("[::1]:1".into()), "elasticache:c".into()));
        assert_eq!(service("unix:/run/db.sock:rds:db"), (Some("/run/db.sock".into()), "rds:db".into()));
        // A host whose name is the prefix of a service.
        let plain: ForwardRequest = "3306:rds:3306".parse().unwrap();
        assert!(matches!(plain, ForwardRequest::Plain(spec) if spec.remote.host.as_deref() == Some("rds")));
        for (text, what) in [
            ("x:rds:db", "local port"),
            ("1:2:3:rds:db", "too many parts"),
            ("rds:", "lacks a name"),
            ("rds:db:x", "reader"),
        ] {
            let error = text.parse::<ForwardRequest>().unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    fn parsed(text: &str) -> (String, Option<String>, u16) {
        let spec: ForwardSpec = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let listen = match spec.listen {
            ListenAddr::Tcp(address) => address.to_string(),
            ListenAddr::Unix(path) => path.display().to_string(),
            other => panic!("{other:?}"),
        };
        (listen, spec.remote.host, spec.remote.port)
    }

    #[test]
    fn every_good_form() {
        for (text, listen, host, port) in [
            ("8080:80", "127.0.0.1:8080", None, 80),
            ("0:80", "127.0.0.1:0", None, 80),
            ("3306:db.internal:3306", "127.0.0.1:3306", Some("db.internal"), 3306),
            ("3306:10.0.0.7:3306", "127.0.0.1:3306", Some("10.0.0.7"), 3306),
            ("3306:my_db-1:65535", "127.0.0.1:3306", Some("my_db-1"), 65535),
            ("3306:[fd00::7]:3306", "127.0.0.1:3306", Some("fd00::7"), 3306),
            ("127.0.0.2:3306:db:3306", "127.0.0.2:3306", Some("db"), 3306),
            ("localhost:3306:db:3306", "127.0.0.1:3306", Some("db"), 3306),
            ("*:3306:db:3306", "0.0.0.0:3306", Some("db"), 3306),
            (":3306:db:3306", "0.0.0.0:3306", Some("db"), 3306),
            ("[::1]:3306:db:3306", "[::1]:3306", Some("db"), 3306),
            ("[::]:3306:[::1]:3306", "[::]:3306", Some("::1"), 3306),
            ("127.0.0.2:8080:80", "127.0.0.2:8080", None, 80),
            ("*:8080:80", "0.0.0.0:8080", None, 80),
            ("[::1]:8080:80", "[::1]:8080", None, 80),
            ("unix:/run/db.sock:db:3306", "/run/db.sock", Some("db"), 3306),
            ("unix:/run/db.sock:3306", "/run/db.sock", None, 3306),
            ("unix:db.sock:[::1]:3306", "db.sock", Some("::1"), 3306),
        ] {
            assert_eq!(parsed(text), (listen.into(), host.map(String::from), port), "{text}");
        }
    }

    #[test]
    fn every_bad_form_says_what_is_wrong() {
        for (text, what) in [
            ("", "local port is missing"),
            ("8080", "remote port is missing"),
            ("8080:", "remote port is missing"),
            (":80", "remote port is missing"),
            ("db:3306", "neither a local port nor an address"),
            ("8080:http", "remote port 'http' is not a number"),
            ("8080:db:", "remote port is missing"),
            ("8080::80", "remote host is empty"),
            ("8080:db:0", "can't be 0"),
            ("65536:db:80", "local port 65536 is above 65535"),
            ("8080:db:65536", "remote port 65536 is above 65535"),
            ("-1:db:80", "neither a local port nor an address"),
            ("+80:db:80", "neither a local port nor an address"),
            ("8080:db:+80", "remote port '+80' is not a number"),
            ("::1:8080:db:80", "local port is missing"),
            ("8080:fd00::7:80", "too many parts"),
            ("127.0.0.1:8080:db:80:90", "too many parts"),
            ("1:2:3:4", "too many parts"),
            ("*:1:2:3:4", "too many parts"),
            ("127.0.0.1:x:db:80", "local port 'x' is not a number"),
            ("[::1:8080:db:80", "bracket is not closed"),
            ("[::1]8080:db:80", "after a bracket"),
            ("[db]:8080:db:80", "'db' is not an IPv6 address"),
            ("8080:[db]:80", "'db' is not an IPv6 address"),
            ("8080:a b:80", "not a host name"),
            ("8080:/run/mysqld.sock:80", "not a host name"),
            ("unix:", "remote port is missing after the socket's path"),
            ("unix:/run/db.sock", "remote port is missing after the socket's path"),
            ("unix::db:80", "path of the Unix socket is empty"),
            ("unix:/run/db.sock:a:b:80", "too many parts"),
        ] {
            let error = text.parse::<ForwardSpec>().expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
            assert!(error.contains("[bind:]port:host:hostport") && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn only_other_than_loopback_is_exposed() {
        let is_exposed = |text: &str| text.parse::<ForwardSpec>().unwrap().is_exposed();
        assert!(is_exposed("*:1:2") && is_exposed("[::]:1:2") && is_exposed("10.0.0.1:1:2"));
        assert!(!is_exposed("1:2") && !is_exposed("127.9.9.9:1:2") && !is_exposed("[::1]:1:2"));
        assert!(!is_exposed("unix:/s:2"));
    }

    #[test]
    fn hosts_that_the_document_refuses_are_known() {
        let check = |text: &str| text.parse::<ForwardSpec>().unwrap().remote.check();
        assert!(check("1:a:2").is_err() && check("1:db:2").is_err() && check("1:[::]:2").is_err());
        assert!(check("1:db1:2").is_ok() && check("1:[::1]:2").is_ok() && check("1:2").is_ok());
    }

    #[test]
    fn the_remote_end_reads_well() {
        let remote = |text: &str| text.parse::<ForwardSpec>().unwrap().remote.to_string();
        assert_eq!(remote("1:db:2"), "db:2");
        assert_eq!(remote("1:[::1]:2"), "[::1]:2");
        assert_eq!(remote("1:2"), "port 2");
    }

    const WORDS: &[&str] = &[
        ":",
        "[",
        "]",
        "::1",
        "*",
        "localhost",
        "127.0.0.1",
        "0",
        "80",
        "65535",
        "65536",
        "db.internal",
        "unix:",
        "/run/s",
        "rds:",
        "orders",
        "/",
        "@",
        " ",
        "-",
        "%",
        "\u{7f}",
        "é",
    ];

    proptest::proptest! {
        #[test]
        fn any_text_is_a_forward_or_one_line_says_why_not(text in crate::random_text::of_words(WORDS)) {
            what_becomes_of(&text);
        }
    }

    #[test]
    fn the_corpus_is_forwards_or_one_line_says_why_not() {
        let seeds: [&[u8]; 10] = [
            b"8080:80",
            b"db.internal:5432",
            b"5433:db.internal:5432",
            b"127.0.0.2:8080:[::1]:80",
            b"unix:/run/s:db:1",
            b"0:80",
            b"rds:orders",
            b"3307:rds:orders/reader@3306",
            b"[::]:1:2",
            b"*:1:db:2",
        ];
        crate::replay::corpus("forward_spec", &seeds, 5000, |input| what_becomes_of(&String::from_utf8_lossy(input)));
    }

    /// Parses a text in three ways and returns a summary of the results. Checks that a request keeps the original text, and that
    /// the plain form of a parsed forward parses to the same forward.
    fn what_becomes_of(text: &str) -> String {
        let request = match text.parse::<ForwardRequest>() {
            Ok(request) => {
                assert_eq!(request.text(), text);
                "a request".to_owned()
            }
            Err(error) => error.to_string(),
        };
        assert!(!request.is_empty());
        let spec = match text.parse::<ForwardSpec>() {
            Ok(spec) => {
                let remote = spec.remote.to_string().replace("port ", "");
                let (plain, kind) = match &spec.listen {
                    ListenAddr::Tcp(address) => (format!("{address}:{remote}"), "tcp"),
                    ListenAddr::Unix(path) => (format!("unix:{}:{remote}", path.display()), "unix"),
                    _ => unreachable!("a spec names no other"),
                };
                let again = plain.parse::<ForwardSpec>().unwrap();
                assert_eq!((again.listen, again.remote), (spec.listen, spec.remote), "{plain}");
                kind.to_owned()
            }
            Err(error) => error.to_string(),
        };
        let listen = parse_listen_address(text).map_or_else(|error| error, |_| "an address".into());
        format!("{request}|{spec}|{listen}")
    }
}
