//! The rules of a relay's link, one at a time: the effect of protocol violations, the beginning of a pipe, the limits, and the end.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "in a test that is the assertion")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proto::relay::{
    ConnectionId, Destination, FeedId, Link, LinkError, LinkEvent, PipeId, Refusal, RefusalKind, RelaySide,
};

const CLIENT: usize = 0;
const RELAY: usize = 1;

/// Returns a relay's link with a connection that has data to send, a pipe, and a feed that was not acknowledged yet.
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
    assert!((16_000..64_000).contains(&fed), "a feed begins with little data in flight: {fed}");

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
    let violation = "the other end violated the relay's protocol: ";
    let outcome = |outcome: Result<(), LinkError>| outcome.map_err(|error| error.to_string().replace(violation, ""));
    let (mut link, [pipe, feed], now) = feeding();
    assert_eq!(link.handle_input(now, pipe, &feed_ack(FeedId([6; 16]), 1 << 40)), Ok(()));
    assert_eq!(
        outcome(link.handle_input(now, pipe, &feed_ack(FEED, 1))),
        Err("more is acknowledged than was sent".into())
    );
    let wrong_direction = "a feed carries only numbered frames, to the client";
    assert_eq!(outcome(link.handle_input(now, feed, &data(1, 0, 10))), Err(wrong_direction.into()));

    let client = |over_feed: bool, bytes: &[u8]| {
        let mut link = Link::new(RelaySide::Client, now);
        let (pipe, feed) = (link.add_pipe().unwrap(), link.add_feed(now, FEED).unwrap());
        open(&mut link);
        link.handle_input(now, pipe, &nothing_arrived()).unwrap();
        outcome(link.handle_input(now, if over_feed { feed } else { pipe }, bytes))
    };
    assert_eq!(client(true, &data(1, 0, 10)), Ok(()));
    for unnumbered in [nothing_arrived(), frame(8, 0, &[0; 12]), frame(9, 0, &[]), feed_ack(FEED, 0)] {
        assert_eq!(client(true, &unnumbered), Err(wrong_direction.into()));
    }
    assert_eq!(client(false, &feed_ack(FEED, 0)), Err("only the client has feeds to acknowledge".into()));
}

#[test]
fn the_client_acknowledges_a_feed_at_once_and_again_when_a_pipe_is_lost() {
    let now = Instant::now();
    let mut link = Link::new(RelaySide::Client, now);
    let feed = link.add_feed(now, FEED).unwrap();
    assert_eq!((link.poll_transmit(now), link.poll_timeout()), (None, None), "there is no pipe to send over");
    let pipes = [link.add_pipe().unwrap(), link.add_pipe().unwrap()];
    open(&mut link);
    for pipe in pipes {
        link.handle_input(now, pipe, &nothing_arrived()).unwrap();
    }
    let transmitted = |link: &mut Link, now| -> Vec<_> { std::iter::from_fn(|| link.poll_transmit(now)).collect() };
    let acks = |transmitted: Vec<(PipeId, Bytes)>| -> Vec<_> {
        transmitted.into_iter().filter(|(_, bytes)| bytes[0] == 11).collect()
    };
    assert_eq!(
        acks(transmitted(&mut link, now)).into_iter().map(|(_, ack)| ack).collect::<Vec<_>>(),
        [feed_ack(FEED, 0)]
    );
    link.handle_input(now, pipes[1], &data(0, 0, 100)).unwrap();
    link.handle_input(now, feed, &data(1, 100, 1000)).unwrap();
    assert_eq!(acks(transmitted(&mut link, now)), []);
    let later = link.poll_timeout().unwrap();
    let [(over, ack)] = acks(transmitted(&mut link, later)).try_into().unwrap();
    assert_eq!(
        (over, &ack[..]),
        (pipes[1], &feed_ack_held(1023, later - now)[..]),
        "over the pipe over which a frame arrived last"
    );
    link.lose_pipe(later, pipes[1]);
    let [(over, again)] = acks(transmitted(&mut link, later)).try_into().unwrap();
    assert_eq!((over, again), (pipes[0], ack));
}

fn feed_ack_held(position: u64, held: Duration) -> Vec<u8> {
    let body = [FEED.0.as_slice(), &position.to_be_bytes(), &(held.as_micros() as u32).to_be_bytes()].concat();
    frame(11, 0, &body)
}

/// Returns a relay's link with one connection and one pipe, for frames of a client that may violate the protocol.
fn liar() -> (Link, PipeId, Instant) {
    let now = Instant::now();
    let mut link = Link::new(RelaySide::Relay, now);
    let pipe = link.add_pipe().unwrap();
    let open = frame(1, 0, &[&[0, 0, 0, 0, 0, 80], b"db".as_slice()].concat());
    link.handle_input(now, pipe, &[nothing_arrived(), open].concat()).unwrap();
    (link, pipe, now)
}

