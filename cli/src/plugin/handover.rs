//! Hides the token. It arrives in an argument or an environment variable, which other programs on this machine can read.
//!
//! The process replaces itself (`execve`) and passes the session through a pipe. The process id and everything else that the caller
//! sees stay the same.

use std::ffi::OsString;
use std::io::{PipeWriter, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use super::invocation::RESPONSE_VARIABLE;

/// The variable with the number of the file descriptor from which the session is read.
const DESCRIPTOR_VARIABLE: &str = "AWS_SSM_FORWARD_SESSION_FD";
/// Capacity in bytes that a pipe has on every system.
const PIPE: usize = 16 << 10;

/// Returns the arguments, with the session inserted.
pub(super) fn arguments() -> Vec<OsString> {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    match std::env::var(DESCRIPTOR_VARIABLE) {
        Ok(descriptor) => {
            if let (Some(session), Some(place)) = (receive(&descriptor), args.get_mut(1)) {
                *place = session.into();
            }
        }
        // If the process cannot replace itself, the session is used as it is.
        Err(_) => hand_over(&args).unwrap_or_default(),
    }
    args
}

/// Replaces the process. Returns only if that is not possible or not necessary.
fn hand_over(args: &[OsString]) -> std::io::Result<()> {
    let Some(first) = args.get(1).filter(|_| args.len() > 3).and_then(|arg| arg.to_str()) else { return Ok(()) };
    let variable = first.starts_with(RESPONSE_VARIABLE).then_some(first);
    let session = match variable {
        Some(name) => std::env::var(name).unwrap_or_default(),
        None => first.to_owned(),
    };
    if session.is_empty() {
        return Ok(());
    }
    let (reader, mut writer) = pipe()?;
    ensure_capacity(&writer, session.len())?;
    writer.write_all(session.as_bytes())?;
    drop(writer);
    fcntl_setfd(&reader, FdFlags::empty())?;
    let mut again = Command::new(std::env::current_exe()?);
    again.arg0(args.first().map_or_else(|| first.as_ref(), |name| name.as_os_str())).arg("-").args(args.iter().skip(2));
    again.env(DESCRIPTOR_VARIABLE, reader.as_raw_fd().to_string());
    if let Some(name) = variable {
        again.env_remove(name);
    }
    Err(again.exec())
}

/// Makes the pipe large enough for the whole session, because it is read only after everything is written. No argument is longer
/// than the maximum capacity of a pipe.
fn ensure_capacity(pipe: &PipeWriter, length: usize) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    if length > PIPE {
        rustix::pipe::fcntl_setpipe_size(pipe, length)?;
        return Ok(());
    }
    // On other systems, a pipe may grow when it is written to. If the pipe does not accept all bytes immediately, the write fails.
    rustix::io::ioctl_fionbio(pipe, length > PIPE)?;
    Ok(())
}

fn receive(descriptor: &str) -> Option<String> {
    let descriptor: u32 = descriptor.parse().ok()?;
    let mut session = String::new();
    std::fs::File::open(format!("/dev/fd/{descriptor}")).ok()?.read_to_string(&mut session).ok()?;
    Some(session)
}
