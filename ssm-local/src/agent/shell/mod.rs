//! Shells on a terminal, commands on a terminal, and commands without a terminal (SHELL-*).
//!
//! Programs run as the user of this process, with its environment. The user that the official agent creates does not exist here. If
//! this process runs as root, the shells run as root.

mod command;
mod process;
mod pty;
mod signals;
mod text;

use std::sync::Arc;
use std::time::Duration;

use ssm_proto::{SessionType, StreamId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::config;
use super::driver::{self, DriverEvent};
use super::shared::{AgentStream, SharedAgent};
use super::{AgentResult, AgentSpec, FAREWELL};
use crate::Profile;
use crate::pipe::{PipeReceiver, PipeSender};
use command::Program;

/// Maximum time for a slow client to receive the last output of a command. The official agent waits only as long as for ports.
const PATIENT_FAREWELL: Duration = Duration::from_secs(60);

/// Serves the session until it has ended. The session's programs end with it.
pub(super) async fn serve(spec: AgentSpec, input: PipeReceiver, output: &PipeSender) -> AgentResult {
    let (session_type, program) = match program(&spec) {
        Ok(program) => program,
        Err(why) => return AgentResult::failed(why),
    };
    let shared = SharedAgent::new(config::protocol(&spec, session_type, program.is_paced()));
    shared.lock().set_refusing(program.has_terminal());
    let farewell = if spec.profile == Profile::Fast { PATIENT_FAREWELL } else { FAREWELL };
    let (events, mut seen) = mpsc::unbounded_channel();
    let mut shell = Shell { shared: shared.clone(), program: Some(program), spec, running: JoinSet::new() };
    let mut driver = std::pin::pin!(driver::run(&shared, input, output, events));
    let result = loop {
        tokio::select! {
            result = &mut driver => return result,
            Some(event) = seen.recv() => if let Some(result) = shell.handle(event) { break result },
            Some(ended) = shell.running.join_next() => {
                break ended.unwrap_or_else(|_| AgentResult::failed("the agent's session worker crashed"));
            }
        }
    };
    shared.lock().close();
    let _ = timeout(farewell, driver).await;
    result
}

fn program(spec: &AgentSpec) -> Result<(SessionType, Program), String> {
    match spec.session_type.as_str() {
        "Standard_Stream" => Ok((SessionType::StandardStream, Program::shell(spec))),
        "InteractiveCommands" => Ok((SessionType::InteractiveCommands, Program::on_terminal(spec)?)),
        _ => Ok((SessionType::NonInteractiveCommands, Program::without_terminal(spec)?)),
    }
}

struct Shell {
    shared: Arc<SharedAgent>,
    /// The program to start; `None` once it runs.
    program: Option<Program>,
    spec: AgentSpec,
    running: JoinSet<AgentResult>,
}

impl Shell {
    fn handle(&mut self, event: DriverEvent) -> Option<AgentResult> {
        match event {
            DriverEvent::Ready(_) => {}
            DriverEvent::Opened(id) => self.run(id),
            DriverEvent::DecryptNeeded(request, ciphertext) => {
                match self.spec.encryption.as_ref()?.decrypt(&ciphertext, &request.context) {
                    Ok(key) => self.shared.lock().provide_plaintext_key(&key),
                    Err(why) => return Some(AgentResult::failed(why)),
                }
            }
            DriverEvent::Terminated => return Some(AgentResult::default()),
        }
        None
    }

    fn run(&mut self, id: StreamId) {
        let Some(program) = self.program.take() else { return };
        let stream = AgentStream::new(self.shared.clone(), id);
        let (shared, profile) = (self.shared.clone(), self.spec.profile);
        self.running.spawn(async move {
            let result = match program {
                Program::Terminal { command, typed } => pty::run(command, typed, &stream, &shared, profile).await,
                Program::Merged(command) => process::run_merged(command, &stream, &shared, profile).await,
                Program::Separate { command, prefixes } => {
                    process::run_separate(command, prefixes, &stream, &shared, profile).await
                }
            };
            stream.finish();
            result
        });
    }
}
