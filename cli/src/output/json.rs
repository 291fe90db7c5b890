//! One JSON object per line. The names are a part of the command's interface; `docs/cli.md` lists them.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use ssm_forward::{ForwardEvent, LocalAddr, StatsSnapshot};

use super::{Notice, Subject};
use crate::figures::Figures;

/// Minimum interval between live figures. They are written only if they changed.
const STATS_INTERVAL: Duration = Duration::from_secs(10);

/// Writes notices as lines of JSON.
#[derive(Default)]
pub(super) struct JsonWriter {
    /// Time and values of the last written figures.
    last: Option<(SystemTime, Vec<StatsSnapshot>)>,
}

impl JsonWriter {
    /// Writes a notice as a line and flushes it.
    pub(super) fn write(&mut self, to: &mut impl Write, subjects: &[Subject], notice: &Notice) -> io::Result<()> {
        if let Notice::Figures { at, forwards } = notice {
            return self.figures(to, subjects, *at, forwards);
        }
        let Some(line) = line(subjects, notice) else { return Ok(()) };
        write_line(to, &line)
    }

    fn figures(
        &mut self,
        to: &mut impl Write,
        subjects: &[Subject],
        at: SystemTime,
        forwards: &[Figures],
    ) -> io::Result<()> {
        let now: Vec<_> = forwards.iter().map(|figures| figures.now).collect();
        let Some((last_time, before)) = &self.last else {
            self.last = Some((at, now));
            return Ok(());
        };
        let soon = at.duration_since(*last_time).is_ok_and(|passed| passed < STATS_INTERVAL);
        let moved = |a: &StatsSnapshot, b: &StatsSnapshot| {
            (a.bytes_up, a.bytes_down, a.connections_open) != (b.bytes_up, b.bytes_down, b.connections_open)
        };
        if soon || !before.iter().zip(&now).any(|(before, now)| moved(before, now)) {
            return Ok(());
        }
        for (forward, figures) in forwards.iter().enumerate() {
            let body = Body::Stats {
                figures: &figures.now,
                up_per_second: figures.up,
                down_per_second: figures.down,
                messages_per_second: figures.messages,
            };
            write_line(
                to,
                &Line { time: timestamp(at), forward: Some(forward), tunnel: name(subjects, Some(forward)), body },
            )?;
        }
        self.last = Some((at, now));
        Ok(())
    }
}

fn write_line(to: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    line.serialize(&mut Serializer::with_formatter(&mut *to, Visible))?;
    to.write_all(b"\n")?;
    to.flush()
}

