//! The embedded agent: the agent's end of a session, with the behaviour of the official agent.
//!
//! Only two pipes of messages, one in each direction, connect the agent to the service.

mod alarm;
mod config;
mod connection;
mod destination;
mod driver;
mod port;
mod shared;
#[cfg(unix)]
mod shell;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::Value;
use ssm_proto::Identity;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::Profile;
use crate::document::{Inputs, PORT};
use crate::faults::Armed;
use crate::kms::Encryption;
use crate::pipe::{PipeReceiver, PipeSender, pipe};

/// The parameters of an agent for one session.
#[derive(Clone, Debug)]
pub(crate) struct AgentSpec {
    /// The document's session type.
    pub(crate) session_type: String,
    /// The document's properties, with the parameters filled in.
    pub(crate) properties: Value,
    pub(crate) inputs: Inputs,
    /// The session's id, and the node's own id.
    pub(crate) identity: Identity,
    pub(crate) encryption: Option<Encryption>,
    /// The program of a shell session.
    pub(crate) shell: PathBuf,
    pub(crate) agent_version: String,
    pub(crate) profile: Profile,
    /// Names that only the agent resolves, in lower case.
    pub(crate) hosts: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) faults: Arc<Armed>,
}

/// The end of a session, with the text that the official agent reports in `agent_task_complete`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentResult {
    pub(crate) failed: bool,
    pub(crate) output: String,
}

impl AgentResult {
    fn failed(output: impl Into<String>) -> Self {
        Self { failed: true, output: output.into() }
    }
}

/// The broker's end of an agent. Dropping it ends the agent.
#[derive(Debug)]
pub(crate) struct AgentEnd {
    pub(crate) input: PipeSender,
    pub(crate) output: PipeReceiver,
    result: oneshot::Receiver<AgentResult>,
    task: JoinHandle<()>,
}

/// Maximum time at the end of a session until all sent data is acknowledged (PORT-9).
const FAREWELL: Duration = Duration::from_secs(2);
/// Capacity of the pipes, in messages.
const PIPE: usize = 1024;

/// Starts an agent for one session.
pub(crate) fn spawn(spec: AgentSpec) -> AgentEnd {
    let (input, from_broker) = pipe(PIPE);
    let (to_broker, output) = pipe(PIPE);
    let (done, result) = oneshot::channel();
    let task = tokio::spawn(async move {
        let result = serve(spec, from_broker, &to_broker).await;
        let _ = done.send(result);
    });
    AgentEnd { input, output, result, task }
}

async fn serve(spec: AgentSpec, input: PipeReceiver, output: &PipeSender) -> AgentResult {
    match spec.session_type.as_str() {
        PORT => port::serve(spec, input, output).await,
        #[cfg(unix)]
        "Standard_Stream" | "InteractiveCommands" | "NonInteractiveCommands" => shell::serve(spec, input, output).await,
        other => AgentResult::failed(format!("Plugin with name {other} is not supported by this agent")),
    }
}

impl AgentEnd {
    /// Polls the result. Call it when there is no more output.
    pub(crate) fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<AgentResult> {
        Pin::new(&mut self.result)
            .poll(cx)
            .map(|result| result.unwrap_or_else(|_| AgentResult::failed("the agent's session worker crashed")))
    }
}

impl Drop for AgentEnd {
    fn drop(&mut self) {
        self.task.abort();
    }
}
