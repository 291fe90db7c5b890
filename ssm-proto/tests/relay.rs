//! Two ends of a relay's link in virtual time, connected by pipes that delay data, end with data in transit, stall, and are
//! replaced. The same seed produces the same run.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "in a test that is the assertion"
)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use ssm_proto::relay::{
    ConnectionId, ConnectionState, Destination, FeedId, Link, LinkError, LinkEvent, PipeId, Refusal, RefusalKind,
    RelaySide, ResetReason,
};

const CLIENT: usize = 0;
const RELAY: usize = 1;

/// The actions of a program at one end of a connection.
#[derive(Clone, Debug)]
struct Program {
    /// Number of bytes that the program sends before it ends its sending side.
    length: u64,
    sent: u64,
    /// Number of bytes that the program reads before it resets the connection; `None` if it never resets.
    resets_after: Option<u64>,
    /// Whether the program never reads.
    deaf: bool,
    /// Whether the program abandons the connection when all its data is written.
    abandons: bool,
    received: u64,
    finished: bool,
    ended: Option<End>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Clean,
    Reset(ResetReason),
    Refused,
    /// This program itself ended the connection.
    Left,
}

/// Returns bytes of a connection's direction from a position on: a repeated block whose length differs from the lengths of frames.
fn bytes(id: ConnectionId, from: usize, at: u64, length: usize) -> Vec<u8> {
    const BLOCK: u64 = 4099;
    let mut rng = Rng::with_seed(u64::from(id.0) * 2 + from as u64);
    let block: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(BLOCK as usize).collect();
    block.iter().copied().cycle().skip((at % BLOCK) as usize).take(length).collect()
}

#[derive(Debug)]
struct Pipe {
    ids: [PipeId; 2],
    is_feed: bool,
    latency: Duration,
    /// Bytes per second in each direction.
    rate: u64,
    free_at: [Instant; 2],
    stuck_until: Instant,
    /// Number of bytes after which the pipe ends by itself, if it does.
    left: Option<usize>,
}

#[derive(Debug)]
enum Event {
    /// Bytes arrive at this end.
    Arrive(usize, usize, Bytes),
    Cut(usize),
    /// The client detects that a feed has ended.
    Noticed(usize),
    Return,
    Feed,
    Stall(usize),
    Wake,
}

