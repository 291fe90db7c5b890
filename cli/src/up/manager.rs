//! Manages all tunnels of an `up`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ssm_forward::StatsSnapshot;
use tokio::task::JoinSet;

use super::status::{ProcessStatus, Status};
use super::worker::{Order, Worker};
use super::{UpContext, conflicts};
use crate::exit_code::{ExitCode, Failure};
use crate::{config, suggestion};

/// The set of tunnels.
pub(super) struct Manager {
    shared: Arc<UpContext>,
    /// The tunnels by their index in the output; `None` for a tunnel that was closed.
    workers: Mutex<Vec<Option<Worker>>>,
    /// Held while tunnels are closed or replaced, so that only one such change happens at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Manager {
    /// Creates a manager and opens `tunnels`.
    pub(super) fn start(shared: Arc<UpContext>, tunnels: Vec<config::Tunnel>) -> Self {
        let workers = tunnels.into_iter().enumerate();
        let workers = workers.map(|(index, tunnel)| Some(Worker::start(index, tunnel, shared.clone()))).collect();
        Self { shared, workers: Mutex::new(workers), changing: tokio::sync::Mutex::default() }
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Option<Worker>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the status of each tunnel.
    pub(super) fn statuses(&self) -> Vec<Status> {
        self.workers().iter().flatten().map(Worker::status).collect()
    }

    /// Returns the status of the process with all its tunnels.
    pub(super) fn status(&self) -> ProcessStatus {
        let folder = std::env::current_dir().unwrap_or_default();
        ProcessStatus { pid: std::process::id(), folder: folder.display().to_string(), tunnels: self.statuses() }
    }

    /// Returns the live figures of each tunnel, by its index in the output.
    pub(super) fn figures(&self) -> Vec<StatsSnapshot> {
        self.workers().iter().map(|worker| worker.as_ref().map(Worker::figures).unwrap_or_default()).collect()
    }

    /// Returns the live figures of each tunnel, with its name.
    pub(super) fn named_figures(&self) -> Vec<(String, StatsSnapshot)> {
        self.workers().iter().flatten().map(|worker| (worker.tunnel.name.clone(), worker.figures())).collect()
    }

    /// Sends an order to the named tunnels, or to all tunnels if `names` is empty. Returns the names of these tunnels.
    ///
    /// # Errors
    /// Returns an error if a named tunnel is not open in this process.
    pub(super) fn order(&self, names: &[String], order: Order) -> Result<Vec<String>, Failure> {
        let workers = self.workers();
        let chosen = chosen(&workers, names)?;
        for worker in workers.iter().flatten().filter(|worker| chosen.contains(&worker.tunnel.name)) {
            worker.order(order);
        }
        Ok(chosen.into_iter().collect())
    }

    /// Closes the named tunnels, or all tunnels if `names` is empty. Returns the names of these tunnels.
    ///
    /// # Errors
    /// Returns an error if a named tunnel is not open in this process.
    pub(super) async fn close(&self, names: &[String]) -> Result<Vec<String>, Failure> {
        let _changing = self.changing.lock().await;
        let (chosen, closing) = {
            let mut workers = self.workers();
            let chosen = chosen(&workers, names)?;
            let is_chosen = |worker: &mut Worker| chosen.contains(&worker.tunnel.name);
            let closing: Vec<_> = workers.iter_mut().filter_map(|slot| slot.take_if(is_chosen)).collect();
            (chosen, closing)
        };
        let ends: JoinSet<()> = closing.into_iter().map(Worker::stop).collect();
        ends.join_all().await;
        Ok(chosen.into_iter().collect())
    }

    /// Waits for a change in progress, and returns whether no tunnels are left.
    pub(super) async fn is_empty(&self) -> bool {
        let _changing = self.changing.lock().await;
        self.workers().iter().all(Option::is_none)
    }

    /// Opens, closes and replaces tunnels, so that the tunnels are those in `wanted`. Unchanged tunnels are not interrupted.
    /// Returns a description of the changes.
    ///
    /// # Errors
    /// Returns an error if tunnels in `wanted` conflict with each other. Then nothing is changed.
    pub(super) async fn change_to(&self, wanted: Vec<config::Tunnel>) -> Result<String, Failure> {
        conflicts::check(&wanted, self.shared.hosts.is_some())?;
        let _changing = self.changing.lock().await;
        let same = |worker: &Worker| wanted.iter().any(|tunnel| tunnel.words == worker.tunnel.words);
        let (kept, gone) = {
            let mut workers = self.workers();
            let gone: Vec<Worker> =
                workers.iter_mut().filter_map(|slot| slot.take_if(|worker| !same(worker))).collect();
            let kept: BTreeSet<String> = workers.iter().flatten().map(|worker| worker.tunnel.name.clone()).collect();
            (kept, gone)
        };
        let old: BTreeSet<String> = gone.iter().map(|worker| worker.tunnel.name.clone()).collect();
        // Old tunnels are closed first, because a new tunnel may use the address of an old one.
        let ends: JoinSet<()> = gone.into_iter().map(Worker::stop).collect();
        ends.join_all().await;
        let new: Vec<_> = wanted.into_iter().filter(|tunnel| !kept.contains(&tunnel.name)).collect();
        let names: BTreeSet<String> = new.iter().map(|tunnel| tunnel.name.clone()).collect();
        let mut workers = self.workers();
        for tunnel in new {
            let index = workers.len();
            workers.push(Some(Worker::start(index, tunnel, self.shared.clone())));
        }
        let list = |what: &str, names: Vec<&String>| match names.as_slice() {
            [] => None,
            names => Some(format!("{what}: {}", names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", "))),
        };
        let parts = [
            list("opened", names.difference(&old).collect()),
            list("changed", names.intersection(&old).collect()),
            list("closed", old.difference(&names).collect()),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        Ok(if parts.is_empty() { "nothing changed".to_owned() } else { parts.join("; ") })
    }
}

/// Checks the names and returns them. Returns all names if `names` is empty.
fn chosen(workers: &[Option<Worker>], names: &[String]) -> Result<BTreeSet<String>, Failure> {
    let open: Vec<_> = workers.iter().flatten().map(|worker| worker.tunnel.name.as_str()).collect();
    for name in names {
        if !open.contains(&name.as_str()) {
            return Err(not_open(name, &open));
        }
    }
    let all = || open.iter().map(|&name| name.to_owned()).collect();
    Ok(if names.is_empty() { all() } else { names.iter().cloned().collect() })
}

/// Returns the failure for a named tunnel that is not open.
pub(super) fn not_open(name: &str, open: &[&str]) -> Failure {
    let text = match (open, suggestion::nearest(name, open.iter().copied())) {
        ([], _) => "no tunnels are open; `up` opens them".to_owned(),
        (open, Some(meant)) => {
            format!("the tunnel `{name}` is not open; did you mean `{meant}`? Open tunnels: {}", open.join(", "))
        }
        (open, None) => format!("the tunnel `{name}` is not open; open tunnels: {}", open.join(", ")),
    };
    Failure::new(ExitCode::Usage, "not_found", text)
}
