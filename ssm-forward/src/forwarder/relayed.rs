//! Runs a forwarder whose connections are carried by a relay on the node.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ssm_proto::relay::Destination;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{Accepted, Forwarder};
use crate::pool::{Blueprint, Pool};
use crate::relay::{FeedSource, Feeds, Pipes, PipesEnd, Placed, RelayConfig, place};
use crate::route::Route;
use crate::session::{Session, SessionConfig};
use crate::{ForwardError, ForwardEvent, ProbeError, StartRequest};

/// Delay between attempts to start the relay again, and minimum time between two replacements of a lost relay.
const RETRY: Duration = Duration::from_secs(5);

/// How [`Forwarder::run_relayed`] ended.
pub(super) enum Relayed {
    /// The forwarder ended.
    Ended(Result<(), ForwardError>),
    /// The node has no relay, for this reason. No connection has been served.
    NoRelay(String),
}

/// How [`Forwarder::serve_relayed`] ended.
enum Served {
    /// The forwarder ended.
    Ended(Result<(), ForwardError>),
    /// No session reached the relay, for this reason.
    Unreached(String),
    /// The relay ended, for this reason. Connections were reset.
    Gone(String),
    /// There was no session for so long that the relay has ended by its own timeout.
    Expired,
}

/// When a lost relay is replaced: immediately, unless the previous replacement was less than `RETRY` ago. Otherwise, a node on
/// which relays always end would be asked for new ones without pause.
struct Replacements {
    not_before: Instant,
}

impl Replacements {
    /// Returns the delay of the next replacement.
    fn delay(&mut self, now: Instant) -> Duration {
        let at = self.not_before.max(now);
        self.not_before = at + RETRY;
        at - now
    }
}

impl Forwarder {
    /// Starts a relay and serves connections through it. Starts it again when it is lost.
    pub(super) async fn run_relayed<S>(
        &self,
        config: &RelayConfig,
        since: Instant,
        first: &mut Option<Accepted>,
        mut shutdown: Pin<&mut S>,
    ) -> Relayed
    where
        S: Future<Output = ()> + Send,
    {
        let to = self.destination().filter(|_| self.dials.is_none());
        if to.is_none() && self.dials.is_none() {
            return Relayed::NoRelay("the document decides where connections go".into());
        }
        let is_ready = AtomicBool::new(false);
        let mut told = String::new();
        let mut replacements = Replacements { not_before: Instant::now() };
        loop {
            let placed = tokio::select! {
                placed = self.place(config) => placed,
                () = shutdown.as_mut() => return Relayed::Ended(Ok(())),
            };
            let served = match placed {
                Ok(placed) => {
                    let feeds = config.feeds.then(|| self.feeds(&placed));
                    self.serve_relayed((placed, feeds), to.clone(), (since, &is_ready), first, shutdown.as_mut()).await
                }
                Err(why) => Served::Unreached(why),
            };
            let target = &self.request.target;
            match served {
                Served::Ended(outcome) => return Relayed::Ended(outcome),
                Served::Unreached(why) if !is_ready.load(Ordering::Relaxed) => return Relayed::NoRelay(why),
                Served::Unreached(why) => {
                    if told != why {
                        let seconds = RETRY.as_secs();
                        let text = format!(
                            "the relay on {target} cannot be started again: {why}; the start is repeated every {seconds} s"
                        );
                        self.emit(ForwardEvent::Warning { text });
                        told = why;
                    }
                    tokio::select! {
                        () = sleep(RETRY) => {}
                        () = shutdown.as_mut() => return Relayed::Ended(Ok(())),
                    }
                }
                Served::Gone(why) => {
                    let text = format!(
                        "the relay on {target} is gone: {why}; its connections were reset, it is started again"
                    );
                    self.emit(ForwardEvent::Warning { text });
                    told.clear();
                    tokio::select! {
                        () = sleep(replacements.delay(Instant::now())) => {}
                        () = shutdown.as_mut() => return Relayed::Ended(Ok(())),
                    }
                }
                Served::Expired => {
                    told.clear();
                    // The next connection needs the relay again.
                    tokio::select! {
                        accepted = self.needed() => *first = accepted,
                        () = shutdown.as_mut() => return Relayed::Ended(Ok(())),
                    }
                }
            }
        }
    }

