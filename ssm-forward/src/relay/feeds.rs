//! Starts and ends feeds as the plan requests, and logs this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::Instrument as _;

use super::feed::{self, FeedEnd, FeedFailure, FeedSource};
use super::feed_plan::{AfterFailure, FeedPlan, MAX_FEEDS, PlanAction, Sample};
use super::shared::SharedLink;
use crate::ForwardEvent;
use crate::pool::Pool;

/// Interval at which the plan gets a measurement.
const TICK: Duration = Duration::from_millis(500);

/// The feeds of one relay.
pub(crate) struct Feeds {
    source: Arc<FeedSource>,
    on_event: Arc<dyn Fn(ForwardEvent) + Send + Sync>,
    /// Each feed holds a permit until its session has been terminated.
    permits: Arc<Semaphore>,
    leaving: AtomicBool,
}

/// The feeds that run, oldest first.
#[derive(Default)]
struct Running {
    tasks: JoinSet<FeedEnd>,
    stops: Vec<oneshot::Sender<()>>,
}

impl Feeds {
    pub(crate) fn new(source: FeedSource, on_event: Arc<dyn Fn(ForwardEvent) + Send + Sync>) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_FEEDS));
        Self { source: Arc::new(source), on_event, permits, leaving: AtomicBool::new(false) }
    }

    /// Ends all feeds. [`Feeds::keep`] must continue to run.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether no session of a feed exists any longer.
    pub(super) fn have_ended(&self) -> bool {
        self.permits.available_permits() == MAX_FEEDS
    }

    /// Completes when no session of a feed exists any longer. If the future of [`Feeds::keep`] was dropped, its feeds are being
    /// dropped too, and this method waits for that.
    pub(super) async fn ended(&self) {
        drop(self.permits.acquire_many(u32::try_from(MAX_FEEDS).unwrap_or(u32::MAX)).await);
    }

    /// Runs the feeds. Completes only when the relay has violated the protocol on one of them, and returns the error.
    pub(super) async fn keep(&self, shared: &Arc<SharedLink>, pool: &Pool) -> String {
        let (mut plan, mut running) = (FeedPlan::default(), Running::default());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let began = Arc::new(AtomicBool::new(false));
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            changed.as_mut().enable();
            if self.leaving.load(Ordering::Relaxed) {
                running.stops.clear();
            }
            tokio::select! {
                Some(end) = running.tasks.join_next() => {
                    running.stops.retain(|stop| !stop.is_closed());
                    // A task that panicked has ended too.
                    let end = end.unwrap_or(FeedEnd::Stopped(0));
                    if let FeedEnd::Cut(_, FeedFailure::Link(error)) = end {
                        return error.to_string();
                    }
                    self.note(&mut plan, end);
                    shared.changed.notify_waiters();
                }
                () = changed => {}
                _ = ticks.tick(), if !self.leaving.load(Ordering::Relaxed) => {
                    let now = Instant::now();
                    if began.swap(false, Ordering::Relaxed) {
                        plan.began(now);
                    }
                    let stats = shared.lock().link.stats();
                    let bytes = stats.received + stats.fed;
                    let sample = Sample { bytes, pipes: stats.pipes, is_busy: pool.is_busy() };
                    let action = plan.update(now, sample);
                    self.execute(action, &mut running, shared, &began);
                }
            }
        }
    }

    fn execute(&self, action: PlanAction, running: &mut Running, shared: &Arc<SharedLink>, began: &Arc<AtomicBool>) {
        match action {
            PlanAction::Nothing => {}
            PlanAction::Start(rate) => {
                tracing::info!(rate = rate_text(rate), "the download also gets a command session");
                let (stop, stopped) = oneshot::channel::<()>();
                running.stops.push(stop);
                let (shared, source, began) = (shared.clone(), self.source.clone(), began.clone());
                let permits = self.permits.clone();
                let run = async move {
                    let _permit = permits.acquire_owned().await;
                    let stop = async { drop(stopped.await) };
                    feed::run(&shared, &source, || began.store(true, Ordering::Relaxed), stop).await
                };
                running.tasks.spawn(run.in_current_span());
            }
            PlanAction::Keep(before, rate) => {
                let count = running.stops.len();
                tracing::info!(
                    count,
                    before = rate_text(before),
                    rate = rate_text(rate),
                    "a command session makes the download faster"
                );
            }
            PlanAction::EndOne(before, rate, next) => {
                let then = match next {
                    None => String::new(),
                    Some(AfterFailure::After(pause)) => format!("; none is started for {} s", pause.as_secs()),
                    Some(AfterFailure::Never) => "; this relay gets no further one".into(),
                };
                let (before, rate) = (rate_text(before), rate_text(rate));
                tracing::info!(before, rate, "a command session does not help and ends{then}");
                running.stops.pop();
            }
            PlanAction::EndAll => {
                tracing::info!("no download is active: the command sessions end");
                running.stops.clear();
            }
        }
    }

    fn note(&self, plan: &mut FeedPlan, end: FeedEnd) {
        let (carried, failure) = match end {
            FeedEnd::Stopped(bytes) => {
                tracing::info!(bytes, "a command session of downloads has ended");
                return plan.ended();
            }
            FeedEnd::Denied(error) => {
                plan.give_up();
                let text = format!(
                    "no command sessions for downloads: {} cannot be used: {error}; the tunnel works without them, and \
                     --relay-feeds=off avoids the attempt",
                    feed::DOCUMENT
                );
                return (self.on_event)(ForwardEvent::Warning { text });
            }
            FeedEnd::Cut(carried, failure) => (carried, failure),
        };
        let bytes = carried.bytes;
        match plan.cut(Instant::now(), carried.lasted()) {
            AfterFailure::After(pause) => tracing::info!(
                bytes,
                cause = %failure,
                pause_s = pause.as_secs(),
                "a command session of downloads was lost; its unacknowledged data is sent again; none is started during the pause"
            ),
            AfterFailure::Never => tracing::info!(
                bytes,
                cause = %failure,
                "a command session of downloads was lost again; its unacknowledged data is sent again; this relay gets no \
                 further one"
            ),
        }
    }
}

/// Formats a rate in megabytes per second.
fn rate_text(rate: f64) -> String {
    format!("{:.1} MB/s", rate / 1e6)
}
