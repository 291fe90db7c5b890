//! One tunnel of an `up`. It is opened, and opened again after each failure, until it is paused or stopped.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ssm_forward::{ForwardStats, StatsSnapshot};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::UpContext;
use super::status::{Limits, Phase, Status};
use crate::config;
use crate::connect;
use crate::exit_code::{ExitCode, Failure};
use crate::hosts;
use crate::output::Subject;
use crate::plan;
use crate::relay;
use crate::shutdown::{Shutdown, StopCause};
use crate::spec::{ForwardRequest, ForwardSpec, Remote};
use crate::tunnels::{Tracker, Tunnel, warn_of_leftover};

/// Time limit for ending the sessions of a tunnel.
const GRACE: Duration = Duration::from_secs(5);

/// If a tunnel fails after at least this time, the backoff starts from the beginning.
const SETTLED: Duration = Duration::from_secs(60);

/// Interval at which the expiry time of the credentials is read. It changes, because credentials are renewed when they are used.
const CREDENTIALS_CHECK: Duration = Duration::from_secs(10);

/// An order for a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// End the sessions, and open the tunnel again.
    Restart,
    /// End the sessions, and stop listening. If the tunnel is already paused, open it again.
    Pause,
    /// End the tunnel.
    Stop,
}

/// The manager's handle to a tunnel.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) tunnel: Arc<config::Tunnel>,
    orders: UnboundedSender<Order>,
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

/// The state of a tunnel.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The phase, if it does not follow from the state of the sessions.
    phase: Option<Phase>,
    error: Option<String>,
    target: Option<String>,
    remote: Option<Remote>,
    restarts: u64,
    credentials_end: Option<SystemTime>,
    limits: Option<Limits>,
    tracker: Option<Tracker>,
    stats: Option<ForwardStats>,
}

impl Worker {
    /// Spawns a task that opens a tunnel. `index` is the tunnel's index in the output.
    pub(super) fn start(index: usize, tunnel: config::Tunnel, shared: Arc<UpContext>) -> Self {
        let tunnel = Arc::new(tunnel);
        shared.subjects.put(index, unplanned(&tunnel));
        let (orders, receiver) = mpsc::unbounded_channel();
        let (sender, known) = watch::channel(Known::default());
        let keeper = Keeper { index, tunnel: tunnel.clone(), shared, known: sender };
        let task = tokio::spawn(keeper.keep(receiver));
        Self { tunnel, orders, known, task }
    }

    /// Sends an order to the tunnel.
    pub(super) fn order(&self, order: Order) {
        // Sending fails only if the task has ended. Then the order is not needed.
        let _ = self.orders.send(order);
    }

    /// Ends the tunnel and waits until it has ended.
    pub(super) async fn stop(self) {
        self.order(Order::Stop);
        let _ = self.task.await;
    }

    /// Returns the status.
    pub(super) fn status(&self) -> Status {
        let known = self.known.borrow().clone();
        let state = known.tracker.as_ref().map(Tracker::state).unwrap_or_default();
        let figures = match serde_json::to_value(self.figures()) {
            Ok(Value::Object(figures)) => figures,
            _ => Default::default(),
        };
        let planned = known.remote.map(|remote| remote.to_string());
        let remote = self.tunnel.args.forwards.first().map(|forward| forward.text().to_owned());
        Status {
            name: self.tunnel.name.clone(),
            state: known.phase.unwrap_or(state.phase),
            address: state.address.map(|address| address.to_string()),
            remote: planned.or(remote).unwrap_or_default(),
            target: known.target,
            session_id: state.session_id,
            error: known.error,
            credentials_end: known.credentials_end.map(|end| humantime::format_rfc3339_seconds(end).to_string()),
            limits: known.limits,
            relay: relay::config(&self.tunnel.args.relay).is_some(),
            restarts: known.restarts,
            figures,
        }
    }

    /// Returns the live figures.
    pub(super) fn figures(&self) -> StatsSnapshot {
        self.known.borrow().stats.as_ref().map(ForwardStats::snapshot).unwrap_or_default()
    }
}

/// Returns the description of a tunnel in the output before its names are looked up.
fn unplanned(tunnel: &config::Tunnel) -> Subject {
    let spec = match tunnel.args.forwards.first() {
        Some(ForwardRequest::Plain(spec)) => spec.clone(),
        other => {
            let text = other.map(|other| other.text().to_owned()).unwrap_or_default();
            let listen = other.and_then(ForwardRequest::listen).cloned();
            let any = || ssm_forward::ListenAddr::Tcp(([127, 0, 0, 1], 0).into());
            ForwardSpec {
                listen: listen.unwrap_or_else(any),
                remote: Remote { host: Some(text.clone()), port: 0 },
                text,
            }
        }
    };
    let target = tunnel.args.target().unwrap_or_default().to_owned();
    Subject { name: Some(tunnel.name.clone()), target, spec }
}

/// The task behind a [`Worker`].
struct Keeper {
    index: usize,
    tunnel: Arc<config::Tunnel>,
    shared: Arc<UpContext>,
    known: watch::Sender<Known>,
}

