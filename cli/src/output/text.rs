//! Lines of text for the user: the result on stdout, everything else on stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ssm_forward::{ForwardEvent, LocalAddr};

use super::{Log, Notice, Style, Subject};
use crate::args::OutputFormat;
use crate::figures::Figures;
use crate::untrusted;

/// Writes notices as lines of text.
pub(super) struct TextWriter {
    style: Style,
    sink: Sink,
    subjects: Arc<Vec<Subject>>,
    /// Number of forwards that are not ready yet.
    waiting: usize,
    /// Hidden unless stderr is a terminal and the output is text.
    spinner: ProgressBar,
}

/// The destination of lines.
pub(super) enum Sink {
    /// Results to stdout, everything else to stderr.
    Screen,
    /// All lines go to the log.
    Log(Arc<Log>),
}

impl TextWriter {
    pub(super) fn new(style: Style, subjects: Arc<Vec<Subject>>, sink: Sink) -> Self {
        let spins = style.format == OutputFormat::Text && !style.quiet && !style.logging && io::stderr().is_terminal();
        let spinner = if spins { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(template) = ProgressStyle::with_template("{spinner} {msg}") {
            spinner.set_style(template);
        }
        Self { style, sink, waiting: subjects.len(), subjects, spinner }
    }

    /// Writes a notice, if it has a text form.
    ///
    /// # Errors
    /// Returns an error if stdout is closed. A closed stderr is ignored.
    pub(super) fn write(&mut self, subjects: &Arc<Vec<Subject>>, notice: &Notice) -> io::Result<()> {
        self.subjects = subjects.clone();
        match notice {
            Notice::Failure { forward, failure, .. } => {
                let which = forward.and_then(|forward| subjects.get(forward)).map(|subject| self.which(subject));
                self.note_lines(&format!("error: {}{}", which.unwrap_or_default(), failure.shown()));
            }
            _ if self.style.quiet || self.style.format == OutputFormat::Json => {}
            Notice::Found { .. } | Notice::Client { .. } | Notice::Figures { .. } if self.style.beside => {}
            Notice::Warning { text, .. } => self.note(&format!("warning: {text}")),
            Notice::Event { forward, event, .. } => {
                if let Some(subject) = subjects.get(*forward) {
                    return self.event(subject, event);
                }
            }
            Notice::Found { forward, text, .. } => {
                if let Some(subject) = subjects.get(*forward) {
                    self.note(&format!("{}{text}", self.which(subject)));
                }
            }
            Notice::Retrying { forward, failure, delay, .. } => {
                let which = subjects.get(*forward).map(|subject| self.which(subject)).unwrap_or_default();
                self.note(&format!("warning: {which}{failure}; next attempt in {}", seconds(*delay)));
            }
            Notice::Client { command, .. } => return self.result(&format!("    {command}")),
            Notice::Figures { forwards, .. } => self.figures(forwards),
            Notice::Dropped { count, .. } => self.note(&format!("warning: {}", super::dropped(*count))),
            Notice::End => {}
        }
        Ok(())
    }

    /// Removes the spinner.
    pub(super) fn finish(&self) {
        self.spinner.finish_and_clear();
    }

    /// Returns the prefix that names the forward of a line, if there are several.
    fn which(&self, subject: &Subject) -> String {
        match &subject.name {
            Some(name) => format!("{name}: "),
            None if self.subjects.len() > 1 => format!("-L {}: ", subject.spec.text),
            None => String::new(),
        }
    }

    fn event(&mut self, subject: &Subject, event: &ForwardEvent) -> io::Result<()> {
        if self.style.beside && self.waiting == 0 && is_routine(event) {
            return Ok(());
        }
        let which = self.which(subject);
        match event {
            ForwardEvent::Starting { target } => self.progress(&format!("{which}Starting a session on {target}")),
            ForwardEvent::AwaitingTarget { cause, patience } => {
                self.progress(&format!("{which}{}", awaiting(&subject.target, cause, *patience)));
            }
            ForwardEvent::SessionStarted { session_id } => {
                self.progress(&format!("{which}Opening the data channel of session {session_id}"));
            }
            ForwardEvent::Ready { local, session_id, .. } => {
                let name = if subject.name.is_some() { &*which } else { "" };
                return self.ready(&format!("{name}{}", ready_line(subject, local, session_id)));
            }
            ForwardEvent::ConnectionClosed { connection, error: Some(error), .. } => {
                self.note(&format!("warning: {which}connection {connection} to {}: {error}", subject.spec.remote));
            }
            ForwardEvent::Reconnecting { cause, attempt, delay } => {
                if *attempt == 1 {
                    self.note(&format!("{which}Lost the data channel to {}: {cause}; reconnecting", subject.target));
                }
                self.progress_on_terminal(&format!("{which}Reconnecting in {} (attempt {attempt})", seconds(*delay)));
            }
            ForwardEvent::Reconnected { outage } => {
                self.finish();
                self.note(&format!("{which}Reconnected to {} after {}", subject.target, seconds(*outage)));
            }
            ForwardEvent::SessionLost { session_id, reason, connections } => {
                self.note(&lost_line(&which, session_id, reason, *connections));
            }
            ForwardEvent::Restarting { cause, attempt, delay } => {
                if *attempt == 2 {
                    self.note(&format!("{which}No new session on {} yet: {cause}; trying again", subject.target));
                }
                self.progress_on_terminal(&format!("{which}New session in {} (attempt {attempt})", seconds(*delay)));
            }
            ForwardEvent::Restarted { session_id, outage } => {
                self.finish();
                let (target, outage) = (&subject.target, seconds(*outage));
                self.note(&format!("{which}New session {session_id} on {target} after {outage}"));
            }
            ForwardEvent::SessionAdded { session_id, sessions, max } => {
                self.finish();
                let target = &subject.target;
                self.note(&format!("{which}{sessions} sessions on {target} now, of up to {max}: added {session_id}"));
            }
            ForwardEvent::Waiting { cause } => match cause {
                Some(cause) => self.note(&format!("warning: {which}{cause}; the next connection tries again")),
                None => self.note(&format!("{which}Waiting for a connection")),
            },
            ForwardEvent::Message { text } => self.message(&format!("{which}{}", subject.target), text),
            ForwardEvent::Warning { text } => self.note(&format!("warning: {which}{text}")),
            _ => {}
        }
        Ok(())
    }

    /// Shows the live figures, once all forwards are ready.
    fn figures(&self, forwards: &[Figures]) {
        if self.waiting == 0 && !self.spinner.is_hidden() && forwards.iter().all(|figures| figures.now.sessions > 0) {
            if self.spinner.is_finished() {
                self.spinner.reset();
            }
            self.spinner.set_message(live_line(forwards));
            self.spinner.tick();
        }
    }

    /// Writes the result, which is the only output on stdout.
    fn ready(&mut self, line: &str) -> io::Result<()> {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.finish();
        }
        if self.style.beside { Ok(()) } else { self.result(line) }
    }

