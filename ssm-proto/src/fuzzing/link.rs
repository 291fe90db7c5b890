//! Fuzz targets of the relay's protocol: one end that receives any bytes, and two ends over pipes that start and end at any time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::input::Input;
use crate::relay::{
    BlockDecoder, Compressor, ConnectionId, Destination, FeedDecoder, FeedId, Greeting, Link, LinkEvent, PipeId,
    RelaySecret, RelaySide,
};

/// Any bytes received over a relay's pipe leave both ends of a link usable or end the link with an error. A connection never
/// delivers more bytes than were received. The same bytes as a greeting, as a feed and as blocks are refused or harmless.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn relay_input(data: &[u8], now: Instant) {
    for side in [RelaySide::Client, RelaySide::Relay] {
        let _ = Greeting::new(side, RelaySecret::new([1; 32]), [2; 16]).handle_input(data);
        [First::Nothing, First::Begin, First::Feed].into_iter().for_each(|first| run_link(side, data, now, first));
    }
    let _ = Greeting::of_feed(RelaySecret::new([1; 32]), [2; 16]).handle_input(data);
    let mut decoded = Vec::new();
    let _ = FeedDecoder::default().decode(data, &mut decoded);
    assert!(decoded.len() <= data.len());
    let (mut decoder, mut compressor) = (BlockDecoder::default(), Compressor::default());
    let mut blocks = Bytes::copy_from_slice(data);
    while let Ok(Some(_)) = decoder.decode(&mut compressor, &mut blocks) {}
}

/// What the link receives before the fuzzer's bytes.
#[derive(PartialEq, Eq)]
enum First {
    Nothing,
    /// The first frame of a correct end.
    Begin,
    /// The first frame of a correct end; the fuzzer's bytes then arrive over a feed.
    Feed,
}

/// Passes the fuzzer's bytes to a link.
fn run_link(side: RelaySide, data: &[u8], now: Instant, first: First) {
    let mut link = Link::new(side, now);
    let mut pipe = link.add_pipe().expect("the link has no pipe yet");
    let feed = link.add_feed(now, FeedId([7; 16])).expect("the link has no feed yet");
    if first != First::Nothing {
        let (_, begin) = link.poll_transmit(now).expect("a pipe begins with HAVE");
        // Neither end has received anything, so both ends begin with the same frame.
        assert_eq!(link.handle_input(now, pipe, &begin), Ok(()));
    }
    if first == First::Feed {
        pipe = feed;
    }
    let mut known: Vec<_> = Destination::new("db", 80).and_then(|to| link.open(to)).into_iter().collect();
    let mut read = 0;
    for piece in data.chunks(data.first().map_or(1, |byte| usize::from(*byte) + 1)) {
        if link.handle_input(now, pipe, piece).is_err() {
            break;
        }
        while let Some(event) = link.poll_event() {
            if let LinkEvent::Wanted(id, _) = event {
                known.push(id);
                link.opened(id);
            }
        }
        link.check();
        read += known.iter().filter_map(|id| link.read(*id)).map(|chunk| chunk.len()).sum::<usize>();
        while link.poll_transmit(now).is_some() {}
    }
    assert!(read <= data.len());
}

/// Two correct ends over pipes and feeds that are slow, end, and are added. For any order of operations, neither end reports a
/// protocol violation of the other, and each connection receives the bytes that were written, in order.
///
/// # Panics
/// Panics if one of these properties does not hold.
pub fn relay_link(data: &[u8], now: Instant) {
    let mut input = Input::new(data);
    let mut pair = Links::new(now);
    while !input.is_empty() {
        pair.operate(&mut input);
        pair.transmit();
        pair.ends.iter().for_each(Link::check);
    }
    pair.settle();
}

/// Maximum number of rounds that a pair may need to deliver everything once the pipes work.
const ROUNDS: usize = 2000;

struct Links {
    now: Instant,
    /// The client's link and the relay's link.
    ends: [Link; 2],
    pipes: Vec<Pipe>,
    connections: BTreeMap<ConnectionId, Connection>,
}

