//! The destinations that have sessions. Each destination has its own forwarder, which the first connection starts and which ends
//! after the idle timeout.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ssm_forward::{
    Entrance, ForwardConfig, ForwardError, ForwardEvent, ForwardStats, Forwarder, ListenAddr, SessionProvider,
};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::Destination;
use super::refusal::{Refusal, RefusalKind};
use crate::args::SessionArgs;
use crate::shutdown::Shutdown;
use crate::spec::{ForwardSpec, Remote};
use crate::tunnels::start_request;

/// Time for which a failed destination is remembered. Within this time it is not tried again, because each attempt costs a
/// session.
const REMEMBERED: Duration = Duration::from_secs(3);
/// Maximum number of first sessions that are started at the same time, because the API is throttled.
const STARTS_AT_ONCE: usize = 4;
/// Interval at which a destination is checked for being idle.
const IDLE_CHECK: Duration = Duration::from_millis(500);

/// The settings that all destinations share.
pub(super) struct Plan {
    pub(super) provider: Arc<dyn SessionProvider>,
    /// The managed node.
    pub(super) target: String,
    pub(super) session: SessionArgs,
    pub(super) config: ForwardConfig,
    /// Idle timeout: the sessions to a destination end after this time without a connection.
    pub(super) idle: Duration,
    /// Maximum number of destinations that have sessions.
    pub(super) max: usize,
}

/// Handle to the set of destinations. Clones share the state.
#[derive(Clone)]
pub(super) struct Destinations {
    shared: Arc<Registry>,
}

struct Registry {
    plan: Plan,
    shutdown: Shutdown,
    starts: Arc<Semaphore>,
    state: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    slots: HashMap<Destination, Slot>,
    tasks: JoinSet<()>,
    /// The number of the next slot.
    next: u64,
}

/// A destination that has sessions, or that failed recently.
struct Slot {
    /// Distinguishes this slot from an earlier or later slot of the same destination.
    number: u64,
    entrance: Entrance,
    stats: ForwardStats,
    readiness: watch::Receiver<Readiness>,
    /// Number of leases, that is, of connections that will be passed to the forwarder.
    leases: usize,
    /// The time of the last use.
    used: Instant,
    /// Notified to end the sessions.
    retire: Arc<Notify>,
}

#[derive(Clone, Debug)]
enum Readiness {
    Starting,
    Ready,
    Failed { refusal: Refusal, at: Instant },
}

impl Slot {
    fn is_failed(&self) -> bool {
        matches!(*self.readiness.borrow(), Readiness::Failed { .. })
    }

    fn is_forgotten(&self) -> bool {
        matches!(*self.readiness.borrow(), Readiness::Failed { at, .. } if at.elapsed() > REMEMBERED)
    }

    fn is_idle(&self) -> bool {
        let is_ready = matches!(*self.readiness.borrow(), Readiness::Ready);
        is_ready && self.leases == 0 && self.stats.snapshot().connections_open == 0
    }
}

/// Permission to pass one connection to a destination. The destination's sessions do not end while the lease exists.
pub(super) struct Lease {
    shared: Arc<Registry>,
    destination: Destination,
    number: u64,
    entrance: Entrance,
}

impl Lease {
    /// Passes a client's connection to the forwarder. When this completes, the connection is counted as open, which keeps the
    /// sessions alive without the lease.
    ///
    /// # Errors
    /// Returns an error if the sessions have just ended. The client's connection is reset.
    pub(super) async fn serve(&self, stream: TcpStream) -> Result<(), ForwardError> {
        self.entrance.hand_in(stream).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(slot) = state.slots.get_mut(&self.destination).filter(|slot| slot.number == self.number) {
            slot.leases = slot.leases.saturating_sub(1);
            slot.used = Instant::now();
        }
    }
}

impl Destinations {
    pub(super) fn new(plan: Plan, shutdown: Shutdown) -> Self {
        let starts = Arc::new(Semaphore::new(STARTS_AT_ONCE));
        Self { shared: Arc::new(Registry { plan, shutdown, starts, state: Mutex::default() }) }
    }

    /// Waits until a destination accepts connections. Starts its first session if necessary.
    ///
    /// # Errors
    /// Returns the reason why the destination does not accept connections.
    pub(super) async fn open(&self, destination: &Destination) -> Result<Lease, Refusal> {
        let (lease, mut readiness) = self.lease(destination)?;
        let found = readiness.wait_for(|readiness| !matches!(readiness, Readiness::Starting)).await;
        match found.as_deref() {
            Ok(Readiness::Ready) => Ok(lease),
            Ok(Readiness::Failed { refusal, .. }) => Err(refusal.clone()),
            Ok(Readiness::Starting) | Err(_) => Err(Refusal::new(RefusalKind::Failed, "the command is being stopped")),
        }
    }

    /// Waits until all sessions have ended, after a stop was requested.
    pub(super) async fn ended(&self) {
        let mut tasks = std::mem::take(&mut self.shared.lock().tasks);
        while tasks.join_next().await.is_some() {}
    }

    fn lease(&self, destination: &Destination) -> Result<(Lease, watch::Receiver<Readiness>), Refusal> {
        let mut state = self.shared.lock();
        state.slots.retain(|_, slot| !slot.is_forgotten());
        if !state.slots.contains_key(destination) {
            self.free_slot(&mut state, destination)?;
            self.start(&mut state, destination);
        }
        let Some(slot) = state.slots.get_mut(destination) else {
            return Err(Refusal::new(RefusalKind::Failed, "the destination was not started"));
        };
        slot.leases += 1;
        let lease = Lease {
            shared: self.shared.clone(),
            destination: destination.clone(),
            number: slot.number,
            entrance: slot.entrance.clone(),
        };
        Ok((lease, slot.readiness.clone()))
    }

