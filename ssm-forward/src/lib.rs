//! Forwards ports through AWS Session Manager sessions.
//!
//! [`Forwarder`] is the complete solution: a local socket whose connections reach a port behind a managed node.
//! [`Session`] is the building block for other tools: streams to that port, without a local socket. Sessions come from
//! a [`SessionProvider`]: [`AwsProvider`] calls the API, [`TicketProvider`] uses a session that another program
//! started.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ssm_forward::{AwsConfig, AwsProvider, ForwardEvent, Forwarder, ListenAddr, StartRequest};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = Arc::new(AwsProvider::new(AwsConfig::default()).await?);
//! let request = StartRequest {
//!     target: "i-0123456789abcdef0".into(),
//!     document: Some("AWS-StartPortForwardingSessionToRemoteHost".into()),
//!     parameters: [("host", "db.internal"), ("portNumber", "3306")]
//!         .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]))
//!         .into(),
//!     ..StartRequest::default()
//! };
//! let forwarder = Forwarder::builder(provider, request)
//!     .on_event(|event| {
//!         if let ForwardEvent::Ready { local, .. } = event {
//!             eprintln!("mysql -h 127.0.0.1 through {local}");
//!         }
//!     })
//!     .bind(ListenAddr::Tcp("127.0.0.1:0".parse()?))
//!     .await?;
//! forwarder.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A stream without a local socket, for a database driver that accepts any `AsyncRead + AsyncWrite`:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ssm_forward::{Session, SessionConfig, SessionProvider, StartRequest};
//! # async fn run(provider: Arc<dyn SessionProvider>, request: StartRequest) -> Result<(), Box<dyn std::error::Error>> {
//! let session = Session::start(provider, &request, SessionConfig::default(), |_id| {}, |_notice| {}).await?;
//! let stream = session.open_stream().await?;
//! # drop(stream);
//! session.terminate().await;
//! # Ok(())
//! # }
//! ```

mod awaiting;
mod descriptors;
mod error;
mod event;
mod forwarder;
mod listener;
mod names;
mod pool;
mod program;
mod provider;
mod pump;
mod relay;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
mod route;
mod session;
#[cfg(test)]
mod soup;
mod stats;
mod text;
mod transport;
mod unanswered;

pub use awaiting::await_target;
/// The type of received and sent bytes.
pub use bytes::Bytes;
pub use error::{CloseReason, DialError, ForwardError, ProbeError, StreamError, SystemError};
pub use event::{ForwardEvent, LocalAddr};
pub use forwarder::{ForwardConfig, Forwarder, ForwarderBuilder};
/// For [`SessionProvider::sign_upgrade`].
pub use http::HeaderMap;
pub use listener::{Entrance, ListenAddr, OpenListener, bind_tcp};
pub use names::{ServiceKind, ServiceSpec, TargetSpec};
pub use pool::{PoolConfig, PoolSize};
pub use provider::{
    AwsConfig, AwsCredentials, AwsOrigin, AwsProvider, BoxFuture, Caller, ConfigurationFile, DataKey, DatabaseToken,
    Destination, EcsSpec, EcsTarget, LookupCache, NamedProvider, NetworkPlace, Node, NodeSource, Person, PlaintextKey,
    Preferences, ProviderError, ProviderErrorKind, RunningTask, SdkConfig, Secret, SecurityGroup, SecurityRule,
    ServiceEndpoint, ServiceSummary, SessionProvider, SessionTicket, StartRequest, TicketProvider, Verdict,
    VpcEndpoint, configuration_files, profile_names,
};
pub use relay::{RelayConfig, RelayProgram, RelayReport, relay_remove, relay_status};
pub use session::{
    Liveness, Pacing, RetryPolicy, Session, SessionConfig, SessionNotice, SessionStream, StreamSender, Terminations,
};
/// The protocol's own types, for example those of [`SessionConfig::protocol`].
pub use ssm_proto;
pub use ssm_proto::relay::RefusalKind;
pub use ssm_proto::{ConfigError, Output, PortProperties, SessionError, SessionMode, SessionType, TerminalSize};
pub use stats::{ForwardStats, StatsSnapshot};
pub use transport::{
    NetworkPath, PathProblem, PathStep, Proxies, StreamEndpoint, StreamUrl, StreamUrlPolicy, TransportError,
    TransportOptions, look_along,
};
/// For [`SessionProvider::sign_upgrade`].
pub use url::Url;

/// The examples of the README are tested as those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
