//! Requests a tunnel from a proxy.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_socks::Error as SocksError;
use tokio_socks::tcp::Socks5Stream;

use super::super::route::Place;
use super::super::socket::Socket;
use super::super::steps::{self, Deadline};
use super::{Login, Proxy, ProxyKind, TransportError};
use crate::Secret;

/// Maximum length of a proxy's answer to CONNECT, in bytes.
pub(in super::super) const MAX_ANSWER: usize = 16 << 10;

impl Proxy {
    /// Turns `socket`, which is connected to the proxy, into a connection to `place`.
    ///
    /// # Errors
    /// Returns an error if the proxy refuses, is not a proxy, or does not answer.
    pub(in super::super) async fn tunnel(
        &self,
        socket: Socket,
        place: &Place,
        deadline: Deadline,
    ) -> Result<Socket, TransportError> {
        let asked = async {
            match self.kind {
                ProxyKind::Http => self.connect(socket, place).await,
                ProxyKind::Socks5 => self.socks(socket, place).await,
            }
        };
        let answer = deadline.step(steps::PROXY, asked).await;
        let answer = answer.unwrap_or_else(|late| Err(format!("did not answer a request for {place} within {late}")));
        answer.map_err(|cause| self.refusal(cause))
    }

    fn refusal(&self, cause: String) -> TransportError {
        TransportError::Proxy { proxy: self.to_string(), cause }
    }

    /// Returns the value of `Proxy-Authorization`.
    pub(crate) fn authorization(&self) -> Option<Secret> {
        let Login { user, password } = self.login.as_ref()?;
        let login = Secret::new(format!("{user}:{}", password.expose()));
        Some(Secret::new(format!("Basic {}", STANDARD.encode(login.expose()))))
    }

    /// Returns the error for a proxy that refuses the login, or requires one.
    pub(crate) fn refused_login(&self) -> TransportError {
        self.refusal(self.login_cause().to_owned())
    }

    fn login_cause(&self) -> &'static str {
        match self.login {
            Some(_) => "refuses the user name or the password in its URL",
            None => "requires a login: put USER:PASSWORD@ before the host in its URL",
        }
    }

    async fn connect(&self, mut socket: Socket, place: &Place) -> Result<Socket, String> {
        let login = self
            .authorization()
            .map_or_else(String::new, |value| format!("Proxy-Authorization: {}\r\n", value.expose()));
        let request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{login}\r\n");
        let answer = ask(&mut socket, &request).await.map_err(|error| broke(&error))?;
        match answer.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)) {
            Some(status) if status.starts_with('2') => Ok(socket),
            Some("407") => Err(self.login_cause().into()),
            Some("403") => Err(format!("does not allow a tunnel to {place} (HTTP 403)")),
            Some(status) => Err(format!("could not open a tunnel to {place} (HTTP {status})")),
            None => Err("does not answer as an HTTP proxy".into()),
        }
    }

    async fn socks(&self, socket: Socket, place: &Place) -> Result<Socket, String> {
        let target = (place.host.as_str(), place.port);
        let asked = match &self.login {
            Some(Login { user, password }) => {
                Socks5Stream::connect_with_password_and_socket(socket, target, user, password.expose()).await
            }
            None => Socks5Stream::connect_with_socket(socket, target).await,
        };
        asked.map(Socks5Stream::into_inner).map_err(|error| self.socks_cause(error, place))
    }

    fn socks_cause(&self, error: SocksError, place: &Place) -> String {
        match error {
            SocksError::Io(error) => broke(&error),
            SocksError::NoAcceptableAuthMethods
            | SocksError::AuthorizationRequired
            | SocksError::PasswordAuthFailure(_) => self.login_cause().into(),
            SocksError::InvalidResponseVersion
            | SocksError::InvalidReservedByte
            | SocksError::UnknownAddressType
            | SocksError::UnknownAuthMethod => "does not answer as a SOCKS5 proxy".into(),
            SocksError::InvalidAuthValues(cause) => format!("does not support the login in its URL: {cause}"),
            SocksError::ConnectionNotAllowedByRuleset => format!("does not allow a tunnel to {place}"),
            other => format!("could not open a tunnel to {place}: {other}"),
        }
    }
}

fn broke(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "closed the connection instead of answering".into(),
        _ => format!("broke the connection: {error}"),
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    read_head(stream).await
}

/// Reads up to the empty line, byte by byte, because the bytes after it belong to the tunnel.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_ANSWER {
            let what = format!("its answer to CONNECT is longer than {} KiB", MAX_ANSWER >> 10);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
