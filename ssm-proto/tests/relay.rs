//! Two ends of a relay's link in virtual time, joined by pipes that delay, are cut with what is on the way, stand still, and come
//! back. The same seed gives the same run.

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

/// What a program at one end does with its connection.
#[derive(Clone, Debug)]
struct Program {
    /// Bytes that it sends before it ends its sending side.
    length: u64,
    sent: u64,
    /// Bytes that it reads before it resets the connection; none if it never does.
    resets_after: Option<u64>,
    /// It never reads.
    deaf: bool,
    /// It abandons the connection when everything is written.
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
    /// It went away itself.
    Left,
}

/// Bytes of a connection's direction from a place on: a block that comes again and again, of a length that frames do not have.
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
    /// Bytes per second, each way.
    rate: u64,
    free_at: [Instant; 2],
    stuck_until: Instant,
    /// Bytes until it ends, if it ends by itself.
    left: Option<usize>,
}

#[derive(Debug)]
enum Event {
    /// Bytes arrive at this end.
    Arrive(usize, usize, Bytes),
    Cut(usize),
    /// The client notices that a feed has ended.
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
    /// The relay refuses some connections.
    refuses: bool,
    /// How many pipes end by themselves, as sessions with a limit of messages do.
    short: usize,
    /// The next moment at which a link is looked at without any other reason.
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
        let [Some(client), Some(relay)] = added else { panic!("so many feeds are allowed") };
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

    /// The relay notices first that a feed has ended. What is on its way may still arrive, and be acknowledged.
    fn cut_feed(&mut self, number: usize) {
        let id = self.pipes[&number].ids[RELAY];
        self.links[RELAY].lose_pipe(self.now, id);
        let after = Duration::from_millis(self.rng.u64(0..100));
        self.at(after, Event::Noticed(number));
        if self.rng.bool() {
            self.at(after, Event::Feed);
        }
    }

    /// Everything that has happened is handled, at both ends, until both are quiet.
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
            assert!(from == RELAY && self.links[RELAY].stats().pipes > 0, "nothing goes over it");
        }
        let begin = pipe.free_at[from].max(self.now).max(pipe.stuck_until);
        pipe.free_at[from] = begin + Duration::from_secs_f64(bytes.len() as f64 / pipe.rate as f64);
        let (number, after) = (*number, (pipe.free_at[from] + pipe.latency).saturating_duration_since(self.now));
        if let Some(left) = &mut pipe.left {
            let ends = *left > 0 && *left <= bytes.len();
            *left = left.saturating_sub(bytes.len());
            if ends {
                // What is on its way may still arrive.
                let grace = Duration::from_micros(self.rng.u64(0..50_000));
                self.at(after + grace, Event::Cut(number));
            }
        }
        // The second half of it comes later, if at all.
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
                        // One end may notice later than the other; here it is told once both know.
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
            // Two programs that only read and write: each gets every byte, and a clean end.
            let relay = relay.unwrap();
            assert_eq!(client.ended, Some(End::Clean), "seed {seed}, {id:?}: {client:?} {relay:?} {:?}", self.links);
            assert_eq!(relay.ended, Some(End::Clean), "seed {seed}, {id:?}: {relay:?}");
            assert_eq!((client.received, relay.received), (relay.length, client.length), "seed {seed}, {id:?}");
        }
        // A program that does not read holds its connection, and only that.
        if !self.plan.iter().flatten().any(|program| program.deaf) {
            let left = self.links.each_ref().map(|link| link.stats().connections);
            assert_eq!(left, [0, 0], "seed {seed}: {:?} {:?}", self.programs, self.links);
        }
        // What an abandoned connection wrote is delivered all the same.
        for (id, client) in &self.programs[CLIENT] {
            let Some(relay) = self.programs[RELAY].get(id) else { continue };
            let only_the_client_leaves = client.abandons && client.resets_after.is_none() && client.finished;
            if only_the_client_leaves && !relay.deaf && relay.resets_after.is_none() && !relay.abandons {
                assert_eq!(relay.received, client.length, "seed {seed}, {id:?}: {client:?} {relay:?}");
            }
        }
    }
}

/// What a program does now. Gives how its connection ended.
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
        // Its own end may still be on its way.
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

/// How long a download takes in virtual time over two pipes at an agent's pace, and this number of feeds that are faster.
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

/// A relay's link with a connection that has data to send, a pipe, and a feed that was not acknowledged yet.
fn feeding() -> (Link, [PipeId; 2], Instant) {
    let (mut link, pipe, now) = liar();
    let feed = link.add_feed(now, FEED).unwrap();
    while link.poll_transmit(now).is_some() {}
    (link, [pipe, feed], now)
}

