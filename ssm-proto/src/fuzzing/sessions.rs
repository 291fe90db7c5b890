//! Fuzz target of two correct sides of a session of any kind over a hostile network: messages are delayed, lost, repeated,
//! reordered, changed and replayed, WebSockets connect and disconnect, and the owners of both sides call any method at any time.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::end::End;
use super::input::Input;
use super::keys;
use crate::{
    AgentConfig, AgentQuirks, ChannelClosed, ChannelConfig, ClientConfig, Clock, MuxConfig, Output, PortProperties,
    Retransmission, Session, SessionEvent, SessionMode, SessionType, StreamId, TerminalSize, publication,
};

/// For any behaviour of the network, each stream delivers the bytes that were written at the other end, in order, from the first
/// one on. A message that was changed is refused. Once the network works again, all data arrives except on streams that an end gave
/// up. Queues keep their limits, and the invariants of the state hold.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn session_pair(data: &[u8], now: Instant) {
    let mut input = Input::new(data);
    let mut pair = Pair::new(&mut input, now);
    // Each operation costs time, so their number is limited.
    for _ in 0..MOST_OPERATIONS {
        if input.is_empty() {
            break;
        }
        pair.operate(&mut input);
        pair.drain();
    }
    pair.settle();
}

const MOST_OPERATIONS: usize = 600;
/// Virtual time for all data to arrive once the network works. A head-only sender needs one timeout for each message.
const SETTLE: Duration = Duration::from_secs(120);
const SEND_QUEUE: usize = 4 << 10;
pub(super) const WINDOW: usize = 16;
pub(super) const WINDOW_BYTES: usize = 8 << 10;
pub(super) const REORDER_BYTES: usize = 8 << 10;
const RECEIVE_STORE: usize = 6 << 10;
pub(super) const RECEIVE_TOTAL: usize = 16 << 10;
/// Upper bound of the size of a message in these sessions.
pub(super) const MESSAGE: usize = 2 << 10;
/// Maximum number of messages in transit to one end.
const MOST_IN_FLIGHT: usize = 200;

struct Pair {
    now: Instant,
    /// The client's end and the agent's end.
    ends: [End; 2],
    /// Whether each connection has a number that is the same at both ends.
    named: bool,
    /// Whether the session failed or ended, so that no more data has to arrive.
    over: bool,
}

impl Pair {
    fn new(input: &mut Input<'_>, now: Instant) -> Self {
        let clock = Clock { start: now, unix: Duration::from_secs(1_700_000_000) };
        let (kind, settings) = (input.below(8), input.byte());
        let is = |bit: u8| settings & (1 << bit) != 0;
        let mux = MuxConfig {
            send_queue: SEND_QUEUE,
            receive_store: RECEIVE_STORE,
            receive_total: RECEIVE_TOTAL,
            linger: Duration::from_secs(20),
            ..MuxConfig::default()
        };
        let channel = ChannelConfig {
            window: WINDOW,
            window_bytes: WINDOW_BYTES,
            reorder_bytes: REORDER_BYTES,
            ..ChannelConfig::default()
        };
        let retransmission = if is(0) { Retransmission::HeadOnly } else { Retransmission::PerMessage };
        let refuse_for = Duration::from_millis(if is(1) { 200 } else { 0 });
        let port = |kind: Option<&str>| {
            SessionType::Port(PortProperties { kind: kind.map(str::to_owned), ..PortProperties::default() })
        };
        let (session_type, version) = match kind {
            0 | 1 => (port(Some("LocalPortForwarding")), "3.3.987.0"),
            2 => (port(Some("LocalPortForwarding")), "3.1.1511.0"),
            3 => (port(Some("LocalPortForwarding")), "3.0.196.0"),
            4 => (port(None), "3.3.987.0"),
            5 => (SessionType::StandardStream, "3.3.987.0"),
            6 => (SessionType::InteractiveCommands, "3.3.987.0"),
            _ => (SessionType::NonInteractiveCommands, "3.3.987.0"),
        };
        let client =
            ClientConfig { mux: mux.clone(), channel: channel.clone(), kms_on_ports: true, ..ClientConfig::default() };
        let agent = AgentConfig {
            agent_version: version.into(),
            session_type,
            kms: is(2).then(keys::agent_kms),
            channel: ChannelConfig { retransmission, ..channel },
            mux,
            quirks: AgentQuirks { refuse_for, ..AgentQuirks::default() },
            ..AgentConfig::default()
        };
        let ends = [Session::client(client, clock, 1), Session::agent(agent, clock, 2)].map(End::new);
        let mut pair = Self { now, ends, named: true, over: false };
        pair.connect(0);
        pair.connect(1);
        // Most inputs test sessions that are ready.
        if !is(3) {
            pair.exchange(Duration::from_secs(2));
        }
        pair
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        let (operation, side) = (input.byte(), usize::from(input.flag()));
        let now = self.now;
        let Some(end) = self.ends.get_mut(side) else { return };
        let ids: Vec<_> = end.streams.keys().copied().collect();
        let id = input.pick(&ids);
        match (operation % 22, id) {
            (0, _) => end.open(side),
            (1 | 2, Some(id)) => end.write(id, usize::from(input.byte()) << 3, Output::Stdout),
            (3, Some(id)) => end.write(id, usize::from(input.byte()) << 3, Output::Stderr),
            (4 | 5, _) => self.read_all(),
            (6, Some(id)) => {
                end.flow(id).finished = true;
                end.session.finish(now, id);
            }
            (7, Some(id)) => end.give_up(id, Session::close),
            (8, Some(id)) => end.give_up(id, Session::reset),
            (9, Some(id)) => end.give_up(id, Session::abandon),
            (10, Some(id)) if side == 1 => end.give_up(id, Session::refuse),
            (11, _) => self.advance(input.time()),
            (12, _) => self.disconnect(side),
            (13, _) => self.connect(side),
            (14..=16, _) => self.deliver(side, input.below(16)),
            (17, _) => end.lose(input.below(MOST_IN_FLIGHT)),
            (18, _) => end.repeat(input.below(MOST_IN_FLIGHT), input.flag()),
            (19, _) => self.damage(side, input),
            (20, _) => self.disturb(side, input),
            _ => self.exchange(input.time().min(Duration::from_secs(8))),
        }
    }

