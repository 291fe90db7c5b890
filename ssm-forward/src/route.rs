//! The route of a connection: a stream of one session, or a connection of the relay over all sessions.

use std::sync::Arc;

use bytes::Bytes;
use ssm_proto::relay::Destination;

use crate::pool::{Caller, Pool, StreamLease};
use crate::relay::{Pipes, RelaySender, RelayStream};
use crate::{SessionStream, StreamError, StreamSender};

/// The source of streams.
#[derive(Clone)]
pub(crate) enum Route {
    Pool(Arc<Pool>),
    Relay(Arc<Pipes>, Destination),
    /// Each connection already has its stream, which a [`Dialer`](crate::Dialer) has opened.
    Dialed,
}

/// The remote stream of a connection.
pub(crate) enum RemoteStream {
    /// A stream of a session, with its lease from the pool.
    Session(SessionStream, #[expect(dead_code, reason = "counts until it is dropped")] StreamLease),
    Relay(RelayStream),
}

/// The sending half of a [`RemoteStream`].
pub(crate) enum Sender {
    Session(StreamSender),
    Relay(RelaySender),
}

impl Route {
    pub(crate) async fn open(&self, caller: Caller) -> Result<RemoteStream, StreamError> {
        match self {
            Self::Pool(pool) => {
                let (stream, lease) = pool.open_stream(caller).await?;
                Ok(RemoteStream::Session(stream, lease))
            }
            Self::Relay(pipes, to) => pipes.open(to.clone()).map(RemoteStream::Relay),
            Self::Dialed => Err(StreamError::Closed),
        }
    }
}

impl RemoteStream {
    pub(crate) fn sender(&self) -> Sender {
        match self {
            Self::Session(stream, _) => Sender::Session(stream.sender()),
            Self::Relay(stream) => Sender::Relay(stream.sender()),
        }
    }

    /// Whether each direction can end independently.
    pub(crate) fn half_closes(&self) -> bool {
        matches!(self, Self::Relay(_))
    }

    /// See [`SessionStream::read_chunks`].
    pub(crate) async fn read_chunks(&mut self, chunks: &mut Vec<Bytes>, limit: usize) -> Result<bool, StreamError> {
        match self {
            Self::Session(stream, _) => stream.read_chunks(chunks, limit).await,
            Self::Relay(stream) => stream.read_chunks(chunks, limit).await,
        }
    }

    /// See [`SessionStream::abandon`].
    pub(crate) fn abandon(self) {
        match self {
            Self::Session(stream, _) => stream.abandon(),
            Self::Relay(stream) => stream.abandon(),
        }
    }
}

impl Sender {
    /// See [`StreamSender::write_chunk`].
    pub(crate) async fn write_chunk(&self, chunk: Bytes) -> Result<(), StreamError> {
        match self {
            Self::Session(sender) => sender.write_chunk(chunk).await,
            Self::Relay(sender) => sender.write_chunk(chunk).await,
        }
    }

    /// Finishes the sending direction.
    pub(crate) fn finish(&self) {
        match self {
            Self::Session(sender) => sender.finish(),
            Self::Relay(sender) => sender.finish(),
        }
    }

    /// Whether data from the node can be received now.
    pub(crate) fn is_connected(&self) -> bool {
        match self {
            Self::Session(sender) => sender.is_connected(),
            Self::Relay(sender) => sender.is_connected(),
        }
    }
}