const FEED: FeedId = FeedId([5; 16]);

fn feed_ack(feed: FeedId, position: u64) -> Vec<u8> {
    frame(11, 0, &[feed.0.as_slice(), &position.to_be_bytes(), &[0; 4]].concat())
}

#[test]
fn a_feed_gets_nothing_before_its_first_acknowledgement_and_nothing_without_a_pipe() {
    let (mut link, [pipe, feed], now) = feeding();
    let sent = |link: &mut Link| -> Vec<_> {
        while link.write(ConnectionId(0), vec![7; 10_000].into()).is_ok() {}
        std::iter::from_fn(|| link.poll_transmit(now)).collect()
    };
    assert!(sent(&mut link).iter().all(|(over, _)| *over == pipe));
    let raised = frame(6, 1, &[[0; 4].as_slice(), &(1_u64 << 20).to_be_bytes()].concat());
    link.handle_input(now, pipe, &[raised, feed_ack(FEED, 0)].concat()).unwrap();
    let fed: usize = sent(&mut link).iter().filter(|(over, _)| *over == feed).map(|(_, bytes)| bytes.len()).sum();
    assert!((16_000..64_000).contains(&fed), "it begins carefully: {fed}");

    link.lose_pipe(now, pipe);
    link.handle_timeout(now + Duration::from_secs(1));
    assert_eq!(sent(&mut link), Vec::new());
    assert_eq!(link.alone_since(), Some(now));
    let pipe = link.add_pipe().unwrap();
    link.handle_input(now, pipe, &[nothing_arrived(), feed_ack(FEED, fed as u64)].concat()).unwrap();
    let over: Vec<_> = sent(&mut link).into_iter().map(|(over, _)| over).collect();
    assert!(over.contains(&pipe) && over.contains(&feed), "{over:?}");
}

#[test]
fn acknowledgements_of_feeds_that_have_ended_change_nothing_and_false_ones_end_the_link() {
    let lie = "the other end broke the relay's protocol: ";
    let outcome = |outcome: Result<(), LinkError>| outcome.map_err(|error| error.to_string().replace(lie, ""));
    let (mut link, [pipe, feed], now) = feeding();
    assert_eq!(link.handle_input(now, pipe, &feed_ack(FeedId([6; 16]), 1 << 40)), Ok(()));
    assert_eq!(
        outcome(link.handle_input(now, pipe, &feed_ack(FEED, 1))),
        Err("more is acknowledged than was sent".into())
    );
    let up = "a feed carries only numbered frames, to the client";
    assert_eq!(outcome(link.handle_input(now, feed, &data(1, 0, 10))), Err(up.into()));

    let client = |over_feed: bool, bytes: &[u8]| {
        let mut link = Link::new(RelaySide::Client, now);
        let (pipe, feed) = (link.add_pipe().unwrap(), link.add_feed(now, FEED).unwrap());
        open(&mut link);
        link.handle_input(now, pipe, &nothing_arrived()).unwrap();
        outcome(link.handle_input(now, if over_feed { feed } else { pipe }, bytes))
    };
    assert_eq!(client(true, &data(1, 0, 10)), Ok(()));
    for unnumbered in [nothing_arrived(), frame(8, 0, &[0; 12]), frame(9, 0, &[]), feed_ack(FEED, 0)] {
        assert_eq!(client(true, &unnumbered), Err(up.into()));
    }
    assert_eq!(client(false, &feed_ack(FEED, 0)), Err("only the client has feeds to acknowledge".into()));
}

