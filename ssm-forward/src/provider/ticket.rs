//! A session that another program started.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use url::Url;

use super::{BoxFuture, DataKey, ProviderError, ProviderErrorKind, SessionProvider, SessionTicket, StartRequest};

/// Provides one ticket that another program obtained from StartSession. All later calls use the API, if there is access to it.
pub struct TicketProvider {
    ticket: Mutex<Option<SessionTicket>>,
    api: Option<Arc<dyn SessionProvider>>,
}

impl TicketProvider {
    /// `api` resumes and terminates the session and signs requests. Without it, the session ends with its first WebSocket.
    pub fn new(ticket: SessionTicket, api: Option<Arc<dyn SessionProvider>>) -> Self {
        Self { ticket: Mutex::new(Some(ticket)), api }
    }
}

impl std::fmt::Debug for TicketProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketProvider").field("has_api", &self.api.is_some()).finish_non_exhaustive()
    }
}

fn without_api(call: &str) -> ProviderError {
    ProviderError {
        kind: ProviderErrorKind::Invalid,
        message: format!("{call} needs access to the SSM API, and there is none"),
    }
}

impl SessionProvider for TicketProvider {
    fn start<'a>(&'a self, _request: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        let ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            ticket.ok_or_else(|| ProviderError {
                kind: ProviderErrorKind::SessionGone,
                message: "the session that was passed is already used: start a new one".into(),
            })
        })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
        match &self.api {
            Some(api) => api.resume(session_id),
            None => Box::pin(async { Err(without_api("ResumeSession")) }),
        }
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        match &self.api {
            Some(api) => api.terminate(session_id),
            None => Box::pin(async { Err(without_api("TerminateSession")) }),
        }
    }

    fn sign_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        match &self.api {
            Some(api) => api.sign_upgrade(url),
            None => Box::pin(async { Ok(HeaderMap::new()) }),
        }
    }

    fn sign_refused_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        match &self.api {
            Some(api) => api.sign_refused_upgrade(url),
            None => Box::pin(async { Ok(HeaderMap::new()) }),
        }
    }

    fn data_key<'a>(
        &'a self,
        key_id: &'a str,
        context: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<DataKey, ProviderError>> {
        match &self.api {
            Some(api) => api.data_key(key_id, context),
            None => Box::pin(async {
                Err(ProviderError {
                    kind: ProviderErrorKind::Invalid,
                    message: "the session is encrypted with a KMS key, which needs AWS credentials here: \
                              log in and try again, or turn KMS encryption off in Session Manager's preferences"
                        .into(),
                })
            }),
        }
    }
}
