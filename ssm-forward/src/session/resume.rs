//! Opens the WebSocket, for the first time and for each reconnect.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use ssm_proto::OpenDataChannel;
use tokio::time::timeout;
use uuid::Uuid;

use super::SessionConfig;
use crate::transport::{self, StreamUrl, Transport};
use crate::{DialError, ProviderError, ProviderErrorKind, SessionProvider, SessionTicket};

/// How a lost WebSocket is reconnected. The attempts have growing delays, and no limit while the session can exist.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Delay before the second attempt. The first attempt is immediate, unless the lost WebSocket was short-lived; then the delays
    /// continue from the last one. Default: 100 ms.
    pub initial: Duration,
    /// Maximum delay. Default: 20 s.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), max: Duration::from_secs(20) }
    }
}

impl RetryPolicy {
    /// Returns the delay before an attempt. Attempts are counted from 1. The delay is reduced by up to half at random.
    pub(crate) fn delay(&self, attempt: u32) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
        let full = self.initial.saturating_mul(1 << doublings.min(16)).min(self.max);
        full.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

/// Timeout for getting credentials, which may need the user, and for each call of the API.
const API_TIMEOUT: Duration = Duration::from_secs(180);

/// Opens WebSockets. Keeps the session's current URL and token, and requests new ones.
pub(super) struct ChannelDialer {
    provider: Arc<dyn SessionProvider>,
    ticket: SessionTicket,
    config: SessionConfig,
    /// The client's id, chosen once (OPEN-3).
    client_id: Uuid,
}

impl DialError {
    /// Whether a later attempt can succeed.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            // The user can log in again while the tunnel waits.
            Self::Provider(error) => {
                error.is_retryable()
                    || matches!(error.kind, ProviderErrorKind::Credentials | ProviderErrorKind::ExpiredCredentials)
            }
            // Each attempt gets a fresh token, so even a refused one is not final.
            Self::Transport(error) => error.is_retryable(),
        }
    }
}

impl ChannelDialer {
    pub(super) fn new(provider: Arc<dyn SessionProvider>, ticket: SessionTicket, config: SessionConfig) -> Self {
        Self { provider, ticket, config, client_id: Uuid::new_v4() }
    }

    pub(super) fn provider(&self) -> Arc<dyn SessionProvider> {
        self.provider.clone()
    }

    /// Opens a WebSocket with the current ticket.
    pub(super) async fn dial(&mut self) -> Result<Transport, DialError> {
        let url = self.config.stream_url(&self.ticket.stream_url)?;
        let mut transport = self.upgrade(&url).await?;
        let version = self.config.protocol.client_version.clone();
        // The token opens only one data channel, so it is not kept.
        let token = std::mem::take(&mut self.ticket.token);
        let open = OpenDataChannel::client(Uuid::new_v4(), token, self.client_id, version);
        transport.send_text(open.to_json())?;
        Ok(transport)
    }

    /// Opens the WebSocket, with a signature if that is possible quickly. If the service refuses, tries once more with the
    /// opposite: the user may have set a wrong region or profile, and the token is more important than the signature.
    async fn upgrade(&self, url: &StreamUrl) -> Result<Transport, DialError> {
        let headers = bounded(self.provider.sign_upgrade(url.as_url())).await?;
        let signed = !headers.is_empty();
        let refused = match transport::connect(url, headers, &self.config.transport).await {
            Err(error) if error.is_forbidden() => error,
            opened => return Ok(opened?),
        };
        let other = match signed {
            true => HeaderMap::new(),
            false => bounded(self.provider.sign_refused_upgrade(url.as_url())).await?,
        };
        if signed != other.is_empty() {
            return Err(refused.into());
        }
        tracing::debug!(signed, %refused, "trying the upgrade again, with or without a signature");
        match transport::connect(url, other, &self.config.transport).await {
            Err(error) if error.is_forbidden() => Err(refused.into()),
            opened => Ok(opened?),
        }
    }

    /// Gets a fresh token, then opens a WebSocket (DC-13).
    pub(super) async fn resume(&mut self) -> Result<Transport, DialError> {
        let ticket = bounded(self.provider.resume(&self.ticket.session_id)).await?;
        self.ticket.token = ticket.token;
        if !ticket.stream_url.is_empty() {
            self.ticket.stream_url = ticket.stream_url;
        }
        self.dial().await
    }
}

