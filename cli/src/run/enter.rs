//! What happens in the child before it becomes the command: this program starts itself, sets up what takes system calls, and
//! replaces itself. A process of one thread can do what a closure between fork and exec could do with `unsafe` code only.

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

/// The first argument of such a process.
const WORD: &str = "__run";

/// What is set up before the command begins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The process with which the command ends.
    parent: i32,
    /// It ends with SIGHUP, as a shell without its terminal does, instead of SIGTERM.
    hang_up: bool,
    /// How many files the command may open unless it asks for more; this program has a limit of its own.
    files: Option<u64>,
    /// Names that lead to tunnels for the command alone.
    names: Vec<Name>,
}

impl Entry {
    /// For a command that ends with this process.
    pub(crate) fn new(is_shell: bool, names: Vec<Name>) -> Self {
        Self { parent: Pid::as_raw(Some(getpid())), hang_up: is_shell, files: descriptor_limit::before(), names }
    }
}

/// Begins the command line that enters a program.
///
/// # Errors
/// This program cannot be found.
pub(super) fn command(program: &Program, entry: &Entry) -> io::Result<Command> {
    let mut command = this_program(entry)?;
    command.arg(&program.path).arg(&program.name);
    Ok(command)
}

fn this_program(entry: &Entry) -> io::Result<Command> {
    // This very file, even if it was replaced meanwhile.
    let this = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    let mut command = Command::new(this);
    command.arg0(env!("CARGO_PKG_NAME")).arg(WORD).arg(serde_json::to_string(entry)?);
    Ok(command)
}

/// Sees whether names can lead to tunnels for a command alone, before a session is started.
///
/// # Errors
/// The system does not allow it: what would.
pub(super) fn check() -> Result<(), Failure> {
    let name = Name { address: Ipv4Addr::LOCALHOST, name: "check.invalid".into() };
    let tried = this_program(&Entry::new(false, vec![name])).and_then(|mut command| command.output());
    let tried = tried.map_err(|error| Failure::internal(format!("this program cannot be started: {error}")))?;
    if tried.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&tried.stderr);
    Err(Failure::new(ExitCode::Config, "namespace", told.trim().trim_start_matches("error: ")))
}

/// If this process was started to become a command: does so. `None` if it was not; `Ok` if it was only to see whether it could.
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
        lead_to_tunnels(&entry.names)?;
    }
    // A change of the user's rights would have undone it.
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
fn lead_to_tunnels(names: &[Name]) -> Result<(), Failure> {
    super::namespace::enter(names)
}

#[cfg(not(target_os = "linux"))]
fn lead_to_tunnels(_: &[Name]) -> Result<(), Failure> {
    let text = "--real-names works on Linux only; use {host} and {port} in the command";
    Err(Failure::new(ExitCode::Usage, "usage", text))
}

/// Has the system end the command when the process that started it is gone, however that ended.
fn end_with_parent(entry: &Entry) -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    {
        let signal = if entry.hang_up { Signal::HUP } else { Signal::TERM };
        rustix::process::set_parent_process_death_signal(Some(signal)).map_err(Failure::internal)?;
    }
    match getppid() {
        Some(parent) if Pid::as_raw(Some(parent)) == entry.parent => Ok(()),
        _ => Err(Failure::new(ExitCode::Terminated, "stopped", "the process that started this command is gone")),
    }
}