impl Keeper {
    async fn keep(self, mut orders: UnboundedReceiver<Order>) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let order = match self.run_once(&mut orders).await {
                Ended::Ordered(order) => order,
                Ended::Failed(failure) => {
                    if began.elapsed() >= SETTLED {
                        backoff = Backoff::default();
                    }
                    self.wait_after(failure, backoff.next(), &mut orders).await
                }
            };
            // The error stays in the status until the tunnel is open, or until an order arrives.
            if order.is_some() {
                self.known.send_modify(|known| known.error = None);
            }
            let order = match order {
                Some(Order::Pause) => self.pause(&mut orders).await,
                order => order,
            };
            match order {
                Some(Order::Stop) => return,
                Some(_) => backoff = Backoff::default(),
                None => {}
            }
            self.known.send_modify(|known| {
                (known.phase, known.tracker) = (None, None);
                known.restarts += 1;
            });
        }
    }

    /// Opens the tunnel, and serves until it fails or an order arrives.
    async fn run_once(&self, orders: &mut UnboundedReceiver<Order>) -> Ended {
        let stop = Shutdown::new();
        let run = self.open(stop.clone());
        tokio::pin!(run);
        let order = tokio::select! {
            ended = &mut run => match ended {
                Ok(()) => return Ended::Ordered(None),
                Err(failure) => return Ended::Failed(failure),
            },
            order = orders.recv() => order.unwrap_or(Order::Stop),
        };
        self.known.send_modify(|known| known.phase = Some(Phase::Stopping));
        stop.stop(StopCause::Terminate);
        if timeout(GRACE, run).await.is_err() {
            self.warn_of_leftover();
        }
        Ended::Ordered(Some(order))
    }

    /// Opens the tunnel, and serves until it fails or is stopped.
    async fn open(&self, stop: Shutdown) -> Result<(), Failure> {
        let args = &self.tunnel.args;
        let aws = self.shared.providers.get(&args.aws).await?;
        let opened = async {
            let planned = plan::plan(args, plan::requests(args)?, &aws).await?.into_iter().next();
            let mut planned = planned.ok_or_else(|| Failure::internal("a tunnel without a forward"))?;
            let hosts = self.shared.hosts.as_ref().filter(|_| hosts::gets_name(&planned.spec));
            let mut names = Vec::new();
            if hosts.is_some() {
                let planned = std::slice::from_mut(&mut planned);
                names = hosts::assign(planned, "--hosts")?;
                hosts::tell(planned, &names);
            }
            let subject = Subject {
                name: Some(self.tunnel.name.clone()),
                target: planned.target.clone(),
                spec: planned.spec.clone(),
            };
            self.known.send_modify(|known| {
                known.target = Some(subject.target.clone());
                known.remote = Some(subject.spec.remote.clone());
            });
            self.shared.subjects.put(self.index, subject);
            let session = connect::session_config(&aws, &args.aws.allow_stream_host, args.aws.stream_endpoint.clone())?;
            let bound = Tunnel::bind(self.index, args, &session, &aws, planned, &self.shared.reporter).await?;
            let entries = match hosts {
                Some(hosts) => Some(hosts.put(self.index, names).await?),
                None => None,
            };
            Ok((bound, entries))
        };
        let forget = |failure: &Failure| self.shared.providers.forget_after(&args.aws, failure);
        let (bound, _entries) = opened.await.inspect_err(forget)?;
        let tracker = bound.tracker();
        self.known.send_modify(|known| {
            known.tracker = Some(tracker.clone());
            known.stats = Some(bound.stats());
        });
        let span = tracing::warn_span!("tunnel", name = self.tunnel.name);
        let opening = async {
            tracker.open().await;
            self.known.send_modify(|known| known.error = None);
            let mut limits = self.shared.providers.limits(&args.aws, &aws).await;
            if let Some(limits) = limits.as_mut().filter(|_| args.keep_alive) {
                limits.idle_minutes = None;
            }
            self.known.send_modify(|known| known.limits = limits);
        };
        let look = async {
            loop {
                let end = aws.credentials_end().await;
                self.known.send_if_modified(|known| std::mem::replace(&mut known.credentials_end, end) != end);
                sleep(CREDENTIALS_CHECK).await;
            }
        };
        let ended = tokio::select! {
            ended = bound.run(stop, span) => ended.map_err(|ended| ended.failure),
            ((), never) = async { tokio::join!(opening, look) } => never,
        };
        ended.inspect_err(forget)
    }

    /// Reports the failure, and waits before the next attempt. An order ends the wait and is returned.
    async fn wait_after(
        &self,
        failure: Failure,
        delay: Duration,
        orders: &mut UnboundedReceiver<Order>,
    ) -> Option<Order> {
        self.known.send_modify(|known| {
            known.phase = Some(Phase::Retrying);
            known.error = Some(failure.message.clone());
            known.tracker = None;
        });
        self.shared.reporter.retrying(self.index, failure, delay);
        tokio::select! {
            () = sleep(delay) => None,
            order = orders.recv() => Some(order.unwrap_or(Order::Stop)),
        }
    }

    /// Waits for the next order, which ends the pause.
    async fn pause(&self, orders: &mut UnboundedReceiver<Order>) -> Option<Order> {
        self.known.send_modify(|known| {
            known.phase = Some(Phase::Paused);
            (known.error, known.tracker) = (None, None);
        });
        Some(orders.recv().await.unwrap_or(Order::Stop))
    }

    fn warn_of_leftover(&self) {
        let tracker = self.known.borrow().tracker.clone();
        if let Some(id) = tracker.and_then(|tracker| tracker.state().session_id) {
            warn_of_leftover(&id, &self.shared.reporter);
        }
    }
}

/// How one run of a tunnel ended.
enum Ended {
    /// By an order; `None` if the run ended without an order and without a failure.
    Ordered(Option<Order>),
    Failed(Failure),
}

/// The delay before the next attempt. It doubles with each attempt, up to a minute.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        const FIRST: Duration = Duration::from_secs(1);
        const LAST: Duration = Duration::from_secs(60);
        let delay = FIRST.saturating_mul(1 << self.attempts.min(6)).min(LAST);
        self.attempts += 1;
        delay
    }
}

/// Whether a failure may be caused by the credentials, so that the next attempt must look them up again.
pub(super) fn is_about_credentials(failure: &Failure) -> bool {
    failure.code == ExitCode::Config || failure.kind == "access_denied"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.next().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