    /// Delivers the next messages, until the end is congested.
    fn deliver(&mut self, side: usize, count: usize) {
        let Some(end) = self.ends.get_mut(side) else { return };
        for _ in 0..=count {
            if !end.connected || end.session.is_congested() {
                break;
            }
            let Some(message) = end.inbox.pop_front() else { break };
            end.old = Some(message.clone());
            let outcome = end.session.handle_input(self.now, message);
            assert!(outcome.is_ok(), "a correct message is refused: {outcome:?}");
        }
    }

    /// Delivers the next message with one bit changed after the checked part of the header, or truncated. TLS protects the rest of
    /// the header.
    fn damage(&mut self, side: usize, input: &mut Input<'_>) {
        const PAYLOAD: usize = 120;
        let (at, bit) = (usize::from(input.byte()) | usize::from(input.byte()) << 8, input.byte() % 9);
        let Some(end) = self.ends.get_mut(side).filter(|end| end.connected && !end.session.is_congested()) else {
            return;
        };
        let Some(message) = end.inbox.pop_front() else { return };
        let mut bytes = message.to_vec();
        if bit == 8 {
            bytes.truncate(at % message.len());
        } else if let Some(length) = message.len().checked_sub(PAYLOAD).filter(|length| *length > 0) {
            bytes.get_mut(PAYLOAD + at % length).into_iter().for_each(|byte| *byte ^= 1 << bit);
        } else {
            return;
        }
        // The service's own messages are not checked by their digest.
        let is_publication = message.windows(11).any(|part| part == b"publication");
        let outcome = end.session.handle_input(self.now, bytes.into());
        assert!(is_publication || outcome.is_err(), "a damaged message is accepted");
    }

