//! The loop: one thread, all sockets, one link.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use ssm_proto::relay::{
    Compressor, ConnectionId, ConnectionState, GRACE, Greeting, Link, LinkEvent, MAX_FEEDS, MAX_PIPES, PipeId, Refusal,
    RefusalKind, RelaySecret, RelaySide, ResetReason,
};

use crate::dial::Dialler;
use crate::pipe::Pipe;
use crate::target::{Progress, Target};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST: usize = 2;
/// Time within which a pipe must prove that it knows the secret, and a feed that it leads to the client.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of pipes and feeds that have not proved that yet. All sessions may come at once.
const MAX_STRANGERS: usize = MAX_PIPES;
/// Delay of the next attempt after a pipe could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// The configuration.
pub(crate) struct Options {
    pub(crate) secret: RelaySecret,
    /// Connections may use file descriptors below this number. Those above it are for pipes and for attempts to connect.
    pub(crate) descriptors: u64,
}

/// See the module.
pub(crate) struct Relay {
    poll: Poll,
    listener: TcpListener,
    options: Options,
    link: Link,
    compressor: Compressor,
    dialler: Dialler,
    next: usize,
    pipes: BTreeMap<Token, Pipe>,
    by_pipe: BTreeMap<PipeId, Token>,
    targets: BTreeMap<Token, Target>,
    by_connection: BTreeMap<ConnectionId, Token>,
    /// Targets that may have something to do.
    awake: BTreeSet<Token>,
    /// When to try to accept a pipe again. Events do not report pipes that already wait.
    accepts_at: Option<Instant>,
    over: bool,
}

