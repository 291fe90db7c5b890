//! Connections that another part of the program accepts and passes to a forwarder.

use std::future::pending;

use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::ForwardError;
use crate::listener::prepare;
use crate::relay::RelayStream;

/// Passes connections to a forwarder that does not listen. Clones refer to the same forwarder.
#[derive(Clone, Debug)]
pub struct Entrance {
    streams: mpsc::Sender<Handed>,
}

/// The forwarder's side of an [`Entrance`].
#[derive(Debug)]
pub(crate) struct HandedIn(Mutex<mpsc::Receiver<Handed>>);

/// A connection that was passed to the forwarder.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) stream: TcpStream,
    /// The relay's connection that carries this one, if it exists already.
    pub(crate) carrier: Option<RelayStream>,
    /// Notified when the connection is counted.
    pub(crate) taken: oneshot::Sender<()>,
}

/// Maximum number of connections that wait until the forwarder accepts them.
const WAITING: usize = 64;

impl Entrance {
    pub(crate) fn new() -> (Self, HandedIn) {
        let (streams, receiver) = mpsc::channel(WAITING);
        (Self { streams }, HandedIn(Mutex::new(receiver)))
    }

    /// Passes the connection of a local program to the forwarder, which treats it like a connection that it has accepted itself.
    /// Completes when the forwarder has accepted the connection. From then on, [`ForwardStats`](crate::ForwardStats) counts it.
    ///
    /// # Errors
    /// [`ForwardError::ForwarderEnded`] if the forwarder has ended, ends before it accepts the connection, or, with
    /// [`ForwardConfig::lazy`](crate::ForwardConfig::lazy), cannot start a session for it. The program receives a reset.
    pub async fn hand_in(&self, stream: TcpStream) -> Result<(), ForwardError> {
        self.hand_in_with(stream, None).await
    }

    pub(crate) async fn hand_in_with(
        &self,
        stream: TcpStream,
        carrier: Option<RelayStream>,
    ) -> Result<(), ForwardError> {
        prepare(&stream);
        let ended = || ForwardError::ForwarderEnded;
        let (taken, is_taken) = oneshot::channel();
        self.streams.send(Handed { stream, carrier, taken }).await.map_err(|_| ended())?;
        is_taken.await.map_err(|_| ended())
    }
}

impl HandedIn {
    /// Waits for the next connection. Never completes if no [`Entrance`] is left.
    pub(crate) async fn next(&self) -> Handed {
        match self.0.lock().await.recv().await {
            Some(handed) => handed,
            None => pending().await,
        }
    }
}
