//! The request of a client. The same port accepts SOCKS5, SOCKS4, SOCKS4a and HTTP; the first byte identifies the protocol.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use fast_socks5::server::{Socks5ServerProtocol, SocksServerError, states};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::access::Destination;
use super::http::{self, Asked};
use super::refusal::Refusal;

/// A client that has requested a connection and waits for the reply.
pub(super) struct Request {
    pub(super) destination: Destination,
    protocol: Protocol,
}

enum Protocol {
    Socks5(Socks5ServerProtocol<TcpStream, states::CommandRead>),
    Socks4(TcpStream),
    Http(TcpStream),
}

/// The local address of the remote connection in replies. It is left unspecified, because only the node knows it.
const UNKNOWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Timeout for a client to send its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum length of a user name or a host in SOCKS4, in bytes.
const MAX_STRING: usize = 255;

/// Reads a client's request. Returns `None` if the request was already answered, because it was for the PAC file or was refused.
///
/// # Errors
/// Returns an error if the client uses none of the protocols, sends no complete request in time, or closes the connection.
pub(super) async fn read(stream: TcpStream, pac: Option<&str>) -> io::Result<Option<Request>> {
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "the client sent no complete request in time");
    timeout(PATIENCE, greet(stream, pac)).await.map_err(silent)?
}

async fn greet(stream: TcpStream, pac: Option<&str>) -> io::Result<Option<Request>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    match first {
        [5] => socks5(stream).await,
        [4] => socks4(stream).await,
        [byte] if byte.is_ascii_alphabetic() => http(stream, pac).await,
        [byte] => Err(invalid(format!("the first byte, {byte}, is neither SOCKS nor HTTP"))),
    }
}

async fn socks5(stream: TcpStream) -> io::Result<Option<Request>> {
    let failed = |error: SocksServerError| invalid(error.to_string());
    let protocol = Socks5ServerProtocol::accept_no_auth(stream).await.map_err(failed)?;
    let (protocol, command, address) = protocol.read_command().await.map_err(failed)?;
    let destination = match &address {
        TargetAddr::Ip(address) => Destination::new(&address.ip().to_string(), address.port()),
        TargetAddr::Domain(host, port) => Destination::new(host, *port),
    };
    let refusal = match (command, destination) {
        (Socks5Command::TCPConnect, Some(destination)) => {
            return Ok(Some(Request { destination, protocol: Protocol::Socks5(protocol) }));
        }
        (Socks5Command::TCPConnect, None) => ReplyError::HostUnreachable,
        // BIND and UDP ASSOCIATE are not supported: sessions carry only TCP connections that are opened on this side.
        _ => ReplyError::CommandNotSupported,
    };
    protocol.reply_error(&refusal).await.map_err(failed)?;
    Ok(None)
}

/// Reads a request of SOCKS4: version, command, port, address and user. In SOCKS4a, the address is 0.0.0.x and a host name follows.
async fn socks4(mut stream: TcpStream) -> io::Result<Option<Request>> {
    let mut head = [0; 8];
    stream.read_exact(&mut head).await?;
    let [_, command, port @ .., a, b, c, d] = head;
    let port = u16::from_be_bytes([port[0], port[1]]);
    string(&mut stream).await?;
    let host = match [a, b, c, d] {
        [0, 0, 0, 1..=255] => string(&mut stream).await?,
        address => Ipv4Addr::from(address).to_string(),
    };
    match Destination::new(&host, port).filter(|_| command == 1) {
        Some(destination) => Ok(Some(Request { destination, protocol: Protocol::Socks4(stream) })),
        None => {
            stream.write_all(&SOCKS4_REFUSED).await?;
            Ok(None)
        }
    }
}

const SOCKS4_GRANTED: [u8; 8] = [0, 90, 0, 0, 0, 0, 0, 0];
const SOCKS4_REFUSED: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

/// Reads a text up to a zero byte.
async fn string(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        match stream.read_u8().await? {
            0 => return String::from_utf8(bytes).map_err(|error| invalid(error.to_string())),
            _ if bytes.len() >= MAX_STRING => return Err(invalid("a name is too long".into())),
            byte => bytes.push(byte),
        }
    }
}

async fn http(mut stream: TcpStream, pac: Option<&str>) -> io::Result<Option<Request>> {
    let head = http::head(&mut stream).await?;
    match http::asked(&head, pac) {
        Asked::Connect(destination) => Ok(Some(Request { destination, protocol: Protocol::Http(stream) })),
        Asked::Answered(answer) => {
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            Ok(None)
        }
    }
}

