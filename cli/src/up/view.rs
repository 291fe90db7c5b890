//! The live view of an `up` on a terminal: a table of the tunnels, the details of the selected tunnel, and the last lines of the
//! log.

mod draw;

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::manager::Manager;
use super::status::{Phase, Status};
use super::worker::Order;
use crate::output::Log;
use crate::shutdown::{Shutdown, StopCause};
use crate::terminal::Screen;

/// Interval at which the figures are updated.
const TICK: Duration = Duration::from_millis(500);

/// Time limit for ending the view, in case that the terminal accepts no output.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Shows the view until a stop is requested. The key `q` requests a stop.
pub(super) async fn show(manager: Arc<Manager>, log: Arc<Log>, shutdown: Shutdown) {
    let (done, ended) = tokio::sync::oneshot::channel();
    let stop = shutdown.clone();
    // A separate thread, so that a stopped terminal (Ctrl-S) does not block other tasks.
    std::thread::spawn(move || {
        let shown = Screen::enter().and_then(|mut screen| run(&mut screen.0, &manager, &log, &stop));
        if let Err(error) = shown {
            tracing::warn!(%error, "the terminal cannot show the tunnels");
            stop.stop(StopCause::OutputClosed);
        }
        let _ = done.send(());
    });
    shutdown.requested().await;
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
}

fn run(terminal: &mut ratatui::DefaultTerminal, manager: &Manager, log: &Log, shutdown: &Shutdown) -> io::Result<()> {
    let mut view = View::default();
    while shutdown.cause().is_none() {
        view.update(manager.statuses(), log.read().0, Instant::now());
        terminal.draw(|frame| draw::draw(frame, &view))?;
        let deadline = Instant::now() + TICK;
        while shutdown.cause().is_none() && event::poll(deadline.saturating_duration_since(Instant::now()))? {
            let Event::Key(key) = event::read()? else { break };
            match view.key(key) {
                Some(Action::Quit) => shutdown.stop(StopCause::Interrupt),
                Some(Action::Order(name, order)) => drop(manager.order(&[name], order)),
                Some(Action::Copy(text)) => copy(&text)?,
                None => {}
            }
            terminal.draw(|frame| draw::draw(frame, &view))?;
        }
    }
    Ok(())
}

/// Copies a text to the clipboard of the user's terminal, with the escape sequence OSC 52. This works over ssh too.
fn copy(text: &str) -> io::Result<()> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    let mut stdout = io::stdout();
    write!(stdout, "\x1b]52;c;{encoded}\x07")?;
    stdout.flush()
}

/// The action that a key requests.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Quit,
    Order(String, Order),
    Copy(String),
}

/// The content of the view.
#[derive(Debug, Default)]
struct View {
    rows: Vec<TunnelRow>,
    /// The index of the selected tunnel.
    chosen: usize,
    /// The last lines of the log.
    lines: Vec<String>,
    /// The effect of the last key.
    message: String,
    /// The time of the last update.
    updated: Option<Instant>,
}

/// One tunnel, with its rates since the previous update.
#[derive(Clone, Debug, Default)]
struct TunnelRow {
    status: Status,
    /// Bytes per second from local programs.
    up: f64,
    /// Bytes per second to local programs.
    down: f64,
    /// Messages sent per second.
    messages: f64,
    /// Bytes per second of both directions, the latest value last.
    history: Vec<u64>,
}

/// Maximum number of values in the history.
const HISTORY: usize = 60;

impl View {
    /// Updates the content with a snapshot that was taken at `at`.
    fn update(&mut self, statuses: Vec<Status>, lines: Vec<String>, at: Instant) {
        let seconds = self.updated.map_or(0.0, |last| at.duration_since(last).as_secs_f64());
        let before = std::mem::take(&mut self.rows);
        self.rows = statuses.into_iter().map(|status| row(status, &before, seconds)).collect();
        self.chosen = self.chosen.min(self.rows.len().saturating_sub(1));
        (self.lines, self.updated) = (lines, Some(at));
    }

    /// Handles a key. Returns the action that it requests, if any.
    fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
        if is_interrupt || key.code == KeyCode::Char('q') {
            return Some(Action::Quit);
        }
        match key.code {
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => {
                self.chosen = (self.chosen + 1).min(self.rows.len().saturating_sub(1))
            }
            _ => {}
        }
        let status = &self.rows.get(self.chosen)?.status;
        let name = status.name.clone();
        let (message, action) = match key.code {
            KeyCode::Char('r') => (format!("restarting {name}"), Action::Order(name, Order::Restart)),
            KeyCode::Char('p') if status.state == Phase::Paused => {
                (format!("resuming {name}"), Action::Order(name, Order::Pause))
            }
            KeyCode::Char('p') => (format!("{name} is paused; p resumes it"), Action::Order(name, Order::Pause)),
            KeyCode::Char('c') => {
                let address = status.address.clone()?;
                (format!("copied {address}"), Action::Copy(address))
            }
            _ => return None,
        };
        self.message = message;
        Some(action)
    }
}