    /// Performs one action of the service or of a side's owner that may occur at any time.
    fn disturb(&mut self, side: usize, input: &mut Input<'_>) {
        let now = self.now;
        let Some(end) = self.ends.get_mut(side) else { return };
        match input.below(8) {
            0 | 1 => _ = end.session.handle_input(now, publication(input.flag(), 1, Uuid::nil())),
            2 => end.session.resize(TerminalSize { cols: input.byte().into(), rows: 24 }),
            3 => end.session.exit(i64::from(input.byte())),
            4 => end.session.set_refusing(input.flag()),
            5 => end.session.handle_timeout(now),
            6 if input.byte() < 16 => {
                let closed = ChannelClosed::encode("s", "i", "bye", 1, Uuid::nil());
                self.over = true;
                let _ = end.session.handle_input(now, closed);
            }
            7 if input.byte() < 16 => end.session.terminate(),
            _ => {}
        }
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.session.handle_timeout(self.now);
        }
    }

    fn connect(&mut self, side: usize) {
        let now = self.now;
        if let Some(end) = self.ends.get_mut(side)
            && !std::mem::replace(&mut end.connected, true)
        {
            end.session.handle_connected(now);
            self.notify(1 - side, true);
        }
    }

    fn disconnect(&mut self, side: usize) {
        let now = self.now;
        if let Some(end) = self.ends.get_mut(side)
            && std::mem::replace(&mut end.connected, false)
        {
            end.inbox.clear();
            end.session.handle_disconnected(now);
            self.notify(1 - side, false);
        }
    }

    /// Delivers the service's notification whether the other end is active.
    fn notify(&mut self, side: usize, active: bool) {
        if let Some(end) = self.ends.get_mut(side).filter(|end| end.connected) {
            end.inbox.push_back(publication(active, 1, Uuid::nil()));
        }
    }

    /// Delivers the messages of both sides, handles their events and checks their state.
    fn drain(&mut self) {
        for side in [0, 1] {
            let mut sent = Vec::new();
            let Some(end) = self.ends.get_mut(side) else { return };
            while let Some(event) = end.session.poll_event() {
                keys::answer(&mut end.session, &event, self.now);
                match event {
                    SessionEvent::Ready(mode) => self.named &= matches!(mode, SessionMode::Mux | SessionMode::Shell),
                    SessionEvent::Failed(_) | SessionEvent::Closed(_) => self.over = true,
                    other => end.note(&other),
                }
            }
            while let Some(message) = end.session.poll_transmit(self.now) {
                sent.push(message);
            }
            end.check();
            if let Some(other) = self.ends.get_mut(1 - side).filter(|other| other.connected) {
                other.inbox.extend(sent);
                other.inbox.truncate(MOST_IN_FLIGHT);
            }
        }
    }

    fn read_all(&mut self) {
        for side in [0, 1] {
            let Some(end) = self.ends.get_mut(side) else { return };
            let ids: Vec<_> = end.streams.keys().copied().collect();
            for id in ids {
                while let Some((output, chunk)) = end.session.read_output(id) {
                    self.named.then(|| end.take_named(id, output, &chunk));
                    (!self.named).then(|| end.take_unnamed(id, &chunk, side == 1));
                }
                end.session.wait_for_data(self.now, id);
            }
        }
        if self.named {
            self.compare();
        }
    }

    /// Checks that no stream delivered more bytes than were written.
    fn compare(&self) {
        let [client, agent] = &self.ends;
        for (writer, reader) in [(client, agent), (agent, client)] {
            for (id, flow) in &reader.streams {
                let written = writer.streams.get(id).map_or([0; 2], |flow| flow.written);
                let more = flow.read.iter().zip(written).any(|(read, written)| *read > written);
                assert!(!more, "stream {id}: {:?} of {written:?} bytes were read", flow.read);
            }
        }
    }

    /// Runs a network without faults for this time.
    fn exchange(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.drain();
            (0..4).for_each(|turn| self.deliver(turn % 2, MOST_IN_FLIGHT));
            self.drain();
            let next = self.ends.iter().filter_map(|end| end.session.poll_timeout()).map(|timeout| timeout.at).min();
            let busy = self.ends.iter().any(|end| !end.inbox.is_empty() && !end.session.is_congested());
            match next {
                _ if busy => self.now += Duration::from_millis(1),
                Some(at) if at < end => self.now = at.max(self.now + Duration::from_millis(1)),
                _ => break,
            }
            if self.now >= end {
                break;
            }
            self.ends.iter_mut().for_each(|end| end.session.handle_timeout(self.now));
        }
        self.now = self.now.max(end);
        self.ends.iter_mut().for_each(|end| end.session.handle_timeout(self.now));
        self.drain();
    }

    /// Checks that all data arrives except on streams that an end gave up.
    fn settle(&mut self) {
        self.ends.iter_mut().for_each(|end| end.session.set_refusing(false));
        self.connect(0);
        self.connect(1);
        let end = self.now + SETTLE;
        while self.now < end && !self.is_settled() {
            self.exchange(Duration::from_secs(1));
            self.read_all();
        }
        assert!(self.is_settled(), "not all data arrived: {:?}", self.ends.each_ref().map(|end| end.session.stats()));
    }

    fn is_settled(&self) -> bool {
        let [client, agent] = &self.ends;
        let given_up =
            |id: &StreamId| [client, agent].iter().any(|end| end.streams.get(id).is_none_or(|flow| flow.given_up));
        let arrived = |writer: &End, reader: &End, answers: bool| {
            writer.streams.iter().filter(|(id, _)| !given_up(id)).all(|(id, flow)| {
                let other = reader.streams.get(id);
                // An agent that has finished its direction accepts no more data.
                other.is_none_or(|other| flow.written == other.read || (!answers && other.finished))
            })
        };
        self.over || !self.named || (arrived(agent, client, true) && arrived(client, agent, false))
    }
}
