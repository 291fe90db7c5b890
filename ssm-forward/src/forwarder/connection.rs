//! Serves one accepted connection until its end.

use std::convert::Infallible;
use std::sync::Arc;

use super::OnEvent;
use crate::listener::LocalStream;
use crate::pump::{PumpError, Traffic, pump};
use crate::route::{RemoteStream, Sender};
use crate::stats::ForwardStats;
use crate::unanswered::Unanswered;
use crate::{ForwardEvent, StreamError};

/// One local connection. It is counted as open until it is dropped.
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) stats: ForwardStats,
    pub(super) unanswered: Arc<Unanswered>,
    pub(super) on_event: OnEvent,
}

impl Connection {
    pub(super) async fn run(self, local: LocalStream, stream: Result<RemoteStream, StreamError>) {
        let traffic = Traffic::default();
        let count = |direction, bytes| {
            traffic.add(direction, bytes);
            self.stats.moved(direction, bytes);
        };
        let outcome = match stream {
            Ok(stream) => {
                let sender = stream.sender();
                tokio::select! {
                    biased;
                    outcome = pump(local, stream, &count) => outcome,
                    never = self.watch(&sender) => match never {},
                }
            }
            Err(error) => Err(error.into()),
        };
        let (bytes_up, bytes_down) = traffic.get();
        let refused = matches!(outcome, Err(PumpError::Stream(StreamError::Refused | StreamError::Unreachable { .. })));
        let silent = match outcome {
            Err(PumpError::Stream(StreamError::Silent { answered, .. })) => Some(answered),
            _ => None,
        };
        let error = outcome.err().map(|error| error.to_string());
        let connection = self.number;
        tracing::info!(connection, bytes_up, bytes_down, error = error.as_deref(), "connection closed");
        (self.on_event)(ForwardEvent::ConnectionClosed { connection, bytes_up, bytes_down, refused, error });
        if let Some(text) = silent.and_then(|answered| self.unanswered.explain_reset(connection, answered)) {
            (self.on_event)(ForwardEvent::Warning { text });
        }
    }

    /// Warns if this connection gets no answer from the destination.
    async fn watch(&self, sender: &Sender) -> Infallible {
        let told = self.unanswered.watch(self.number, || self.stats.bytes_down(), || sender.is_connected()).await;
        if let Some(text) = told {
            (self.on_event)(ForwardEvent::Warning { text });
        }
        std::future::pending().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stats.closed();
    }
}