pub(super) async fn bounded<T>(call: impl Future<Output = Result<T, ProviderError>>) -> Result<T, ProviderError> {
    timeout(API_TIMEOUT, call).await.unwrap_or_else(|_| {
        Err(ProviderError {
            kind: ProviderErrorKind::Unreachable,
            message: format!("the API did not answer within {} s", API_TIMEOUT.as_secs()),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;
    use url::Url;

    use super::*;
    use crate::{BoxFuture, StartRequest};

    /// A provider that can sign immediately (`at_hand`), or only when it is asked again (`has_any`), or not at all.
    struct Signer {
        at_hand: bool,
        has_any: bool,
    }

    impl Signer {
        fn headers(signed: bool) -> BoxFuture<'static, Result<HeaderMap, ProviderError>> {
            let headers = signed.then(|| (http::header::AUTHORIZATION, "AWS4-HMAC-SHA256 x".parse().unwrap()));
            Box::pin(async { Ok(headers.into_iter().collect()) })
        }
    }

    impl SessionProvider for Signer {
        fn start<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
            unreachable!()
        }

        fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
            unreachable!()
        }

        fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
            unreachable!()
        }

        fn sign_upgrade<'a>(&'a self, _: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
            Self::headers(self.at_hand)
        }

        fn sign_refused_upgrade<'a>(&'a self, _: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
            Self::headers(self.has_any)
        }

        fn data_key<'a>(
            &'a self,
            _: &'a str,
            _: &'a BTreeMap<String, String>,
        ) -> BoxFuture<'a, Result<crate::DataKey, ProviderError>> {
            unreachable!()
        }
    }

    /// Runs a service that accepts only signed upgrades, only unsigned ones, or none (`None`). Returns for each upgrade that it
    /// received whether it was signed.
    async fn dial(signer: Signer, takes: Option<bool>) -> (Result<(), DialError>, Vec<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/v1/data-channel/s", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let service = tokio::spawn(async move {
            loop {
                let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await.unwrap() > 0 {}
                let head = head.to_ascii_lowercase();
                let signed = head.contains("authorization:");
                told.lock().unwrap().push(signed);
                let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_default();
                assert!(!key.is_empty());
                // A complete upgrade needs the key's digest, which only the real handshake computes. The status 101 alone is
                // sufficient for this test.
                let status = if takes == Some(signed) { "101 Switching Protocols" } else { "403 Forbidden" };
                let _ = stream
                    .get_mut()
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await;
            }
        });
        let ticket = SessionTicket { session_id: "s".into(), stream_url: url, token: "t".into(), target: None };
        let mut dialer = ChannelDialer::new(Arc::new(signer), ticket, SessionConfig::default());
        let dialed = dialer.dial().await.map(drop);
        service.abort();
        let seen = seen.lock().unwrap().clone();
        (dialed, seen)
    }

    fn is_forbidden(dialed: &Result<(), DialError>) -> bool {
        matches!(dialed, Err(DialError::Transport(error)) if error.is_forbidden())
    }

    /// The upgrade is incomplete, so after status 101 it fails with another error than 403.
    #[tokio::test]
    async fn a_refused_signature_is_left_out_once() {
        let (dialed, seen) = dial(Signer { at_hand: true, has_any: true }, Some(false)).await;
        assert_eq!((seen, is_forbidden(&dialed)), (vec![true, false], false));
        let (dialed, seen) = dial(Signer { at_hand: true, has_any: true }, Some(true)).await;
        assert_eq!((seen, is_forbidden(&dialed)), (vec![true], false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_never_answers_is_given_up() {
        let began = tokio::time::Instant::now();
        let error = bounded(std::future::pending::<Result<(), _>>()).await.unwrap_err();
        assert_eq!((error.kind, began.elapsed()), (ProviderErrorKind::Unreachable, API_TIMEOUT));
    }

    #[tokio::test]
    async fn a_signature_that_takes_time_is_made_when_it_is_asked_for() {
        let (dialed, seen) = dial(Signer { at_hand: false, has_any: true }, Some(true)).await;
        assert_eq!((seen, is_forbidden(&dialed)), (vec![false, true], false));
        let (dialed, seen) = dial(Signer { at_hand: false, has_any: true }, Some(false)).await;
        assert_eq!((seen, is_forbidden(&dialed)), (vec![false], false));
    }

    #[tokio::test]
    async fn who_is_refused_both_ways_is_refused() {
        let (dialed, seen) = dial(Signer { at_hand: true, has_any: true }, None).await;
        assert_eq!((seen, is_forbidden(&dialed)), (vec![true, false], true));
        let (dialed, seen) = dial(Signer { at_hand: false, has_any: false }, None).await;
        assert_eq!((seen, is_forbidden(&dialed)), (vec![false], true));
    }
}