struct Run {
    now: Instant,
    rng: Rng,
    links: [Link; 2],
    pipes: BTreeMap<usize, Pipe>,
    next_pipe: usize,
    events: BTreeMap<(Instant, u64), Event>,
    count: u64,
    programs: [BTreeMap<ConnectionId, Program>; 2],
    plan: VecDeque<[Program; 2]>,
    refused: Vec<ConnectionId>,
    /// Whether the relay refuses some connections.
    refuses: bool,
    /// Number of pipes that end by themselves, like sessions with a limit of messages.
    short: usize,
    /// The next time at which the links are polled without any other reason.
    wakes: Option<Instant>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (now, mut rng) = (Instant::now(), Rng::with_seed(seed));
        let links = [Link::new(RelaySide::Client, now), Link::new(RelaySide::Relay, now)];
        let pipes = rng.usize(1..=5);
        let connections = rng.usize(1..=6);
        let short = if rng.u8(..) < 80 { rng.usize(1..200) } else { 0 };
        let mut run = Self {
            now,
            rng,
            links,
            pipes: BTreeMap::new(),
            next_pipe: 0,
            events: BTreeMap::new(),
            count: 0,
            programs: Default::default(),
            plan: VecDeque::new(),
            refused: Vec::new(),
            refuses: true,
            short,
            wakes: None,
        };
        for _ in 0..connections {
            let pair = [run.program(), run.program()];
            run.plan.push_back(pair);
        }
        for _ in 0..pipes {
            run.add_pipe();
        }
        for _ in 0..run.rng.usize(0..=3) {
            let at = Duration::from_millis(run.rng.u64(0..400));
            run.at(at, Event::Feed);
        }
        for _ in 0..run.rng.usize(0..=6) {
            let (at, pipe) = (run.rng.u64(0..400), run.rng.usize(0..pipes));
            let event = if run.rng.bool() { Event::Cut(pipe) } else { Event::Stall(pipe) };
            run.at(Duration::from_millis(at), event);
        }
        run
    }

    fn program(&mut self) -> Program {
        let rng = &mut self.rng;
        let length = if rng.u8(..) < 60 { rng.u64(0..300_000) } else { rng.u64(0..10_000) };
        Program {
            length,
            sent: 0,
            resets_after: (rng.u8(..) < 30).then(|| rng.u64(0..20_000)),
            deaf: rng.u8(..) < 20,
            abandons: rng.u8(..) < 25,
            received: 0,
            finished: false,
            ended: None,
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + after, self.count), event);
    }

    fn add_pipe(&mut self) {
        let ids = [CLIENT, RELAY].map(|end| self.links[end].add_pipe().unwrap());
        let pipe = Pipe {
            ids,
            is_feed: false,
            latency: Duration::from_micros(self.rng.u64(100..40_000)),
            rate: self.rng.u64(100_000..4_000_000),
            free_at: [self.now; 2],
            stuck_until: self.now,
            left: (self.short > 0).then(|| self.rng.usize(20_000..200_000)),
        };
        self.short = self.short.saturating_sub(1);
        self.pipes.insert(self.next_pipe, pipe);
        self.next_pipe += 1;
    }

    fn add_feed(&mut self) {
        let id = FeedId(self.rng.u128(..).to_be_bytes());
        let added = [CLIENT, RELAY].map(|end| self.links[end].add_feed(self.now, id));
        let [Some(client), Some(relay)] = added else { panic!("this many feeds are allowed") };
        let pipe = Pipe {
            ids: [client, relay],
            is_feed: true,
            latency: Duration::from_micros(self.rng.u64(100..40_000)),
            rate: self.rng.u64(1_000_000..20_000_000),
            free_at: [self.now; 2],
            stuck_until: self.now,
            left: self.rng.bool().then(|| self.rng.usize(1..300_000)),
        };
        self.pipes.insert(self.next_pipe, pipe);
        let (at, number) = (Duration::from_millis(self.rng.u64(0..400)), self.next_pipe);
        match self.rng.u8(0..3) {
            0 => self.at(at, Event::Cut(number)),
            1 => self.at(at, Event::Stall(number)),
            _ => {}
        }
        self.next_pipe += 1;
    }

    /// Ends a feed, which the relay detects first. Data in transit may still arrive and be acknowledged.
    fn cut_feed(&mut self, number: usize) {
        let id = self.pipes[&number].ids[RELAY];
        self.links[RELAY].lose_pipe(self.now, id);
        let after = Duration::from_millis(self.rng.u64(0..100));
        self.at(after, Event::Noticed(number));
        if self.rng.bool() {
            self.at(after, Event::Feed);
        }
    }

    /// Handles everything that has happened at both ends, until both have nothing left to do.
    fn settle(&mut self) {
        for end in [CLIENT, RELAY] {
            loop {
                self.links[end].handle_timeout(self.now);
                self.run_programs(end);
                let mut quiet = true;
                while let Some((id, bytes)) = self.links[end].poll_transmit(self.now) {
                    self.carry(end, id, bytes);
                    quiet = false;
                }
                while let Some(event) = self.links[end].poll_event() {
                    self.handle(end, event);
                    quiet = false;
                }
                if quiet {
                    break;
                }
            }
            let wanted = self.links[end].poll_timeout();
            if let Some(at) = wanted.filter(|at| self.wakes.is_none_or(|wakes| wakes <= self.now || *at < wakes)) {
                self.wakes = Some(at);
                self.at(at.saturating_duration_since(self.now), Event::Wake);
            }
        }
    }

    fn carry(&mut self, from: usize, id: PipeId, bytes: Bytes) {
        let (number, pipe) = self.pipes.iter_mut().find(|(_, pipe)| pipe.ids[from] == id).unwrap();
        if pipe.is_feed {
            assert!(from == RELAY && self.links[RELAY].stats().pipes > 0, "nothing may be sent over this feed");
        }
        let begin = pipe.free_at[from].max(self.now).max(pipe.stuck_until);
        pipe.free_at[from] = begin + Duration::from_secs_f64(bytes.len() as f64 / pipe.rate as f64);
        let (number, after) = (*number, (pipe.free_at[from] + pipe.latency).saturating_duration_since(self.now));
        if let Some(left) = &mut pipe.left {
            let ends = *left > 0 && *left <= bytes.len();
            *left = left.saturating_sub(bytes.len());
            if ends {
                // Data in transit may still arrive.
                let grace = Duration::from_micros(self.rng.u64(0..50_000));
                self.at(after + grace, Event::Cut(number));
            }
        }
        // The second half of the data arrives later, or not at all.
        let half = self.rng.usize(0..=bytes.len());
        self.at(after, Event::Arrive(1 - from, number, bytes.slice(..half)));
        self.at(after, Event::Arrive(1 - from, number, bytes.slice(half..)));
    }

    fn handle(&mut self, end: usize, event: LinkEvent) {
        if let LinkEvent::Wanted(id, to) = event {
            assert_eq!((end, to.host.as_str()), (RELAY, "db.internal"));
            if self.refuses && self.rng.u8(..) < 20 {
                let why = Refusal { kind: RefusalKind::Refused, text: "connection refused".into() };
                self.links[RELAY].refuse(id, why);
                self.refused.push(id);
            } else {
                let program = self.plan[id.0 as usize][RELAY].clone();
                self.programs[RELAY].insert(id, program);
                self.links[RELAY].opened(id);
            }
        }
    }

    fn run_programs(&mut self, end: usize) {
        let (link, rng) = (&mut self.links[end], &mut self.rng);
        for (id, program) in &mut self.programs[end] {
            if program.ended.is_none() {
                program.ended = step(*id, end, program, link, rng);
            }
        }
    }

    fn start(&mut self) {
        for number in 0..self.plan.len() {
            let id = self.links[CLIENT].open(Destination::new("db.internal", 3306).unwrap()).unwrap();
            assert_eq!(id.0 as usize, number);
            self.programs[CLIENT].insert(id, self.plan[number][CLIENT].clone());
        }
    }

    fn run(&mut self) -> Result<(), LinkError> {
        self.start();
        self.settle();
        let limit = self.now + Duration::from_secs(300);
        while let Some(((at, _), event)) = self.events.pop_first().filter(|((at, _), _)| *at < limit) {
            self.now = at;
            match event {
                Event::Arrive(end, number, bytes) => {
                    if let Some(pipe) = self.pipes.get(&number) {
                        self.links[end].handle_input(self.now, pipe.ids[end], &bytes)?;
                    }
                }
                Event::Feed if self.links.iter().all(|link| link.stats().feeds < 4) => self.add_feed(),
                Event::Feed => {}
                Event::Noticed(number) => {
                    if let Some(feed) = self.pipes.remove(&number) {
                        self.links[CLIENT].lose_pipe(self.now, feed.ids[CLIENT]);
                    }
                }
                Event::Cut(number) if self.pipes.get(&number).is_some_and(|pipe| pipe.is_feed) => self.cut_feed(number),
                Event::Cut(number) => {
                    if let Some(pipe) = self.pipes.remove(&number) {
                        // One end may detect the loss later than the other. Here both ends are notified at the same time.
                        [CLIENT, RELAY].into_iter().for_each(|end| self.links[end].lose_pipe(self.now, pipe.ids[end]));
                        let after = Duration::from_millis(self.rng.u64(0..300));
                        self.at(after, Event::Return);
                    }
                }
                Event::Return => self.add_pipe(),
                Event::Stall(number) => {
                    let until = self.now + Duration::from_millis(self.rng.u64(0..5000));
                    if let Some(pipe) = self.pipes.get_mut(&number) {
                        pipe.stuck_until = until;
                    }
                }
                Event::Wake => {}
            }
            self.settle();
        }
        Ok(())
    }

    fn check(&self, seed: u64) {
        for (id, plan) in self.programs[CLIENT].keys().map(|id| (*id, &self.plan[id.0 as usize])) {
            let client = &self.programs[CLIENT][&id];
            if self.refused.contains(&id) {
                assert!(matches!(client.ended, Some(End::Refused | End::Left)), "seed {seed}, {id:?}: {client:?}");
                continue;
            }
            let relay = self.programs[RELAY].get(&id);
            let leaves = |program: &Program| program.resets_after.is_some() || program.abandons;
            let may_hang = plan.iter().any(|program| program.deaf);
            if plan.iter().any(leaves) || may_hang {
                continue;
            }
            // Two programs that only read and write: each must receive every byte, and a clean end.
            let relay = relay.unwrap();
            assert_eq!(client.ended, Some(End::Clean), "seed {seed}, {id:?}: {client:?} {relay:?} {:?}", self.links);
            assert_eq!(relay.ended, Some(End::Clean), "seed {seed}, {id:?}: {relay:?}");
            assert_eq!((client.received, relay.received), (relay.length, client.length), "seed {seed}, {id:?}");
        }
        // A program that does not read blocks only its own connection.
        if !self.plan.iter().flatten().any(|program| program.deaf) {
            let left = self.links.each_ref().map(|link| link.stats().connections);
            assert_eq!(left, [0, 0], "seed {seed}: {:?} {:?}", self.programs, self.links);
        }
        // Data that was written to an abandoned connection is delivered too.
        for (id, client) in &self.programs[CLIENT] {
            let Some(relay) = self.programs[RELAY].get(id) else { continue };
            let only_the_client_leaves = client.abandons && client.resets_after.is_none() && client.finished;
            if only_the_client_leaves && !relay.deaf && relay.resets_after.is_none() && !relay.abandons {
                assert_eq!(relay.received, client.length, "seed {seed}, {id:?}: {client:?} {relay:?}");
            }
        }
    }
}

