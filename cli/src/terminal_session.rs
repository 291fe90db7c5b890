//! A shell or a command of the far side on the standard streams of this process.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use ssm_forward::{CloseReason, Output, Session, SessionType, StreamError, StreamSender};
use tokio::io::{AsyncReadExt, AsyncWriteExt, stderr, stdin, stdout};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit_code::Failure;
use crate::shutdown::{Shutdown, StopCause};
use crate::terminal::{self, Escapes, HELP, RawMode};

/// How it came to an end.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The far side is done; the text says why, often nothing.
    Closed(String),
    /// `~.` was typed.
    Escaped,
    /// This process was asked to stop.
    Stopped(StopCause),
}

/// What the far side's command was given as input, once there is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// A terminal shows the end of its input by a character: Ctrl-D.
    Terminal { is_shell: bool },
    /// A command without a terminal takes none.
    None,
}

/// Bytes of standard input that are taken at once.
const READ_SIZE: usize = 64 << 10;
/// The character that ends a terminal's input.
const END_OF_INPUT: u8 = 4;

/// Connects the standard streams with the session's stream until one of the ends is done. A terminal is raw meanwhile.
///
/// # Errors
/// The session is lost.
pub(crate) async fn run(session: &Session, shutdown: &Shutdown) -> Result<Ended, Failure> {
    let kind = match session.session_type() {
        Some(SessionType::NonInteractiveCommands) => Input::None,
        kind => Input::Terminal { is_shell: kind == Some(SessionType::StandardStream) },
    };
    session.resize(terminal::size());
    let mut stream = session.open_stream().await.map_err(|error| lost(session, &error))?;
    let sender = stream.sender();
    let _raw = if kind == Input::None { None } else { RawMode::enter() };
    let mut keys = Keys::install().map_err(Failure::internal)?;
    let mut input = std::pin::pin!(type_in(&sender, kind));
    let mut typing = true;
    let outcome = loop {
        tokio::select! {
            biased;
            chunk = stream.read_output() => match chunk {
                Ok(Some((output, chunk))) => {
                    if show(output, &chunk).await.is_err() {
                        break Ok(Ended::Stopped(StopCause::OutputClosed));
                    }
                }
                Ok(None) => break Ok(closed(session).await),
                Err(error) => break Err(lost(session, &error)),
            },
            key = keys.next() => match key {
                Key::Resized => session.resize(terminal::size()),
                Key::Signal(byte) => drop(sender.write_chunk(Bytes::copy_from_slice(&[byte])).await),
            },
            cause = shutdown.requested() => break Ok(Ended::Stopped(cause)),
            escaped = &mut input, if typing => {
                typing = false;
                if escaped {
                    break Ok(Ended::Escaped);
                }
            }
        }
    };
    // What the far side says at the end of the session is shown before the terminal is given back.
    let _ = stdout().flush().await;
    outcome
}

/// Standard input to the far side, until its end; whether it ended by an escape.
async fn type_in(sender: &StreamSender, kind: Input) -> bool {
    let Input::Terminal { is_shell } = kind else { return false };
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
            return true;
        }
        last = typed.bytes.last().copied().unwrap_or(last);
        let over = !typed.bytes.is_empty() && sender.write_chunk(typed.bytes.into()).await.is_err();
        if over || length == 0 {
            break;
        }
    }
    // Nothing on the wire says that the input is over. What was piped in ends as it would at a keyboard.
    if !at_keyboard {
        let end: &[u8] = match (last, is_shell) {
            (b'\n' | b'\r', _) => &[END_OF_INPUT],
            (_, true) => &[b'\n', END_OF_INPUT],
            // The first one hands over the unfinished line, the second one is the end.
            (_, false) => &[END_OF_INPUT, END_OF_INPUT],
        };
        let _ = sender.write_chunk(Bytes::from_static(end)).await;
    }
    false
}

async fn show(output: Output, chunk: &[u8]) -> std::io::Result<()> {
    match output {
        Output::Stdout => {
            let mut stdout = stdout();
            stdout.write_all(chunk).await?;
            stdout.flush().await
        }
        Output::Stderr => {
            let mut stderr = stderr();
            stderr.write_all(chunk).await?;
            stderr.flush().await
        }
    }
}

/// The reason comes with the end of the stream, or a moment later.
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

/// What the keyboard and the window do beside typing.
enum Key {
    /// The terminal has another size.
    Resized,
    /// A signal, as the character that has the same effect on a terminal.
    Signal(u8),
}

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
            _ = self.interrupt.recv() => Key::Signal(0x03),
            _ = self.quit.recv() => Key::Signal(0x1c),
            _ = self.stop.recv() => Key::Signal(0x1a),
        }
    }
}