impl Relay {
    /// Listens on this port of the node's loopback interface; 0 means any port.
    ///
    /// # Errors
    /// The port is taken.
    pub(crate) fn bind(port: u16, options: Options) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let dialler = Dialler::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            poll,
            listener,
            options,
            link: Link::new(RelaySide::Relay, Instant::now()),
            compressor: Compressor::default(),
            dialler,
            next: FIRST,
            pipes: BTreeMap::new(),
            by_pipe: BTreeMap::new(),
            targets: BTreeMap::new(),
            by_connection: BTreeMap::new(),
            awake: BTreeSet::new(),
            accepts_at: None,
            over: false,
        })
    }

    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves until the client says goodbye, breaks the protocol, or stays away for too long.
    ///
    /// # Errors
    /// The system refuses to wait for sockets.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        while !self.over {
            let now = Instant::now();
            let timeout = self.wakes_at().map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                self.handle(now, event.token(), event.is_readable() || event.is_read_closed() || event.is_error());
            }
            self.look_at_clock(now);
            self.settle(now);
        }
        Ok(())
    }

    fn wakes_at(&self) -> Option<Instant> {
        let alone = self.link.alone_since().map(|since| since + GRACE);
        let strangers = self.strangers().map(|pipe| pipe.since + GREETING_PATIENCE);
        alone.into_iter().chain(self.link.poll_timeout()).chain(strangers).chain(self.accepts_at).min()
    }

    fn strangers(&self) -> impl Iterator<Item = &Pipe> {
        self.pipes.values().filter(|pipe| self.is_stranger(pipe))
    }

    fn is_stranger(&self, pipe: &Pipe) -> bool {
        pipe.id().is_none_or(|id| self.link.is_unproved_feed(id))
    }

    fn handle(&mut self, now: Instant, token: Token, readable: bool) {
        match token {
            LISTENER => self.accept(now),
            WAKER => self.take_dialled(),
            token if self.pipes.contains_key(&token) => self.read_pipe(now, token),
            token => {
                if let Some(target) = self.targets.get_mut(&token) {
                    target.readable |= readable;
                    self.awake.insert(token);
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        self.accepts_at = None;
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.accepts_at = Some(now + ACCEPT_AGAIN);
                    return;
                }
            };
            let mut nonce = [0; 16];
            let is_full =
                self.strangers().count() >= MAX_STRANGERS || self.pipes.len() >= MAX_PIPES + MAX_FEEDS + MAX_STRANGERS;
            if is_full || getrandom::fill(&mut nonce).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            let greeting = Greeting::new(RelaySide::Relay, self.options.secret.clone(), nonce);
            if let Ok(token) = self.register(&mut stream) {
                self.pipes.insert(token, Pipe::new(stream, greeting, now));
                self.write_pipe(now, token);
            }
        }
    }

    fn register(&mut self, source: &mut impl Source) -> io::Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        self.poll.registry().register(source, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(token)
    }

    fn read_pipe(&mut self, now: Instant, token: Token) {
        let Some(pipe) = self.pipes.get_mut(&token) else { return };
        let outcome = pipe.read(now, &mut self.link, &mut self.over);
        if let Some(id) = pipe.id() {
            self.by_pipe.insert(id, token);
        }
        match outcome {
            Ok(()) => self.write_pipe(now, token),
            Err(_) => self.drop_pipe(now, token),
        }
    }

    fn write_pipe(&mut self, now: Instant, token: Token) {
        if self.pipes.get_mut(&token).is_some_and(|pipe| pipe.write().is_err()) {
            self.drop_pipe(now, token);
        }
    }

    fn drop_pipe(&mut self, now: Instant, token: Token) {
        let Some(mut pipe) = self.pipes.remove(&token) else { return };
        let _ = self.poll.registry().deregister(pipe.stream());
        if let Some(id) = pipe.id() {
            self.by_pipe.remove(&id);
            self.link.lose_pipe(now, id);
        }
    }

    fn take_dialled(&mut self) {
        while let Some((id, outcome)) = self.dialler.next_result() {
            let stream = match outcome {
                Ok(stream) => stream,
                Err(why) => {
                    self.link.refuse(id, why);
                    continue;
                }
            };
            if u64::try_from(stream.as_raw_fd()).is_ok_and(|number| number >= self.options.descriptors) {
                let text = "the relay has too many open files".into();
                self.link.refuse(id, Refusal { kind: RefusalKind::Limit, text });
                continue;
            }
            let _ = stream.set_nodelay(true);
            if stream.set_nonblocking(true).is_err() || self.link.state(id).is_none() {
                self.link.release(id);
                continue;
            }
            let mut stream = TcpStream::from_std(stream);
            match self.register(&mut stream) {
                Ok(token) => {
                    self.targets.insert(token, Target::new(stream, id));
                    self.by_connection.insert(id, token);
                    self.awake.insert(token);
                    self.link.opened(id);
                }
                Err(_) => self.link.release(id),
            }
        }
    }

    fn look_at_clock(&mut self, now: Instant) {
        self.link.handle_timeout(now);
        if self.accepts_at.is_some_and(|at| at <= now) {
            self.accept(now);
        }
        self.over |= self.link.alone_since().is_some_and(|since| since + GRACE <= now);
        let late: Vec<Token> = self
            .pipes
            .iter()
            .filter(|(_, pipe)| self.is_stranger(pipe) && pipe.since + GREETING_PATIENCE <= now)
            .map(|(token, _)| *token)
            .collect();
        late.into_iter().for_each(|token| self.drop_pipe(now, token));
    }

    /// Does everything that can be done now.
    fn settle(&mut self, now: Instant) {
        loop {
            while let Some(event) = self.link.poll_event() {
                self.note(event);
            }
            let awake = std::mem::take(&mut self.awake);
            awake.into_iter().for_each(|token| self.work(token));
            let mut touched = BTreeSet::new();
            while let Some((id, bytes)) = self.link.poll_transmit(now) {
                let Some(token) = self.by_pipe.get(&id) else { continue };
                if let Some(pipe) = self.pipes.get_mut(token) {
                    pipe.push(bytes);
                    touched.insert(*token);
                }
            }
            if touched.is_empty() && self.awake.is_empty() {
                return;
            }
            touched.into_iter().for_each(|token| self.write_pipe(now, token));
        }
    }

    fn note(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Wanted(id, to) => self.dialler.dial(id, to),
            LinkEvent::Changed(id) | LinkEvent::Writable(id) => match self.by_connection.get(&id) {
                Some(token) => drop(self.awake.insert(*token)),
                None => self.forget_if_reset(id),
            },
            LinkEvent::Bye => self.over = true,
            _ => {}
        }
    }

    /// If the client has reset the connection, it is not dialled. Data of a client that has left in order is still delivered.
    fn forget_if_reset(&mut self, id: ConnectionId) {
        let is_reset = self.link.state(id) == Some(ConnectionState::Reset(ResetReason::Reset));
        if is_reset && self.dialler.forget(id) {
            self.link.release(id);
        }
    }

    fn work(&mut self, token: Token) {
        let Some(target) = self.targets.get_mut(&token) else { return };
        if target.work(&mut self.link, &mut self.compressor) == Progress::Over
            && let Some(mut target) = self.targets.remove(&token)
        {
            self.by_connection.remove(&target.id());
            let _ = self.poll.registry().deregister(target.stream());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Stranger;

    use ssm_proto::relay::feed_answer;

    use super::*;

    fn relay() -> Relay {
        Relay::bind(0, Options { secret: RelaySecret::new([7; 32]), descriptors: 1024 }).unwrap()
    }

    /// Connects, and has the relay accept it.
    fn stranger(relay: &mut Relay, now: Instant) -> Stranger {
        let stranger = Stranger::connect((Ipv4Addr::LOCALHOST, relay.port().unwrap())).unwrap();
        stranger.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        relay.accept(now);
        stranger
    }

    /// Has the relay read everything that has arrived, until `is_done`.
    fn read_until(relay: &mut Relay, now: Instant, is_done: impl Fn(&Relay) -> bool) {
        while !is_done(relay) {
            let tokens: Vec<Token> = relay.pipes.keys().copied().collect();
            tokens.into_iter().for_each(|token| relay.read_pipe(now, token));
            std::thread::yield_now();
        }
    }

    fn read_greeting(stream: &mut Stranger, greeting: &mut Greeting) {
        while !greeting.is_done() {
            let mut bytes = [0; 1];
            stream.read_exact(&mut bytes).unwrap();
            greeting.handle_input(&bytes).unwrap();
            greeting.poll_transmit().into_iter().for_each(|bytes| stream.write_all(&bytes).unwrap());
        }
    }

    #[test]
    fn a_feed_is_a_stranger_until_the_client_says_that_it_has_arrived() {
        let (mut relay, now, secret) = (relay(), Instant::now(), RelaySecret::new([7; 32]));
        let mut feeds = [1, 2].map(|nonce| {
            let mut feed = stranger(&mut relay, now);
            feed.write_all(&feed_answer([nonce; 16])).unwrap();
            (feed, Greeting::of_feed(secret.clone(), [nonce; 16]))
        });
        read_until(&mut relay, now, |relay| relay.link.stats().feeds == 2);
        feeds.iter_mut().for_each(|(feed, greeting)| read_greeting(feed, greeting));
        assert_eq!(relay.strangers().count(), 2);

        // The client has a pipe, and has seen the first feed's greeting.
        let mut pipe = stranger(&mut relay, now);
        let mut client = Link::new(RelaySide::Client, now);
        client.add_pipe().unwrap();
        client.add_feed(now, feeds[0].1.feed().unwrap()).unwrap();
        let proved = std::thread::spawn(move || {
            read_greeting(&mut pipe, &mut Greeting::new(RelaySide::Client, secret, [3; 16]));
            while let Some((_, bytes)) = client.poll_transmit(now) {
                pipe.write_all(&bytes).unwrap();
            }
            pipe
        });
        read_until(&mut relay, now, |relay| relay.strangers().count() == 1);
        relay.look_at_clock(now + GREETING_PATIENCE);
        let stats = relay.link.stats();
        assert_eq!((stats.pipes, stats.feeds, relay.strangers().count()), (1, 1, 0));
        let [(first, _), (mut second, _)] = feeds;
        assert_eq!(second.read(&mut [0]).unwrap(), 0, "the other one was closed");
        let _pipe = proved.join().unwrap();

        // It carries nothing up, and its end is noticed.
        (&first).write_all(b"x").unwrap();
        read_until(&mut relay, now, |relay| relay.link.stats().feeds == 0);
        assert_eq!(relay.link.stats().pipes, 1);
    }

    #[test]
    fn a_stranger_that_says_more_than_a_feed_may_is_closed_and_ends_nothing() {
        // As one piece: what follows would be a frame, or none at all.
        for rest in [&[9; 11][..], &[0; 11], &[0xff; 64], b"x"] {
            let (mut relay, now) = (relay(), Instant::now());
            let mut feed = stranger(&mut relay, now);
            feed.write_all(&[&feed_answer([1; 16])[..], rest].concat()).unwrap();
            read_until(&mut relay, now, |relay| relay.pipes.is_empty() || relay.over);
            assert!(!relay.over, "{rest:?}");
            assert_eq!(relay.link.stats().feeds, 0);
        }
    }

    /// Whether the relay has greeted it.
    fn is_greeted(stranger: &mut Stranger) -> bool {
        stranger.read(&mut [0; 1024]).is_ok_and(|length| length > 0)
    }

    #[test]
    fn without_a_pipe_it_ends_after_a_time() {
        let mut relay = relay();
        let end = relay.link.alone_since().unwrap() + GRACE;
        assert_eq!(relay.wakes_at(), Some(end));
        relay.look_at_clock(end - Duration::from_millis(1));
        assert!(!relay.over);
        relay.look_at_clock(end);
        assert!(relay.over);
    }

    #[test]
    fn pipes_that_prove_nothing_are_few_and_have_little_time() {
        let (mut relay, now) = (relay(), Instant::now());
        let mut strangers: Vec<_> = (0..MAX_STRANGERS).map(|_| stranger(&mut relay, now)).collect();
        assert!(strangers.iter_mut().all(is_greeted));
        assert!(!is_greeted(&mut stranger(&mut relay, now)), "one more");
        assert_eq!(relay.strangers().count(), MAX_STRANGERS);

        relay.look_at_clock(now + GREETING_PATIENCE - Duration::from_millis(1));
        assert_eq!(relay.strangers().count(), MAX_STRANGERS);
        assert_eq!(relay.wakes_at(), Some(now + GREETING_PATIENCE));
        relay.look_at_clock(now + GREETING_PATIENCE);
        assert_eq!(relay.strangers().count(), 0);
        assert!(!strangers.iter_mut().any(is_greeted), "they were closed");
        assert!(is_greeted(&mut stranger(&mut relay, now)), "others can come again");
    }
}