/// Performs a program's next action. Returns how its connection ended, if it did.
fn step(id: ConnectionId, end: usize, program: &mut Program, link: &mut Link, rng: &mut Rng) -> Option<End> {
    match link.state(id) {
        Some(ConnectionState::Refused(_)) => {
            link.release(id);
            return Some(End::Refused);
        }
        Some(ConnectionState::Reset(ResetReason::Reset)) => {
            link.release(id);
            return Some(End::Reset(ResetReason::Reset));
        }
        Some(_) => {}
        None => panic!("{id:?} is forgotten: {program:?}"),
    }
    while program.sent < program.length {
        let length = rng.u64(1..=40_000).min(program.length - program.sent);
        if link.write(id, bytes(id, end, program.sent, length as usize).into()).is_err() {
            break;
        }
        program.sent += length;
    }
    if program.sent == program.length && !program.finished {
        program.finished = true;
        if program.abandons && program.resets_after.is_none() {
            link.abandon(id);
            return Some(End::Left);
        }
        link.finish(id);
    }
    while !program.deaf
        && let Some(chunk) = link.read(id)
    {
        let is_right = chunk == bytes(id, 1 - end, program.received, chunk.len());
        assert!(is_right, "wrong bytes after {} of {id:?}", program.received);
        program.received += chunk.len() as u64;
    }
    if program.resets_after.is_some_and(|after| program.received >= after) {
        link.release(id);
        return Some(End::Left);
    }
    if let Some(ConnectionState::Reset(reason)) = link.state(id)
        && !program.deaf
    {
        link.release(id);
        return Some(End::Reset(reason));
    }
    (program.finished && link.is_at_end(id)).then(|| {
        // The program's end of the direction may still be in transit.
        link.abandon(id);
        End::Clean
    })
}

