//! The standard streams of this process as a connection to the far side: what ssh wants of a ProxyCommand.

use std::io::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ssm_forward::{CloseReason, Session, StreamError, StreamSender};
use tokio::io::{AsyncReadExt, AsyncWriteExt, stdin, stdout};
use tokio::time::{sleep, timeout};

use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;

const READ_SIZE: usize = 64 << 10;
/// What is taken at once for a slow standard output.
const WRITE_SIZE: usize = 128 << 10;
/// How long the far side may be silent once standard input has ended. Nothing on the wire tells it, so it may wait for more
/// for ever.
const LINGER: Duration = Duration::from_secs(30);

/// Passes bytes, and nothing but them, until the far side is done or somebody asks to stop. The end of standard input alone
/// is no reason, the answer may still be on its way; a long silence after it is.
///
/// # Errors
/// The destination refused, or the session is lost.
pub(crate) async fn run(session: &Session, shutdown: &Shutdown, quiet: bool) -> Result<(), Failure> {
    let mut stream = session.open_stream().await.map_err(|error| failure(session, &error))?;
    let sender = stream.sender();
    let mut output = stdout();
    let mut chunks = Vec::new();
    let mut up = std::pin::pin!(send(&sender));
    let mut sending = true;
    let mut unheard = std::pin::pin!(tell_silence(session));
    let mut waiting = !quiet;
    // An ssh that goes to the background is a new process: only without input its end says something.
    let mut parent_gone = std::pin::pin!(shutdown.parent_gone());
    loop {
        tokio::select! {
            more = stream.read_chunks(&mut chunks, WRITE_SIZE) => match more {
                Ok(true) => {
                    waiting = false;
                    if write(&mut output, &mut chunks).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(false) => return complaint(session).await.map_or(Ok(()), Err),
                Err(error) => return Err(failure(session, &error)),
            },
            () = &mut unheard, if waiting => waiting = false,
            () = &mut up, if sending => sending = false,
            () = sleep(LINGER), if !sending => return Ok(()),
            () = &mut parent_gone, if !sending => return Ok(()),
            _ = shutdown.requested() => return Ok(()),
        }
    }
}

/// Tells once that the far side takes nothing. Where nothing listens on the port, some agents' workers crash, and a minute
/// passes until the session ends.
async fn tell_silence(session: &Session) {
    const LOOK: Duration = Duration::from_secs(1);
    const LOOKS: u32 = 3;
    let mut unanswered = 0;
    while unanswered < LOOKS {
        sleep(LOOK).await;
        let waits = session.is_connected() && session.stats().channel.in_flight > 0;
        unanswered = if waits { unanswered + 1 } else { 0 };
    }
    let hint = "no answer from the node yet: does a server listen on that port there?";
    let _ = writeln!(std::io::stderr(), "aws-ssm-forward: {hint}");
}

/// What the service had to say about the end, if that is a complaint: an agent that can't reach the port ends the session.
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

async fn write(output: &mut tokio::io::Stdout, chunks: &mut Vec<Bytes>) -> std::io::Result<()> {
    for chunk in chunks.drain(..) {
        output.write_all(&chunk).await?;
    }
    output.flush().await
}

fn failure(session: &Session, error: &StreamError) -> Failure {
    let reason = session.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string());
    match error {
        StreamError::Refused => Failure::new(ExitCode::RemotePort, "remote_refused", reason),
        _ => Failure::new(ExitCode::SessionLost, "session_ended", reason),
    }
}
