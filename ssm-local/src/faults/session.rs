//! The faults of one session, as a value: messages and the time are inputs, messages and actions are outputs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use ssm_proto::MessageType;

use super::line::Line;
use super::mangle;
use super::schedule::Schedule;
use super::{Actor, Direction, Effect, Fault, later};
use crate::wire::message_type;

/// An action that the relay must perform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Close the client's WebSocket.
    Close { code: u16, reason: String },
    /// Reset the client's connection.
    Reset,
    /// Notify one end that the other one became active or inactive.
    Publication { start: bool, direction: Direction },
    /// End the session.
    End { failed: bool, text: String },
}

/// Applies the faults of one session. The methods follow the conventions of `ssm_proto`: [`SessionFaults::pass`] and `handle_*`
/// change the state, and `poll_*` return the next action or time.
#[derive(Debug)]
pub(crate) struct SessionFaults {
    rng: Rng,
    faults: Vec<Active>,
    up: Line,
    down: Line,
    actions: VecDeque<Action>,
}

/// A fault that is in force.
#[derive(Debug)]
struct Active {
    fault: Fault,
    schedule: Schedule,
    phase: Phase,
    meter: Meter,
}

/// The state of an event with a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Off,
    Until(Instant),
    ForGood,
}

/// The message rate of the WebSocket.
#[derive(Debug)]
struct Meter {
    second: Instant,
    count: u64,
    /// The time since which each second had too many messages.
    over_since: Option<Instant>,
}

/// A message in transit.
struct Parcel {
    message: Bytes,
    copies: usize,
    due: Instant,
    late: bool,
    /// Whether the digest of the message does not match its payload.
    damaged: bool,
    /// Whether the agent processes the message and its retransmission.
    twice: bool,
}

impl SessionFaults {
    /// Creates the state with those of `faults` that act on a session.
    pub(crate) fn new<'a>(faults: impl IntoIterator<Item = &'a Fault>, seed: u64, now: Instant) -> Self {
        let mut session = Self {
            rng: Rng::with_seed(seed),
            faults: Vec::new(),
            up: Line::new(now),
            down: Line::new(now),
            actions: VecDeque::new(),
        };
        faults.into_iter().for_each(|fault| session.add(fault.clone(), now));
        session
    }

    /// Adds a fault, if it acts on a session.
    pub(crate) fn add(&mut self, fault: Fault, now: Instant) {
        if !fault.effect.is_of_session() {
            return;
        }
        self.faults.retain(|active| active.phase != Phase::Off || !active.schedule.is_used_up());
        let schedule = match fault.effect.actor() {
            Actor::Event => Schedule::of_event(fault.when, now),
            _ => Schedule::new(fault.when, now),
        };
        let meter = Meter { second: now, count: 0, over_since: None };
        self.faults.push(Active { fault, schedule, phase: Phase::Off, meter });
    }

    /// Passes a message on. Messages that arrive immediately are appended to `out`. `is_new`: the client sends the message for the
    /// first time. Returns whether the agent must process the retransmission of the message too.
    pub(crate) fn pass(
        &mut self,
        now: Instant,
        direction: Direction,
        message: Bytes,
        is_new: bool,
        out: &mut VecDeque<Bytes>,
    ) -> bool {
        let acknowledgement = message_type(&message) == Some(MessageType::Acknowledge);
        let line = if direction == Direction::Up { &mut self.up } else { &mut self.down };
        let mut parcel = Parcel { message, copies: 1, due: now, late: false, damaged: false, twice: false };
        for active in &mut self.faults {
            let covered = active.fault.direction.covers(direction) && active.fault.only.covers(acknowledgement);
            if !covered || (active.fault.effect == Effect::ProcessTwice && !is_new) {
                continue;
            }
            if active.fault.effect.actor() == Actor::Message {
                if active.schedule.hits(now, &mut self.rng) {
                    active.act(now, &mut parcel, line, &mut self.rng, &mut self.actions);
                }
            } else if active.schedule.is_by_message() && active.schedule.hits(now, &mut self.rng) {
                active.begin(now, &mut self.actions);
            }
        }
        // The agent does not check digests, so it would accept a damaged payload, which TLS would not deliver in reality. With an
        // invalid header, the agent drops the message.
        if parcel.damaged && direction == Direction::Up {
            parcel.message = mangle::bad_header(&parcel.message, &mut self.rng);
        }
        if !self.faults.iter().any(|active| active.is_on(&Effect::AgentAway)) {
            for _ in 0..parcel.copies {
                line.push(parcel.due, parcel.late, parcel.message.clone());
            }
        }
        self.release(now, direction, out);
        parcel.twice
    }

    /// Handles that the time has advanced. Messages that have arrived are appended to `up` and `down`.
    pub(crate) fn handle_timeout(&mut self, now: Instant, up: &mut VecDeque<Bytes>, down: &mut VecDeque<Bytes>) {
        for active in &mut self.faults {
            active.handle_timeout(now, &mut self.actions);
        }
        self.release(now, Direction::Up, up);
        self.release(now, Direction::Down, down);
    }

    /// Handles that the client opened a data channel.
    pub(crate) fn handle_connected(&mut self, now: Instant) {
        for active in &mut self.faults {
            active.meter = Meter { second: now, count: 0, over_since: None };
            if active.fault.effect == Effect::BlackHole {
                active.phase = Phase::Off;
            }
        }
    }

    /// Returns the next action of the relay.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`SessionFaults::handle_timeout`] must be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let ends = self.faults.iter().filter_map(|active| match active.phase {
            Phase::Until(end) => Some(end),
            Phase::Off | Phase::ForGood => None,
        });
        let events = self.faults.iter().filter(|active| active.fault.effect.actor() == Actor::Event);
        let strikes = events.filter_map(|active| active.schedule.next_strike());
        let lines = [(Direction::Up, &self.up), (Direction::Down, &self.down)].into_iter();
        let arrivals = lines.filter(|(way, _)| !self.is_stalled(*way)).filter_map(|(_, line)| line.next_arrival());
        ends.chain(strikes).chain(arrivals).min()
    }

    /// Returns whether the client's WebSocket must be neither read nor written.
    pub(crate) fn is_black_hole(&self) -> bool {
        self.faults.iter().any(|active| active.is_on(&Effect::BlackHole))
    }

    /// Returns whether nothing more may be accepted from the sender of this direction.
    pub(crate) fn is_blocked(&self, direction: Direction) -> bool {
        match direction {
            Direction::Down => self.down.is_full(),
            _ => self.up.is_full() || self.faults.iter().any(|active| active.is_on(&Effect::AgentDeaf)),
        }
    }

    /// Moves all messages in transit to `up` and `down`.
    pub(crate) fn release_all(&mut self, up: &mut VecDeque<Bytes>, down: &mut VecDeque<Bytes>) {
        self.up.release_all(up);
        self.down.release_all(down);
    }

    fn release(&mut self, now: Instant, direction: Direction, out: &mut VecDeque<Bytes>) {
        if !self.is_stalled(direction) {
            let line = if direction == Direction::Up { &mut self.up } else { &mut self.down };
            line.release(now, out);
        }
    }

    fn is_stalled(&self, direction: Direction) -> bool {
        self.faults.iter().any(|active| active.is_on(&Effect::Stall) && active.fault.direction.covers(direction))
    }
}