#[test]
fn the_client_acknowledges_a_feed_at_once_and_again_when_a_pipe_is_lost() {
    let now = Instant::now();
    let mut link = Link::new(RelaySide::Client, now);
    let feed = link.add_feed(now, FEED).unwrap();
    assert_eq!((link.poll_transmit(now), link.poll_timeout()), (None, None), "there is no way");
    let pipes = [link.add_pipe().unwrap(), link.add_pipe().unwrap()];
    open(&mut link);
    for pipe in pipes {
        link.handle_input(now, pipe, &nothing_arrived()).unwrap();
    }
    let said = |link: &mut Link, now| -> Vec<_> { std::iter::from_fn(|| link.poll_transmit(now)).collect() };
    let acks =
        |said: Vec<(PipeId, Bytes)>| -> Vec<_> { said.into_iter().filter(|(_, bytes)| bytes[0] == 11).collect() };
    assert_eq!(acks(said(&mut link, now)).into_iter().map(|(_, ack)| ack).collect::<Vec<_>>(), [feed_ack(FEED, 0)]);
    link.handle_input(now, pipes[1], &data(0, 0, 100)).unwrap();
    link.handle_input(now, feed, &data(1, 100, 1000)).unwrap();
    assert_eq!(acks(said(&mut link, now)), []);
    let later = link.poll_timeout().unwrap();
    let [(over, ack)] = acks(said(&mut link, later)).try_into().unwrap();
    assert_eq!(
        (over, &ack[..]),
        (pipes[1], &feed_ack_held(1023, later - now)[..]),
        "over the pipe that was heard last"
    );
    link.lose_pipe(later, pipes[1]);
    let [(over, again)] = acks(said(&mut link, later)).try_into().unwrap();
    assert_eq!((over, again), (pipes[0], ack));
}

fn feed_ack_held(position: u64, held: Duration) -> Vec<u8> {
    let body = [FEED.0.as_slice(), &position.to_be_bytes(), &(held.as_micros() as u32).to_be_bytes()].concat();
    frame(11, 0, &body)
}

/// A relay's link with one connection, and how to speak to it as a client that need not be honest.
fn liar() -> (Link, PipeId, Instant) {
    let now = Instant::now();
    let mut link = Link::new(RelaySide::Relay, now);
    let pipe = link.add_pipe().unwrap();
    let open = frame(1, 0, &[&[0, 0, 0, 0, 0, 80], b"db".as_slice()].concat());
    link.handle_input(now, pipe, &[nothing_arrived(), open].concat()).unwrap();
    (link, pipe, now)
}

/// The first frame of a pipe: none of the other end's frames has arrived.
fn nothing_arrived() -> Vec<u8> {
    frame(10, 0, &[0; 8])
}

fn frame(kind: u8, number: u64, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], length.as_slice(), number.to_be_bytes().as_slice(), body].concat()
}

fn data(number: u64, offset: u64, length: usize) -> Vec<u8> {
    frame(4, number, &[[0; 4].as_slice(), offset.to_be_bytes().as_slice(), &vec![7; length]].concat())
}

#[test]
fn lies_end_the_link_and_never_become_bytes() {
    let fin = |number, offset: u64| frame(5, number, &[[0; 4].as_slice(), offset.to_be_bytes().as_slice()].concat());
    let ack = |position: u64| frame(8, 0, &[position.to_be_bytes().as_slice(), &[0; 4]].concat());
    for (lies, what) in [
        (vec![data(1, u64::MAX - 3, 10)], "an offset beyond all bounds"),
        (vec![data(1, 64 << 10, 1)], "data beyond the credit"),
        (vec![data(1, 0, 10), data(2, 9, 10)], "the same bytes twice"),
        (vec![data(1, 100, 10), data(2, 95, 10)], "the same bytes twice"),
        (vec![data(1, 100, 10), data(2, 105, 1)], "the same bytes twice"),
        (vec![fin(1, 10), data(2, 5, 6)], "data beyond the end"),
        (vec![data(1, 5, 6), fin(2, 10)], "an end before what was sent"),
        (vec![fin(1, 10), fin(2, 10)], "an end before what was sent"),
        (vec![ack(1)], "more is acknowledged than was sent"),
        (vec![nothing_arrived()], "a pipe does not begin with what has arrived"),
        (vec![data(1 << 40, 0, 1)], "a number far ahead of all others"),
        (vec![frame(1, 1, &[0, 0, 0, 0, 0, 80, b'x'])], "a connection is opened twice"),
        (vec![frame(1, 1, &[0xff, 0, 0, 0, 0, 80, b'x'])], "a connection's number is far ahead of all others"),
        (vec![frame(1, 1, &[0, 0, 0, 1, 0, 0, b'x'])], "a frame of kind 1 with a field that has no meaning"),
        (vec![frame(77, 1, &[])], "a frame of the unknown kind 77"),
    ] {
        let (mut link, pipe, now) = liar();
        let outcome = lies.iter().try_for_each(|lie| link.handle_input(now, pipe, lie));
        let error = outcome.expect_err(what).to_string();
        assert!(error.ends_with(what), "{error}, not {what}");
    }
}

