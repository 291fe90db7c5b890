//! Maps names to tunnels for the whole machine, with entries in `/etc/hosts` that exist as long as this process runs.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Name;
use super::writer::{self, HOSTS};
use crate::exit_code::{ExitCode, Failure};

/// Maximum time to wait until the entries are removed.
const GRACE: Duration = Duration::from_secs(3);

/// The entries of this process in `/etc/hosts`. They are removed when the process ends, in whatever way it ends.
#[derive(Debug)]
pub(crate) struct HostsFile {
    requests: Sender<Request>,
    closed: oneshot::Receiver<()>,
}

#[derive(Debug)]
enum Request {
    Put { tunnel: usize, names: Vec<Name>, done: oneshot::Sender<Result<(), String>> },
    Remove { tunnel: usize },
    Close,
}

/// The entries of a tunnel. They are removed on drop.
#[derive(Debug)]
pub(crate) struct Entries {
    tunnel: usize,
    requests: Sender<Request>,
}

impl Drop for Entries {
    fn drop(&mut self) {
        // If there is no receiver, the entries are already removed.
        let _ = self.requests.send(Request::Remove { tunnel: self.tunnel });
    }
}

impl HostsFile {
    /// Starts the process that writes the file, as root or through sudo, which may ask for a password. Entries of processes that
    /// have ended are removed.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) async fn open() -> Result<Self, Failure> {
        if !cfg!(target_os = "linux") {
            return Err(failure("works on Linux only"));
        }
        let (tell, opened) = oneshot::channel();
        let (requests, receiver) = channel();
        let (closing, closed) = oneshot::channel();
        // A separate thread waits for the answers, because reading them blocks.
        std::thread::spawn(move || {
            let (writer, started) = match Writer::start() {
                Ok(writer) => (Some(writer), Ok(())),
                Err(failure) => (None, Err(failure)),
            };
            if tell.send(started).is_ok()
                && let Some(writer) = writer
            {
                writer.serve(&receiver);
            }
            let _ = closing.send(());
        });
        opened.await.map_err(Failure::internal)??;
        Ok(Self { requests, closed })
    }

    /// Writes the names of a tunnel.
    ///
    /// # Errors
    /// Returns an error if a name already has another entry, or if the file cannot be written.
    pub(crate) async fn put(&self, tunnel: usize, names: Vec<Name>) -> Result<Entries, Failure> {
        let (done, written) = oneshot::channel();
        // Created before the answer arrives, so that dropping this future also removes the entries.
        let entries = Entries { tunnel, requests: self.requests.clone() };
        let _ = self.requests.send(Request::Put { tunnel, names, done });
        written.await.unwrap_or_else(|_| Err(GONE.into())).map_err(|why| failure(&format!("{HOSTS}: {why}")))?;
        Ok(entries)
    }

    /// Removes all entries.
    pub(crate) async fn close(self) {
        let _ = self.requests.send(Request::Close);
        let _ = timeout(GRACE, self.closed).await;
    }
}

const GONE: &str = "the process that writes the file has ended";

/// The connection to the process that writes the file.
struct Writer {
    input: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Writer {
    fn start() -> Result<Self, Failure> {
        let started = command().and_then(|mut command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        });
        let mut child = started.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failure("needs root, or sudo to become root"),
            _ => failure(&error.to_string()),
        })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::internal("a process without pipes"));
        };
        let mut this = Self { input, answers: BufReader::new(output) };
        let answer = this.answer();
        // This child ends after it has started the process that writes the file, or after a failure.
        let ended = child.wait_with_output().map_err(Failure::internal)?;
        match answer {
            Ok(()) => Ok(this),
            Err(why) => {
                let told = String::from_utf8_lossy(&ended.stderr);
                let told: Vec<_> = told.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                Err(failure(if told.is_empty() { why } else { told.join("; ").replace("error: ", "") }.as_str()))
            }
        }
    }

    /// Handles requests until `Close`, and waits until the entries are removed.
    fn serve(mut self, requests: &Receiver<Request>) {
        let mut all: BTreeMap<usize, Vec<Name>> = BTreeMap::new();
        while let Ok(request) = requests.recv() {
            match request {
                Request::Put { tunnel, names, done } => {
                    all.insert(tunnel, names);
                    let written = self.write(&all);
                    if written.is_err() {
                        all.remove(&tunnel);
                    }
                    let _ = done.send(written);
                }
                Request::Remove { tunnel } => {
                    if all.remove(&tunnel).is_some()
                        && let Err(error) = self.write(&all)
                    {
                        tracing::warn!("{HOSTS}: {error}");
                    }
                }
                Request::Close => break,
            }
        }
        let Self { input, mut answers } = self;
        drop(input);
        let _ = io::copy(&mut answers, &mut io::sink());
    }

    fn write(&mut self, all: &BTreeMap<usize, Vec<Name>>) -> Result<(), String> {
        let names: Vec<&Name> = all.values().flatten().collect();
        let line = serde_json::to_string(&names).map_err(|error| error.to_string())?;
        writeln!(self.input, "{line}").map_err(|_| GONE.to_owned())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<(), String> {
        let mut line = String::new();
        let _ = self.answers.read_line(&mut line);
        serde_json::from_str(&line).unwrap_or_else(|_| Err(GONE.into()))
    }
}

/// Returns the command that starts the writing process as root.
fn command() -> io::Result<Command> {
    let this = std::env::current_exe()?;
    let mut command;
    if rustix::process::geteuid().is_root() {
        command = Command::new(this);
    } else {
        command = Command::new("sudo");
        command.args(["--prompt", "[sudo] password for %p, to write /etc/hosts: ", "--"]).arg(this);
    }
    command.arg(writer::WORD);
    Ok(command)
}

fn failure(text: &str) -> Failure {
    Failure::new(ExitCode::Config, "hosts", format!("--hosts: {text}"))
}
