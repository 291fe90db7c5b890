//! Connects a shell or a command on the node to the standard streams of this process.

use std::cell::Cell;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use ssm_forward::{CloseReason, Session, SessionStream, SessionType, StreamError, StreamSender};
use tokio::io::{AsyncReadExt, stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit_code::Failure;
use crate::session_outputs::SessionOutputs;
use crate::shutdown::{Shutdown, StopCause};
use crate::terminal::{self, Escapes, HELP, RawMode};

/// How a terminal session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The remote side closed the session. Contains the closing text, which is often empty.
    Closed(String),
    /// `~.` was typed.
    Escaped,
    /// A stop of this process was requested.
    Stopped(StopCause),
}

/// How the end of the input is passed to the remote command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// On a terminal, the character of Ctrl-D marks the end of the input.
    Terminal { is_shell: bool },
    /// A command without a terminal has no input.
    None,
}

/// Maximum number of bytes per read from standard input.
const READ_SIZE: usize = 64 << 10;
/// Maximum number of bytes read from the session at a time.
const WRITE_SIZE: usize = 128 << 10;
/// The character that marks the end of a terminal's input (Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// The character of Ctrl-C.
const INTERRUPT: u8 = 3;

/// Connects the standard streams with the session's stream until the session ends or a stop is requested. In the meantime, the
/// local terminal is in raw mode.
///
/// # Errors
/// Returns an error if the session is lost or an output cannot be written.
pub(crate) async fn run(
    session: &Session,
    shutdown: &Shutdown,
    outputs: &mut SessionOutputs,
) -> Result<Ended, Failure> {
    let kind = match session.session_type() {
        Some(SessionType::NonInteractiveCommands) => Input::None,
        kind => Input::Terminal { is_shell: kind == Some(SessionType::StandardStream) },
    };
    session.resize(terminal::size());
    let stream = session.open_stream().await.map_err(|error| lost(session, &error))?;
    let sender = stream.sender();
    let keys = Keys::install().map_err(Failure::internal)?;
    let interrupted = Cell::new(false);
    let _raw = if kind == Input::None { None } else { RawMode::enter() };
    // All run concurrently and are polled in random order, so that neither large output nor a blocked reader delays a key or a
    // signal.
    let ended = tokio::select! {
        ended = show(session, stream, outputs) => ended,
        ended = send_input(&sender, kind, &interrupted) => Ok(ended),
        ended = send_keys(session, &sender, keys, &interrupted) => Ok(ended),
        cause = shutdown.requested() => Ok(Ended::Stopped(cause)),
    };
    shutdown.end_on_interrupt();
    ended
}

/// Sends standard input to the remote side. Completes only if the input ends the session.
async fn send_input(sender: &StreamSender, kind: Input, interrupted: &Cell<bool>) -> Ended {
    let Input::Terminal { is_shell } = kind else { return std::future::pending().await };
    let at_keyboard = terminal::has_keyboard();
    let mut escapes = Escapes::new(at_keyboard && is_shell);
    let mut stdin = stdin();
    let mut buffer = vec![0; READ_SIZE];
    let mut last = b'\n';
    loop {
        let length = stdin.read(&mut buffer).await.unwrap_or(0);
        let typed = escapes.feed(buffer.get(..length).unwrap_or_default());
        if typed.help {
            let _ = std::io::stderr().write_all(HELP.as_bytes());
        }
        if typed.end {
            return Ended::Escaped;
        }
        last = typed.bytes.last().copied().unwrap_or(last);
        if !typed.bytes.is_empty() {
            interrupted.set(false);
        }
        let is_closed = !typed.bytes.is_empty() && sender.write_chunk(typed.bytes.into()).await.is_err();
        if is_closed {
            return std::future::pending().await;
        }
        if length == 0 {
            break;
        }
    }
    // In raw mode, no key causes the end of input, so the terminal itself was closed.
    if at_keyboard {
        return Ended::Stopped(StopCause::HangUp);
    }
    // The protocol has no message for the end of the input. Therefore the characters are sent that a user would type.
    let end: &[u8] = match (last, is_shell) {
        (b'\n' | b'\r', _) => &[END_OF_INPUT],
        (_, true) => &[b'\n', END_OF_INPUT],
        // The first character submits the unfinished line, the second one marks the end.
        (_, false) => &[END_OF_INPUT, END_OF_INPUT],
    };
    let _ = sender.write_chunk(Bytes::from_static(end)).await;
    std::future::pending().await
}

/// Sends signals of the keyboard and the window's size to the remote side. Ctrl-C ends the session instead if the node cannot be
/// reached, or if nothing was typed since the last Ctrl-C, because the command may ignore Ctrl-C.
async fn send_keys(session: &Session, sender: &StreamSender, mut keys: Keys, interrupted: &Cell<bool>) -> Ended {
    // Keys that cannot be sent yet are kept here, so that a blocked write does not delay the handling of the next key.
    let mut unsent = Vec::new();
    loop {
        tokio::select! {
            key = keys.next() => match key {
                Key::Resized => session.resize(terminal::size()),
                Key::Signal(INTERRUPT) if interrupted.replace(true) || !session.is_connected() => {
                    return Ended::Stopped(StopCause::Interrupt);
                }
                Key::Signal(byte) => unsent.push(byte),
            },
            _ = sender.write_chunk(Bytes::copy_from_slice(&unsent)), if !unsent.is_empty() => unsent.clear(),
        }
    }
}

/// Writes the remote outputs to the outputs of this process, until the session ends.
async fn show(session: &Session, mut stream: SessionStream, outputs: &mut SessionOutputs) -> Result<Ended, Failure> {
    let mut pieces = Vec::new();
    loop {
        match stream.read_outputs(&mut pieces, WRITE_SIZE).await {
            Ok(true) => outputs.show(&mut pieces).await?,
            Ok(false) => return Ok(closed(session).await),
            Err(error) => return Err(lost(session, &error)),
        }
    }
}

/// Waits for the closing text, which arrives with the end of the stream or a moment later.
async fn closed(session: &Session) -> Ended {
    const MOMENT: Duration = Duration::from_secs(2);
    match tokio::time::timeout(MOMENT, session.closed()).await {
        Ok(CloseReason::Closed(text)) => Ended::Closed(text),
        _ => Ended::Closed(String::new()),
    }
}

fn lost(session: &Session, error: &StreamError) -> Failure {
    let reason = session.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string());
    Failure::new(crate::exit_code::ExitCode::SessionLost, "session_ended", reason)
}

/// An event of the keyboard or the window that arrives as a signal.
enum Key {
    /// The size of the terminal has changed.
    Resized,
    /// A key. Contains the character that has the same effect on a terminal.
    Signal(u8),
}

/// The signal handlers for [`Key`].
struct Keys {
    window: Signal,
    interrupt: Signal,
    quit: Signal,
    stop: Signal,
}

impl Keys {
    fn install() -> std::io::Result<Self> {
        const SIGTSTP: i32 = 20;
        Ok(Self {
            window: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            stop: signal(SignalKind::from_raw(SIGTSTP))?,
        })
    }

    async fn next(&mut self) -> Key {
        tokio::select! {
            _ = self.window.recv() => Key::Resized,
            _ = self.interrupt.recv() => Key::Signal(INTERRUPT),
            _ = self.quit.recv() => Key::Signal(0x1c),
            _ = self.stop.recv() => Key::Signal(0x1a),
        }
    }
}