/// A pipe or feed, with the bytes in transit to each end.
struct Pipe {
    ids: [PipeId; 2],
    is_feed: bool,
    flight: [VecDeque<u8>; 2],
}

#[derive(Default)]
struct Connection {
    /// Whether the relay knows the connection.
    wanted: bool,
    /// Whether an end gave the connection up, so that not all bytes have to arrive.
    given_up: bool,
    finished: [bool; 2],
    written: [usize; 2],
    /// Number of bytes that each end read.
    read: [usize; 2],
}

/// Returns the expected byte at a position of a connection's direction.
fn byte_at(id: ConnectionId, end: usize, at: usize) -> u8 {
    u8::try_from((at * 7 + usize::try_from(id.0).unwrap_or(0) * 31 + end * 101) % 251).unwrap_or(0)
}

impl Links {
    fn new(now: Instant) -> Self {
        let ends = [RelaySide::Client, RelaySide::Relay].map(|side| Link::new(side, now));
        let mut links = Self { now, ends, pipes: Vec::new(), connections: BTreeMap::new() };
        links.add_pipe();
        links
    }

    fn add_pipe(&mut self) {
        let [client, relay] = &mut self.ends;
        if let (Some(near), Some(far)) = (client.add_pipe(), relay.add_pipe()) {
            self.pipes.push(Pipe { ids: [near, far], is_feed: false, flight: Default::default() });
        }
    }

    fn add_feed(&mut self, name: u8) {
        let [client, relay] = &mut self.ends;
        let id = FeedId([name; 16]);
        if let (Some(near), Some(far)) = (client.add_feed(self.now, id), relay.add_feed(self.now, id)) {
            self.pipes.push(Pipe { ids: [near, far], is_feed: true, flight: Default::default() });
        }
    }

    /// Reports the end of a feed to one end only; bytes in transit still arrive.
    fn lose_feed_at(&mut self, end: usize) {
        let feed = self.pipes.iter().find(|pipe| pipe.is_feed).and_then(|feed| feed.ids.get(end).copied());
        if let (Some(id), Some(link)) = (feed, self.ends.get_mut(end)) {
            link.lose_pipe(self.now, id);
        }
    }