/// `SEEDS` is the number of seeds; `SEED` runs a single one.
#[test]
fn every_byte_arrives_once_and_in_order_whatever_happens_to_the_pipes() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(300),
    };
    for seed in seeds {
        let mut run = Run::new(seed);
        run.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        run.check(seed);
    }
}

/// Returns the duration of a download in virtual time over two pipes at an agent's rate and this number of faster feeds, and both
/// links.
fn download(feeds: usize) -> (Duration, [Link; 2]) {
    let mut run = Run::new(1);
    (run.plan, run.events, run.pipes) = Default::default();
    let now = run.now;
    run.links = [Link::new(RelaySide::Client, now), Link::new(RelaySide::Relay, now)];
    let still = Program {
        length: 0,
        sent: 0,
        resets_after: None,
        deaf: false,
        abandons: false,
        received: 0,
        finished: false,
        ended: None,
    };
    run.plan.push_back([still.clone(), Program { length: 20_000_000, ..still }]);
    (run.short, run.refuses) = (0, false);
    for _ in 0..2 {
        run.add_pipe();
    }
    for _ in 0..feeds {
        run.add_feed();
    }
    run.events.clear();
    for pipe in run.pipes.values_mut() {
        (pipe.latency, pipe.rate, pipe.left) = (Duration::from_millis(10), 700_000, None);
        pipe.rate *= if pipe.is_feed { 15 } else { 1 };
    }
    run.run().unwrap();
    run.check(1);
    (run.now - now, run.links)
}

#[test]
fn a_download_goes_at_the_pace_of_a_feed() {
    let ((without, _), (with, links)) = (download(0), download(1));
    let stats = links[CLIENT].stats();
    assert!(with * 3 < without, "{with:?} with a feed, {without:?} without");
    assert!(stats.fed > 2 * stats.received, "{stats:?}");
    assert_eq!(links[RELAY].stats().repeated, 0);
}