    /// At the limit, removes the destination that was idle for the longest time.
    fn free_slot(&self, state: &mut Slots, destination: &Destination) -> Result<(), Refusal> {
        let max = self.shared.plan.max;
        if state.slots.values().filter(|slot| !slot.is_failed()).count() < max {
            return Ok(());
        }
        let idle = state.slots.iter().filter(|(_, slot)| slot.is_idle()).min_by_key(|(_, slot)| slot.used);
        let Some(idle) = idle.map(|(destination, _)| destination.clone()) else {
            let text = format!(
                "{destination}: the limit of {max} destinations is reached, and none of them is idle; --max-destinations \
                 raises it"
            );
            tracing::warn!("{text}");
            return Err(Refusal::new(RefusalKind::Full, text));
        };
        if let Some(slot) = state.slots.remove(&idle) {
            slot.retire.notify_one();
        }
        Ok(())
    }

    fn start(&self, state: &mut Slots, destination: &Destination) {
        while state.tasks.try_join_next().is_some() {}
        let number = state.next;
        state.next += 1;
        let (sender, readiness) = watch::channel(Readiness::Starting);
        let sender = Arc::new(sender);
        let permit = Arc::new(Mutex::new(None));
        let plan = &self.shared.plan;
        let text = destination.to_string();
        // The address is not used, because this forwarder does not listen: connections are passed to it directly.
        let listen = ListenAddr::Tcp(([127, 0, 0, 1], 0).into());
        let remote = Remote { host: Some(destination.host.clone()), port: destination.port };
        let spec = ForwardSpec { listen, remote, text };
        let (forwarder, entrance) =
            Forwarder::builder(plan.provider.clone(), start_request(&plan.target, &spec, &plan.session))
                .config(plan.config.clone())
                .on_event(on_event(destination.clone(), sender.clone(), permit.clone()))
                .hand_in();
        let retire = Arc::new(Notify::new());
        let (stats, used) = (forwarder.stats(), Instant::now());
        let slot = Slot { number, entrance, stats, readiness, leases: 0, used, retire: retire.clone() };
        state.slots.insert(destination.clone(), slot);
        let keep =
            Keep { shared: self.shared.clone(), destination: destination.clone(), number, retire, sender, permit };
        state.tasks.spawn(keep.run(forwarder));
    }
}

/// The permit to start a first session. It is released when the destination is ready or has failed.
type Permit = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// Returns the handler for the events of a destination's forwarder. It reports when the destination is ready, and logs the other
/// events.
fn on_event(
    destination: Destination,
    sender: Arc<watch::Sender<Readiness>>,
    permit: Permit,
) -> impl Fn(ForwardEvent) + Send + Sync + 'static {
    move |event| match event {
        ForwardEvent::Ready { session_id, .. } => {
            tracing::info!(%destination, session_id, "ready");
            drop(permit.lock().unwrap_or_else(PoisonError::into_inner).take());
            sender.send_replace(Readiness::Ready);
        }
        ForwardEvent::ConnectionClosed { error: Some(error), .. } => tracing::warn!(%destination, error, "connection"),
        ForwardEvent::Warning { text } => tracing::warn!(%destination, "{text}"),
        ForwardEvent::SessionLost { reason, connections, .. } if connections > 0 => {
            tracing::warn!(%destination, reason, connections, "the session ended; its connections are reset");
        }
        event => tracing::debug!(%destination, ?event, "event"),
    }
}

/// The task that runs the forwarder of a destination.
struct Keep {
    shared: Arc<Registry>,
    destination: Destination,
    number: u64,
    retire: Arc<Notify>,
    sender: Arc<watch::Sender<Readiness>>,
    permit: Permit,
}

impl Keep {
    async fn run(self, forwarder: Forwarder) {
        let permit = self.shared.starts.clone().acquire_owned().await.ok();
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        let ended = forwarder.run(self.until_unused()).await;
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
        let was_ready = matches!(*self.sender.borrow(), Readiness::Ready);
        match ended {
            Err(error) if !was_ready => {
                let refusal = Refusal::of(&error);
                tracing::warn!(destination = %self.destination, "{}", refusal.text);
                // The slot is kept for a while, so that a client that tries again gets this answer immediately.
                self.sender.send_replace(Readiness::Failed { refusal, at: Instant::now() });
            }
            ended => {
                if let Err(error) = ended {
                    tracing::warn!(destination = %self.destination, %error, "the sessions ended");
                }
                self.remove(|_| true);
            }
        }
    }

    /// Completes when a stop is requested, when the slot is needed for another destination, or after the idle timeout.
    async fn until_unused(&self) {
        let idle = async {
            loop {
                tokio::time::sleep(IDLE_CHECK).await;
                let limit = self.shared.plan.idle;
                if self.remove(|slot| slot.is_idle() && slot.used.elapsed() >= limit) {
                    tracing::info!(destination = %self.destination, "idle: the sessions end");
                    return;
                }
            }
        };
        tokio::select! {
            _ = self.shared.shutdown.requested() => {}
            () = self.retire.notified() => {}
            () = idle => {}
        }
    }

    /// Removes the destination if `wanted` returns `true`, so that it gets no more connections. Returns whether it was removed. If
    /// the destination is in use, first sets the time of its last use to now.
    fn remove(&self, wanted: impl FnOnce(&Slot) -> bool) -> bool {
        let mut state = self.shared.lock();
        let Some(slot) = state.slots.get_mut(&self.destination).filter(|slot| slot.number == self.number) else {
            return false;
        };
        if !slot.is_idle() {
            slot.used = Instant::now();
        }
        let is_wanted = wanted(slot);
        if is_wanted {
            state.slots.remove(&self.destination);
        }
        is_wanted
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
