//! The evaluation of a cell.

use std::fmt;
use std::time::Duration;

use ssm_forward::ForwardEvent;
use tokio::time::{Instant, sleep};

use crate::cases::{Case, Expect};
use crate::load::{Broken, Script};
use crate::program::Manner;
use crate::service::Served;
use crate::traffic::Program;
use crate::tunnel::Tunnel;

/// Time within which the data must arrive that a program sent before it closed its connection.
const ARRIVAL: Duration = Duration::from_secs(45);

/// The result of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every byte of every connection arrived.
    Exact,
    /// This number of connections were reset, and their programs saw the reset; the others delivered every byte.
    Reset(usize),
    Fail(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("ok"),
            Self::Reset(_) => f.write_str("reset"),
            Self::Fail(why) => write!(f, "FAIL: {why}"),
        }
    }
}

/// A program of a cell, and how its connection ended.
pub(crate) type Ended = (Program, Result<(), Broken>);

/// Compares the results at both ends of each connection with the allowed effect of the fault, and with the forwarder's events.
pub(crate) async fn judge(case: &Case, tunnel: &Tunnel, ended: &[Ended]) -> Outcome {
    let mut resets = 0;
    for (program, end) in ended {
        let served = served(tunnel, program, end).await;
        match compare(case, program, end, served) {
            Ok(Seen::Whole) => {}
            Ok(Seen::Reset) => resets += 1,
            Err(why) => return Outcome::Fail(why),
        }
    }
    let whole = |(program, _): &&Ended| program.manner.is_whole();
    let scripts: Vec<_> = ended.iter().filter(whole).map(|(program, _)| program.script).collect();
    let reset = ended.iter().filter(whole).filter(|(_, end)| end.is_err()).count();
    if let Err(lie) = check_events(&tunnel.events(), &scripts, reset) {
        return Outcome::Fail(format!("events: {lie}"));
    }
    match (resets, case.expect) {
        (0, _) => Outcome::Exact,
        (_, Expect::Reset) => Outcome::Reset(resets),
        (_, Expect::Exact) => Outcome::Fail(format!("{resets} connections reset: {:?}", errors(&tunnel.events()))),
    }
}

/// Waits for the connection's result at the service, because data in transit may still arrive after the program has closed.
async fn served(tunnel: &Tunnel, program: &Program, end: &Result<(), Broken>) -> Option<Served> {
    let began = Instant::now();
    loop {
        let served = tunnel.service.served(program.script.seed);
        // An interrupted connection may never have reached the service.
        if served.is_some() || end.is_err() || began.elapsed() > ARRIVAL {
            return served;
        }
        if matches!(program.manner, Manner::Reset { .. }) {
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The result on which both ends of a connection agree.
enum Seen {
    Whole,
    Reset,
}

fn compare(case: &Case, program: &Program, end: &Result<(), Broken>, served: Option<Served>) -> Result<Seen, String> {
    if let Some(Served { end: Err(Broken::Wrong(what)), .. }) = &served {
        return Err(format!("service: {what}"));
    }
    match (end, program.manner) {
        (Err(Broken::Reset), _) => Ok(Seen::Reset),
        (Err(broken), _) => Err(format!("{broken:?}")),
        (Ok(()), Manner::Whole(_)) => match served {
            Some(Served { end: Ok(()), .. }) => Ok(Seen::Whole),
            other => Err(format!("the program saw a normal end, the service {other:?}")),
        },
        (Ok(()), Manner::Reset { .. }) => Ok(Seen::Whole),
        (Ok(()), Manner::Close) => match served {
            Some(served) if served.received == u64::from(program.script.up) => Ok(Seen::Whole),
            // The program has already closed, so it cannot see the reset.
            _ if case.expect == Expect::Reset => Ok(Seen::Reset),
            other => Err(format!("the program closed after it sent all data, the service saw {other:?}")),
        },
    }
}

fn errors(events: &[ForwardEvent]) -> Vec<String> {
    let mut errors: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ForwardEvent::ConnectionClosed { error, .. } => error.clone(),
            ForwardEvent::SessionLost { reason, .. } => Some(format!("session lost: {reason}")),
            _ => None,
        })
        .collect();
    errors.dedup();
    errors
}

/// Checks that the events match the results: each connection's end and its bytes, each outage's end, each loss.
fn check_events(events: &[ForwardEvent], scripts: &[Script], resets: usize) -> Result<(), String> {
    let (mut opened, mut failed, mut lost) = (0, 0, 0);
    // The counts include all sessions, because the events do not name their session.
    let (mut outages, mut returns) = (0, 0);
    let mut whole = Vec::new();
    for event in events {
        match event {
            ForwardEvent::ConnectionOpened { .. } => opened += 1,
            ForwardEvent::ConnectionClosed { error: Some(_), .. } => failed += 1,
            ForwardEvent::ConnectionClosed { bytes_up, bytes_down, .. } => whole.push((*bytes_up, *bytes_down)),
            ForwardEvent::Reconnecting { attempt: 1, .. } => outages += 1,
            ForwardEvent::Reconnected { .. } if returns == outages => {
                return Err("reconnected without an outage".into());
            }
            ForwardEvent::Reconnected { .. } => returns += 1,
            ForwardEvent::SessionLost { connections, .. } => lost += connections,
            _ => {}
        }
    }
    let mut expected = scripts.len() - resets;
    for script in scripts {
        match whole.iter().position(|bytes| *bytes == script.bytes()) {
            Some(at) => _ = whole.swap_remove(at),
            None if expected < scripts.len() => expected += 1,
            None => return Err(format!("no event reports a connection with {:?} bytes", script.bytes())),
        }
    }
    match () {
        () if opened != events.iter().filter(|e| matches!(e, ForwardEvent::ConnectionClosed { .. })).count() => {
            Err("the numbers of closed and opened connections differ".into())
        }
        () if failed < resets => {
            Err(format!("{resets} connections were reset, the events report {failed} failed ones"))
        }
        () if failed < lost => Err(format!("the events report {lost} lost connections and {failed} failed ones")),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(up: u64, down: u64, error: Option<&str>) -> [ForwardEvent; 2] {
        [
            ForwardEvent::ConnectionOpened { connection: 1, peer: None },
            ForwardEvent::ConnectionClosed {
                connection: 1,
                bytes_up: up,
                bytes_down: down,
                refused: false,
                error: error.map(str::to_owned),
            },
        ]
    }

    #[test]
    fn events_that_do_not_fit_what_happened_are_lies() {
        let script = Script { seed: 1, rounds: 2, up: 10, down: 20, burst: 10, pause: 0, deaf: 0 };
        let (up, down) = script.bytes();
        assert_eq!(check_events(&closed(up, down, None), &[script], 0), Ok(()));
        assert!(check_events(&closed(up, down - 1, None), &[script], 0).is_err());
        assert_eq!(check_events(&closed(up, 3, Some("gone")), &[script], 1), Ok(()));
        assert!(check_events(&closed(up, down, None), &[script], 1).is_err());
        assert!(check_events(&closed(up, down, None)[..1], &[script], 0).is_err());
        let back = ForwardEvent::Reconnected { outage: Duration::ZERO };
        assert!(check_events(&[back], &[], 0).is_err());
    }
}
