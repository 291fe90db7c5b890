//! What systemd is told, where it started the process: that the tunnels are open, how they are, and that the process lives.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::manager::Manager;
use super::status::{Phase, Status};

/// How often the tunnels are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Reports to systemd until it is dropped. Without systemd it ends at once.
pub(super) async fn notify(manager: Arc<Manager>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut told = String::new();
    let mut is_ready = false;
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let statuses = manager.statuses();
        let mut states = vec![NotifyState::Watchdog];
        let text = summary(&statuses);
        // A tunnel that failed is tried again; it does not keep the others from being ready.
        if !is_ready && statuses.iter().all(|status| status.state != Phase::Starting) {
            is_ready = true;
            states.push(NotifyState::Ready);
        }
        if told != text {
            told.clone_from(&text);
            states.push(NotifyState::Status(&text));
        }
        let _ = sd_notify::notify(&states);
    }
}

/// Tells systemd that the end has begun.
pub(super) fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
fn summary(statuses: &[Status]) -> String {
    let open = statuses.iter().filter(|status| status.state.is_open()).count();
    let connections: u64 = statuses.iter().map(|status| status.figure("connections_open")).sum();
    let failed: Vec<_> =
        statuses.iter().filter(|status| status.state == Phase::Retrying).map(|status| status.name.as_str()).collect();
    let failed = if failed.is_empty() { String::new() } else { format!(", retrying: {}", failed.join(", ")) };
    format!("{open} of {} tunnels open, {connections} connections{failed}", statuses.len())
}