    fn lose_pipe(&mut self, at: usize) {
        if at < self.pipes.len() {
            let pipe = self.pipes.remove(at);
            for (end, id) in self.ends.iter_mut().zip(pipe.ids) {
                end.lose_pipe(self.now, id);
            }
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        let (operation, end) = (input.below(12), usize::from(input.flag()));
        let ids: Vec<_> = self.connections.keys().copied().collect();
        let id = input.pick(&ids);
        let [client, _] = &mut self.ends;
        match (operation, id) {
            (0, _) => {
                let opened = Destination::new("db", 80).and_then(|to| client.open(to));
                self.connections.extend(opened.map(|id| (id, Connection::default())));
            }
            (1, Some(id)) => self.write(end, id, usize::from(input.byte()) << 5),
            (2, Some(id)) => self.read(end, id),
            (3, Some(id)) => self.on(end, id, |link, id, connection| {
                connection.finished.get_mut(end).into_iter().for_each(|finished| *finished = true);
                link.finish(id);
            }),
            (4, Some(id)) => self.on(end, id, |link, id, connection| {
                connection.given_up = true;
                link.release(id);
            }),
            (5, Some(id)) => self.on(end, id, |link, id, connection| {
                connection.given_up = true;
                link.abandon(id);
            }),
            (6, _) => self.pass(input.time()),
            (7, _) if self.pipes.len() < 4 => self.add_pipe(),
            (8, _) => self.lose_pipe(input.below(8)),
            (10, _) if self.pipes.len() < 6 => self.add_feed(input.byte()),
            (11, _) => self.lose_feed_at(end),
            _ => self.deliver(input.below(6), end, usize::from(input.byte()) << 4 | 1),
        }
    }

    /// Calls `act` for a connection that this end knows.
    fn on(&mut self, end: usize, id: ConnectionId, act: impl FnOnce(&mut Link, ConnectionId, &mut Connection)) {
        if let (Some(link), Some(connection)) = (self.ends.get_mut(end), self.connections.get_mut(&id))
            && (end == 0 || connection.wanted)
        {
            act(link, id, connection);
        }
    }

    fn write(&mut self, end: usize, id: ConnectionId, length: usize) {
        self.on(end, id, |link, id, connection| {
            let Some(written) = connection.written.get_mut(end) else { return };
            let chunk: Bytes = (*written..*written + length).map(|at| byte_at(id, end, at)).collect();
            // Data that is written after the direction was finished is dropped.
            if link.write(id, chunk).is_ok() && connection.finished.get(end) == Some(&false) {
                *written += length;
            }
        });
    }

    fn read(&mut self, end: usize, id: ConnectionId) {
        self.on(end, id, |link, id, connection| {
            while let Some(chunk) = link.read(id) {
                let Some(read) = connection.read.get_mut(end) else { return };
                for byte in chunk {
                    assert_eq!(byte, byte_at(id, 1 - end, *read), "{id:?} delivered a wrong byte at {read}");
                    *read += 1;
                }
            }
            let [at_client, at_relay] = connection.read;
            let [of_client, of_relay] = connection.written;
            assert!(at_client <= of_relay && at_relay <= of_client, "{id:?} delivered more than was written");
        });
    }

    fn pass(&mut self, time: std::time::Duration) {
        self.now += time;
        for end in &mut self.ends {
            if end.poll_timeout().is_some_and(|at| at <= self.now) {
                end.handle_timeout(self.now);
            }
        }
    }

    fn deliver(&mut self, pipe: usize, end: usize, length: usize) {
        let Some(pipe) = self.pipes.get_mut(pipe) else { return };
        let (Some(flight), Some(id), Some(link)) =
            (pipe.flight.get_mut(end), pipe.ids.get(end), self.ends.get_mut(end))
        else {
            return;
        };
        let bytes: Vec<u8> = flight.drain(..length.min(flight.len())).collect();
        let outcome = link.handle_input(self.now, *id, &bytes);
        assert!(outcome.is_ok(), "a correct end is refused: {outcome:?}");
        while let Some(event) = link.poll_event() {
            if let LinkEvent::Wanted(id, _) = event {
                link.opened(id);
                self.connections.entry(id).or_default().wanted = true;
            }
        }
    }

    /// Puts all frames of both ends in transit.
    fn transmit(&mut self) {
        for (end, link) in self.ends.iter_mut().enumerate() {
            while let Some((id, bytes)) = link.poll_transmit(self.now) {
                let pipe = self.pipes.iter_mut().find(|pipe| pipe.ids.get(end) == Some(&id));
                if let Some(flight) = pipe.and_then(|pipe| pipe.flight.get_mut(1 - end)) {
                    flight.extend(&bytes);
                }
            }
        }
    }

    /// Checks that, with working pipes and readers, all data arrives except on connections that an end gave up.
    fn settle(&mut self) {
        if self.pipes.iter().all(|pipe| pipe.is_feed) {
            self.add_pipe();
        }
        for _ in 0..ROUNDS {
            self.transmit();
            for (pipe, end) in (0..self.pipes.len()).flat_map(|pipe| [(pipe, 0), (pipe, 1)]) {
                self.deliver(pipe, end, usize::MAX);
            }
            let ids: Vec<_> = self.connections.keys().copied().collect();
            ids.iter().for_each(|id| {
                self.read(0, *id);
                self.read(1, *id);
            });
            if self.connections.values().all(Connection::is_whole) {
                return;
            }
            self.pass(std::time::Duration::from_millis(100));
        }
        panic!("not all data arrived");
    }
}

impl Connection {
    fn is_whole(&self) -> bool {
        let ([of_client, of_relay], [at_client, at_relay]) = (self.written, self.read);
        self.given_up || (at_client == of_relay && at_relay == of_client)
    }
}
