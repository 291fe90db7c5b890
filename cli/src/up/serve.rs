//! Answers the requests that arrive on the control socket.

use std::io;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

use super::control::{Answer, Connection, Process, Request, Socket};
use super::folder::ControlFolder;
use super::manager::Manager;
use super::worker::Order;
use crate::config::Tunnel;
use crate::exit_code::Failure;
use crate::output::{Log, names_one_of};
use crate::shutdown::{Shutdown, StopCause};

/// Reads the configuration again and returns the selected tunnels.
pub(super) type Select = Box<dyn Fn() -> Result<Vec<Tunnel>, Failure> + Send + Sync>;

/// The state that the requests need.
pub(super) struct Server {
    pub(super) manager: Arc<Manager>,
    pub(super) log: Arc<Log>,
    pub(super) select: Select,
    pub(super) folder: ControlFolder,
    pub(super) shutdown: Shutdown,
}

/// Accepts connections and answers their requests. Never returns.
pub(super) async fn serve(socket: Socket, server: Server) {
    let server = Arc::new(server);
    let mut connections = JoinSet::new();
    loop {
        let connection = tokio::select! {
            connection = socket.accept() => connection,
            Some(_) = connections.join_next() => continue,
        };
        let server = server.clone();
        connections.spawn(async move {
            if let Err(error) = server.answer(connection).await {
                tracing::debug!(%error, "a connection to the control socket ended");
            }
        });
    }
}

impl Server {
    /// Answers one request. If it has closed the last tunnel, requests a stop of the process.
    async fn answer(&self, mut connection: Connection) -> io::Result<()> {
        let Some(request) = connection.receive::<Request>().await? else { return Ok(()) };
        let may_be_the_end = matches!(request, Request::Down { .. } | Request::Reload);
        let done = match request {
            Request::Status => return connection.send(&Answer::Status(self.manager.status())).await,
            Request::Logs { names, follow } => return self.lines(&names, follow, connection).await,
            Request::Down { names } => {
                self.manager.close(&names).await.map(|names| format!("closed: {}", names.join(", ")))
            }
            Request::Restart { names } => {
                self.manager.order(&names, Order::Restart).map(|names| format!("restarted: {}", names.join(", ")))
            }
            Request::Reload => self.reload().await,
        };
        let answer = match done {
            Ok(text) => Answer::Done { text },
            Err(failure) => Answer::Refused { text: failure.shown().to_owned() },
        };
        let sent = connection.send(&answer).await;
        if may_be_the_end && self.manager.is_empty().await {
            self.shutdown.stop(StopCause::Terminate);
        }
        sent
    }

    /// Reads the configuration again and applies it. Tunnels that are open in another process are left to that process.
    async fn reload(&self) -> Result<String, Failure> {
        let wanted = (self.select)()?;
        let _lock = self.folder.lock().await?;
        let others = Process::all(&self.folder).await?;
        let others: Vec<_> = others.iter().filter(|process| process.status.pid != std::process::id()).collect();
        let is_free = |tunnel: &Tunnel| !others.iter().any(|other| other.has(&tunnel.name));
        self.manager.change_to(wanted.into_iter().filter(is_free).collect()).await
    }

    /// Sends the lines of the log that concern `names`.
    async fn lines(&self, names: &[String], follow: bool, mut connection: Connection) -> io::Result<()> {
        let (lines, mut news) = self.log.read();
        let is_wanted = |line: &str| names.is_empty() || names_one_of(line, names);
        for line in lines.into_iter().filter(|line| is_wanted(line)) {
            connection.send(&Answer::Line { text: Some(line) }).await?;
        }
        if !follow {
            return connection.send(&Answer::Line { text: None }).await;
        }
        loop {
            match news.recv().await {
                Ok(line) if is_wanted(&line) => connection.send(&Answer::Line { text: Some(line) }).await?,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }
}