impl Active {
    fn is_on(&self, effect: &Effect) -> bool {
        self.phase != Phase::Off && self.fault.effect == *effect
    }

    fn handle_timeout(&mut self, now: Instant, actions: &mut VecDeque<Action>) {
        if matches!(self.phase, Phase::Until(end) if end <= now) {
            self.phase = Phase::Off;
            if self.fault.effect == Effect::AgentAway {
                actions.push_back(Action::Publication { start: true, direction: Direction::Down });
            }
        }
        if self.fault.effect.actor() == Actor::Event && self.schedule.strikes(now) {
            self.begin(now, actions);
        }
    }

    /// Starts an event.
    fn begin(&mut self, now: Instant, actions: &mut VecDeque<Action>) {
        tracing::debug!(fault = %self.fault, "a fault begins");
        let direction = self.fault.direction;
        match &self.fault.effect {
            Effect::Close { code, reason } => {
                actions.push_back(Action::Close { code: *code, reason: reason.clone() });
            }
            Effect::Reset => actions.push_back(Action::Reset),
            Effect::PausePublication => actions.push_back(Action::Publication { start: false, direction }),
            Effect::StartPublication => actions.push_back(Action::Publication { start: true, direction }),
            Effect::End { failed, text } => {
                actions.push_back(Action::End { failed: *failed, text: text.clone() });
            }
            lasting => {
                if *lasting == Effect::AgentAway && self.phase == Phase::Off {
                    actions.push_back(Action::Publication { start: false, direction: Direction::Down });
                }
                self.phase = self.fault.when.lasts.map_or(Phase::ForGood, |lasts| Phase::Until(later(now, lasts)));
            }
        }
    }

    /// Applies the fault to a message.
    fn act(
        &mut self,
        now: Instant,
        parcel: &mut Parcel,
        line: &mut Line,
        rng: &mut Rng,
        actions: &mut VecDeque<Action>,
    ) {
        match &self.fault.effect {
            Effect::Delay { by, jitter } => {
                parcel.due = later(parcel.due, by.saturating_add(jitter.mul_f64(rng.f64())))
            }
            Effect::Rate { bytes } => {
                parcel.due = parcel.due.max(line.transmit(now, parcel.message.len(), *bytes));
            }
            Effect::MessageLimit { limit, bear, code, reason } if self.meter.is_exceeded(now, *limit, *bear) => {
                actions.push_back(Action::Close { code: *code, reason: reason.clone() });
            }
            Effect::Drop => parcel.copies = 0,
            Effect::Duplicate => parcel.copies *= 2,
            Effect::Reorder { by } => {
                parcel.due = later(parcel.due, *by);
                parcel.late = true;
            }
            Effect::Corrupt => {
                parcel.message = mangle::corrupt(&parcel.message, rng);
                parcel.damaged = true;
            }
            Effect::BadDigest => {
                parcel.message = mangle::bad_digest(&parcel.message, rng);
                parcel.damaged = true;
            }
            Effect::BadHeader => parcel.message = mangle::bad_header(&parcel.message, rng),
            Effect::ProcessTwice => parcel.twice = true,
            Effect::Oversize { bytes } => parcel.message = mangle::oversize(&parcel.message, *bytes),
            _ => {}
        }
    }
}

impl Meter {
    /// Counts a message. Returns whether every second had more than `limit` messages for longer than the tolerated time.
    fn is_exceeded(&mut self, now: Instant, limit: u64, bear: Duration) -> bool {
        const SECOND: Duration = Duration::from_secs(1);
        let since = now.saturating_duration_since(self.second);
        if since >= SECOND {
            let over = self.count > limit && since < 2 * SECOND;
            self.over_since = over.then(|| self.over_since.unwrap_or(self.second));
            (self.second, self.count) = (self.second + SECOND * u32::try_from(since.as_secs()).unwrap_or(u32::MAX), 0);
        }
        self.count += 1;
        let exceeded = self.over_since.is_some_and(|since| self.second.saturating_duration_since(since) >= bear)
            || (bear < SECOND && self.count > limit);
        if exceeded {
            (self.over_since, self.count) = (None, 0);
        }
        exceeded
    }
}

#[cfg(test)]
mod tests;
