//! Notifications for systemd, if it has started the process: readiness, a status line, and the watchdog.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::manager::Manager;
use super::status::{Phase, Status};

/// Interval at which the state of the tunnels is checked.
const TICK: Duration = Duration::from_millis(500);

/// Sends notifications to systemd. Never returns, except if systemd has not started this process.
pub(super) async fn notify(manager: Arc<Manager>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut reported = String::new();
    let mut is_ready = false;
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let statuses = manager.statuses();
        let mut states = vec![NotifyState::Watchdog];
        let text = summary(&statuses);
        // A tunnel that failed does not delay readiness. It will be opened again.
        if !is_ready && statuses.iter().all(|status| status.state != Phase::Starting) {
            is_ready = true;
            states.push(NotifyState::Ready);
        }
        if reported != text {
            reported.clone_from(&text);
            states.push(NotifyState::Status(&text));
        }
        let _ = sd_notify::notify(&states);
    }
}

/// Notifies systemd that the process is stopping.
pub(super) fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}

/// Returns the status line for `systemctl status`.
fn summary(statuses: &[Status]) -> String {
    let open = statuses.iter().filter(|status| status.state.is_open()).count();
    let connections: u64 = statuses.iter().map(|status| status.figure("connections_open")).sum();
    let failed: Vec<_> =
        statuses.iter().filter(|status| status.state == Phase::Retrying).map(|status| status.name.as_str()).collect();
    let failed = if failed.is_empty() { String::new() } else { format!(", retrying: {}", failed.join(", ")) };
    format!("{open} of {} tunnels open, {connections} connections{failed}", statuses.len())
}