/// Formats JSON in ASCII, so that no text of the remote side can control a terminal. For programs, the value is the same.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, to: &mut W, text: &str) -> io::Result<()> {
        for character in text.chars() {
            match character {
                ' '..='~' => write!(to, "{character}")?,
                _ => character.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(to, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    forward: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<&'a str>,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Body<'a> {
    Starting {
        target: &'a str,
        spec: &'a str,
        remote_host: Option<&'a str>,
        remote_port: u16,
    },
    AwaitingTarget {
        cause: &'a str,
        up_to_ms: u64,
    },
    SessionStarted {
        session_id: &'a str,
    },
    Found {
        text: &'a str,
    },
    Client {
        command: &'a str,
    },
    Ready(Ready<'a>),
    ConnectionOpened {
        connection: u64,
        peer: Option<String>,
    },
    ConnectionClosed {
        connection: u64,
        bytes_up: u64,
        bytes_down: u64,
        refused: bool,
        error: Option<&'a str>,
    },
    Reconnecting {
        cause: &'a str,
        attempt: u32,
        delay_ms: u64,
    },
    Reconnected {
        outage_ms: u64,
    },
    SessionLost {
        session_id: &'a str,
        reason: &'a str,
        connections: usize,
    },
    Restarting {
        cause: &'a str,
        attempt: u32,
        delay_ms: u64,
    },
    Restarted {
        session_id: &'a str,
        outage_ms: u64,
    },
    SessionAdded {
        session_id: &'a str,
        sessions: usize,
        max: usize,
    },
    Message {
        text: &'a str,
    },
    Warning {
        text: &'a str,
    },
    /// The output was not read for a while, so that events were dropped.
    EventsDropped {
        count: u64,
    },
    Error {
        kind: &'a str,
        message: &'a str,
        exit_code: u8,
    },
    Closed {
        reason: &'a str,
    },
    /// `up`: the tunnel failed and is tried again.
    Retrying {
        kind: &'a str,
        message: &'a str,
        delay_ms: u64,
    },
    /// `up`: a lazy tunnel listens, without a session.
    Waiting {
        cause: Option<&'a str>,
    },
    Stats {
        #[serde(flatten)]
        figures: &'a StatsSnapshot,
        up_per_second: f64,
        down_per_second: f64,
        messages_per_second: f64,
    },
}

#[derive(Serialize)]
struct Ready<'a> {
    /// `ip:port`, or the path of the Unix socket.
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    target: &'a str,
    remote_host: Option<&'a str>,
    remote_port: u16,
    session_id: &'a str,
    agent_version: &'a str,
    elapsed_ms: u64,
}

fn line<'a>(subjects: &'a [Subject], notice: &'a Notice) -> Option<Line<'a>> {
    let (at, forward, body) = match notice {
        Notice::Event { at, forward, event } => (at, Some(*forward), event_body(subjects.get(*forward)?, event)?),
        Notice::Warning { at, text } => (at, None, Body::Warning { text }),
        Notice::Found { at, forward, text } => (at, Some(*forward), Body::Found { text }),
        Notice::Client { at, forward, command } => (at, Some(*forward), Body::Client { command }),
        Notice::Failure { at, forward, failure } => {
            let (kind, message) = (failure.kind, failure.message.as_str());
            (at, *forward, Body::Error { kind, message, exit_code: failure.code.number() })
        }
        Notice::Retrying { at, forward, failure, delay } => {
            let body = Body::Retrying { kind: failure.kind, message: &failure.message, delay_ms: millis(*delay) };
            (at, Some(*forward), body)
        }
        Notice::Dropped { at, count } => (at, None, Body::EventsDropped { count: *count }),
        Notice::Figures { .. } | Notice::End => return None,
    };
    Some(Line { time: timestamp(*at), forward, tunnel: name(subjects, forward), body })
}

/// Returns the name of a forward's tunnel.
fn name(subjects: &[Subject], forward: Option<usize>) -> Option<&str> {
    subjects.get(forward?)?.name.as_deref()
}

/// Converts an event. `None` if the event has no JSON form.
fn event_body<'a>(subject: &'a Subject, event: &'a ForwardEvent) -> Option<Body<'a>> {
    let remote = &subject.spec.remote;
    Some(match event {
        ForwardEvent::Starting { target } => Body::Starting {
            target,
            spec: &subject.spec.text,
            remote_host: remote.host.as_deref(),
            remote_port: remote.port,
        },
        ForwardEvent::AwaitingTarget { cause, patience } => Body::AwaitingTarget { cause, up_to_ms: millis(*patience) },
        ForwardEvent::SessionStarted { session_id } => Body::SessionStarted { session_id },
        ForwardEvent::Ready { local, session_id, agent_version, elapsed } => {
            let socket = match local {
                LocalAddr::Tcp(address) => Some(address),
                _ => None,
            };
            Body::Ready(Ready {
                address: local.to_string(),
                host: socket.map(|address| address.ip().to_string()),
                port: socket.map(|address| address.port()),
                target: &subject.target,
                remote_host: remote.host.as_deref(),
                remote_port: remote.port,
                session_id,
                agent_version,
                elapsed_ms: millis(*elapsed),
            })
        }
        ForwardEvent::ConnectionOpened { connection, peer } => {
            Body::ConnectionOpened { connection: *connection, peer: peer.map(|peer| peer.to_string()) }
        }
        ForwardEvent::ConnectionClosed { connection, bytes_up, bytes_down, refused, error } => Body::ConnectionClosed {
            connection: *connection,
            bytes_up: *bytes_up,
            bytes_down: *bytes_down,
            refused: *refused,
            error: error.as_deref(),
        },
        ForwardEvent::Reconnecting { cause, attempt, delay } => {
            Body::Reconnecting { cause, attempt: *attempt, delay_ms: millis(*delay) }
        }
        ForwardEvent::Waiting { cause } => Body::Waiting { cause: cause.as_deref() },
        ForwardEvent::Reconnected { outage } => Body::Reconnected { outage_ms: millis(*outage) },
        ForwardEvent::SessionLost { session_id, reason, connections } => {
            Body::SessionLost { session_id, reason, connections: *connections }
        }
        ForwardEvent::Restarting { cause, attempt, delay } => {
            Body::Restarting { cause, attempt: *attempt, delay_ms: millis(*delay) }
        }
        ForwardEvent::Restarted { session_id, outage } => Body::Restarted { session_id, outage_ms: millis(*outage) },
        ForwardEvent::SessionAdded { session_id, sessions, max } => {
            Body::SessionAdded { session_id, sessions: *sessions, max: *max }
        }
        ForwardEvent::Message { text } => Body::Message { text },
        ForwardEvent::Warning { text } => Body::Warning { text },
        ForwardEvent::Closed { reason } => Body::Closed { reason },
        _ => return None,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a time as RFC 3339 in UTC with milliseconds.
pub(super) fn timestamp(at: SystemTime) -> String {
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since_epoch.as_secs() / 86_400, since_epoch.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second, millis) = (second / 3600, second / 60 % 60, second % 60, since_epoch.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Converts days since 1970-01-01 to year, month and day. This is Hinnant's `civil_from_days`: its years begin in March, so that
/// the leap day is the last day.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit_code::{ExitCode, Failure};

    fn rendered(notice: &Notice) -> serde_json::Value {
        let subject = Subject { name: None, target: "i-1".into(), spec: "0:db:3306".parse().unwrap() };
        let mut line = Vec::new();
        JsonWriter::default().write(&mut line, &[subject], notice).unwrap();
        assert_eq!(line.pop(), Some(b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    fn event(event: ForwardEvent) -> serde_json::Value {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(951_782_399_042);
        rendered(&Notice::Event { at, forward: 0, event })
    }

    #[test]
    fn ready_tells_the_real_port() {
        let ready = event(ForwardEvent::Ready {
            local: LocalAddr::Tcp("[::1]:4711".parse().unwrap()),
            session_id: "s-1".into(),
            agent_version: "3.3.987.0".into(),
            elapsed: Duration::from_millis(12),
        });
        let expected = serde_json::json!({
            "time": "2000-02-28T23:59:59.042Z", "forward": 0, "event": "ready", "address": "[::1]:4711", "host": "::1",
            "port": 4711, "target": "i-1", "remote_host": "db", "remote_port": 3306, "session_id": "s-1",
            "agent_version": "3.3.987.0", "elapsed_ms": 12,
        });
        assert_eq!(ready, expected);
    }

    #[test]
    fn a_unix_socket_has_no_port() {
        let ready = event(ForwardEvent::Ready {
            local: LocalAddr::Unix("/run/db.sock".into()),
            session_id: "s-1".into(),
            agent_version: String::new(),
            elapsed: Duration::ZERO,
        });
        assert_eq!(ready["address"], "/run/db.sock");
        assert!(ready.get("port").is_none() && ready.get("host").is_none());
    }

    #[test]
    fn a_closed_connection_tells_its_bytes() {
        let closed = event(ForwardEvent::ConnectionClosed {
            connection: 7,
            bytes_up: 1,
            bytes_down: 2,
            refused: false,
            error: None,
        });
        assert_eq!(closed["event"], "connection_closed");
        assert_eq!(
            (&closed["connection"], &closed["bytes_up"], &closed["bytes_down"]),
            (&7.into(), &1.into(), &2.into())
        );
        assert!(closed["error"].is_null());
    }

    #[test]
    fn an_error_tells_its_exit_code() {
        let failure = Failure::new(ExitCode::Listen, "listen", "in use");
        let error = rendered(&Notice::Failure { at: SystemTime::UNIX_EPOCH, forward: None, failure });
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000Z", "event": "error", "kind": "listen", "message": "in use", "exit_code": 3,
        });
        assert_eq!(error, expected);
    }

    #[test]
    fn dates_of_leap_years() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_088), (2024, 12, 31));
        assert_eq!(date(20_089), (2025, 1, 1));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }
}