/// Returns the first frame of a pipe: none of the other end's frames has arrived.
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
        (vec![data(1, u64::MAX - 3, 10)], "an offset beyond the maximum"),
        (vec![data(1, 64 << 10, 1)], "data beyond the credit"),
        (vec![data(1, 0, 10), data(2, 9, 10)], "the same bytes twice"),
        (vec![data(1, 100, 10), data(2, 95, 10)], "the same bytes twice"),
        (vec![data(1, 100, 10), data(2, 105, 1)], "the same bytes twice"),
        (vec![fin(1, 10), data(2, 5, 6)], "data beyond the end"),
        (vec![data(1, 5, 6), fin(2, 10)], "an end before data that was sent"),
        (vec![fin(1, 10), fin(2, 10)], "an end before data that was sent"),
        (vec![ack(1)], "more is acknowledged than was sent"),
        (vec![nothing_arrived()], "a pipe does not begin with HAVE"),
        (vec![data(1 << 40, 0, 1)], "a number far ahead of all others"),
        (vec![frame(1, 1, &[0, 0, 0, 0, 0, 80, b'x'])], "a connection is opened twice"),
        (vec![frame(1, 1, &[0xff, 0, 0, 0, 0, 80, b'x'])], "a connection's number is far ahead of all others"),
        (vec![frame(1, 1, &[0, 0, 0, 1, 0, 0, b'x'])], "a frame of kind 1 with an invalid field"),
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
    let violation = "the other end violated the relay's protocol: ";
    for first in [data(1, 0, 10), frame(8, 0, &[0; 12])] {
        assert_eq!(begun(first), Err(format!("{violation}a pipe does not begin with HAVE")));
    }
    for numbers in [[[0; 7].as_slice(), &[1]].concat(), [[0; 8].as_slice(), &[0x80]].concat(), vec![0xff; 9]] {
        assert_eq!(begun(frame(10, 0, &numbers)), Err(format!("{violation}more is acknowledged than was sent")));
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
        while links[CLIENT].write(id, content(written, 20_000).into()).is_ok() {
            written += 20_000;
        }
        let mut pass = |from: usize| {
            let passed = links[from].poll_transmit(now);
            passed.map(|(_, bytes)| links[1 - from].handle_input(now, ids[1 - from], &bytes).unwrap())
        };
        // HAVE, a credit that was lost with the pipe before, and two frames; no acknowledgement.
        pass(RELAY).unwrap();
        pass(CLIENT).unwrap();
        pass(RELAY);
        pass(CLIENT).unwrap();
        pass(CLIENT).unwrap();
        while let Some(chunk) = links[RELAY].read(id) {
            assert!(chunk == content(arrived, chunk.len()));
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
    assert!(opened > 4 * 4096, "a correct client may have this many: {opened}");
}

#[test]
fn only_so_many_pieces_wait_for_their_turn() {
    let (mut link, pipe, now) = liar();
    let mut sent: u64 = 0;
    let error = loop {
        // Sends every other byte of the connections, one connection after the other.
        let (id, offset) = (sent / 30_000, sent % 30_000 * 2 + 1);
        let body = [(id as u32).to_be_bytes().as_slice(), &offset.to_be_bytes(), b"x"].concat();
        if let Err(error) = link.handle_input(now, pipe, &frame(4, 1 + sent, &body)) {
            break error;
        }
        sent += 1;
    };
    assert!(error.to_string().ends_with("more data is out of order than can be in transit"), "{error}");
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
    let messages: Vec<_> = std::iter::from_fn(|| client.poll_transmit(now)).collect();
    let on_each = |what: Vec<u8>| pipes.iter().map(move |pipe| (*pipe, Bytes::from(what.clone())));
    assert_eq!(messages, on_each(nothing_arrived()).chain(on_each(frame(9, 0, &[]))).collect::<Vec<_>>());
}

#[test]
fn connections_that_stop_reading_keep_no_more_memory_than_all_may_together() {
    const CONNECTIONS: usize = 16;
    let mut now = Instant::now();
    let mut links = [Link::new(RelaySide::Client, now), Link::new(RelaySide::Relay, now)];
    let pipes = links.each_mut().map(|link| link.add_pipe().unwrap());
    let ids: Vec<ConnectionId> = (0..CONNECTIONS).map(|_| open(&mut links[CLIENT])).collect();
    let chunk = Bytes::from(vec![7; 64 << 10]);
    // Each connection in turn is read until its credit is as large as possible, and then not any more.
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
    assert_eq!(client.poll_transmit(now), None, "nothing is sent before HAVE has arrived");
    client.handle_input(now, pipe, &nothing_arrived()).unwrap();
    while client.write(stuck, Bytes::from(vec![1; 10_000])).is_ok() {}
    let mut sent = 0;
    while let Some((_, bytes)) = client.poll_transmit(now) {
        sent += bytes.len();
    }
    assert!((64_000..90_000).contains(&sent), "more than the credit was sent: {sent}");
    let ack = frame(8, 0, &[(sent as u64).to_be_bytes().as_slice(), &[0; 4]].concat());
    client.handle_input(now, pipe, &ack).unwrap();
    client.write(other, Bytes::from_static(b"hello")).unwrap();
    let next = client.poll_transmit(now).expect("the other connection continues").1;
    assert!(next.ends_with(b"hello"));
}

/// Returns bytes from a position on. The value of each byte depends on its position.
fn content(at: u64, length: usize) -> Vec<u8> {
    (at..).map(|at| (at % 251) as u8).take(length).collect()
}

fn open(link: &mut Link) -> ConnectionId {
    link.open(Destination::new("db", 80).unwrap()).unwrap()
}