    /// Completes when there is a new connection, or when a dialer waits.
    async fn needed(&self) -> Option<Accepted> {
        match &self.dials {
            None => Some(self.accept().await),
            Some(dials) => {
                dials.wanted().await;
                None
            }
        }
    }

    /// Returns the destination of the connections, as the node has to connect to it. `None`: the document decides.
    fn destination(&self) -> Option<Destination> {
        let given = |key| {
            let values = self.request.parameters.get(key).or_else(|| self.request.offered.get(key))?;
            values.first().map(String::as_str)
        };
        Destination::new(given("host").unwrap_or("localhost"), given("portNumber")?.parse().ok()?)
    }

    async fn place(&self, config: &RelayConfig) -> Result<Placed, String> {
        let patience = self.config.wait_connected;
        let waiting = |cause: &str| self.emit(ForwardEvent::AwaitingTarget { cause: cause.to_owned(), patience });
        let session = self.command_session();
        let placed = place(&self.provider, &self.request, &session, config, patience, waiting).await;
        placed.map_err(|error| error.to_string())
    }

    /// Returns the settings of sessions that run a command.
    fn command_session(&self) -> SessionConfig {
        SessionConfig { start_timeout: self.config.connect_timeout, ..self.config.session.clone() }
    }

    fn feeds(&self, placed: &Placed) -> Feeds {
        let source = FeedSource {
            provider: self.provider.clone(),
            target: self.request.target.clone(),
            reason: self.request.reason.clone(),
            session: self.command_session(),
            port: placed.port,
            process: placed.process,
            secret: placed.secret.clone(),
        };
        Feeds::new(source, self.on_event.clone())
    }

    /// Serves connections until the forwarder ends or the relay cannot be used any longer.
    async fn serve_relayed<S>(
        &self,
        (placed, feeds): (Placed, Option<Feeds>),
        to: Option<Destination>,
        (since, is_ready): (Instant, &AtomicBool),
        first: &mut Option<Accepted>,
        shutdown: Pin<&mut S>,
    ) -> Served
    where
        S: Future<Output = ()> + Send,
    {
        let pool = Arc::new(Pool::new(self.relay_blueprint(placed.port)));
        self.stats.attach(pool.totals());
        let pipes = Arc::new(Pipes::new(pool.clone(), placed.secret, feeds));
        let had_pipe = AtomicBool::new(false);
        let (began, has_begun) = oneshot::channel();
        let (stop_serving, stopped) = oneshot::channel();
        let on_ready = |session: &Session| drop(began.send((session.id().to_owned(), session.agent_version())));
        let serve = async {
            let Ok((session_id, agent_version)) = has_begun.await else { return std::future::pending().await };
            pipes.ready().await;
            had_pipe.store(true, Ordering::Relaxed);
            if !is_ready.load(Ordering::Relaxed) {
                match self.probe(&pipes, to.as_ref()).await {
                    // The forwarder is stopping, and this has ended the attempt.
                    Err(_) if pipes.is_leaving() => std::future::pending().await,
                    outcome => outcome?,
                }
            }
            if !is_ready.swap(true, Ordering::Relaxed) {
                self.emit_ready(since, session_id, agent_version);
            }
            let _open = self.dials.as_ref().map(|dials| dials.open(pipes.clone()));
            let route = to.map_or(Route::Dialed, |to| Route::Relay(pipes.clone(), to));
            match self.serve(route, first.take(), stopped).await {}
        };
        let stop = async {
            shutdown.await;
            let _ = stop_serving.send(());
            pipes.say_bye().await;
        };
        let had_pipe = || had_pipe.load(Ordering::Relaxed);
        let served = tokio::select! {
            outcome = pool.run(on_ready, stop) => match outcome {
                // The forwarder was asked to stop, so the error does not matter.
                Err(_) if pipes.is_leaving() => Served::Ended(Ok(())),
                Err(error) if !had_pipe() => Served::Unreached(error.to_string()),
                outcome => Served::Ended(outcome),
            },
            end = pipes.run() => match end {
                PipesEnd::Gone(why) if had_pipe() => Served::Gone(why),
                PipesEnd::Gone(why) => Served::Unreached(why),
                PipesEnd::Expired if had_pipe() => Served::Expired,
                PipesEnd::Expired => Served::Unreached("no session reached it".into()),
            },
            failed = serve => Served::Ended(failed),
        };
        if let Served::Ended(_) = served {
            // The tasks of the feeds have been aborted, but may not be dropped yet.
            pipes.feeds_ended().await;
        }
        served
    }

