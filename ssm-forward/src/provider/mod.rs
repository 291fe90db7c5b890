//! The providers of sessions: the SSM API, or a ticket that another program obtained.

mod aws;
mod named;
mod ticket;

pub use aws::{
    AwsConfig, AwsCredentials, AwsOrigin, AwsProvider, Caller, ConfigurationFile, DatabaseToken, EcsSpec, EcsTarget,
    LookupCache, NetworkPlace, Node, Person, Preferences, RunningTask, SdkConfig, SecurityGroup, SecurityRule,
    ServiceEndpoint, ServiceSummary, Verdict, VpcEndpoint, configuration_files, profile_names,
};
pub use named::{Destination, NamedProvider, NodeSource};
/// The type of secrets in [`SessionTicket`] and [`AwsCredentials`].
pub use ssm_proto::Secret;
/// The types of [`SessionProvider::data_key`].
pub use ssm_proto::{DataKey, PlaintextKey};
pub use ticket::TicketProvider;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use http::HeaderMap;
use url::Url;

/// A boxed future, so that [`SessionProvider`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts, resumes and terminates sessions, and signs the WebSocket upgrade.
///
/// The trait uses no type of the AWS SDK: the forwarder works in the same way with the real API, a test double, or a ticket that
/// the AWS CLI has already obtained.
pub trait SessionProvider: Send + Sync + 'static {
    /// Starts a new session (the API's StartSession).
    fn start<'a>(&'a self, request: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>>;

    /// Requests a fresh token and stream URL for an active session (the API's ResumeSession).
    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>>;

    /// Ends a session (the API's TerminateSession).
    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ProviderError>>;

    /// Returns headers that sign the upgrade request to `url`, with credentials that can be obtained quickly.
    ///
    /// An empty map means that the request is sent unsigned.
    fn sign_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>>;

    /// Returns headers for an upgrade request that was sent unsigned and refused. This call may take long, for example because the
    /// user is asked.
    ///
    /// An empty map means that nothing else can be tried. This is what the default implementation returns.
    fn sign_refused_upgrade<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
        let _ = url;
        Box::pin(async { Ok(HeaderMap::new()) })
    }

    /// Returns a new data key for an encrypted session (KMS's GenerateDataKey, 64 bytes).
    ///
    /// `key_id` is the id, the ARN or an alias of the KMS key. `context` is the encryption context. With the default
    /// implementation, encrypted sessions fail.
    fn data_key<'a>(
        &'a self,
        key_id: &'a str,
        context: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<DataKey, ProviderError>> {
        let _ = (key_id, context);
        Box::pin(async {
            Err(ProviderError {
                kind: ProviderErrorKind::Invalid,
                message: "encryption is not supported by this provider".into(),
            })
        })
    }
}

/// The request for StartSession.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartRequest {
    /// The managed node, for example `i-0123456789abcdef0`. [`AwsProvider`] also accepts a container of ECS, given by names that do
    /// not change ([`EcsSpec`]). It looks the container up for each session, because a deployment starts a new task.
    pub target: String,
    /// The session document. `None`: the account's default shell document.
    pub document: Option<String>,
    /// The document's parameters.
    pub parameters: BTreeMap<String, Vec<String>>,
    /// Parameters that are sent only if the document defines them, because the service refuses others. [`AwsProvider`] reads the
    /// document (`ssm:DescribeDocument`). If that is not permitted, it sends all of them; if the service refuses these, it sends
    /// none of them. Default: none.
    pub offered: BTreeMap<String, Vec<String>>,
    /// The reason that is shown in the session's history.
    pub reason: Option<String>,
}

impl StartRequest {
    /// Returns a request for a session to a port of the target itself.
    pub fn to_port(target: impl Into<String>, port: u16) -> Self {
        Self {
            target: target.into(),
            document: Some("AWS-StartPortForwardingSession".into()),
            parameters: [("portNumber".to_owned(), vec![port.to_string()])].into(),
            ..Self::default()
        }
    }

    /// Returns a request for a session to a port of a host that the target can reach. The target resolves the name of the host.
    pub fn to_remote_host(target: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        let mut request = Self::to_port(target, port);
        request.document = Some("AWS-StartPortForwardingSessionToRemoteHost".into());
        request.parameters.insert("host".to_owned(), vec![host.into()]);
        request
    }

    /// Returns the destination of the session's connections, for messages.
    pub(crate) fn destination(&self) -> String {
        let given = |key| self.parameters.get(key).and_then(|values| values.first()).map(String::as_str);
        match (given("host"), given("portNumber")) {
            (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (None, Some(port)) => format!("port {port} of {}", self.target),
            (_, None) => "the destination".to_owned(),
        }
    }
}

/// A granted session: its id, the URL of its data channel, and the token that opens it.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionTicket {
    /// The session's id, for example `user-0123456789abcdef0`.
    pub session_id: String,
    /// The WebSocket URL of the data channel. Empty in an answer to ResumeSession that keeps the old one.
    pub stream_url: String,
    /// The token that opens the data channel once.
    pub token: Secret,
    /// The target that was passed to StartSession, if [`StartRequest::target`] is a name that had to be looked up. `None`: the
    /// target is unchanged.
    pub target: Option<String>,
}

impl fmt::Debug for SessionTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTicket")
            .field("session_id", &self.session_id)
            .field("stream_url", &self.stream_url.split('?').next().unwrap_or_default())
            .field("token", &self.token)
            .finish()
    }
}

/// Why the API refused a request.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct ProviderError {
    /// The kind of error.
    pub kind: ProviderErrorKind,
    /// The cause and what to do, in one line.
    pub message: String,
}

impl ProviderError {
    /// Whether the same call may succeed later without any change of the configuration.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ProviderErrorKind::Unreachable
                | ProviderErrorKind::Throttled
                | ProviderErrorKind::Service
                | ProviderErrorKind::NotConnected
        )
    }
}

/// The kind of a [`ProviderError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProviderErrorKind {
    /// There are no credentials, or they cannot be used.
    Credentials,
    /// The credentials have expired.
    ExpiredCredentials,
    /// The credentials do not allow the call.
    AccessDenied,
    /// No region is configured.
    Region,
    /// The configuration is invalid, for example an endpoint or a CA bundle.
    Configuration,
    /// The endpoint could not be reached.
    Unreachable,
    /// The API throttles the caller.
    Throttled,
    /// The API failed (5xx), or its answer is invalid.
    Service,
    /// The target is unknown or its agent is offline.
    NotConnected,
    /// The session does not exist any longer.
    SessionGone,
    /// No resource has the requested name.
    NotFound,
    /// The request itself is invalid (document, parameter, form of the target).
    Invalid,
}
