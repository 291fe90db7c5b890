//! The control protocol between commands and an `up`: requests and answers are lines of JSON over a Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::folder::ControlFolder;
use super::status::ProcessStatus;
use crate::exit_code::{ExitCode, Failure};

/// A request of a command. Empty `names` mean all tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Return the state of the tunnels.
    Status,
    /// Close the tunnels.
    Down { names: Vec<String> },
    /// Close the tunnels and open them again.
    Restart { names: Vec<String> },
    /// Read the configuration again, and apply its changes.
    Reload,
    /// Return the last lines of the log. With `follow`, also return new lines.
    Logs { names: Vec<String>, follow: bool },
}

/// An answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The state of the tunnels.
    Status(ProcessStatus),
    /// The request succeeded. Contains a description of the changes for the user.
    Done { text: String },
    /// A line of the log. `None` in the last answer.
    Line { text: Option<String> },
    /// The request failed. Contains the reason.
    Refused { text: String },
}

/// Maximum length of a request and of an answer, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Timeout for an answer. A process that does not answer in time may have been stopped by a signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// The reason for refusing a process that sends invalid answers.
const OTHER_VERSION: &str = "belongs to another version of this command; end that process first";

/// The control socket of this process. Dropping this value removes the socket's file.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens on `path`. Other users cannot connect at any time, because both the folder and the socket are private.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be opened.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = Self { listener: bound?, path: path.to_owned() };
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(socket)
    }

    /// Waits for the next connection of the same user, and returns it.
    pub(crate) async fn accept(&self) -> Connection {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if is_of_this_user(&stream) => return Connection { stream: BufReader::new(stream) },
                Ok(_) => tracing::warn!("another user tried to connect to the control socket"),
                Err(error) => {
                    tracing::warn!(%error, "a connection to the control socket could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_of_this_user(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Sends a request or an answer.
    ///
    /// # Errors
    /// Returns an error if the peer has closed the connection.
    pub(crate) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(message)?;
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await
    }

    /// Receives a request or an answer. Returns `None` if the peer has closed the connection.
    ///
    /// # Errors
    /// Returns an error if the connection fails or the message is invalid ([`io::ErrorKind::InvalidData`]).
    pub(crate) async fn receive<T: for<'a> Deserialize<'a>>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        match (&mut self.stream).take(MAX_LINE).read_line(&mut line).await? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}

/// A running `up` process.
#[derive(Debug)]
pub(crate) struct Process {
    path: PathBuf,
    /// Snapshot of the process's state from the time when it was found.
    pub(crate) status: ProcessStatus,
}

impl Process {
    /// Finds all `up` processes of this user. Removes the sockets of processes that have ended.
    ///
    /// # Errors
    /// Returns an error if a socket belongs to another user, or if a process does not answer or sends an invalid answer.
    pub(crate) async fn all(folder: &ControlFolder) -> Result<Vec<Self>, Failure> {
        let mut processes = Vec::new();
        for path in folder.sockets() {
            let Some(mut connection) = connect(&path).await? else { continue };
            let asked = async {
                connection.send(&Request::Status).await?;
                connection.receive().await
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(Some(Answer::Status(status)))) => processes.push(Self { path, status }),
                Ok(Ok(Some(_))) => return Err(refused(&path, OTHER_VERSION)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(refused(&path, OTHER_VERSION));
                }
                // The process has just ended.
                Ok(Ok(None) | Err(_)) => {}
                Err(_) => return Err(refused(&path, "does not answer; its process may be stopped")),
            }
        }
        Ok(processes)
    }

    /// Whether the process has a tunnel with this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.status.tunnels.iter().any(|tunnel| tunnel.name == name)
    }

    /// Sends a request. Returns the connection, on which the answers arrive.
    ///
    /// # Errors
    /// Returns an error if the process has ended.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Connection, Failure> {
        let gone = || refused(&self.path, "is closed: the process has ended");
        let mut connection = connect(&self.path).await?.ok_or_else(gone)?;
        connection.send(request).await.map_err(|_| gone())?;
        Ok(connection)
    }
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::new(ExitCode::Config, "control", format!("the control socket {} {why}", path.display()))
}

/// Connects to a control socket. If no process listens on it, removes the file and returns `None`.
async fn connect(path: &Path) -> Result<Option<Connection>, Failure> {
    match UnixStream::connect(path).await {
        Ok(stream) if is_of_this_user(&stream) => Ok(Some(Connection { stream: BufReader::new(stream) })),
        Ok(_) => Err(refused(path, "belongs to another user")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused(path, &format!("cannot be used: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn sockets_in(parent: &tempfile::TempDir) -> ControlFolder {
        ControlFolder::at(parent.path().join("sockets")).unwrap()
    }

    #[tokio::test]
    async fn a_stale_socket_is_cleaned_and_a_living_one_answers() {
        let parent = tempfile::tempdir().unwrap();
        let folder = sockets_in(&parent);
        drop(std::os::unix::net::UnixListener::bind(folder.socket(1)).unwrap());
        let socket = Socket::bind(&folder.socket(2)).unwrap();
        assert_eq!(folder.socket(2).metadata().unwrap().mode() & 0o777, 0o600);
        let status = ProcessStatus { pid: 2, folder: "/".into(), tunnels: Vec::new() };
        let answer = Answer::Status(status.clone());
        let serve = async {
            let mut connection = socket.accept().await;
            assert_eq!(connection.receive::<Request>().await.unwrap(), Some(Request::Status));
            connection.send(&answer).await.unwrap();
        };
        let (processes, ()) = tokio::join!(Process::all(&folder), serve);
        assert_eq!(processes.unwrap().iter().map(|process| process.status.clone()).collect::<Vec<_>>(), [status]);
        assert!(!folder.socket(1).exists(), "the stale socket still exists");
        drop(socket);
        assert!(!folder.socket(2).exists());
    }

    #[tokio::test]
    async fn a_process_whose_answer_is_not_understood_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = sockets_in(&parent);
        let socket = Socket::bind(&folder.socket(1)).unwrap();
        for answer in ["{\"answer\":\"telepathy\"}\n", "{\"answer\":\"done\",\"text\":\"\"}\n"] {
            let serve = async {
                let mut connection = socket.accept().await;
                connection.receive::<Request>().await.unwrap();
                connection.stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (processes, ()) = tokio::join!(Process::all(&folder), serve);
            let failure = processes.unwrap_err();
            assert!(failure.message.contains("another version"), "{failure}");
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let socket = Socket::bind(&sockets_in(&parent).socket(1)).unwrap();
        let mut client = UnixStream::connect(&socket.path).await.unwrap();
        client.write_all(b"{\"request\":\"format_disk\"}\n").await.unwrap();
        assert!(socket.accept().await.receive::<Request>().await.is_err());
    }
}