    /// With `wait_ready`: checks that the destination accepts a connection.
    async fn probe(&self, pipes: &Pipes, to: Option<&Destination>) -> Result<(), ForwardError> {
        let Some(to) = to.filter(|_| self.config.wait_ready) else { return Ok(()) };
        let probe = async { pipes.open(to.clone())?.connected().await };
        let source = match tokio::time::timeout(self.config.connect_timeout, probe).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.into(),
            Err(_) => ProbeError::TimedOut(self.config.connect_timeout),
        };
        Err(ForwardError::RemoteRefused { destination: self.request.destination(), source })
    }

    fn relay_blueprint(&self, port: u16) -> Blueprint {
        let plain = self.blueprint();
        let request =
            StartRequest { reason: self.request.reason.clone(), ..StartRequest::to_port(&self.request.target, port) };
        Blueprint { first: None, request, wait_ready: false, carries_pipes: true, ..plain }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;
    use crate::relay::RelayProgram;
    use crate::{BoxFuture, ForwardConfig, HeaderMap, ProviderError, SessionProvider, SessionTicket, Url};

    /// An API that never answers.
    struct Unanswering;

    impl SessionProvider for Unanswering {
        fn start<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
            Box::pin(pending())
        }

        fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<SessionTicket, ProviderError>> {
            Box::pin(pending())
        }

        fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
            Box::pin(pending())
        }

        fn sign_upgrade<'a>(&'a self, _: &'a Url) -> BoxFuture<'a, Result<HeaderMap, ProviderError>> {
            Box::pin(pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_session_that_places_a_relay_has_the_timeout_of_the_others() {
        let programs = &[RelayProgram { machine: "x86_64", sha256: "", gzip: b"" }];
        let config = ForwardConfig { connect_timeout: Duration::from_secs(7), ..ForwardConfig::default() };
        let request = StartRequest { target: "i-1".into(), ..StartRequest::default() };
        let builder = Forwarder::builder(Arc::new(Unanswering), request).config(config);
        let (forwarder, _dialer) = builder.dial(RelayConfig { programs, ephemeral: false, feeds: true });
        let began = Instant::now();
        let ended = forwarder.run(pending()).await;
        assert!(matches!(&ended, Err(ForwardError::NoRelay { why }) if why.contains("within 7 s")), "{ended:?}");
        assert_eq!(began.elapsed().as_secs(), 7);
    }

    #[test]
    fn a_relay_that_ends_again_and_again_is_replaced_at_intervals() {
        let start = std::time::Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut replacements = Replacements { not_before: start };
        assert_eq!(replacements.delay(after(60)), Duration::ZERO);
        assert_eq!(replacements.delay(after(61)), Duration::from_secs(4));
        assert_eq!(replacements.delay(after(66)), Duration::from_secs(4));
        assert_eq!(replacements.delay(after(600)), Duration::ZERO);
    }
}
