//! Connections that another part of the program accepts and hands to a forwarder.

use std::future::pending;

use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::ForwardError;
use crate::listener::prepare;
use crate::relay::RelayStream;

/// Hands connections to a forwarder that does not listen. Clones refer to the same forwarder.
#[derive(Clone, Debug)]
pub struct Entrance {
    streams: mpsc::Sender<Handed>,
}

/// The forwarder's side of an [`Entrance`].
#[derive(Debug)]
pub(crate) struct HandedIn(Mutex<mpsc::Receiver<Handed>>);

/// A connection that was handed in.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) stream: TcpStream,
    /// The relay's connection that carries it, if there is one already.
    pub(crate) carrier: Option<RelayStream>,
    /// Told when it is counted.
    pub(crate) taken: oneshot::Sender<()>,
}

/// Connections that may wait until the forwarder takes them.
const WAITING: usize = 64;

impl Entrance {
    pub(crate) fn new() -> (Self, HandedIn) {
        let (streams, receiver) = mpsc::channel(WAITING);
        (Self { streams }, HandedIn(Mutex::new(receiver)))
    }

    /// Hands in the connection of a local program, which is treated as one that the forwarder has accepted. Completes
    /// when the forwarder has taken it: then it is counted by [`ForwardStats`](crate::ForwardStats).
    ///
    /// # Errors
    /// [`ForwardError::ForwarderEnded`] if the forwarder ends before it takes the connection, has ended, or, with
    /// [`ForwardConfig::lazy`](crate::ForwardConfig::lazy), cannot start a session for it. The program
    /// sees a reset.
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
    /// The next connection. Never completes once no [`Entrance`] is left.
    pub(crate) async fn next(&self) -> Handed {
        match self.0.lock().await.recv().await {
            Some(handed) => handed,
            None => pending().await,
        }
    }
}
