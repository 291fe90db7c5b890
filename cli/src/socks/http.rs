//! The HTTP requests to the proxy: CONNECT, and the PAC file (`proxy.pac`) with which browsers find the proxy.

use std::io;
use std::net::IpAddr;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::access::Destination;

/// Maximum size of the request line and the headers, in bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const PAC: &str = "application/x-ns-proxy-autoconfig";

/// The result of reading a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The client requests a connection.
    Connect(Destination),
    /// The client gets this response, and no connection.
    Answered(String),
}

/// Reads the request line and the headers. Does not read beyond them, because the following bytes are for the destination.
///
/// # Errors
/// Returns an error if they are too long, or if the client closes the connection.
pub(super) async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request's headers are too long"));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// Interprets a request. `pac` is the PAC file, if there is one.
pub(super) fn asked(head: &[u8], pac: Option<&str>) -> Asked {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let refused = |status: &str, text: &str| Asked::Answered(answer(status, TEXT, text));
    let parsed = matches!(request.parse(head), Ok(httparse::Status::Complete(_)));
    let (true, Some(method), Some(path)) = (parsed, request.method, request.path) else {
        return refused("400 Bad Request", "this is not an HTTP/1.1 request");
    };
    let host = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    let host = host.and_then(|header| str::from_utf8(header.value).ok()).unwrap_or_default();
    match method {
        "CONNECT" => match authority(path) {
            Some(destination) => Asked::Connect(destination),
            None => refused("400 Bad Request", "CONNECT needs HOST:PORT"),
        },
        // With another host name, the request comes from a web page whose name was made to resolve to this machine (DNS
        // rebinding). The page must not learn the domains.
        "GET" | "HEAD" if path == "/proxy.pac" && is_this_machine(host) => match pac {
            Some(pac) => Asked::Answered(answer("200 OK", PAC, pac)),
            None => refused("404 Not Found", "there is no proxy.pac; start the proxy with --pac DOMAIN"),
        },
        _ if path.starts_with('/') => refused("404 Not Found", "this is a proxy; its only page is /proxy.pac"),
        _ => refused(
            "501 Not Implemented",
            "this proxy supports only CONNECT; use it as socks5h://, or for https:// URLs",
        ),
    }
}

/// Returns a response after which the connection is closed.
pub(super) fn answer(status: &str, kind: &str, text: &str) -> String {
    let text = if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nX-Content-Type-Options: nosniff\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

/// Parses `HOST:PORT`, with an IPv6 address in brackets.
fn authority(text: &str) -> Option<Destination> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Destination::new(bare.unwrap_or(host), port.parse().ok()?)
}

/// Whether `host` is an IP address or `localhost`, with or without a port.
fn is_this_machine(host: &str) -> bool {
    let name = if host.ends_with(']') { host } else { host.rsplit_once(':').map_or(host, |(name, _)| name) };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Returns the PAC file with which browsers use the proxy at `address` only for these domains and their subdomains.
pub(super) fn pac(domains: &[String], address: &str) -> String {
    let list: Vec<_> = domains.iter().map(|domain| domain.trim_matches('.').to_ascii_lowercase()).collect();
    let list = serde_json::to_string(&list).unwrap_or_default();
    format!(
        "function FindProxyForURL(url, host) {{\n  var domains = {list};\n  host = host.toLowerCase();\n  \
         for (var i = 0; i < domains.length; i++)\n    if (host === domains[i] || dnsDomainIs(host, \".\" + domains[i]))\n      \
         return \"SOCKS5 {address}; PROXY {address}\";\n  return \"DIRECT\";\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &str, pac: Option<&str>) -> String {
        match asked(format!("{request}\r\n\r\n").as_bytes(), pac) {
            Asked::Connect(destination) => destination.to_string(),
            Asked::Answered(answer) => answer.split(' ').nth(1).unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn connect_names_its_destination() {
        assert_eq!(status("CONNECT db.internal:443 HTTP/1.1\r\nHost: x", None), "db.internal:443");
        assert_eq!(status("CONNECT [fd00::1]:443 HTTP/1.1", None), "[fd00::1]:443");
        for bad in ["db.internal", "db.internal:0", ":443", "[::1:443", "a b:1"] {
            assert_eq!(status(&format!("CONNECT {bad} HTTP/1.1"), None), "400", "{bad}");
        }
        assert_eq!(status("GET http://db.internal/ HTTP/1.1", None), "501");
        assert_eq!(status("\u{1}", None), "400");
    }

    #[test]
    fn the_file_is_for_this_machine_only() {
        let get = |host: &str| status(&format!("GET /proxy.pac HTTP/1.1\r\nHost: {host}"), Some("x"));
        assert_eq!(get("127.0.0.1:1080"), "200");
        assert_eq!(get("localhost"), "200");
        assert_eq!(get("[::1]:1080"), "200");
        assert_eq!(get("rebound.example:1080"), "404");
        assert_eq!(get(""), "404");
        assert_eq!(status("GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1", None), "404");
        assert_eq!(status("GET / HTTP/1.1\r\nHost: 127.0.0.1", Some("x")), "404");
    }

    #[test]
    fn the_file_names_the_domains_and_the_proxy() {
        let text = pac(&["Corp.Internal.".into()], "127.0.0.1:1080");
        assert!(
            text.contains(r#"var domains = ["corp.internal"];"#) && text.contains("SOCKS5 127.0.0.1:1080"),
            "{text}"
        );
    }

    const WORDS: &[&str] = &[
        "CONNECT ",
        "GET ",
        "HEAD ",
        "/proxy.pac",
        "db.internal",
        "[::1]",
        ":443",
        ":0",
        " HTTP/1.1",
        " HTTP/9",
        "\r\n",
        "\n",
        "Host: ",
        "127.0.0.1",
        "localhost",
        "rebound.example",
        "\0",
        "%",
        "@",
        "..",
    ];

    proptest::proptest! {
        #[test]
        fn any_head_gets_a_connection_or_an_answer(head in crate::random_text::of_words(WORDS), pac in proptest::option::of("[a-z]{4}")) {
            what_becomes_of(format!("{head}\r\n\r\n").as_bytes(), pac.as_deref());
        }
    }

    #[test]
    fn the_corpus_gets_connections_or_answers() {
        let seeds: [&[u8]; 6] = [
            b"CONNECT db.internal:443 HTTP/1.1\r\nHost: db.internal:443\r\n\r\n",
            b"CONNECT [::1]:80 HTTP/1.0\r\n\r\n",
            b"GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n",
            b"GET http://db.internal/ HTTP/1.1\r\n\r\n",
            b"HEAD / HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
            b"CONNECT nothing HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\n\r\n",
        ];
        crate::replay::corpus("http_request", &seeds, 5000, |input| what_becomes_of(input, Some("pacs")));
    }

    /// Interprets a request and returns a summary of the result. Checks that the text form of a destination parses to the same
    /// destination, and that a response is valid and contains the PAC file only if the request asks for it.
    fn what_becomes_of(head: &[u8], pac: Option<&str>) -> String {
        match asked(head, pac) {
            Asked::Connect(destination) => {
                assert_eq!(authority(&destination.to_string()), Some(destination));
                "a connection".into()
            }
            Asked::Answered(answer) => {
                assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
                let is_file = pac.is_some_and(|pac| answer.ends_with(&format!("{pac}\n")));
                let asks = head.windows(10).any(|part| part == b"/proxy.pac");
                assert!(!is_file || (asks && !answer.contains(" 404 ")), "{answer}");
                answer
            }
        }
    }
}
