//! Connections that choose their own destination, through a forwarder whose relay carries them.

use std::sync::Arc;

use ssm_proto::relay::{Destination, RefusalKind};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::entrance::Entrance;
use crate::relay::{Pipes, RelayStream};
use crate::{ForwardError, StreamError};

/// Connects to destinations that the caller chooses, through the relay of a forwarder.
/// [`ForwarderBuilder::dial`](crate::ForwarderBuilder::dial) returns both. Clones refer to the same forwarder.
#[derive(Clone, Debug)]
pub struct Dialer {
    entrance: Entrance,
    pipes: watch::Receiver<Option<Arc<Pipes>>>,
    waiting: Arc<watch::Sender<usize>>,
}

/// A destination that has accepted a connection.
#[derive(Debug)]
#[must_use = "dropping it resets the connection to the destination"]
pub struct Dialed {
    entrance: Entrance,
    carrier: RelayStream,
}

impl Dialer {
    pub(crate) fn new(entrance: Entrance) -> (Self, Dials) {
        let (open, pipes) = watch::channel(None);
        let (waiting, wanted) = watch::channel(0);
        (Self { entrance, pipes, waiting: Arc::new(waiting) }, Dials { open, wanted })
    }

    /// Makes the node connect to a host and port. The node resolves the name. While there is no relay or no session, this method
    /// waits for a new one.
    ///
    /// # Errors
    /// [`StreamError::Unreachable`] if the node could not connect, with the cause. [`StreamError::RelayEnded`] if the relay or the
    /// forwarder ended in the meantime.
    pub async fn dial(&self, host: &str, port: u16) -> Result<Dialed, StreamError> {
        let Some(to) = Destination::new(host, port) else {
            let why = format!("{host}:{port} is not a host and port");
            return Err(StreamError::Unreachable { kind: RefusalKind::UnknownHost, why });
        };
        let carrier = self.pipes().await?.open(to)?;
        carrier.connected().await?;
        Ok(Dialed { entrance: self.entrance.clone(), carrier })
    }

    /// Waits until there are pipes to the relay, and returns them.
    async fn pipes(&self) -> Result<Arc<Pipes>, StreamError> {
        let _waits = Waits::new(&self.waiting);
        let mut pipes = self.pipes.clone();
        let found = pipes.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|found| found.clone());
        found.ok_or_else(|| StreamError::RelayEnded { why: "the forwarder has ended".into() })
    }
}

impl Dialed {
    /// Carries the connection of a local program. Completes when the forwarder has accepted the connection. From then on,
    /// [`ForwardStats`](crate::ForwardStats) counts it.
    ///
    /// # Errors
    /// [`ForwardError::ForwarderEnded`] if the forwarder has ended, or ends before it accepts the connection. The program receives
    /// a reset.
    pub async fn carry(self, stream: TcpStream) -> Result<(), ForwardError> {
        self.entrance.hand_in_with(stream, Some(self.carrier)).await
    }
}

/// The forwarder's side of a [`Dialer`].
#[derive(Debug)]
pub(crate) struct Dials {
    open: watch::Sender<Option<Arc<Pipes>>>,
    wanted: watch::Receiver<usize>,
}

impl Dials {
    /// Lets dialers use these pipes until the returned guard is dropped.
    pub(crate) fn open(&self, pipes: Arc<Pipes>) -> impl Drop + use<'_> {
        self.open.send_replace(Some(pipes));
        Open(self)
    }

    /// Completes when a dialer waits for pipes.
    pub(crate) async fn wanted(&self) {
        let mut wanted = self.wanted.clone();
        if wanted.wait_for(|waiting| *waiting > 0).await.is_err() {
            // No dialer is left.
            std::future::pending().await
        }
    }
}

struct Open<'a>(&'a Dials);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.send_replace(None);
    }
}

/// Counts one waiting dialer while the value exists.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_noticed_and_learns_that_the_forwarder_has_ended() {
        let (entrance, _handed_in) = Entrance::new();
        let (dialer, dials) = Dialer::new(entrance);
        let waiting = tokio::spawn(async move { dialer.dial("db.internal", 5432).await.map(drop) });
        dials.wanted().await;
        drop(dials);
        assert!(matches!(waiting.await.unwrap(), Err(StreamError::RelayEnded { .. })));
    }

    #[tokio::test]
    async fn what_is_no_host_is_refused_without_a_relay() {
        let (dialer, _dials) = Dialer::new(Entrance::new().0);
        let refused = dialer.dial("", 5432).await.map(drop);
        assert!(matches!(refused, Err(StreamError::Unreachable { kind: RefusalKind::UnknownHost, .. })), "{refused:?}");
    }
}
