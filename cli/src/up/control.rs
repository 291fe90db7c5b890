//! How commands speak to an `up`: over a Unix socket, one line of JSON each way.

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

/// What a command asks for. No names: all tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// How the tunnels are.
    Status,
    /// Close these.
    Down { names: Vec<String> },
    /// Close these and open them again.
    Restart { names: Vec<String> },
    /// Read the configuration again, and change what changed there.
    Reload,
    /// The last lines, and the next ones if they are followed.
    Logs { names: Vec<String>, follow: bool },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// How the tunnels are.
    Status(ProcessStatus),
    /// It is done; what was done, for people.
    Done { text: String },
    /// A line of the log. The last answer has none.
    Line { text: Option<String> },
    /// It could not be done.
    Refused { text: String },
}

/// Maximum length of a request and of an answer, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A process that does not answer within this time is considered stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a process is refused whose answers are not understood.
const OTHER_VERSION: &str = "is of another version of this command; end that process first";

/// The socket of this process. Its file is removed on drop.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens. No other user can connect, from the first moment on: the folder is private, and so is the socket.
    ///
    /// # Errors
    /// The system refuses it.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = Self { listener: bound?, path: path.to_owned() };
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(socket)
    }

    /// The next connection of the same user.
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
    /// The other end is gone.
    pub(crate) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(message)?;
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await
    }

    /// Receives one. `None`: the other end is done.
    ///
    /// # Errors
    /// The other end is gone, or what it sends is not understood ([`io::ErrorKind::InvalidData`]).
    pub(crate) async fn receive<T: for<'a> Deserialize<'a>>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        match (&mut self.stream).take(MAX_LINE).read_line(&mut line).await? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}

/// A process that has tunnels open.
#[derive(Debug)]
pub(crate) struct Process {
    path: PathBuf,
    /// As it was when it was found.
    pub(crate) status: ProcessStatus,
}

impl Process {
    /// All of this user's. Sockets that dead processes left are removed.
    ///
    /// # Errors
    /// A socket is of another user, or its process does not answer.
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
                // It ended just now.
                Ok(Ok(None) | Err(_)) => {}
                Err(_) => return Err(refused(&path, "does not answer; its process may be stopped")),
            }
        }
        Ok(processes)
    }

    /// Whether it has a tunnel of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.status.tunnels.iter().any(|tunnel| tunnel.name == name)
    }

    /// Asks it for something.
    ///
    /// # Errors
    /// It is gone.
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

/// `None`: nobody listens there any more; the file is removed.
async fn connect(path: &Path) -> Result<Option<Connection>, Failure> {
    match UnixStream::connect(path).await {
        Ok(stream) if is_of_this_user(&stream) => Ok(Some(Connection { stream: BufReader::new(stream) })),
        Ok(_) => Err(refused(path, "is another user's")),
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
        assert!(!folder.socket(1).exists(), "the stale one is still there");
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
