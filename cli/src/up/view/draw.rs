//! Draws the view.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use super::{TunnelRow, View};
use crate::untrusted;
use crate::up::status::{Phase, Status};

/// Width of the sparkline in columns.
const SPARKS: u16 = 12;

/// Draws the whole view.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let rows = u16::try_from(view.rows.len()).unwrap_or(u16::MAX);
    let parts = Layout::vertical([
        Constraint::Length(rows.saturating_add(2)),
        Constraint::Length(7),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [table, details, lines, keys] = parts.areas(frame.area());
    draw_table(frame, view, table);
    draw_details(frame, view, details);
    draw_lines(frame, view, lines);
    let help = "↑↓ choose  r restart  p pause  c copy address  q quit";
    let text = if view.message.is_empty() { help.to_owned() } else { format!("{help}   {}", view.message) };
    frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::DIM)), keys);
}

fn draw_table(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let head = ["NAME", "STATE", "ADDRESS", "CONN", "UP", "DOWN", "", "ROUND TRIP", "MSG/S", "RESENT"];
    let name = view.rows.iter().map(|row| row.status.name.len()).max().unwrap_or(0).clamp(4, 24);
    let widths = [
        Constraint::Length(u16::try_from(name).unwrap_or(24)),
        Constraint::Length(12),
        Constraint::Min(15),
        Constraint::Length(4),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(SPARKS),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(6),
    ];
    let table = Table::new(view.rows.iter().map(cells), widths)
        .header(Row::new(head).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected((!view.rows.is_empty()).then_some(view.chosen));
    frame.render_stateful_widget(table, area, &mut state);
}

fn cells(row: &TunnelRow) -> Row<'static> {
    let status = &row.status;
    let round_trip = match status.figure("round_trip_us") {
        0 => "-".to_owned(),
        micros => format!("{:.1} ms", micros as f64 / 1e3),
    };
    let budget = match status.figure("message_budget") {
        0 => String::new(),
        budget => format!("/{budget}"),
    };
    Row::new([
        Cell::new(status.name.clone()),
        Cell::new(status.state.to_string()).style(color(status.state)),
        Cell::new(status.address.clone().unwrap_or_else(|| "-".to_owned())),
        Cell::new(status.figure("connections_open").to_string()),
        Cell::new(rate(row.up)),
        Cell::new(rate(row.down)),
        Cell::new(sparkline(&row.history)),
        Cell::new(round_trip),
        Cell::new(format!("{:.0}{budget}", row.messages)),
        Cell::new(status.figure("retransmissions").to_string()),
    ])
}

fn color(state: Phase) -> Color {
    match state {
        Phase::Ready => Color::Green,
        Phase::Waiting | Phase::Paused => Color::Blue,
        Phase::Retrying => Color::Red,
        Phase::Starting | Phase::Reconnecting | Phase::Stopping => Color::Yellow,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "figures for people; a cast saturates")]
fn rate(bytes: f64) -> String {
    format!("{}/s", ByteSize(bytes as u64).display().iec())
}

/// Returns the history as bars, the latest value at the right. The highest bar is the largest value in the shown part.
fn sparkline(history: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let width = usize::from(SPARKS);
    let shown = history.get(history.len().saturating_sub(width)..).unwrap_or_default();
    let most = shown.iter().copied().max().unwrap_or_default().max(1);
    let bar = |value: &u64| match value {
        0 => ' ',
        value => {
            *usize::try_from(u128::from(*value) * 7 / u128::from(most)).ok().and_then(|at| BARS.get(at)).unwrap_or(&'█')
        }
    };
    let bars: String = shown.iter().map(bar).collect();
    format!("{bars:>width$}")
}

fn draw_details(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let Some(TunnelRow { status, .. }) = view.rows.get(view.chosen) else { return };
    let through = status.target.as_ref().map_or_else(String::new, |target| format!(" through {target}"));
    let session = status.session_id.as_deref().unwrap_or("none");
    let restarts = match status.restarts {
        0 => String::new(),
        1 => ", restarted once".to_owned(),
        count => format!(", restarted {count} times"),
    };
    let mut lines = vec![
        Line::from(untrusted::line(&format!("to {}{through}", status.remote))),
        Line::from(untrusted::line(&format!("session {session}{restarts}"))),
    ];
    lines.extend(next_close(status).map(Line::from));
    let later: Vec<_> = idle_end(status).into_iter().chain(credentials(status, SystemTime::now())).collect();
    if !later.is_empty() {
        lines.push(Line::from(later.join("; ")));
    }
    if let Some(error) = &status.error {
        lines.push(Line::from(Span::styled(untrusted::line(error), Style::new().fg(Color::Red))));
    }
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(status.name.clone())), area);
}

/// Approximate time after which the service closes a data channel. AWS does not document it.
const CHANNEL_LIFE: Duration = Duration::from_secs(3600);

/// Describes what the service closes next: the data channel or the session.
fn next_close(status: &Status) -> Option<String> {
    if status.figure("sessions_connected") == 0 {
        return None;
    }
    let age = |name| Duration::from_secs(status.figure(name));
    let channel = CHANNEL_LIFE.saturating_sub(age("data_channel_age_s"));
    let life = status.limits.and_then(|limits| limits.max_minutes).map(|limit| Duration::from_secs(60) * limit);
    let session = life.map(|life| life.saturating_sub(age("session_age_s")));
    Some(match session {
        Some(session) if session <= channel => {
            let effect =
                if status.relay { "; resets connections that no relay carries" } else { "; resets connections" };
            format!("next close: the session in {} (maximum duration{effect})", minutes(session))
        }
        _ if channel.is_zero() => "next close: the data channel at any time (reopened without loss)".into(),
        _ => format!("next close: the data channel in about {} (reopened without loss)", minutes(channel)),
    })
}

/// Describes the idle timeout, if the session is idle.
fn idle_end(status: &Status) -> Option<String> {
    let is_idle = status.figure("sessions_connected") > 0 && status.figure("connections_open") == 0;
    let idle = status.limits.filter(|_| is_idle)?.idle_minutes?;
    Some(format!("an idle session ends after {idle} min"))
}

fn credentials(status: &Status, now: SystemTime) -> Option<String> {
    let end = humantime::parse_rfc3339(status.credentials_end.as_ref()?).ok()?;
    Some(match end.duration_since(now) {
        Ok(left) => format!("credentials end in {}", minutes(left)),
        Err(_) => "credentials have ended".into(),
    })
}

fn minutes(time: Duration) -> String {
    match time.as_secs() / 60 {
        minutes @ ..60 => format!("{minutes} min"),
        minutes => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

fn draw_lines(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let room = usize::from(area.height.saturating_sub(2));
    let last = view.lines.get(view.lines.len().saturating_sub(room)..).unwrap_or_default();
    let lines: Vec<_> = last.iter().map(|line| Line::from(untrusted::line(line))).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("log")), area);
}