#[test]
fn a_pipe_begins_with_what_has_arrived() {
    let now = Instant::now();
    let begun = |first: Vec<u8>| {
        let mut link = Link::new(RelaySide::Relay, now);
        let pipe = link.add_pipe().unwrap();
        link.handle_input(now, pipe, &first).map_err(|error| error.to_string())
    };
    assert_eq!(begun(nothing_arrived()), Ok(()));
    let lie = "the other end broke the relay's protocol: ";
    for first in [data(1, 0, 10), frame(8, 0, &[0; 12])] {
        assert_eq!(begun(first), Err(format!("{lie}a pipe does not begin with what has arrived")));
    }
    for numbers in [[[0; 7].as_slice(), &[1]].concat(), [[0; 8].as_slice(), &[0x80]].concat(), vec![0xff; 9]] {
        assert_eq!(begun(frame(10, 0, &numbers)), Err(format!("{lie}more is acknowledged than was sent")));
    }
}

/// Sessions may end after so few messages that no acknowledgement arrives over any of them.
#[test]
fn what_arrived_over_a_lost_pipe_is_not_sent_again_over_the_next_one() {
    let now = Instant::now();
    let mut links = [Link::new(RelaySide::Client, now), Link::new(RelaySide::Relay, now)];
    let id = open(&mut links[CLIENT]);
    let (mut written, mut arrived) = (0, 0);
    for pipe in 0..50 {
        let ids = links.each_mut().map(|link| link.add_pipe().unwrap());
        while links[CLIENT].write(id, bytes(id, CLIENT, written, 20_000).into()).is_ok() {
            written += 20_000;
        }
        let mut pass = |from: usize| {
            let passed = links[from].poll_transmit(now);
            passed.map(|(_, bytes)| links[1 - from].handle_input(now, ids[1 - from], &bytes).unwrap())
        };
        // What has arrived, a credit of the pipe before, and two frames; no acknowledgement.
        pass(RELAY).unwrap();
        pass(CLIENT).unwrap();
        pass(RELAY);
        pass(CLIENT).unwrap();
        pass(CLIENT).unwrap();
        while let Some(chunk) = links[RELAY].read(id) {
            assert!(chunk == bytes(id, CLIENT, arrived, chunk.len()));
            arrived += chunk.len() as u64;
        }
        for (link, id) in links.iter_mut().zip(ids) {
            link.lose_pipe(now, id);
        }
        assert!(arrived > pipe * 16_000, "{arrived} bytes after {pipe} pipes");
    }
    assert_eq!(links[RELAY].stats().duplicates, 0);
}

#[test]
fn a_client_that_does_not_acknowledge_refusals_cannot_make_them_wait_without_end() {
    let (mut link, pipe, now) = liar();
    let mut opened: u32 = 1;
    let error = loop {
        let open = frame(1, opened.into(), &[opened.to_be_bytes().as_slice(), &[0, 80, b'x']].concat());
        if let Err(error) = link.handle_input(now, pipe, &open) {
            break error;
        }
        opened += 1;
        while let Some(event) = link.poll_event() {
            if let LinkEvent::Wanted(id, _) = event {
                link.refuse(id, Refusal { kind: RefusalKind::Refused, text: "connection refused".into() });
            }
        }
        while link.poll_transmit(now).is_some() {}
        assert!(opened < 30_000, "{:?}", link.stats());
    };
    assert!(error.to_string().ends_with("more connections are opened than answers are acknowledged"), "{error}");
    assert!(opened > 4 * 4096, "an honest client may have so many: {opened}");
}

#[test]
fn only_so_many_pieces_wait_for_their_turn() {
    let (mut link, pipe, now) = liar();
    let mut sent: u64 = 0;
    let error = loop {
        // Every other byte of one connection after the other.
        let (id, offset) = (sent / 30_000, sent % 30_000 * 2 + 1);
        let body = [(id as u32).to_be_bytes().as_slice(), &offset.to_be_bytes(), b"x"].concat();
        if let Err(error) = link.handle_input(now, pipe, &frame(4, 1 + sent, &body)) {
            break error;
        }
        sent += 1;
    };
    assert!(error.to_string().ends_with("more data is out of order than can be on its way"), "{error}");
    assert_eq!(sent, 1 << 15);
}

#[test]
fn a_number_that_comes_again_changes_nothing() {
    let (mut link, pipe, now) = liar();
    link.handle_input(now, pipe, &data(1, 0, 10)).unwrap();
    link.handle_input(now, pipe, &data(1, 0, 10)).unwrap();
    assert_eq!(link.read(ConnectionId(0)).map(|chunk| chunk.len()), Some(10));
    assert_eq!((link.read(ConnectionId(0)), link.stats().duplicates), (None, 1));
}

