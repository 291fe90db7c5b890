//! A program on its own terminal.
//!
//! `pty-process` opens the terminal. This crate supports tokio, puts the program into a session with this controlling terminal (so
//! that the keys for signals work), is built on `rustix`, and needs no `unsafe` in its callers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use ssm_proto::{Output, TerminalSize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::AgentResult;
use super::super::shared::{AgentStream, SharedAgent};
use super::process::Process;
use super::text::{REAL_DELAY, pump};
use crate::Profile;

/// Maximum number of chunks of input per read.
const READ_CHUNKS: usize = 16;

/// Runs the program until it has ended and all its output is queued. If the future is dropped earlier, the program is ended.
pub(super) async fn run(
    command: Command,
    typed: String,
    stream: &AgentStream,
    shared: &SharedAgent,
    profile: Profile,
) -> AgentResult {
    let mut size = shared.lock().size();
    let opened = open(command, *size.borrow_and_update());
    let (pty, screen, mut process) = match opened {
        Ok(opened) => opened,
        Err(error) => return AgentResult::failed(format!("Unable to start command: Failed to start pty: {error}\n")),
    };
    shared.lock().set_refusing(false);
    let (read, write) = pty.into_split();
    let output = async {
        if profile == Profile::Real {
            sleep(REAL_DELAY).await;
        }
        pump(read, stream, Output::Stdout, "", profile).await;
    };
    tokio::select! {
        // The terminal's output ends when the last program on the terminal has ended.
        () = output => {}
        () = type_in(write, typed, stream, (&screen, size.clone())) => {}
        () = follow(&screen, size) => {}
    }
    // A program may have closed its terminal and still be running.
    process.wait().await;
    AgentResult::default()
}

fn open(command: Command, size: TerminalSize) -> pty_process::Result<(pty_process::Pty, OwnedFd, Process)> {
    let (pty, pts) = pty_process::open()?;
    let screen = pty.as_fd().try_clone_to_owned()?;
    resize(&screen, size)?;
    let child = pty_process::Command::from(command).spawn(pts)?;
    Ok((pty, screen, Process::new(child)?))
}

/// Writes the client's input to the terminal. Before each write, the terminal gets the size that the client had when it sent the
/// input. Never returns, because the end of the program is detected by the end of its output.
async fn type_in(
    mut write: pty_process::OwnedWritePty,
    typed: String,
    stream: &AgentStream,
    (screen, mut size): (&OwnedFd, watch::Receiver<TerminalSize>),
) {
    let mut chunks = vec![Bytes::from(typed)];
    loop {
        adapt(screen, &mut size);
        for chunk in chunks.drain(..) {
            if write.write_all(&chunk).await.is_err() {
                return std::future::pending().await;
            }
        }
        if !stream.read(&mut chunks, READ_CHUNKS).await {
            return std::future::pending().await;
        }
    }
}

/// Applies changes of the client's terminal size, even while the program reads nothing. Never returns.
async fn follow(screen: &OwnedFd, mut size: watch::Receiver<TerminalSize>) {
    while size.changed().await.is_ok() {
        size.mark_changed();
        adapt(screen, &mut size);
    }
    std::future::pending().await
}

/// Sets the terminal to the client's size if the size has changed.
fn adapt(screen: &OwnedFd, size: &mut watch::Receiver<TerminalSize>) {
    if !size.has_changed().unwrap_or_default() {
        return;
    }
    if let Err(error) = resize(screen, *size.borrow_and_update()) {
        tracing::debug!(%error, "the terminal's size cannot be set");
    }
}

fn resize(screen: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let number = |number| u16::try_from(number).unwrap_or(u16::MAX);
    let size =
        rustix::termios::Winsize { ws_row: number(size.rows), ws_col: number(size.cols), ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(screen, size)?)
}