    /// Writes a line of the result.
    fn result(&self, line: &str) -> io::Result<()> {
        if let Sink::Log(log) = &self.sink {
            log.push(&untrusted::line(line));
            return Ok(());
        }
        self.spinner.suspend(|| {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{}", untrusted::line(line))?;
            stdout.flush()
        })
    }

    /// Shows progress: with the spinner on a terminal, otherwise as a line.
    fn progress(&self, text: &str) {
        if self.spinner.is_hidden() {
            if !self.style.beside {
                self.note(text);
            }
        } else {
            self.progress_on_terminal(text);
        }
    }

    fn progress_on_terminal(&self, text: &str) {
        if !self.spinner.is_hidden() {
            self.spinner.reset();
            self.spinner.set_message(untrusted::line(text));
            self.spinner.enable_steady_tick(TICK);
        }
    }

    /// Writes a message of the node. Each line starts with the target, so that no line can imitate this program's output.
    fn message(&self, target: &str, text: &str) {
        text.lines().take(MESSAGE_LINES).for_each(|line| self.note(&format!("{target}: {line}")));
    }

    fn note(&self, text: &str) {
        self.note_lines(&untrusted::line(text));
    }

    /// Writes lines that contain no control characters.
    fn note_lines(&self, text: &str) {
        if let Sink::Log(log) = &self.sink {
            return text.lines().for_each(|line| log.push(line));
        }
        self.spinner.suspend(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }
}

/// Whether the event needs no attention: it resolves itself and affects no connection.
fn is_routine(event: &ForwardEvent) -> bool {
    use ForwardEvent as Event;
    let quiet = matches!(event, Event::Reconnecting { .. } | Event::Reconnected { .. } | Event::SessionAdded { .. });
    quiet || matches!(event, Event::Restarted { .. } | Event::SessionLost { connections: 0, .. })
}

/// Returns the text while the command waits for a node.
pub(crate) fn awaiting(target: &str, cause: &str, patience: Duration) -> String {
    format!("Waiting up to {} s for {target} to connect: {cause}", patience.as_secs_f32())
}

const TICK: Duration = Duration::from_millis(100);
/// Maximum number of lines that are shown of one message.
const MESSAGE_LINES: usize = 20;

fn ready_line(subject: &Subject, local: &LocalAddr, session_id: &str) -> String {
    let (target, remote) = (&subject.target, &subject.spec.remote);
    match remote.host {
        Some(_) => format!("Forwarding {local} -> {remote} through {target} (session {session_id})"),
        None => format!("Forwarding {local} -> {remote} of {target} (session {session_id})"),
    }
}

/// Returns the state and the rates of all forwards together, in one line.
fn live_line(forwards: &[Figures]) -> String {
    let sum = |of: fn(&Figures) -> f64| forwards.iter().map(of).sum::<f64>();
    let connections: u64 = forwards.iter().map(|figures| figures.now.connections_open).sum();
    let round_trip = forwards.iter().map(|figures| figures.now.round_trip_us).max().unwrap_or_default();
    let resent: u64 = forwards.iter().map(|figures| figures.now.retransmissions).sum();
    #[expect(clippy::cast_possible_truncation, reason = "approximate figures for people; a cast saturates")]
    let rate = |bytes: f64| format!("{}/s", HumanBytes(bytes as u64));
    let sessions: u64 = forwards.iter().map(|figures| figures.now.sessions).sum();
    let connected: u64 = forwards.iter().map(|figures| figures.now.sessions_connected).sum();
    let state = match (sessions, connected) {
        (0, _) => "no session  ",
        (sessions, connected) if connected < sessions => "reconnecting  ",
        _ => "",
    };
    let budget = forwards.iter().map(|figures| figures.now.message_budget).sum::<Option<u64>>();
    let budget = budget.map_or_else(String::new, |budget| format!(" of {budget}"));
    let sessions = if sessions > forwards.len() as u64 { format!("  {sessions} sessions") } else { String::new() };
    let plural = if connections == 1 { "" } else { "s" };
    format!(
        "{state}{connections} connection{plural}{sessions}  ↑ {}  ↓ {}  {:.0}{budget} messages/s  round trip {:.1} ms  {resent} resent",
        rate(sum(|figures| figures.up)),
        rate(sum(|figures| figures.down)),
        sum(|figures| figures.messages),
        round_trip as f64 / 1e3,
    )
}

fn lost_line(which: &str, session_id: &str, reason: &str, connections: usize) -> String {
    match connections {
        0 => format!("{which}Session {session_id} ended: {reason}; a new one starts when it is needed"),
        1 => {
            format!(
                "warning: {which}session {session_id} ended: {reason}; its connection is reset, a new session is started"
            )
        }
        n => format!(
            "warning: {which}session {session_id} ended: {reason}; its {n} connections are reset, a new session is started"
        ),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_says_from_where_to_where() {
        let subject = |spec: &str| Subject { name: None, target: "i-1".into(), spec: spec.parse().unwrap() };
        let local = LocalAddr::Tcp("127.0.0.1:3306".parse().unwrap());
        assert_eq!(
            ready_line(&subject("0:db.internal:3306"), &local, "s-1"),
            "Forwarding 127.0.0.1:3306 -> db.internal:3306 through i-1 (session s-1)"
        );
        assert_eq!(
            ready_line(&subject("0:80"), &local, "s-1"),
            "Forwarding 127.0.0.1:3306 -> port 80 of i-1 (session s-1)"
        );
    }

    #[test]
    fn the_live_line_sums_the_forwards() {
        let mut figures = Figures { up: 1e6, down: 5.5e6, messages: 400.0, ..Figures::default() };
        (figures.now.connections_open, figures.now.round_trip_us) = (1, 4200);
        (figures.now.sessions, figures.now.sessions_connected) = (2, 2);
        let line = live_line(&[figures, Figures::default()]);
        assert_eq!(line, "1 connection  ↑ 976.56 KiB/s  ↓ 5.25 MiB/s  400 messages/s  round trip 4.2 ms  0 resent");
        (figures.now.sessions, figures.now.message_budget) = (3, Some(2700));
        let line = live_line(&[figures]);
        assert!(line.starts_with("reconnecting  1 connection  3 sessions  ↑"), "{line}");
        assert!(line.contains("  400 of 2700 messages/s  "), "{line}");
        assert!(live_line(&[Figures::default()]).starts_with("no session  0 connections"));
    }
}
