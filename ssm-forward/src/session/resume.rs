//! Opening the WebSocket, the first time and again.

use std::sync::Arc;
use std::time::Duration;

use ssm_proto::OpenDataChannel;
use tokio::time::timeout;
use uuid::Uuid;

use super::SessionConfig;
use crate::transport::{self, StreamUrl, Transport, TransportError};
use crate::{ProviderError, ProviderErrorKind, SessionProvider, SessionTicket};

/// How a lost WebSocket is opened again: without an end while the session can still exist, ever more slowly.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The wait before the second attempt; the first comes at once. Default: 100 ms.
    pub initial: Duration,
    /// The longest wait. Default: 20 s.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), max: Duration::from_secs(20) }
    }
}

impl RetryPolicy {
    /// The wait before an attempt that counts from 1, with up to half of it taken away at random.
    pub(crate) fn delay(&self, attempt: u32) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
        let full = self.initial.saturating_mul(1 << doublings.min(16)).min(self.max);
        full.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

/// Resolving credentials and calling the API may take so long, each time.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// Knows the session's current URL and token, and gets new ones.
pub(super) struct Dialer {
    provider: Arc<dyn SessionProvider>,
    ticket: SessionTicket,
    config: SessionConfig,
    /// Chosen once per process (OPEN-3).
    client_id: Uuid,
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl DialError {
    /// Whether the same can succeed later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            // Somebody can log in again while the tunnel waits.
            Self::Provider(error) => {
                error.is_retryable()
                    || matches!(error.kind, ProviderErrorKind::Credentials | ProviderErrorKind::ExpiredCredentials)
            }
            // Each attempt brings a fresh token, so that even a refused one is no last word.
            Self::Transport(error) => error.is_retryable(),
        }
    }
}

impl Dialer {
    pub(super) fn new(provider: Arc<dyn SessionProvider>, ticket: SessionTicket, config: SessionConfig) -> Self {
        Self { provider, ticket, config, client_id: Uuid::new_v4() }
    }

    pub(super) fn provider(&self) -> Arc<dyn SessionProvider> {
        self.provider.clone()
    }

    /// Opens a WebSocket with the ticket at hand.
    pub(super) async fn dial(&mut self) -> Result<Transport, DialError> {
        let url = StreamUrl::parse(&self.ticket.stream_url, &self.config.stream_url_policy)?;
        let headers = bounded(self.provider.sign_upgrade(url.as_url())).await?;
        let mut transport = transport::connect(&url, headers, &self.config.transport).await?;
        let version = self.config.protocol.client_version.clone();
        let open = OpenDataChannel::client(Uuid::new_v4(), self.ticket.token.clone(), self.client_id, version);
        transport.send_text(open.to_json())?;
        Ok(transport)
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
