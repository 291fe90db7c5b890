//! A forwarder whose connections a relay on the node carries.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use ssm_proto::relay::Destination;

use super::*;
use crate::relay::{Pipes, PipesEnd, Placed, place};

/// How it ended.
pub(super) enum Relayed {
    /// The forwarder has.
    Ended(Result<(), ForwardError>),
    /// The node has no relay, for this reason.
    NoRelay(String),
}

impl Forwarder {
    /// Places a relay and serves connections by it; places it again when it is gone.
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
        let Some(to) = self.destination() else {
            return Relayed::NoRelay("the document decides where connections go".into());
        };
        let is_ready = AtomicBool::new(false);
        loop {
            let placed = tokio::select! {
                placed = self.place(config) => placed,
                () = shutdown.as_mut() => return Relayed::Ended(Ok(())),
            };
            let placed = match placed {
                Ok(placed) => placed,
                Err(why) => return Relayed::NoRelay(why),
            };
            let (ended, had_pipe) =
                self.serve_relayed(placed, to.clone(), (since, &is_ready), first, shutdown.as_mut()).await;
            match ended {
                Err(PipesEnd::Gone(why)) if !had_pipe => return Relayed::NoRelay(why),
                Err(PipesEnd::Gone(why)) => {
                    let target = &self.request.target;
                    let text = format!(
                        "the relay on {target} is gone: {why}; its connections were reset, it is started again"
                    );
                    self.emit(ForwardEvent::Warning { text });
                }
                // The next connection has it started again.
                Err(PipesEnd::Expired) => tokio::select! {
                    accepted = self.listener.accept() => *first = accepted.ok(),
                    () = shutdown.as_mut() => return Relayed::Ended(Ok(())),
                },
                Ok(outcome) => return Relayed::Ended(outcome),
            }
        }
    }

    /// Where connections lead, as the node has to connect.
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
        let placed = place(&self.provider, &self.request, &self.config.session, config, patience, waiting).await;
        placed.map_err(|error| error.to_string())
    }

    /// Serves connections until the forwarder ends (`Ok`) or the relay is of no use any more (`Err`). Also says whether it ever
    /// was of use.
    async fn serve_relayed<S>(
        &self,
        placed: Placed,
        to: Destination,
        (since, is_ready): (Instant, &AtomicBool),
        first: &mut Option<Accepted>,
        shutdown: Pin<&mut S>,
    ) -> (Result<Result<(), ForwardError>, PipesEnd>, bool)
    where
        S: Future<Output = ()> + Send,
    {
        let pool = Arc::new(Pool::new(self.relay_blueprint(placed.port)));
        self.stats.attach(pool.totals());
        let pipes = Arc::new(Pipes::new(pool.clone(), placed.secret, to));
        let had_pipe = AtomicBool::new(false);
        let (began, has_begun) = oneshot::channel();
        let (stop_serving, stopped) = oneshot::channel();
        let on_ready = |session: &Session| drop(began.send((session.id().to_owned(), session.agent_version())));
        let serve = async {
            let Ok((session_id, agent_version)) = has_begun.await else { return std::future::pending().await };
            pipes.ready().await;
            had_pipe.store(true, Ordering::Relaxed);
            if !is_ready.load(Ordering::Relaxed) {
                self.probe(&pipes).await?;
            }
            if !is_ready.swap(true, Ordering::Relaxed) {
                self.tell_ready(since, session_id, agent_version);
            }
            match self.serve(Route::Relay(pipes.clone()), first.take(), stopped).await {}
        };
        let stop = async {
            shutdown.await;
            let _ = stop_serving.send(());
            pipes.say_bye().await;
        };
        let ended = tokio::select! {
            outcome = pool.run(on_ready, stop) => Ok(outcome),
            end = pipes.run() => Err(end),
            failed = serve => Ok(failed),
        };
        (ended, had_pipe.into_inner())
    }

    /// With `wait_ready`: sees that the destination takes a connection.
    async fn probe(&self, pipes: &Pipes) -> Result<(), ForwardError> {
        if !self.config.wait_ready {
            return Ok(());
        }
        let probe = async { pipes.open()?.connected().await };
        let why = match tokio::time::timeout(self.config.connect_timeout, probe).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", self.config.connect_timeout.as_secs_f32()),
        };
        let destination = self.request.destination();
        Err(ForwardError::RemoteRefused(format!("the remote port does not answer ({destination}): {why}")))
    }

    fn relay_blueprint(&self, port: u16) -> Blueprint {
        let plain = self.blueprint();
        let request = StartRequest {
            target: self.request.target.clone(),
            document: Some("AWS-StartPortForwardingSession".into()),
            parameters: [("portNumber".to_owned(), vec![port.to_string()])].into(),
            reason: self.request.reason.clone(),
            ..StartRequest::default()
        };
        Blueprint { first: None, request, wait_ready: false, ..plain }
    }
}
