//! A local Session Manager: the SSM API, the data channel and an agent, on one port of one machine, offline.
//!
//! It works with every client of AWS Session Manager: this project's client, the official plugin, the AWS CLI, and the SDKs.
//!
//! ```no_run
//! use ssm_local::{Local, LocalTarget};
//!
//! # async fn run() -> Result<(), ssm_local::StartError> {
//! let local = Local::builder()
//!     .target(LocalTarget::new("i-0123456789abcdef0"))
//!     .host("db.internal", [std::net::Ipv4Addr::LOCALHOST])
//!     .start()
//!     .await?;
//! for (name, value) in local.environment() {
//!     eprintln!("export {name}={value}");
//! }
//! local.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Use in tests
//!
//! Use port 0 and [`LocalBuilder::fixed_credentials`] for the Session Manager of a test. Pass [`Local::environment`] to the program
//! under test or, if it runs in the same process, [`Local::endpoint_url`] and the fixed credentials. The managed node is this
//! machine: a session to one of its ports reaches a server of the test. Like the official agent, the local agent does not forward a
//! half-close: a server that answers only after the end of its input never answers.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ssm_local::{Faults, Local, SessionState};
//!
//! let local = Local::builder()
//!     .fixed_credentials("AKIAEXAMPLE", "example")
//!     .ports_only()
//!     // Each WebSocket is closed after two seconds.
//!     .faults(Faults::new().seed(7).with("bye,every=2s".parse()?))
//!     .start()
//!     .await?;
//! let endpoint = local.endpoint_url();
//! // … run the tool with this endpoint …
//! # let _ = endpoint;
//! let left = local.sessions().iter().filter(|session| session.state == SessionState::Connected).count();
//! assert_eq!(left, 0, "the tool terminates its sessions");
//! local.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Access control
//!
//! Shells and commands run as the user of this process, and every user of the machine can connect to its port. Therefore the
//! credentials in [`Local::environment`] are random at each start, and each request's signature is verified as in AWS. The token
//! that opens a data channel is random too. For a test that cannot sign requests, use [`LocalBuilder::fixed_credentials`] or
//! [`LocalBuilder::any_credentials`]. If only ports have to be forwarded, use [`LocalBuilder::ports_only`].
//!
//! # Supported operations
//!
//! | service | operations |
//! |---|---|
//! | SSM | StartSession, ResumeSession, TerminateSession, DescribeSessions, GetConnectionStatus, DescribeInstanceInformation, GetInventory, GetDocument, DescribeDocument, ListDocuments |
//! | KMS | GenerateDataKey, Decrypt |
//! | ECS | ListClusters, DescribeClusters, ListServices, DescribeServices, ListTasks, DescribeTasks, ExecuteCommand |
//!
//! Any other operation is refused with UnknownOperationException. Every region is accepted.
//!
//! The module `fault_syntax` describes the faults that it can inject.

// The modules: `access` verifies callers, `api` answers the SSM operations, `broker` stores sessions and connects a client's
// WebSocket to an agent, `agent` is the managed node. Broker and agent exchange only what is sent over the wire in AWS: agent
// messages, through a `pipe`. `faults` injects faults into them.
mod access;
mod agent;
mod api;
mod broker;
mod control;
mod document;
mod ecs;
mod faults;
mod kms;
mod local;
mod pipe;
mod server;
mod target;
mod wire;

/// Faults as text: the effects, their keys and defaults, and all ways to set them. There is no code in this module.
#[cfg(all(doc, not(doctest)))]
#[doc = include_str!("../faults.md")]
pub mod fault_syntax {}

pub use broker::{SessionInfo, SessionState};
pub use ecs::EcsTask;
pub use faults::{ApiAnswer, Direction, Effect, Fault, FaultError, Faults, Only, When};
pub use kms::KmsFault;
pub use local::{Local, LocalBuilder, StartError};
pub use target::LocalTarget;

/// The behaviour of the embedded agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// No artificial limits: large messages, each retransmitted by its own deadline, parallel connection attempts to
    /// destinations.
    #[default]
    Fast,
    /// The limits of the official agent: payloads of 1024 bytes and a millisecond of sleep after each message, only the oldest
    /// message is retransmitted, one connection attempt at a time, and for a short time after the handshake data is not accepted.
    Real,
}

/// Includes the README, so that its examples run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