impl Request {
    /// Sends the client the reply that it is connected.
    ///
    /// # Errors
    /// Returns an error if the client has closed the connection.
    pub(super) async fn grant(self) -> io::Result<TcpStream> {
        match self.protocol {
            Protocol::Socks5(protocol) => {
                protocol.reply_success(UNKNOWN).await.map_err(|error| invalid(error.to_string()))
            }
            Protocol::Socks4(mut stream) => {
                stream.write_all(&SOCKS4_GRANTED).await?;
                Ok(stream)
            }
            Protocol::Http(mut stream) => {
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                Ok(stream)
            }
        }
    }

    /// Sends the client the reason why it is not connected.
    ///
    /// # Errors
    /// Returns an error if the client has closed the connection.
    pub(super) async fn refuse(self, refusal: &Refusal) -> io::Result<()> {
        match self.protocol {
            Protocol::Socks5(protocol) => {
                protocol.reply_error(&refusal.kind.socks5()).await.map_err(|error| invalid(error.to_string()))
            }
            Protocol::Socks4(mut stream) => stream.write_all(&SOCKS4_REFUSED).await,
            Protocol::Http(mut stream) => {
                stream.write_all(http::answer(refusal.kind.http(), http::TEXT, &refusal.text).as_bytes()).await?;
                stream.shutdown().await
            }
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;

    /// Generates beginnings of requests in these protocols, mixed with arbitrary bytes.
    fn greeting() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(vec![5, 1, 0]),
            Just(vec![5, 1, 0, 3]),
            Just(vec![5, 2, 0, 2]),
            Just(vec![4, 1, 0, 80]),
            Just(vec![0, 0, 0, 1]),
            Just(b"CONNECT db:1 HTTP/1.1\r\n\r\n".to_vec()),
            Just(vec![0; 7]),
            Just(vec![b'x'; 300]),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    async fn read_from(bytes: Vec<u8>) -> io::Result<Option<Request>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut client = TcpStream::connect(listener.local_addr()?).await?;
        let (server, _) = listener.accept().await?;
        client.write_all(&bytes).await?;
        client.shutdown().await?;
        read(server, Some("x")).await
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_say_what_it_wants_is_given_up() {
        for beginning in [&b""[..], b"\x05\x01", b"CONNECT db:1 HTTP/1.1\r\n"] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(beginning).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let error = read(server, None).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{beginning:?}");
        }
    }

    #[tokio::test]
    async fn names_and_heads_have_a_length() {
        let socks4 = [&[4, 1, 0, 80, 0, 0, 0, 1][..], &[b'x'; MAX_STRING + 1], &[0]].concat();
        assert!(read_from(socks4).await.is_err_and(|error| error.to_string().contains("too long")));
        let http = [b"CONNECT ", vec![b'x'; 20_000].as_slice(), b":1 HTTP/1.1\r\n\r\n"].concat();
        assert!(read_from(http).await.is_err_and(|error| error.to_string().contains("too long")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn any_greeting_is_a_request_or_refused(bytes in greeting()) {
            what_becomes_of(bytes);
        }
    }

    #[test]
    fn the_corpus_is_requests_or_refused() {
        let seeds: [&[u8]; 9] = [
            b"\x05\x01\x00\x05\x01\x00\x03\x0bdb.internal\x01\xbb",
            b"\x05\x02\x00\x02\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
            b"\x05\x01\x00\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50",
            b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
            b"\x05\x01\x02",
            b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00",
            b"\x04\x01\x00\x50\x00\x00\x00\x01user\x00db.internal\x00",
            b"\x04\x02\x00\x50\x7f\x00\x00\x01\x00",
            b"CONNECT db:1 HTTP/1.1\r\n\r\n",
        ];
        crate::replay::corpus("socks_request", &seeds, 300, |input| what_becomes_of(input.to_vec()));
    }

    /// Reads a request and returns a summary of the result. Checks that the destination of a request is a valid host.
    fn what_becomes_of(bytes: Vec<u8>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match runtime.block_on(read_from(bytes)) {
            Ok(Some(request)) => {
                let Destination { host, port } = &request.destination;
                assert_eq!(Destination::new(host, *port), Some(request.destination.clone()));
                let protocol = match request.protocol {
                    Protocol::Socks5(_) => "five",
                    Protocol::Socks4(_) => "four",
                    Protocol::Http(_) => "http",
                };
                format!("{protocol} {}", if host.parse::<std::net::IpAddr>().is_ok() { "address" } else { "name" })
            }
            Ok(None) => "answered".into(),
            Err(error) => error.to_string(),
        }
    }
}
