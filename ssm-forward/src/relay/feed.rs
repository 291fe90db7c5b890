//! A feed: the output of a command on the node that transfers data from the relay. The agent does not slow this output down.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proto::Output;
use ssm_proto::relay::{FeedDecoder, FeedError, Greeting, GreetingError, LinkError, PipeId, RelaySecret};
use tokio::time::timeout;

use super::shared::SharedLink;
use crate::text::one_line;
use crate::{ForwardError, Session, SessionConfig, SessionProvider, StartRequest, StreamError};

/// The document of the sessions of feeds. It must be one without a terminal, because the agent does not slow down the output of
/// such a session.
pub(crate) const DOCUMENT: &str = "AWS-StartNonInteractiveCommand";
/// Timeout for the relay's greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of bytes per read.
const READ_SIZE: usize = 128 << 10;
/// Maximum number of bytes that are kept of the program's error output.
const MAX_ERROR_OUTPUT: usize = 512;

/// The settings with which the feeds of one relay are started.
pub(crate) struct FeedSource {
    pub(crate) provider: Arc<dyn SessionProvider>,
    pub(crate) target: String,
    pub(crate) reason: Option<String>,
    pub(crate) session: SessionConfig,
    /// The relay's port on the node's loopback interface.
    pub(crate) port: u16,
    /// The relay's process id.
    pub(crate) process: u32,
    /// The relay's secret.
    pub(crate) secret: RelaySecret,
}

/// How a feed ended.
#[derive(Debug)]
pub(super) enum FeedEnd {
    /// It was requested to stop, after it had carried this number of bytes.
    Stopped(u64),
    /// StartSession was refused, and a retry would not help.
    Denied(ForwardError),
    /// The feed could not be started, or ended by itself.
    Cut(Carried, FeedFailure),
}

/// The data that a feed has carried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    since: Option<Instant>,
    /// Number of bytes.
    pub(super) bytes: u64,
}

