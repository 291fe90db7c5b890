//! `exec -i`: a command with standard input. Session Manager passes input only to commands on a terminal. Therefore the
//! command runs on a raw terminal, and its standard input ends after the exact number of bytes. Its outputs are escaped (see
//! [`crate::exact_output`]).

use std::convert::Infallible;
use std::future::pending;
use std::io::Read as _;

use bytes::Bytes;
use ssm_forward::{Session, SessionStream, StreamSender};
use tokio::sync::Notify;

use crate::exact_output::{self, Verdict};
use crate::exit_code::{ExitCode, Failure};
use crate::session_outputs::SessionOutputs;
use crate::shutdown::Shutdown;

/// The input of the command, and the mark that precedes its output.
pub(crate) struct Input {
    bytes: Vec<u8>,
    mark: String,
}

/// Maximum size of the input in bytes. The node must know the length before the command starts, so the whole input is kept in
/// memory.
const MAX_INPUT: u64 = 256 << 20;
/// Size in bytes of the pieces in which the input is sent.
const PIECE: usize = 16 << 10;
/// Maximum number of bytes read from the session at a time.
const WRITE_SIZE: usize = 128 << 10;

impl Input {
    /// Reads standard input to its end.
    ///
    /// # Errors
    /// Returns an error if standard input cannot be read or is larger than 256 MiB.
    pub(crate) fn read() -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes);
        read.map_err(|error| Failure::new(ExitCode::Usage, "usage", format!("standard input: {error}")))?;
        if bytes.len() as u64 > MAX_INPUT {
            let text = "standard input is larger than the 256 MiB that exec -i accepts; use scp through ssh-proxy";
            return Err(Failure::new(ExitCode::Usage, "usage", text));
        }
        Ok(Self { bytes, mark: exact_output::mark() })
    }

    /// Returns the line for the shell on the node.
    pub(crate) fn script(&self, command: &str) -> String {
        exact_output::wrap_on_terminal(&self.mark, self.bytes.len(), command)
    }

    /// Sends the input, writes the command's output as it arrives, and returns the command's exit code.
    ///
    /// # Errors
    /// Returns an error if the session ends before the command does, bytes of the command's outputs are missing, or an output
    /// cannot be written.
    pub(crate) async fn run(self, session: &Session, shutdown: &Shutdown) -> Result<ExitCode, Failure> {
        let stream = session.open_stream().await.map_err(|error| lost(error.to_string()))?;
        let sender = stream.sender();
        let mut outputs = SessionOutputs::plain()?;
        outputs.expect_terminal(&self.mark);
        let requests = Requests::default();
        let sending = async {
            requests.input.notified().await;
            send(&sender, self.bytes.into()).await;
            requests.mark.notified().await;
            send(&sender, self.mark.into()).await;
            pending::<Infallible>().await
        };
        tokio::select! {
            ended = show(stream, &mut outputs, &requests) => ended,
            never = sending => match never {},
            cause = shutdown.requested() => Ok(cause.exit_code()),
        }
    }
}

/// What the script on the node waits for.
#[derive(Default)]
struct Requests {
    /// The command's input.
    input: Notify,
    /// The mark after the input.
    mark: Notify,
}

/// Writes the command's outputs until its exit code arrives.
async fn show(
    mut stream: SessionStream,
    outputs: &mut SessionOutputs,
    requests: &Requests,
) -> Result<ExitCode, Failure> {
    let mut pieces = Vec::new();
    loop {
        let read = stream.read_outputs(&mut pieces, WRITE_SIZE).await;
        outputs.show(&mut pieces).await?;
        let Some(decoder) = outputs.decoder() else { return Err(Failure::internal("no decoder")) };
        if decoder.has_begun() {
            requests.input.notify_one();
        }
        if decoder.asks_for_mark() {
            requests.mark.notify_one();
        }
        if decoder.is_input_damaged() {
            let text = "the command got a wrong input: the agent passed a part of it on twice; run the command again";
            return Err(Failure::new(ExitCode::SessionLost, "incomplete", text));
        }
        let why = match (decoder.code(), read) {
            (Some(code), _) if decoder.verdict() == Verdict::Complete => return Ok(ExitCode::Remote(code)),
            (Some(_), _) => "bytes of the command's output are missing".to_owned(),
            (None, Ok(true)) => continue,
            (None, Ok(false)) => "the session ended before the command reported its exit code".to_owned(),
            (None, Err(error)) => error.to_string(),
        };
        return Err(match decoder.verdict() {
            Verdict::NotBegun(noise) if !noise.is_empty() => lost(format!("{why}; the node said: {noise}")),
            _ => lost(why),
        });
    }
}

async fn send(sender: &StreamSender, mut bytes: Bytes) {
    while !bytes.is_empty() {
        let piece = bytes.split_to(PIECE.min(bytes.len()));
        if sender.write_chunk(piece).await.is_err() {
            return;
        }
    }
}

fn lost(why: String) -> Failure {
    Failure::new(ExitCode::SessionLost, "session_ended", why)
}
