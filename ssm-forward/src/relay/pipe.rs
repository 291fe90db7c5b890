//! A pipe: one session's stream to the relay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proto::relay::{Greeting, GreetingError, LinkError, Presence, RelaySecret, RelaySide};
use tokio::time::timeout;

use super::shared::SharedLink;
use crate::{Session, SessionStream, StreamError};

/// Timeout for the relay's greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
/// Delay of the next pipe in a session that continues after its pipe has ended.
const NEXT_PIPE_DELAY: Duration = Duration::from_millis(500);
/// Maximum number of bytes per read.
const READ_SIZE: usize = 128 << 10;

/// Why a pipe ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipeError {
    /// The session of the pipe ended.
    #[error(transparent)]
    Session(StreamError),
    /// The relay's port refused the connection, or the pipe ended before the relay's proof of the secret.
    #[error("it is no longer running")]
    Refused,
    #[error("{0}")]
    Greeting(#[from] GreetingError),
    #[error("it does not answer")]
    Silent,
    #[error("{0}")]
    Link(#[from] LinkError),
    /// This machine could not generate random numbers.
    #[error(transparent)]
    Random(#[from] getrandom::Error),
    /// The link has the maximum number of pipes.
    #[error("there are too many pipes")]
    TooMany,
}

impl PipeError {
    /// Returns the delay of the next pipe in the same session.
    pub(super) fn delay(&self) -> Duration {
        match self {
            Self::Link(_) => Duration::ZERO,
            // If the relay has ended, this should be detected soon.
            Self::Refused => Presence::DELAY,
            Self::Greeting(_) | Self::Session(_) | Self::Silent | Self::Random(_) | Self::TooMany => NEXT_PIPE_DELAY,
        }
    }

    /// Reports to `presence` how the pipe, which was attempted at `began`, has ended. `living` is the number of the other pipes.
    /// Returns whether the relay itself cannot be used any longer.
    pub(super) fn report_to(&self, presence: &mut Presence, began: Instant, living: usize) -> bool {
        match self {
            Self::Link(_) => true,
            // Another program listens on the port, or an agent has mixed up its connections.
            Self::Greeting(_) => living == 0,
            Self::Refused => presence.refused(Instant::now(), began, living),
            Self::Session(_) | Self::Silent | Self::Random(_) | Self::TooMany => false,
        }
    }
}

impl From<StreamError> for PipeError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Refused => Self::Refused,
            error => Self::Session(error),
        }
    }
}

/// Keeps a pipe in a session until one of the two ends.
pub(super) async fn run(shared: Arc<SharedLink>, session: Arc<Session>, secret: RelaySecret) -> PipeError {
    match try_run(&shared, &session, secret).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_run(
    shared: &SharedLink,
    session: &Session,
    secret: RelaySecret,
) -> Result<std::convert::Infallible, PipeError> {
    let mut stream = session.open_stream().await?;
    let rest = timeout(GREETING_TIMEOUT, greet(&mut stream, secret)).await.map_err(|_| PipeError::Silent)??;
    let (id, filled) = shared.add_pipe().ok_or(PipeError::TooMany)?;
    tracing::debug!(session = session.id(), pipe = id.0, "a pipe to the relay");
    let _guard = Guard { shared, id };
    shared.handle_input(id, &[rest])?;
    let sender = stream.sender();
    let send = async {
        loop {
            filled.notified().await;
            let mut bytes = shared.take_outbox(id);
            let bytes = match bytes.as_mut_slice() {
                [one] => std::mem::take(one),
                several => several.concat().into(),
            };
            if let Err(error) = sender.write_chunk(bytes).await {
                return Err(error.into());
            }
        }
    };
    tokio::select! {
        error = receive(shared, &mut stream, id) => error,
        error = send => error,
    }
}

async fn receive(
    shared: &SharedLink,
    stream: &mut SessionStream,
    id: ssm_proto::relay::PipeId,
) -> Result<std::convert::Infallible, PipeError> {
    let mut chunks = Vec::new();
    while stream.read_chunks(&mut chunks, READ_SIZE).await? {
        shared.handle_input(id, &chunks)?;
        chunks.clear();
    }
    Err(PipeError::Session(StreamError::Closed))
}

/// Removes the pipe from the link when it is dropped.
struct Guard<'a> {
    shared: &'a SharedLink,
    id: ssm_proto::relay::PipeId,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.shared.lose_pipe(self.id);
    }
}

/// Performs the greeting, in which both ends prove that they know the secret. Returns the bytes that arrived after it.
async fn greet(stream: &mut SessionStream, secret: RelaySecret) -> Result<Bytes, PipeError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    let mut greeting = Greeting::new(RelaySide::Client, secret, nonce);
    let sender = stream.sender();
    while !greeting.is_done() {
        // A relay that ends the pipe at this point does not know the secret, is about to end, or has too many unfinished pipes.
        let chunk = stream.read_chunk().await?.ok_or(PipeError::Refused)?;
        greeting.handle_input(&chunk)?;
        if let Some(bytes) = greeting.poll_transmit() {
            sender.write_chunk(bytes).await?;
        }
    }
    Ok(greeting.into_rest())
}