#[test]
fn goodbye_goes_over_every_pipe_also_over_those_that_come_later() {
    let now = Instant::now();
    let mut client = Link::new(RelaySide::Client, now);
    let mut pipes: Vec<PipeId> = (0..3).map(|_| client.add_pipe().unwrap()).collect();
    client.lose_pipe(now, pipes.remove(0));
    client.say_bye();
    client.lose_pipe(now, pipes.remove(0));
    pipes.push(client.add_pipe().unwrap());
    let told: Vec<_> = std::iter::from_fn(|| client.poll_transmit(now)).collect();
    let said = |what: Vec<u8>| pipes.iter().map(move |pipe| (*pipe, Bytes::from(what.clone())));
    assert_eq!(told, said(nothing_arrived()).chain(said(frame(9, 0, &[]))).collect::<Vec<_>>());
}

#[test]
fn connections_that_stop_reading_keep_no_more_memory_than_all_may_together() {
    const CONNECTIONS: usize = 16;
    let mut now = Instant::now();
    let mut links = [Link::new(RelaySide::Client, now), Link::new(RelaySide::Relay, now)];
    let pipes = links.each_mut().map(|link| link.add_pipe().unwrap());
    let ids: Vec<ConnectionId> = (0..CONNECTIONS).map(|_| open(&mut links[CLIENT])).collect();
    let chunk = Bytes::from(vec![7; 64 << 10]);
    // One after the other reads until its credit is as large as it gets, and then stops.
    let mut exchange = |links: &mut [Link; 2], writer: ConnectionId, reads: bool| {
        now += Duration::from_millis(1);
        while links[CLIENT].write(writer, chunk.clone()).is_ok() {}
        let mut moved = 0;
        for from in [CLIENT, RELAY] {
            while let Some((_, bytes)) = links[from].poll_transmit(now) {
                links[1 - from].handle_input(now, pipes[1 - from], &bytes).unwrap();
                moved += if from == CLIENT { bytes.len() } else { 0 };
            }
        }
        while reads && links[RELAY].read(writer).is_some() {}
        moved
    };
    for id in &ids {
        let mut read = 0;
        while read < 18 << 20 {
            read += exchange(&mut links, *id, true);
        }
        while exchange(&mut links, *id, false) + exchange(&mut links, *id, false) > 1000 {}
    }
    let read_all =
        |id: &ConnectionId| std::iter::from_fn(|| links[RELAY].read(*id)).map(|chunk| chunk.len()).sum::<usize>();
    let kept: usize = ids.iter().map(read_all).sum();
    assert!(kept <= (64 << 20) + CONNECTIONS * (64 << 10), "{kept}");
}

#[test]
fn the_client_takes_no_connections() {
    let now = Instant::now();
    let mut link = Link::new(RelaySide::Client, now);
    let pipe = link.add_pipe().unwrap();
    let open = [nothing_arrived(), frame(1, 0, &[0, 0, 0, 0, 0, 80, b'x'])].concat();
    assert_eq!(link.handle_input(now, pipe, &open), Err(LinkError::Lie("only the client opens connections")));
}

#[test]
fn a_reader_that_stops_stops_only_its_own_connection() {
    let now = Instant::now();
    let mut client = Link::new(RelaySide::Client, now);
    let (stuck, other) = (open(&mut client), open(&mut client));
    let pipe = client.add_pipe().unwrap();
    assert_eq!(client.poll_transmit(now), Some((pipe, nothing_arrived().into())));
    assert_eq!(client.poll_transmit(now), None, "nothing before it is known what has arrived");
    client.handle_input(now, pipe, &nothing_arrived()).unwrap();
    while client.write(stuck, Bytes::from(vec![1; 10_000])).is_ok() {}
    let mut sent = 0;
    while let Some((_, bytes)) = client.poll_transmit(now) {
        sent += bytes.len();
    }
    assert!((64_000..90_000).contains(&sent), "no more than the credit: {sent}");
    let ack = frame(8, 0, &[(sent as u64).to_be_bytes().as_slice(), &[0; 4]].concat());
    client.handle_input(now, pipe, &ack).unwrap();
    client.write(other, Bytes::from_static(b"hello")).unwrap();
    let next = client.poll_transmit(now).expect("the other one goes on").1;
    assert!(next.ends_with(b"hello"));
}

fn open(link: &mut Link) -> ConnectionId {
    link.open(Destination::new("db", 80).unwrap()).unwrap()
}