impl Carried {
    /// Returns for how long the feed has carried data.
    pub(super) fn lasted(&self) -> Duration {
        self.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

/// Why a feed could not be started, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum FeedFailure {
    #[error(transparent)]
    NotStarted(ForwardError),
    #[error(transparent)]
    Session(#[from] StreamError),
    /// AWS may have closed the WebSocket, or the agent has ended.
    #[error("its WebSocket was lost")]
    Disconnected,
    /// The program on the node ended, with this error output.
    #[error("the program on the node ended{0}")]
    Ended(String),
    #[error("the relay does not answer")]
    Silent,
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error(transparent)]
    Changed(#[from] FeedError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("there are too many")]
    TooMany,
    #[error(transparent)]
    Random(#[from] getrandom::Error),
}

impl FeedSource {
    /// Returns the request for a session. The program is the executable of the running relay, even if its file was removed. The
    /// nonce is not secret (RELAY-20).
    fn request(&self, nonce: [u8; 16]) -> StartRequest {
        let Self { port, process, .. } = self;
        let nonce = u128::from_be_bytes(nonce);
        let one = |name: &str, value: String| (name.to_owned(), vec![value]);
        StartRequest {
            target: self.target.clone(),
            document: Some(DOCUMENT.into()),
            parameters: [
                one("command", format!("/proc/{process}/exe feed {port} {nonce:032x}")),
                one("separateOutputStream", "true".into()),
            ]
            .into(),
            reason: self.reason.clone(),
            ..StartRequest::default()
        }
    }
}

/// Starts a feed and keeps it until it ends, or until `stop` completes. Terminates its session.
pub(super) async fn run(
    shared: &SharedLink,
    source: &FeedSource,
    began: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> FeedEnd {
    let mut nonce = [0; 16];
    if let Err(error) = getrandom::fill(&mut nonce) {
        return FeedEnd::Cut(Carried::default(), error.into());
    }
    let mut stop = std::pin::pin!(stop);
    let request = source.request(nonce);
    let start = Session::start(source.provider.clone(), &request, source.session.clone(), |_| {}, |_| {});
    let started = tokio::select! {
        started = start => started,
        () = &mut stop => return FeedEnd::Stopped(0),
    };
    let session = match started {
        Ok(session) => session,
        Err(ForwardError::Provider(error)) if !error.is_retryable() => return FeedEnd::Denied(error.into()),
        Err(error) => return FeedEnd::Cut(Carried::default(), FeedFailure::NotStarted(error)),
    };
    let mut carried = Carried::default();
    let greeting = Greeting::of_feed(source.secret.clone(), nonce);
    let failure = tokio::select! {
        biased;
        () = stop => None,
        failure = carry(shared, &session, greeting, &mut carried, began) => Some(failure),
        () = disconnected(&session) => Some(FeedFailure::Disconnected),
    };
    session.terminate().await;
    match failure {
        Some(failure) => FeedEnd::Cut(carried, failure),
        None => FeedEnd::Stopped(carried.bytes),
    }
}

/// Completes when the session's WebSocket is lost.
async fn disconnected(session: &Session) {
    let _ = session.watch_connected().wait_for(|is_connected| !is_connected).await;
}

/// Passes the program's output to the link. Returns why it ended.
async fn carry(
    shared: &SharedLink,
    session: &Session,
    greeting: Greeting,
    carried: &mut Carried,
    began: impl FnOnce(),
) -> FeedFailure {
    match try_carry(shared, session, greeting, carried, began).await {
        Ok(error_output) => FeedFailure::Ended(error_output),
        Err(failure) => failure,
    }
}

async fn try_carry(
    shared: &SharedLink,
    session: &Session,
    mut greeting: Greeting,
    carried: &mut Carried,
    began: impl FnOnce(),
) -> Result<String, FeedFailure> {
    let mut output = ProgramOutput::open(session).await?;
    let greeted = timeout(GREETING_TIMEOUT, async {
        while !greeting.is_done() {
            let Some(bytes) = output.next().await? else { return Ok(false) };
            greeting.handle_input(&bytes)?;
        }
        Ok::<_, FeedFailure>(true)
    });
    if !greeted.await.map_err(|_| FeedFailure::Silent)?? {
        return Ok(output.error_text());
    }
    let name = greeting.feed().ok_or(GreetingError::NotARelay)?;
    let id = shared.add_feed(name).ok_or(FeedFailure::TooMany)?;
    let _guard = Guard { shared, id };
    tracing::debug!(session = session.id(), feed = id.0, "a feed from the relay");
    began();
    carried.since = Some(Instant::now());
    shared.handle_input(id, &[greeting.into_rest()])?;
    while let Some(bytes) = output.next().await? {
        carried.bytes += bytes.len() as u64;
        shared.handle_input(id, &[bytes])?;
    }
    Ok(output.error_text())
}

/// Removes the feed from the link when it is dropped.
struct Guard<'a> {
    shared: &'a SharedLink,
    id: PipeId,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.shared.lose_pipe(self.id);
    }
}

/// The output of the program on the node.
struct ProgramOutput {
    stream: crate::SessionStream,
    decoder: FeedDecoder,
    pieces: Vec<(Output, Bytes)>,
    error_output: Vec<u8>,
}

impl ProgramOutput {
    async fn open(session: &Session) -> Result<Self, StreamError> {
        let stream = session.open_stream().await?;
        Ok(Self { stream, decoder: FeedDecoder::default(), pieces: Vec::new(), error_output: Vec::new() })
    }

    /// Returns the next bytes of the feed, or `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, FeedFailure> {
        let mut decoded = Vec::new();
        while decoded.is_empty() {
            if !self.stream.read_outputs(&mut self.pieces, READ_SIZE).await? {
                return Ok(None);
            }
            for (output, bytes) in self.pieces.drain(..) {
                match output {
                    Output::Stdout => self.decoder.decode(&bytes, &mut decoded)?,
                    Output::Stderr => {
                        let room = MAX_ERROR_OUTPUT - self.error_output.len();
                        self.error_output.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
                    }
                }
            }
        }
        Ok(Some(decoded.into()))
    }

    /// Returns the program's error output, after a colon.
    fn error_text(&self) -> String {
        let text = one_line(&String::from_utf8_lossy(&self.error_output));
        if text.is_empty() { text } else { format!(": {text}") }
    }
}
