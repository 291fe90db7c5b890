//! Connects the standard streams of this process to the far side, as ssh expects of a ProxyCommand.

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

const READ_SIZE: usize = 64 << 10;
/// Maximum number of bytes taken at a time for a slow standard output.
const WRITE_SIZE: usize = 128 << 10;

/// Passes bytes, and nothing else, until the far side has ended or a stop is requested. The end of standard input alone
/// is no reason to stop, because the answer may still arrive.
///
/// # Errors
/// The destination refused, the session is lost, the answer did not end, or standard output cannot be written.
pub(crate) async fn run(session: &Session, shutdown: &Shutdown, quiet: bool) -> Result<(), Failure> {
    let stream = session.open_stream().await.map_err(|error| failure(session, &error))?;
    let sender = stream.sender();
    let heard = Cell::new(false);
    // An ssh that goes to the background is a new process. Therefore the end of the parent matters only after the end
    // of the input.
    let left_alone = async {
        send(&sender).await;
        shutdown.parent_gone().await;
    };
    tokio::select! {
        received = receive(session, stream, &heard) => received,
        () = left_alone => Ok(()),
        () = tell_silence(session, &heard), if !quiet => Ok(()),
        _ = shutdown.requested() => Ok(()),
    }
}

/// Writes the far side's data to standard output, until it ends.
async fn receive(session: &Session, mut stream: SessionStream, heard: &Cell<bool>) -> Result<(), Failure> {
    let mut output = Writer::stdout()?;
    let mut chunks = Vec::new();
    loop {
        match stream.read_chunks(&mut chunks, WRITE_SIZE).await {
            Ok(true) => {
                heard.set(true);
                output.write(&mut chunks).await?;
            }
            Ok(false) => return complaint(session).await.map_or(Ok(()), Err),
            Err(error) => return Err(failure(session, &error)),
        }
    }
}

/// Reports once that the far side does not respond, then does nothing more. If nothing listens on the port, the worker
/// of some agents crashes, and a minute passes until the session ends.
async fn tell_silence(session: &Session, heard: &Cell<bool>) {
    const LOOK: Duration = Duration::from_secs(1);
    const LOOKS: u32 = 3;
    let mut unanswered = 0;
    while unanswered < LOOKS && !heard.get() {
        sleep(LOOK).await;
        let waits = session.is_connected() && session.stats().channel.in_flight > 0;
        unanswered = if waits { unanswered + 1 } else { 0 };
    }
    if !heard.get() {
        console::note("aws-ssm-forward: no answer from the node yet: does a server listen on that port there?");
    }
    pending().await
}

/// The service's text about the end, if it is an error: an agent that cannot reach the port ends the session.
async fn complaint(session: &Session) -> Option<Failure> {
    const MOMENT: Duration = Duration::from_secs(2);
    match timeout(MOMENT, session.closed()).await {
        Ok(CloseReason::Closed(text)) if !text.trim().is_empty() => {
            Some(Failure::new(ExitCode::SessionLost, "session_ended", text.trim()))
        }
        _ => None,
    }
}

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
