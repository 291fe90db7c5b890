//! Connects the standard streams of this process to the remote port, as ssh expects of a ProxyCommand.

use std::cell::Cell;
use std::future::pending;
use std::time::Duration;

use bytes::BytesMut;
use ssm_forward::{CloseReason, Session, SessionStream, StreamError, StreamSender};
use tokio::io::{AsyncReadExt, stdin};
use tokio::time::{sleep, timeout};

use crate::console;
use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;
use crate::writer::Writer;

/// Maximum number of bytes per read from standard input.
const READ_SIZE: usize = 64 << 10;
/// Maximum number of bytes read from the session at a time.
const WRITE_SIZE: usize = 128 << 10;

/// Passes data in both directions until the remote side has closed the connection or a stop is requested. Writes nothing else to
/// standard output. Does not stop at the end of standard input, because the remaining answer may still arrive.
///
/// # Errors
/// Returns an error if the destination refuses the connection, the session is lost, the answer does not end, or standard output
/// cannot be written.
pub(crate) async fn run(session: &Session, shutdown: &Shutdown, quiet: bool) -> Result<(), Failure> {
    let stream = session.open_stream().await.map_err(|error| failure(session, &error))?;
    let sender = stream.sender();
    let answered = Cell::new(false);
    // When ssh goes to the background, it continues in a new process and the parent process ends. Therefore the end of the
    // parent matters only after the end of the input.
    let abandoned = async {
        send(&sender).await;
        shutdown.parent_gone().await;
    };
    tokio::select! {
        received = receive(session, stream, &answered) => received,
        () = abandoned => Ok(()),
        () = warn_if_unanswered(session, &answered), if !quiet => Ok(()),
        _ = shutdown.requested() => Ok(()),
    }
}

/// Writes received data to standard output, until the remote side closes the connection. Sets `answered` when data arrives.
async fn receive(session: &Session, mut stream: SessionStream, answered: &Cell<bool>) -> Result<(), Failure> {
    let mut output = Writer::stdout()?;
    let mut chunks = Vec::new();
    loop {
        match stream.read_chunks(&mut chunks, WRITE_SIZE).await {
            Ok(true) => {
                answered.set(true);
                output.write(&mut chunks).await?;
            }
            Ok(false) => return closing_error(session).await.map_or(Ok(()), Err),
            Err(error) => return Err(failure(session, &error)),
        }
    }
}

/// Prints a warning if sent data is unacknowledged at three checks in a row. Never returns. If no server listens on the port,
/// the worker process of some agents crashes, and the session ends only after a minute.
async fn warn_if_unanswered(session: &Session, answered: &Cell<bool>) {
    const CHECK_INTERVAL: Duration = Duration::from_secs(1);
    const CHECKS: u32 = 3;
    let mut unanswered = 0;
    while unanswered < CHECKS && !answered.get() {
        sleep(CHECK_INTERVAL).await;
        let waits = session.is_connected() && session.stats().channel.in_flight > 0;
        unanswered = if waits { unanswered + 1 } else { 0 };
    }
    if !answered.get() {
        console::note("aws-ssm-forward: no answer from the node yet: does a server listen on that port of the node?");
    }
    pending().await
}

/// Returns an error with the service's closing text, if there is one. An agent that cannot reach the port closes the session with
/// such a text.
async fn closing_error(session: &Session) -> Option<Failure> {
    const MOMENT: Duration = Duration::from_secs(2);
    match timeout(MOMENT, session.closed()).await {
        Ok(CloseReason::Closed(text)) if !text.trim().is_empty() => {
            Some(Failure::new(ExitCode::SessionLost, "session_ended", text.trim()))
        }
        _ => None,
    }
}

/// Sends standard input to its end.
async fn send(sender: &StreamSender) {
    let mut input = stdin();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_SIZE);
        match input.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return sender.finish(),
            Ok(_) if sender.write_chunk(buffer.split().freeze()).await.is_ok() => {}
            Ok(_) => return,
        }
    }
}

fn failure(session: &Session, error: &StreamError) -> Failure {
    let reason = session.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string());
    match error {
        StreamError::Silent { .. } => {
            Failure::new(ExitCode::SessionLost, "unanswered", format!("{error}: the answer may be incomplete"))
        }
        StreamError::Refused => Failure::new(ExitCode::RemotePort, "remote_refused", reason),
        _ => Failure::new(ExitCode::SessionLost, "session_ended", reason),
    }
}
