//! Two sides of a session joined by a seeded link, in virtual time.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use ssm_proto::testing::{Link, Pair};
//! use ssm_proto::{AgentConfig, ClientConfig};
//!
//! let link = Link { latency: Duration::from_millis(20), loss: 0.05, ..Link::default() };
//! let mut pair = Pair::new(Instant::now(), 7, link, ClientConfig::default(), AgentConfig::default());
//! assert!(pair.run_until(Duration::from_secs(60), |pair| pair.client.ready));
//! let stream = pair.client.session.open().unwrap();
//! pair.client.session.write(stream, b"hello".as_slice().into()).unwrap();
//! assert!(pair.run_until(Duration::from_secs(60), |pair| pair.agent.session.stats().receive_bytes == 5));
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;

use crate::{
    AgentConfig, ClientConfig, Clock, DataKey, KeyRequest, PlaintextKey, Session, SessionEvent, Side, publication,
};

/// What a link does to messages, each way. Probabilities are from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Time on the way.
    pub latency: Duration,
    /// Up to so much more, drawn per message; order is kept unless `reorder` says otherwise.
    pub jitter: Duration,
    /// How many messages vanish.
    pub loss: f64,
    /// How many arrive twice.
    pub duplicate: f64,
    /// How many may be overtaken.
    pub reorder: f64,
    /// How many arrive with one bit changed.
    pub corrupt: f64,
}

/// One end: a session, what it told, and whether its WebSocket is up.
#[derive(Debug)]
pub struct End {
    /// The protocol.
    pub session: Session,
    /// The handshake is over.
    pub ready: bool,
    /// What happened that the pair did not look at, oldest first.
    pub events: Vec<SessionEvent>,
    /// Messages that were no messages.
    pub malformed: u64,
    connected: bool,
    back_at: Option<Instant>,
    /// What a congested driver leaves in its socket.
    unread: VecDeque<Bytes>,
    /// Largest number of bytes that ever waited to be read.
    pub peak_receive: usize,
}

/// Two sides and the service between them: messages to a side that is away are lost, and the other side is told.
#[derive(Debug)]
pub struct Pair {
    /// The virtual clock.
    pub now: Instant,
    /// The client.
    pub client: End,
    /// The agent.
    pub agent: End,
    /// What happens to messages; may be changed on the way.
    pub link: Link,
    rng: Rng,
    flight: BTreeMap<(Instant, u64), (Side, Bytes)>,
    last_arrival: [Instant; 2],
    count: u64,
    kms: Kms,
}

/// Makes and decrypts the data keys that the two sides ask for.
#[derive(Debug, Default)]
struct Kms {
    keys: BTreeMap<Bytes, ([u8; 64], KeyRequest)>,
}

impl Kms {
    fn answer(&mut self, now: Instant, rng: &mut Rng, event: &SessionEvent, session: &mut Session) {
        match event {
            SessionEvent::DataKeyNeeded(request) => {
                let (mut bytes, mut blob) = ([0; 64], [0; 32]);
                rng.fill(&mut bytes);
                rng.fill(&mut blob);
                let ciphertext = Bytes::copy_from_slice(&blob);
                self.keys.insert(ciphertext.clone(), (bytes, request.clone()));
                if let Some(plaintext) = PlaintextKey::new(&bytes) {
                    session.provide_data_key(now, &DataKey { plaintext, ciphertext }, [0; 12]);
                }
            }
            SessionEvent::DecryptNeeded(request, ciphertext) => {
                // A key that was made for one is decrypted for no other.
                let known = self.keys.get(ciphertext).filter(|(_, made_for)| made_for == request);
                if let Some(key) = known.and_then(|(bytes, _)| PlaintextKey::new(bytes)) {
                    session.provide_plaintext_key(now, &key);
                }
            }
            _ => {}
        }
    }
}

impl Pair {
    /// Two sides that are connected and about to shake hands. The same seed gives the same run.
    pub fn new(now: Instant, seed: u64, link: Link, client: ClientConfig, agent: AgentConfig) -> Self {
        let clock = Clock { start: now, unix: Duration::from_secs(1_700_000_000) };
        let mut rng = Rng::with_seed(seed);
        let mut pair = Self {
            now,
            client: End::new(Session::client(client, clock, rng.u64(..))),
            agent: End::new(Session::agent(agent, clock, rng.u64(..))),
            link,
            rng,
            flight: BTreeMap::new(),
            last_arrival: [now; 2],
            count: 0,
            kms: Kms::default(),
        };
        pair.client.connect(now);
        pair.agent.connect(now);
        pair.drain();
        pair
    }

