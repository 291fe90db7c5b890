//! The destinations that have sessions: each has a forwarder of its own, started by its first connection and ended when it was
//! idle for long enough.

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

/// A destination that could not be reached is not tried again within this time: each attempt costs a session.
const REMEMBERED: Duration = Duration::from_secs(3);
/// So many first sessions are started at once: the API is throttled.
const STARTS_AT_ONCE: usize = 4;
/// How often it is looked whether a destination is idle.
const LOOK: Duration = Duration::from_millis(500);

/// What is the same for all destinations.
pub(super) struct Plan {
    pub(super) provider: Arc<dyn SessionProvider>,
    /// The managed node.
    pub(super) target: String,
    pub(super) session: SessionArgs,
    pub(super) config: ForwardConfig,
    /// The sessions to a destination end after this time without a connection.
    pub(super) idle: Duration,
    /// How many destinations may have sessions.
    pub(super) max: usize,
}

/// See the module. Clones are the same.
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
    next: u64,
}

/// A destination.
struct Slot {
    number: u64,
    entrance: Entrance,
    stats: ForwardStats,
    readiness: watch::Receiver<Readiness>,
    /// Connections that are about to be handed in.
    leases: usize,
    used: Instant,
    /// Ends its sessions.
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

/// A right to hand in one connection; the destination's sessions do not end meanwhile.
pub(super) struct Lease {
    shared: Arc<Registry>,
    destination: Destination,
    number: u64,
    entrance: Entrance,
}

impl Lease {
    /// Hands in a client's connection. When this completes, the connection is counted and keeps the sessions by itself.
    ///
    /// # Errors
    /// The sessions are gone at this moment: the client sees a reset.
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

    /// Waits until a destination accepts connections, and starts its first session if there is none.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) async fn open(&self, destination: &Destination) -> Result<Lease, Refusal> {
        let (lease, mut readiness) = self.lease(destination)?;
        let found = readiness.wait_for(|readiness| !matches!(readiness, Readiness::Starting)).await;
        match found.as_deref() {
            Ok(Readiness::Ready) => Ok(lease),
            Ok(Readiness::Failed { refusal, .. }) => Err(refusal.clone()),
            Ok(Readiness::Starting) | Err(_) => Err(Refusal::new(RefusalKind::Failed, "the command ends")),
        }
    }

    /// Waits until all sessions have ended, after `shutdown` was asked to stop.
    pub(super) async fn ended(&self) {
        let mut tasks = std::mem::take(&mut self.shared.lock().tasks);
        while tasks.join_next().await.is_some() {}
    }

    fn lease(&self, destination: &Destination) -> Result<(Lease, watch::Receiver<Readiness>), Refusal> {
        let mut state = self.shared.lock();
        state.slots.retain(|_, slot| !slot.is_forgotten());
        if !state.slots.contains_key(destination) {
            self.make_room(&mut state, destination)?;
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

    /// At the limit, the destination that was idle for longest has to go.
    fn make_room(&self, state: &mut Slots, destination: &Destination) -> Result<(), Refusal> {
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
        let (tell, readiness) = watch::channel(Readiness::Starting);
        let tell = Arc::new(tell);
        let permit = Arc::new(Mutex::new(None));
        let plan = &self.shared.plan;
        let text = destination.to_string();
        // Nobody listens for it: connections are handed in.
        let listen = ListenAddr::Tcp(([127, 0, 0, 1], 0).into());
        let remote = Remote { host: Some(destination.host.clone()), port: destination.port };
        let spec = ForwardSpec { listen, remote, text };
        let (forwarder, entrance) =
            Forwarder::builder(plan.provider.clone(), start_request(&plan.target, &spec, &plan.session))
                .config(plan.config.clone())
                .on_event(on_event(destination.clone(), tell.clone(), permit.clone()))
                .hand_in();
        let retire = Arc::new(Notify::new());
        let (stats, used) = (forwarder.stats(), Instant::now());
        let slot = Slot { number, entrance, stats, readiness, leases: 0, used, retire: retire.clone() };
        state.slots.insert(destination.clone(), slot);
        let keep = Keep { shared: self.shared.clone(), destination: destination.clone(), number, retire, tell, permit };
        state.tasks.spawn(keep.run(forwarder));
    }
}

type Permit = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// What happens to a destination: clients are answered with it, the rest goes to the log.
fn on_event(
    destination: Destination,
    tell: Arc<watch::Sender<Readiness>>,
    permit: Permit,
) -> impl Fn(ForwardEvent) + Send + Sync + 'static {
    move |event| match event {
        ForwardEvent::Ready { session_id, .. } => {
            tracing::info!(%destination, session_id, "ready");
            drop(permit.lock().unwrap_or_else(PoisonError::into_inner).take());
            tell.send_replace(Readiness::Ready);
        }
        ForwardEvent::ConnectionClosed { error: Some(error), .. } => tracing::warn!(%destination, error, "connection"),
        ForwardEvent::Warning { text } => tracing::warn!(%destination, "{text}"),
        ForwardEvent::SessionLost { reason, connections, .. } if connections > 0 => {
            tracing::warn!(%destination, reason, connections, "the session ended; its connections are reset");
        }
        event => tracing::debug!(%destination, ?event, "event"),
    }
}

/// Keeps the sessions to a destination.
struct Keep {
    shared: Arc<Registry>,
    destination: Destination,
    number: u64,
    retire: Arc<Notify>,
    tell: Arc<watch::Sender<Readiness>>,
    permit: Permit,
}

impl Keep {
    async fn run(self, forwarder: Forwarder) {
        let permit = self.shared.starts.clone().acquire_owned().await.ok();
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        let ended = forwarder.run(self.until_unused()).await;
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
        let was_ready = matches!(*self.tell.borrow(), Readiness::Ready);
        match ended {
            Err(error) if !was_ready => {
                let refusal = Refusal::of(&error);
                tracing::warn!(destination = %self.destination, "{}", refusal.text);
                // It stays for a while, for those who ask again.
                self.tell.send_replace(Readiness::Failed { refusal, at: Instant::now() });
            }
            ended => {
                if let Err(error) = ended {
                    tracing::warn!(destination = %self.destination, %error, "the sessions ended");
                }
                self.remove(|_| true);
            }
        }
    }

    /// Completes when the command ends, or the destination has to make room, or was idle for long enough.
    async fn until_unused(&self) {
        let idle = async {
            loop {
                tokio::time::sleep(LOOK).await;
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

    /// Takes the destination from the list, so that no further connection is handed in, if `wanted`. One that is in use counts as
    /// used until now.
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
