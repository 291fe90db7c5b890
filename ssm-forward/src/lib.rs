//! Forwards ports through AWS Session Manager sessions, without any other program.
//!
//! # A local port
//!
//! [`Forwarder`] is the complete solution: a local socket whose connections reach a port behind a managed node.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ssm_forward::{AwsConfig, AwsProvider, ForwardEvent, Forwarder, ListenAddr, StartRequest};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! // Profile, region and credentials come from the environment, as for the AWS CLI.
//! let provider = Arc::new(AwsProvider::new(AwsConfig::default()).await?);
//! let request = StartRequest::to_remote_host("i-0123456789abcdef0", "db.internal", 3306);
//! let forwarder = Forwarder::builder(provider, request)
//!     .on_event(|event| {
//!         if let ForwardEvent::Ready { local, .. } = event {
//!             eprintln!("connect to {local}");
//!         }
//!     })
//!     .bind(ListenAddr::Tcp("127.0.0.1:0".parse()?))
//!     .await?;
//! forwarder.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! 1. A [`SessionProvider`] starts, resumes and terminates sessions. [`AwsProvider`] calls the API;
//!    [`AwsProvider::from_sdk_config`] uses the program's own configuration of the AWS SDK. [`NamedProvider`] looks up names,
//!    [`TicketProvider`] uses a session that another program started, and your own provider can wrap any of them.
//!    of them.
//! 2. A [`StartRequest`] defines the destination of the connections: [`StartRequest::to_port`], [`StartRequest::to_remote_host`],
//!    or any session document with its parameters.
//! 3. [`ForwarderBuilder::bind`] opens the socket. No session is started yet, so that no session is left behind if the port is in
//!    use. From then on, connections are accepted, and wait. [`ForwarderBuilder::hand_in`] and [`ForwarderBuilder::dial`] are for
//!    programs that accept connections themselves, such as proxies.
//! 4. [`Forwarder::run`] starts a session and serves connections until its argument completes. It replaces lost sessions, adds
//!    sessions when connections would have to share one, and terminates all of them at the end. [`ForwardConfig`] contains the
//!    limits and their defaults; [`ForwardEvent`] reports what happens.
//!
//! # A stream in the program
//!
//! [`Session`] is the building block for other tools: it opens streams to the port, without a local socket. A [`SessionStream`]
//! implements `AsyncRead + AsyncWrite`, so that database drivers accept it:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ssm_forward::{Session, SessionConfig, SessionProvider, StartRequest};
//! # async fn run(provider: Arc<dyn SessionProvider>) -> Result<(), Box<dyn std::error::Error>> {
//! let request = StartRequest::to_port("i-0123456789abcdef0", 5432);
//! let session = Session::start(provider, &request, SessionConfig::default(), |_id| {}, |_notice| {}).await?;
//! let stream = session.open_stream().await?;
//! # drop(stream);
//! session.terminate().await;
//! # Ok(())
//! # }
//! ```
//!
//! A session that is dropped is terminated in the background; [`Terminations::finished`] waits for that.
//!
//! # Errors
//!
//! [`ForwardError`] has a variant for each part that can be at fault; its documentation contains an example. [`StreamError`] is the
//! corresponding type for a connection, and [`CloseReason`] for a session. Each message is one line for users.
//!
//! # Testing without AWS
//!
//! The crate `ssm-local` runs a Session Manager in your process. Pass its endpoint and credentials to [`AwsConfig`]:
//!
//! ```
//! use ssm_forward::{AwsConfig, AwsCredentials, AwsProvider};
//! use ssm_local::Local;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let local = Local::builder().fixed_credentials("AKIAEXAMPLE", "example").ports_only().start().await?;
//! let config = AwsConfig {
//!     region: Some("us-east-1".into()),
//!     endpoint_url: Some(local.endpoint_url()),
//!     credentials: Some(AwsCredentials {
//!         access_key_id: "AKIAEXAMPLE".into(),
//!         secret_access_key: "example".into(),
//!         session_token: None,
//!     }),
//!     ..AwsConfig::default()
//! };
//! let provider = AwsProvider::new(config).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The example `loopback` is a complete program.

mod awaiting;
mod descriptors;
mod dialer;
mod entrance;
mod error;
mod event;
mod forwarder;
mod half_closed;
mod listener;
mod names;
mod pool;
mod provider;
mod pump;
#[cfg(test)]
mod random_text;
mod relay;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;
mod route;
mod session;
mod stats;
mod text;
mod transport;
mod unanswered;

pub use awaiting::await_target;
/// The type of byte buffers that are received and sent.
pub use bytes::Bytes;
pub use dialer::{Dialed, Dialer};
pub use entrance::Entrance;
pub use error::{CloseReason, DialError, ForwardError, ProbeError, StreamError, SystemError};
pub use event::{ForwardEvent, LocalAddr};
pub use forwarder::{ForwardConfig, Forwarder, ForwarderBuilder};
/// The result type of [`SessionProvider::sign_upgrade`].
pub use http::HeaderMap;
pub use listener::{ListenAddr, OpenListener, bind_tcp};
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
/// The types of the protocol, for example those of [`SessionConfig::protocol`].
pub use ssm_proto;
pub use ssm_proto::relay::RefusalKind;
pub use ssm_proto::{ConfigError, Output, PortProperties, SessionError, SessionMode, SessionType, TerminalSize};
pub use stats::{ForwardStats, StatsSnapshot};
pub use transport::{
    NetworkPath, PathProblem, PathStep, Proxies, StreamEndpoint, StreamUrl, StreamUrlPolicy, TransportError,
    TransportOptions, look_along,
};
/// The argument type of [`SessionProvider::sign_upgrade`].
pub use url::Url;

/// Makes `cargo test --doc` test the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