fn row(status: Status, before: &[TunnelRow], seconds: f64) -> TunnelRow {
    let last = before.iter().find(|row| row.status.name == status.name);
    let rate = |figure| {
        let last = last.map_or(0, |last| last.status.figure(figure));
        if seconds > 0.0 { status.figure(figure).saturating_sub(last) as f64 / seconds } else { 0.0 }
    };
    let (up, down, messages) = (rate("bytes_up"), rate("bytes_down"), rate("messages_sent"));
    let mut history = last.map(|last| last.history.clone()).unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, reason = "figures for people; a cast saturates")]
    history.push((up + down) as u64);
    history.drain(..history.len().saturating_sub(HISTORY));
    TunnelRow { status, up, down, messages, history }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;
    use crate::up::status::Limits;

    fn status(name: &str, state: Phase, figures: serde_json::Value) -> Status {
        let serde_json::Value::Object(figures) = figures else { panic!("no object") };
        let address = Some("127.0.0.1:5432".to_owned());
        Status { name: name.into(), state, address, remote: "db.internal:5432".into(), figures, ..Status::default() }
    }

    fn view() -> View {
        let mut view = View::default();
        let began = Instant::now();
        let statuses = |bytes: u64| {
            let figures = json!({ "bytes_down": bytes, "connections_open": 2, "round_trip_us": 4200, "messages_sent": bytes / 1024,
                                  "message_budget": 900, "retransmissions": 3, "sessions_connected": 1, "data_channel_age_s": 2535, "session_age_s": 9000 });
            let in_a_while = SystemTime::now() + Duration::from_secs(2 * 3600 + 90);
            let end = humantime::format_rfc3339_seconds(in_a_while).to_string();
            vec![
                Status { credentials_end: Some(end), ..status("orders-db", Phase::Ready, figures) },
                Status {
                    credentials_end: Some(
                        humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_secs(1)).to_string(),
                    ),
                    error: Some("no node \u{1b}[31mhas this name".into()),
                    ..status("web", Phase::Retrying, json!({}))
                },
            ]
        };
        let lines = || vec!["2026-01-02T03:04:05.678Z orders-db: Forwarding".to_owned()];
        view.update(statuses(0), lines(), began);
        view.update(statuses(1 << 20), lines(), began + Duration::from_secs(1));
        view
    }

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw::draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells: Vec<_> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        cells.chunks(width.into()).map(|row| row.concat().trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_table_shows_state_rates_and_the_budget() {
        let screen = screen(&view(), 120, 24);
        for part in
            ["orders-db", "ready", "127.0.0.1:5432", "1.0 MiB/s", "4.2 ms", "1024/900", "retrying", "Forwarding"]
                .into_iter()
                .chain([
                    "next close: the data channel in about 17 min (reopened without loss)",
                    "credentials end in 2 h 1 min",
                ])
        {
            assert!(screen.contains(part), "no {part} in\n{screen}");
        }
        assert!(screen.contains('█'), "no sparkline in\n{screen}");
        assert!(!screen.contains('\u{1b}'), "{screen:?}");
    }

    #[test]
    fn the_next_close_is_the_first_that_is_known() {
        let mut view = view();
        let mut shown = |limits, connections: u64| {
            view.rows[0].status.limits = Some(limits);
            view.rows[0].status.figures.insert("connections_open".into(), connections.into());
            screen(&view, 120, 24)
        };
        let limits = |idle_minutes, max_minutes| Limits { idle_minutes, max_minutes };
        let text = shown(limits(Some(20), Some(160)), 0);
        assert!(text.contains("next close: the session in 10 min (maximum duration; resets connections)"), "{text}");
        assert!(text.contains("an idle session ends after 20 min"), "{text}");
        // The session is 150 minutes old, so its data channel is closed before the session.
        let text = shown(limits(None, Some(300)), 0);
        assert!(
            text.contains("next close: the data channel in about 17 min") && !text.contains("idle session"),
            "{text}"
        );
        assert!(!shown(limits(Some(20), None), 1).contains("idle session"));
        // Connections through a relay move to another session. It is possible that no relay runs, although one was requested.
        view.rows[0].status.limits = Some(limits(None, Some(160)));
        view.rows[0].status.relay = true;
        let text = screen(&view, 120, 24);
        assert!(text.contains("in 10 min (maximum duration; resets connections that no relay carries)"), "{text}");
    }

    #[test]
    fn keys_choose_and_act_on_the_chosen_tunnel() {
        let mut view = view();
        let press = |view: &mut View, code| view.key(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(press(&mut view, KeyCode::Char('c')), Some(Action::Copy("127.0.0.1:5432".into())));
        assert_eq!(press(&mut view, KeyCode::Char('p')), Some(Action::Order("orders-db".into(), Order::Pause)));
        view.rows[0].status.state = Phase::Paused;
        assert_eq!(press(&mut view, KeyCode::Char('p')), Some(Action::Order("orders-db".into(), Order::Pause)));
        assert!(view.message.contains("resuming"));
        assert_eq!(press(&mut view, KeyCode::Down), None);
        let shown = screen(&view, 120, 24);
        assert!(
            shown.contains("no node \\u{1b}[31mhas this name") && shown.contains("credentials have ended"),
            "{shown}"
        );
        assert_eq!(press(&mut view, KeyCode::Down), None);
        assert_eq!(press(&mut view, KeyCode::Char('r')), Some(Action::Order("web".into(), Order::Restart)));
        assert_eq!(press(&mut view, KeyCode::Char('q')), Some(Action::Quit));
        assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Action::Quit));
    }

    #[test]
    fn small_terminals_and_no_tunnels_are_drawn_too() {
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
            screen(&view(), width, height);
            screen(&View::default(), width, height);
        }
    }
}