    /// Moves on, event by event, until `done` or until `limit` has passed; says whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            self.drain();
            if done(self) {
                return true;
            }
            self.drain();
            match self.next_moment() {
                Some(at) if at <= end => self.advance(at),
                _ => {
                    self.now = end;
                    return done(self);
                }
            }
        }
    }

    /// Takes a side's WebSocket away for a while. What is on the way to it is lost, and so is some of what comes from it.
    pub fn cut(&mut self, side: Side, outage: Duration) {
        let now = self.now;
        let end = self.end(side);
        if end.connected {
            end.connected = false;
            end.unread.clear();
            end.session.handle_disconnected(now);
        }
        end.back_at = Some(now + outage);
        let rng = &mut self.rng;
        self.flight.retain(|_, (to, _)| *to != side && rng.bool());
        self.tell_other(side, false);
    }

    fn next_moment(&self) -> Option<Instant> {
        let arrival = self.flight.first_key_value().map(|((at, _), _)| *at);
        let ends = [&self.client, &self.agent];
        let timers = ends.into_iter().filter_map(|end| end.session.poll_timeout().map(|timeout| timeout.at));
        let returns = ends.into_iter().filter_map(|end| end.back_at);
        arrival.into_iter().chain(timers).chain(returns).min().map(|at| at.max(self.now))
    }

    fn advance(&mut self, at: Instant) {
        self.now = at;
        while let Some(entry) = self.flight.first_entry().filter(|entry| entry.key().0 <= at) {
            let (to, message) = entry.remove();
            self.deliver(to, message);
        }
        for side in [Side::Client, Side::Agent] {
            let end = self.end(side);
            if end.back_at.is_some_and(|back| back <= at) {
                end.back_at = None;
                end.connect(at);
                self.tell_other(side, true);
            }
            self.end(side).session.handle_timeout(at);
        }
    }

    fn deliver(&mut self, to: Side, message: Bytes) {
        let now = self.now;
        let end = self.end(to);
        if !end.connected {
            return;
        }
        end.unread.push_back(message);
        end.read(now);
    }

    fn drain(&mut self) {
        for side in [Side::Client, Side::Agent] {
            let now = self.now;
            let end = match side {
                Side::Client => &mut self.client,
                Side::Agent => &mut self.agent,
            };
            end.read(now);
            while let Some(event) = end.session.poll_event() {
                self.kms.answer(now, &mut self.rng, &event, &mut end.session);
                if matches!(event, SessionEvent::Ready(_)) {
                    end.ready = true;
                }
                end.events.push(event);
            }
            while let Some(message) = self.end(side).session.poll_transmit(now) {
                self.transmit(side, message);
            }
        }
    }

    fn transmit(&mut self, from: Side, message: Bytes) {
        let to = from.other();
        if !self.end(to).connected || self.rng.f64() < self.link.loss {
            return;
        }
        let copies = if self.rng.f64() < self.link.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            let message = if self.rng.f64() < self.link.corrupt { self.corrupt(&message) } else { message.clone() };
            let jitter = self.link.jitter.mul_f64(self.rng.f64());
            let mut at = self.now + self.link.latency + jitter;
            let overtaken = self.rng.f64() < self.link.reorder;
            let index = usize::from(to == Side::Agent);
            if let Some(last) = self.last_arrival.get_mut(index) {
                if overtaken {
                    at += self.link.latency + self.link.jitter;
                } else {
                    at = at.max(*last);
                    *last = at;
                }
            }
            let key = (at, self.next_count());
            self.flight.insert(key, (to, message));
        }
    }

    fn corrupt(&mut self, message: &Bytes) -> Bytes {
        let mut bytes = message.to_vec();
        let at = self.rng.usize(..bytes.len().max(1));
        // The digest covers the payload only; a flipped number or type in the header is not what TCP and TLS let through.
        if let Some(byte) = bytes.get_mut(at.max(120)) {
            *byte ^= 1 << self.rng.u8(..8);
        }
        bytes.into()
    }

    fn tell_other(&mut self, side: Side, active: bool) {
        let clock = Clock { start: self.now, unix: Duration::from_secs(1) };
        let word = publication(active, clock.unix_millis(self.now), uuid::Uuid::nil());
        let to = side.other();
        if self.end(to).connected {
            let key = (self.now + self.link.latency, self.next_count());
            self.flight.insert(key, (to, word));
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Agent => &mut self.agent,
        }
    }

    fn next_count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            ready: false,
            events: Vec::new(),
            malformed: 0,
            connected: false,
            back_at: None,
            unread: VecDeque::new(),
            peak_receive: 0,
        }
    }

    /// Takes what is in the socket, unless the session is congested.
    fn read(&mut self, now: Instant) {
        while !self.session.is_congested() {
            let Some(message) = self.unread.pop_front() else { break };
            if self.session.handle_input(now, message).is_err() {
                self.malformed += 1;
            }
            self.peak_receive = self.peak_receive.max(self.session.stats().receive_bytes);
        }
    }

    fn connect(&mut self, now: Instant) {
        self.connected = true;
        self.session.handle_connected(now);
    }
}
