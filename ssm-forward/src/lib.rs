//! Forwards ports through AWS Session Manager sessions.
//!
//! [`Forwarder`] is the whole job: a local socket whose connections reach a port behind a managed node. [`Session`] is the
//! piece for tools of one's own: streams to that port, without a local socket. Sessions come from a [`SessionProvider`]:
//! [`AwsProvider`] calls the API, [`TicketProvider`] takes a session that somebody else started.

mod error;
mod event;
mod forwarder;
mod listener;
mod pool;
mod provider;
mod pump;
mod session;
mod stats;
mod transport;

pub use error::ForwardError;
pub use event::{ForwardEvent, LocalAddr};
pub use forwarder::{ForwardConfig, Forwarder, ForwarderBuilder};
/// Of [`SessionProvider::sign_upgrade`].
pub use http::HeaderMap;
pub use listener::ListenAddr;
pub use pool::{PoolConfig, PoolSize};
pub use provider::{
    AwsConfig, AwsCredentials, AwsProvider, BoxFuture, DataKey, EcsSpec, EcsTarget, PlaintextKey, ProviderError,
    ProviderErrorKind, SessionProvider, SessionTicket, StartRequest, TicketProvider,
};
pub use session::{
    CloseReason, Liveness, Pacing, RetryPolicy, Session, SessionConfig, SessionNotice, SessionStream, StreamError,
    StreamSender,
};
pub use ssm_proto::{Output, PortProperties, SessionMode, SessionType, TerminalSize};
pub use stats::{ForwardStats, StatsSnapshot};
pub use transport::{Proxies, StreamUrl, StreamUrlPolicy, TransportError, TransportOptions};
/// Of [`SessionProvider::sign_upgrade`].
pub use url::Url;
