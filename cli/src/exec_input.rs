//! `exec -i`: a command with standard input. Session Manager gives one only to commands on a terminal, so the command runs on
//! one that is raw, between two marks, and gets exactly as many bytes as there are.

use std::io::Read as _;

use bytes::Bytes;
use ssm_forward::{Session, StreamSender};
use tokio::io::{AsyncWriteExt, stderr, stdout};

use crate::exit_code::{ExitCode, Failure};
use crate::shutdown::Shutdown;

/// What is to be given to the command, and the marks around what it says.
pub(crate) struct Input {
    bytes: Vec<u8>,
    begin: String,
    end: String,
}

/// The far side has to know how much there is before it begins: all of it is kept.
const MAX_INPUT: u64 = 256 << 20;
/// Pieces in which it is sent.
const PIECE: usize = 16 << 10;

impl Input {
    /// Reads standard input to its end.
    ///
    /// # Errors
    /// It can't be read, or is larger than 256 MiB.
    pub(crate) fn read() -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes);
        read.map_err(|error| Failure::new(ExitCode::Usage, "usage", format!("standard input: {error}")))?;
        if bytes.len() as u64 > MAX_INPUT {
            let text = "standard input is larger than the 256 MiB that exec -i takes; use scp through ssh-proxy";
            return Err(Failure::new(ExitCode::Usage, "usage", text));
        }
        let mark = || format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        Ok(Self { bytes, begin: mark(), end: mark() })
    }

    /// The line for the far side's shell: standard error is kept apart in a file there and follows at the end.
    pub(crate) fn script(&self, command: &str) -> String {
        let (begin, end, length) = (&self.begin, &self.end, self.bytes.len());
        format!(
            "stty raw -echo -isig -opost; e=$(mktemp) || exit; printf %s {begin}; head -c {length} | {{ {command}\n}} 2>\"$e\"; \
             c=$?; printf '%s%d %d\\n' {end} $c $(($(wc -c <\"$e\"))); cat \"$e\"; rm -f \"$e\""
        )
    }

    /// Gives the input, shows what the command says, and gives its exit code.
    ///
    /// # Errors
    /// The session ended before the command did.
    pub(crate) async fn run(self, session: &Session, shutdown: &Shutdown) -> Result<ExitCode, Failure> {
        let lost = |why: String| Failure::new(ExitCode::SessionLost, "session_ended", why);
        let mut stream = session.open_stream().await.map_err(|error| lost(error.to_string()))?;
        let mut said = Said::new(&self.begin, &self.end);
        let sender = stream.sender();
        let mut sending = std::pin::pin!(send(&sender, self.bytes.into()));
        let mut unsent = true;
        loop {
            tokio::select! {
                chunk = stream.read_output() => match chunk {
                    Ok(Some((_, chunk))) => {
                        let (output, errors) = said.hear(&chunk);
                        let shown = async {
                            stdout().write_all(&output).await?;
                            stderr().write_all(&errors).await?;
                            stdout().flush().await
                        };
                        if shown.await.is_err() {
                            return Ok(ExitCode::Ok);
                        }
                    }
                    Ok(None) => {
                        let why = || lost(format!("the session ended before the command told its exit code{}", said.told()));
                        return said.code.map(ExitCode::Remote).ok_or_else(why);
                    }
                    Err(error) => {
                        let why = || lost(format!("{error}{}", said.told()));
                        return said.code.map(ExitCode::Remote).ok_or_else(why);
                    }
                },
                () = &mut sending, if unsent && said.begun => unsent = false,
                cause = shutdown.requested() => return Ok(cause.exit_code()),
            }
        }
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

/// Takes what the far side says apart: up to the first mark it is noise, up to the second the command's output; then come
/// its exit code, the length of its errors, and these.
struct Said {
    begin: Vec<u8>,
    end: Vec<u8>,
    begun: bool,
    held: Vec<u8>,
    code: Option<i64>,
    errors_left: usize,
}

impl Said {
    fn new(begin: &str, end: &str) -> Self {
        Self { begin: begin.into(), end: end.into(), begun: false, held: Vec::new(), code: None, errors_left: 0 }
    }

    /// Output and errors in what was heard.
    fn hear(&mut self, chunk: &[u8]) -> (Vec<u8>, Vec<u8>) {
        self.held.extend_from_slice(chunk);
        if !self.begun {
            let Some(at) = find(&self.held, &self.begin) else { return Default::default() };
            self.held.drain(..at + self.begin.len());
            self.begun = true;
        }
        let mut output = Vec::new();
        if self.code.is_none() {
            match find(&self.held, &self.end) {
                Some(at) => {
                    output = self.held.drain(..at).collect();
                    self.read_end();
                }
                // A part of the mark may be there already.
                None => output = self.held.drain(..self.held.len().saturating_sub(self.end.len())).collect(),
            }
        }
        let errors = if self.code.is_some() {
            self.held.drain(..self.errors_left.min(self.held.len())).collect()
        } else {
            Vec::new()
        };
        self.errors_left -= errors.len();
        (output, errors)
    }

    /// What the far side said instead of beginning, as the tail of an error's line.
    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.held);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if self.begun || text.is_empty() { String::new() } else { format!("; the node said: {text}") }
    }

    /// `MARKcode length\n`, once it is there as a whole.
    fn read_end(&mut self) {
        let Some(line) = self.held.iter().position(|byte| *byte == b'\n') else { return };
        let text = String::from_utf8_lossy(self.held.get(self.end.len()..line).unwrap_or_default()).into_owned();
        if let Some((code, length)) = text.split_once(' ') {
            self.code = code.parse().ok();
            self.errors_left = length.parse().unwrap_or_default();
        }
        self.held.drain(..=line);
    }
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_taken_apart_wherever_it_is_cut() {
        let whole = b"noise<<output with < in it>>7 6\nerrors\r\n";
        for cut in 0..whole.len() {
            let mut said = Said::new("<<", ">>");
            let (mut output, mut errors) = (Vec::new(), Vec::new());
            for piece in [&whole[..cut], &whole[cut..]] {
                let (more, worse) = said.hear(piece);
                output.extend(more);
                errors.extend(worse);
            }
            assert_eq!(
                (&output[..], &errors[..], said.code),
                (&b"output with < in it"[..], &b"errors"[..], Some(7)),
                "{cut}"
            );
        }
    }
}
