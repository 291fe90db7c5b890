//! Two sides of a session, connected by a simulated link with a seed, in virtual time.
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

/// The effects of a link on messages, in each direction. Probabilities are from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Transit time.
    pub latency: Duration,
    /// Upper limit of an additional random transit time, drawn for each message. The order is kept unless `reorder`
    /// changes it.
    pub jitter: Duration,
    /// Probability that a message is lost.
    pub loss: f64,
    /// Probability that a message arrives twice.
    pub duplicate: f64,
    /// Probability that later messages can overtake a message.
    pub reorder: f64,
    /// Probability that a message arrives with one bit changed.
    pub corrupt: f64,
}

/// One end: a session, its events, and whether its WebSocket is connected.
#[derive(Debug)]
pub struct End {
    /// The protocol state.
    pub session: Session,
    /// Whether the handshake is complete.
    pub ready: bool,
    /// Events that the pair does not handle itself, oldest first.
    pub events: Vec<SessionEvent>,
    /// Number of received messages that could not be decoded.
    pub malformed: u64,
    connected: bool,
    back_at: Option<Instant>,
    /// The time before which this end reads nothing.
    deaf_until: Option<Instant>,
    /// Messages that the driver has not read from its socket because the session is congested or the side is deaf.
    unread: VecDeque<Bytes>,
    /// Largest number of received bytes that were buffered at any time.
    pub peak_receive: usize,
}

/// Two sides and the service between them. Messages to a disconnected side are lost, and the other side is notified.
#[derive(Debug)]
pub struct Pair {
    /// The virtual clock.
    pub now: Instant,
    /// The client.
    pub client: End,
    /// The agent.
    pub agent: End,
    /// The link's effects on messages; may be changed at any time.
    pub link: Link,
    rng: Rng,
    flight: BTreeMap<(Instant, u64), (Side, Bytes)>,
    last_arrival: [Instant; 2],
    count: u64,
    kms: Kms,
}

/// Creates and decrypts the data keys that the two sides request.
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
                // A key is decrypted only for the context that it was created for.
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
    /// Creates two connected sides before their handshake. The same seed produces the same run.
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

    /// Advances the time event by event until `done` returns `true` or `limit` has passed. Returns whether `done` returned `true`.
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

    /// Disconnects a side's WebSocket for a while. Messages in transit to this side are lost, and some of the messages that it
    /// sent.
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
        self.notify_other(side, false);
    }

    /// Makes a side read nothing for a while, like a stopped process. Messages to it are queued.
    pub fn deafen(&mut self, side: Side, time: Duration) {
        let until = self.now + time;
        self.end(side).deaf_until = Some(until);
    }

    fn next_moment(&self) -> Option<Instant> {
        let arrival = self.flight.first_key_value().map(|((at, _), _)| *at);
        let ends = [&self.client, &self.agent];
        let timers = ends.into_iter().filter_map(|end| end.session.poll_timeout().map(|timeout| timeout.at));
        let returns = ends.into_iter().flat_map(|end| [end.back_at, end.deaf_until]).flatten();
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
                self.notify_other(side, true);
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
        // The digest covers only the payload. TCP and TLS would not let a changed header through, so only the payload
        // is changed.
        if let Some(byte) = bytes.get_mut(at.max(120)) {
            *byte ^= 1 << self.rng.u8(..8);
        }
        bytes.into()
    }

    fn notify_other(&mut self, side: Side, active: bool) {
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
            deaf_until: None,
            unread: VecDeque::new(),
            peak_receive: 0,
        }
    }

    /// Reads the messages in the socket, unless the session is congested.
    fn read(&mut self, now: Instant) {
        if self.deaf_until.is_some_and(|until| now < until) {
            return;
        }
        self.deaf_until = None;
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
