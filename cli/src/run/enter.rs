//! The setup in the child process before it becomes the command. This program starts itself, makes the necessary system calls, and
//! replaces itself with the command. A process with one thread can make these calls without `unsafe` code; a closure between fork
//! and exec could not.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::program::Program;
use crate::descriptor_limit;
use crate::exit_code::{ExitCode, Failure};
use crate::hosts::Name;

/// The first argument that starts this program as such a child process.
const WORD: &str = "__run";

/// The setup before the command starts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The id of the process with which the command ends.
    parent: i32,
    /// Whether the kernel then sends SIGHUP, as to a shell that has lost its terminal, instead of SIGTERM.
    hang_up: bool,
    /// The soft limit on open files for the command. This program has raised its own limit.
    files: Option<u64>,
    /// Host names that only the command resolves to addresses of tunnels.
    names: Vec<Name>,
}

impl Entry {
    /// Creates the setup for a command that ends with this process.
    pub(crate) fn new(is_shell: bool, names: Vec<Name>) -> Self {
        Self { parent: Pid::as_raw(Some(getpid())), hang_up: is_shell, files: descriptor_limit::before(), names }
    }
}

/// Returns a command that sets up the child process and then becomes `program`. The caller adds the arguments of `program`.
///
/// # Errors
/// Returns an error if the executable of this process cannot be found.
pub(super) fn command(program: &Program, entry: &Entry) -> io::Result<Command> {
    let mut command = this_program(entry)?;
    command.arg(&program.path).arg(&program.name);
    Ok(command)
}

fn this_program(entry: &Entry) -> io::Result<Command> {
    // On Linux, this starts the file that is running, even if its path has been replaced in the meantime.
    let this = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    let mut command = Command::new(this);
    command.arg0(env!("CARGO_PKG_NAME")).arg(WORD).arg(serde_json::to_string(entry)?);
    Ok(command)
}

/// Checks whether the system allows host names for a single command. This is checked before a session is started.
///
/// # Errors
/// If not, returns an error that says what would allow it.
pub(super) fn check() -> Result<(), Failure> {
    let name = Name { address: Ipv4Addr::LOCALHOST, name: "check.invalid".into() };
    let tried = this_program(&Entry::new(false, vec![name])).and_then(|mut command| command.output());
    let tried = tried.map_err(|error| Failure::internal(format!("this program cannot be started: {error}")))?;
    if tried.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&tried.stderr);
    Err(Failure::new(ExitCode::Config, "namespace", reason.trim().trim_start_matches("error: ")))
}

/// Becomes the command, if this process was started for that; then it returns only after an error. Returns `None` if this process
/// was not started for that, and `Ok` if it was started only to check whether the setup is possible.
pub(crate) fn become_command() -> Option<Result<(), Failure>> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let mut next = || arguments.next().unwrap_or_default();
    let (entry, path, name) = (next(), next(), next());
    Some(enter(&entry, &path, &name, arguments.collect()))
}

fn enter(entry: &OsStr, path: &OsStr, name: &OsStr, words: Vec<OsString>) -> Result<(), Failure> {
    let entry: Entry = serde_json::from_slice(entry.as_encoded_bytes()).map_err(Failure::internal)?;
    if let Some(files) = entry.files {
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum });
    }
    if !entry.names.is_empty() {
        enter_namespace(&entry.names)?;
    }
    // This must come after the namespaces, because entering a user namespace resets the signal.
    end_with_parent(&entry)?;
    if path.is_empty() {
        return Ok(());
    }
    let error = Command::new(path).arg0(name).args(words).exec();
    let text = format!("cannot run {}: {error}", path.display());
    Err(match error.kind() {
        io::ErrorKind::NotFound => Failure::new(ExitCode::CommandNotFound, "command_not_found", text),
        _ => Failure::new(ExitCode::CommandNotExecutable, "command_not_executable", text),
    })
}

#[cfg(target_os = "linux")]
fn enter_namespace(names: &[Name]) -> Result<(), Failure> {
    super::namespace::enter(names)
}

#[cfg(not(target_os = "linux"))]
fn enter_namespace(_: &[Name]) -> Result<(), Failure> {
    let text = "--real-names works on Linux only; use {host} and {port} in the command";
    Err(Failure::new(ExitCode::Usage, "usage", text))
}

/// Makes the kernel end the command when the parent process ends for any reason.
fn end_with_parent(entry: &Entry) -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    {
        let signal = if entry.hang_up { Signal::HUP } else { Signal::TERM };
        rustix::process::set_parent_process_death_signal(Some(signal)).map_err(Failure::internal)?;
    }
    match getppid() {
        Some(parent) if Pid::as_raw(Some(parent)) == entry.parent => Ok(()),
        _ => Err(Failure::new(ExitCode::Terminated, "stopped", "the process that started this command has ended")),
    }
}
