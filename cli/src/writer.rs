//! The standard outputs of this process, for data from the node.
//!
//! Each output has one writer. It writes one batch after the other, so that the order is kept and every error is reported.
//! The system call runs on a thread that may block, so that a slow reader does not delay the handling of signals.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::task::spawn_blocking;

use crate::exit_code::{ExitCode, Failure};

/// A standard output, or a file in its place.
#[derive(Debug)]
pub(crate) struct Writer {
    /// The output without the standard library's line buffer, which also hides some errors.
    file: Arc<File>,
    name: Cow<'static, str>,
    is_terminal: bool,
}

impl Writer {
    /// Creates a writer for standard output.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub(crate) fn stdout() -> Result<Self, Failure> {
        Self::new(io::stdout(), "standard output")
    }

    /// Creates a writer for standard error.
    ///
    /// # Errors
    /// Returns an error if the process has no file descriptor left.
    pub(crate) fn stderr() -> Result<Self, Failure> {
        Self::new(io::stderr(), "standard error")
    }

    fn new(output: impl AsFd + IsTerminal, name: &'static str) -> Result<Self, Failure> {
        let is_terminal = output.is_terminal();
        let file = output.as_fd().try_clone_to_owned().map_err(|error| failure(name, false, &error))?;
        Ok(Self { file: Arc::new(file.into()), name: name.into(), is_terminal })
    }

    /// Creates a writer for a file that is written sequentially, such as a device.
    pub(crate) fn of(file: File, name: String) -> Self {
        Self { file: Arc::new(file), name: name.into(), is_terminal: false }
    }

    /// Whether the output is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes all `chunks`, and returns when the system has accepted them. `chunks` is empty afterwards.
    ///
    /// # Errors
    /// Returns an error if the output cannot be written; see [`failure`].
    pub(crate) async fn write(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), Failure> {
        if chunks.iter().all(Bytes::is_empty) {
            chunks.clear();
            return Ok(());
        }
        let (file, mut batch) = (self.file.clone(), std::mem::take(chunks));
        let writing = spawn_blocking(move || {
            let written = write_all(&file, &batch);
            batch.clear();
            (written, batch)
        });
        let (written, batch) = writing.await.map_err(Failure::internal)?;
        *chunks = batch;
        written.map_err(|error| failure(&self.name, self.is_terminal, &error))
    }
}

fn write_all(mut file: &File, chunks: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<_> = chunks.iter().filter(|chunk| !chunk.is_empty()).map(|chunk| IoSlice::new(chunk)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => IoSlice::advance_slices(&mut left, length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The open file description is shared with other processes, and one of them may have made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(file, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a complete result to standard output.
///
/// # Errors
/// Returns an error if standard output cannot be written; see [`failure`].
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| failure("standard output", stdout.is_terminal(), &error))
}

/// Converts an error of writing to an output into a failure. If the reader has closed the output, the program ends without a
/// message.
pub(crate) fn failure(name: &str, is_terminal: bool, error: &io::Error) -> Failure {
    const EIO: i32 = 5;
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::new(ExitCode::ReaderGone, "reader_gone", format!("{name} has no reader")),
        _ if is_terminal && error.raw_os_error() == Some(EIO) => {
            Failure::new(ExitCode::HangUp, "stopped", "the terminal was closed")
        }
        _ => Failure::new(ExitCode::Output, "output", format!("cannot write to {name}: {}", reason(error))),
    }
}

/// Returns the message of a system error without its number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn writer(file: impl Into<File>) -> Writer {
        Writer::of(file.into(), "standard output".into())
    }

    #[tokio::test]
    async fn batches_stay_in_order_and_a_non_blocking_pipe_is_waited_for() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let pipe = std::os::fd::OwnedFd::from(pipe);
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut writer = writer(pipe);
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let mut expected = Vec::new();
        for number in 0..200u8 {
            let mut chunks = vec![Bytes::new(), Bytes::from(vec![number; 3000]), Bytes::from_static(b"\n")];
            expected.extend(chunks.concat());
            writer.write(&mut chunks).await.unwrap();
            assert!(chunks.is_empty());
        }
        drop(writer);
        assert_eq!(reading.join().unwrap(), expected);
    }

    #[tokio::test]
    async fn errors_say_what_they_mean() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let failure = writer(full).write(&mut vec![Bytes::from_static(b"x")]).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::Output);
        assert_eq!(failure.message, "cannot write to standard output: No space left on device");
        let (reader, pipe) = io::pipe().unwrap();
        drop(reader);
        let pipe = std::os::fd::OwnedFd::from(pipe);
        let failure = writer(pipe).write(&mut vec![Bytes::from_static(b"x")]).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::ReaderGone);
    }
}
