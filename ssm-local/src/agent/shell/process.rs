//! Programs without a terminal, and the termination of programs.

use std::collections::BTreeSet;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use ssm_proto::Output;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::super::AgentResult;
use super::super::shared::{AgentStream, SharedAgent};
use super::command::Prefixes;
use super::text::{REAL_DELAY, pump};
use crate::Profile;

/// Runs a command and sends its outputs together after it has ended (SHELL-6). Like the official agent, it collects the output in a
/// file. This keeps the order of the outputs, and programs that the command leaves in the background do not delay the end.
pub(super) async fn run_merged(
    mut command: Command,
    stream: &AgentStream,
    shared: &SharedAgent,
    profile: Profile,
) -> AgentResult {
    let started = tempfile::NamedTempFile::new().and_then(|file| {
        let (both, reader) = (file.as_file().try_clone()?, file.reopen()?);
        command.stdout(both.try_clone()?).stderr(both);
        Ok((start(&mut command)?, reader))
    });
    let (mut process, reader) = match started {
        Ok(started) => started,
        Err(error) => {
            report_failure(&command, &error, stream, profile).await;
            return AgentResult::failed("");
        }
    };
    // Closes the command's handles of the output file, which are not needed any longer.
    drop(command);
    let group = process.group;
    tokio::select! {
        _ = process.wait() => {}
        () = forward_signals(group, stream, shared, profile) => {}
    }
    pump(tokio::fs::File::from_std(reader), stream, Output::Stdout, "", profile).await;
    AgentResult::default()
}

/// Runs a command and sends its outputs separately, as they arrive, and then its exit code.
pub(super) async fn run_separate(
    mut command: Command,
    prefixes: Prefixes,
    stream: &AgentStream,
    shared: &SharedAgent,
    profile: Profile,
) -> AgentResult {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = match start(&mut command) {
        Ok(process) => process,
        Err(error) => {
            stream.exit(1);
            report_failure(&command, &error, stream, profile).await;
            return AgentResult::failed("");
        }
    };
    let (group, outputs) = (process.group, process.outputs());
    let run = async {
        if let Some((stdout, stderr)) = outputs {
            tokio::join!(
                pump(stdout, stream, Output::Stdout, &prefixes.stdout, profile),
                pump(stderr, stream, Output::Stderr, &prefixes.stderr, profile),
            );
        }
        process.wait().await
    };
    let status = tokio::select! {
        status = run => status,
        () = forward_signals(group, stream, shared, profile) => None,
    };
    // A program that was killed by a signal has no code; Go returns -1.
    stream.exit(status.and_then(|status| status.code()).unwrap_or(-1).into());
    AgentResult::default()
}

fn start(command: &mut Command) -> io::Result<Process> {
    Process::new(command.stdin(Stdio::null()).process_group(0).spawn()?)
}

/// Reports that a command could not be started. The texts are those of Go, which the official agent sends.
async fn report_failure(command: &Command, error: &io::Error, stream: &AgentStream, profile: Profile) {
    if profile == Profile::Real {
        sleep(REAL_DELAY).await;
    }
    let program = command.as_std().get_program().to_string_lossy();
    let text = if error.kind() == io::ErrorKind::NotFound && !program.contains('/') {
        format!("exec: \"{program}\": executable file not found in $PATH")
    } else {
        let error = error.to_string().to_lowercase();
        format!("fork/exec {program}: {}", error.split(" (os error").next().unwrap_or_default())
    };
    stream.write_output(Output::Stderr, text.into()).await;
}

/// Watches the client's input for characters that cause signals (SHELL-5). Never returns.
async fn forward_signals(group: Pid, stream: &AgentStream, shared: &SharedAgent, profile: Profile) {
    let mut chunks: Vec<Bytes> = Vec::new();
    while stream.read(&mut chunks, usize::MAX).await {
        for chunk in chunks.drain(..) {
            let signals = chunk.iter().find_map(|byte| match byte {
                0x03 => Some(Signal::INT),
                0x1c => Some(Signal::QUIT),
                _ => None,
            });
            let Some(signal) = signals else { continue };
            // The group may have ended already.
            let _ = kill_process_group(group, signal);
            if profile == Profile::Real {
                shared.lock().set_refusing(true);
            }
        }
    }
    std::future::pending().await
}

/// A running program that leads its process group, or its session if it has a terminal. Dropping it ends the program and all
/// processes that belong to it.
#[derive(Debug)]
pub(super) struct Process {
    child: Option<Child>,
    group: Pid,
}

/// Time between the first signals, which a program can handle, and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

impl Process {
    pub(super) fn new(child: Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child: Some(child), group: id.ok_or(io::ErrorKind::NotFound)? })
    }

    /// Waits for the end of the program. Programs that it left in the background continue to run, as on a terminal.
    pub(super) async fn wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.wait().await.ok();
        self.child = None;
        status
    }

    fn outputs(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        let child = self.child.as_mut()?;
        child.stdout.take().zip(child.stderr.take())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        let terminating = Terminating { child, leader: self.group };
        // A stopped program handles SIGHUP only after SIGCONT.
        terminating.signal(&[Signal::HUP, Signal::CONT]);
        // Waiting is only possible inside a runtime.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(terminating.wait());
        }
    }
}

/// A program that received the first signals, and is killed when this value is dropped.
struct Terminating {
    child: Child,
    leader: Pid,
}

impl Terminating {
    async fn wait(mut self) {
        let _ = timeout(GRACE, self.child.wait()).await;
    }

    fn signal(&self, signals: &[Signal]) {
        for group in groups(self.leader).into_iter().filter_map(Pid::from_raw) {
            for signal in signals {
                // The group may have ended already.
                let _ = kill_process_group(group, *signal);
            }
        }
    }
}

impl Drop for Terminating {
    fn drop(&mut self) {
        self.signal(&[Signal::KILL]);
    }
}

/// Returns the leader's group and, where `/proc` exists, all groups of its session, because a shell puts each job into its own
/// group.
fn groups(leader: Pid) -> BTreeSet<i32> {
    let leader = leader.as_raw_nonzero().get();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    let of_session = stats.filter_map(|stat| group_in_session(&stat, leader));
    of_session.chain([leader]).collect()
}

/// Returns the process group of the process that `stat` describes, if the process is in this session.
fn group_in_session(stat: &str, session: i32) -> Option<i32> {
    // The name in parentheses may contain any characters. The fields after it are: state, parent, group, session.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut numbers = fields.split_whitespace().skip(2).map_while(|field| field.parse::<i32>().ok());
    let group = numbers.next()?;
    (numbers.next()? == session).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_behind_whatever_name() {
        let stat = "71 (a) b ) S 70 71 60 34816 71 4194304 100";
        assert_eq!(group_in_session(stat, 60), Some(71));
        assert_eq!(group_in_session(stat, 61), None);
        assert_eq!(group_in_session("71 (x) S", 60), None);
    }
}
