//! All connections between a client and its relay, and the pipes that carry them.

mod feed;
mod receive;
mod transmit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::connection::Connection;
use super::frame::{Frame, RelayFrameError};
use super::numbers::Seen;
use super::pipe::Pipe;
use super::{ConnectionId, Destination, MAX_CONNECTIONS, MAX_PIPES, PipeId, Refusal, RelaySide, ResetReason};

/// Maximum distance between a frame's number and the oldest one that is not acknowledged (RELAY-6).
const SPAN: u64 = 1 << 15;
/// Limit of unsent control frames. At this limit, the client opens no further connection, and an OPEN ends the relay's link
/// (RELAY-15).
const MAX_CONTROL: usize = 4 * MAX_CONNECTIONS;
/// Total credit of all connections in bytes, above which no connection gets more than the initial credit. The link may have to keep
/// this amount of data in memory.
const AMPLE: u64 = 64 << 20;

/// An event; see [`Link::poll_event`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEvent {
    /// Only at the relay: the client requests this connection. Answer with [`Link::opened`] or [`Link::refuse`].
    Wanted(ConnectionId, Destination),
    /// The connection was opened, refused, reset or ended, or more data can be read.
    Changed(ConnectionId),
    /// The connection accepts more data to send.
    Writable(ConnectionId),
    /// The other end has sent BYE: all connections have ended.
    Bye,
}

/// The reason why a link cannot continue: the other end violated the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkError {
    /// The received bytes are not frames.
    Frame(RelayFrameError),
    /// A frame contradicts the state of the link; the text describes how.
    Lie(&'static str),
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the other end violated the relay's protocol: ")?;
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::Lie(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for LinkError {}

/// The state of a connection; see [`Link::state`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The relay has not answered yet.
    Opening,
    /// The relay is connected to the destination.
    Open,
    /// The relay could not connect.
    Refused(Refusal),
    /// The connection has ended in both directions.
    Reset(ResetReason),
}

/// Statistics of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// Current number of connections.
    pub connections: usize,
    /// Current number of pipes, without feeds.
    pub pipes: usize,
    /// Current number of feeds.
    pub feeds: usize,
    /// Number of numbered frames sent, without repetitions.
    pub frames: u64,
    /// Number of repetitions of frames.
    pub repeated: u64,
    /// Number of frames that arrived again.
    pub duplicates: u64,
    /// Number of bytes in flight on all pipes and feeds.
    pub in_flight: u64,
    /// Number of bytes received as numbered frames over pipes, each byte counted once.
    pub received: u64,
    /// Number of bytes received as numbered frames over feeds, each byte counted once.
    pub fed: u64,
}

/// A frame that is not acknowledged.
#[derive(Debug)]
struct Outstanding {
    frame: Bytes,
    id: ConnectionId,
}

/// All connections between a client and its relay at one end, and the pipes that carry them. Time is an argument; no method waits.
#[derive(Debug)]
pub struct Link {
    side: RelaySide,
    pipes: BTreeMap<PipeId, Pipe>,
    next_pipe: u64,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Number of pieces of data, of all connections, that arrived out of order.
    early: usize,
    /// At the client: the id of the next connection.
    next_id: u32,
    /// At the relay: the ids of the connections that were requested.
    wanted: Seen,
    /// Control frames that were not sent yet, in order.
    control: VecDeque<(ConnectionId, Frame)>,
    /// Connections that have something to send and had nothing to send before. They precede those in `busy`.
    fresh: VecDeque<ConnectionId>,
    /// Connections that have more to send after their turn.
    busy: VecDeque<ConnectionId>,
    next_number: u64,
    outstanding: BTreeMap<u64, Outstanding>,
    /// Numbers of frames that must be sent again.
    again: BTreeSet<u64>,
    received: Seen,
    events: VecDeque<LinkEvent>,
    /// New pipes over which HAVE was not sent yet.
    beginnings: VecDeque<PipeId>,
    /// The time since which there has been no pipe.
    alone: Option<Instant>,
    /// Whether this end has ended the link with BYE.
    is_leaving: bool,
    /// Pipes over which BYE must still be sent.
    bye_pending: VecDeque<PipeId>,
    frames: u64,
    repeated: u64,
    duplicates: u64,
    received_bytes: u64,
    fed: u64,
}

impl Link {
    /// Creates a link without pipes and connections.
    pub fn new(side: RelaySide, now: Instant) -> Self {
        Self {
            side,
            pipes: BTreeMap::new(),
            next_pipe: 0,
            connections: BTreeMap::new(),
            early: 0,
            next_id: 0,
            wanted: Seen::default(),
            control: VecDeque::new(),
            fresh: VecDeque::new(),
            busy: VecDeque::new(),
            next_number: 0,
            outstanding: BTreeMap::new(),
            again: BTreeSet::new(),
            received: Seen::default(),
            events: VecDeque::new(),
            beginnings: VecDeque::new(),
            alone: Some(now),
            is_leaving: false,
            bye_pending: VecDeque::new(),
            frames: 0,
            repeated: 0,
            duplicates: 0,
            received_bytes: 0,
            fed: 0,
        }
    }

    /// Adds a pipe whose greeting is done. Returns `None` if there are too many pipes.
    pub fn add_pipe(&mut self) -> Option<PipeId> {
        if self.ordinary().count() >= MAX_PIPES {
            return None;
        }
        let id = self.insert(Pipe::new());
        self.beginnings.push_back(id);
        if self.is_leaving {
            self.bye_pending.push_back(id);
        }
        self.alone = None;
        Some(id)
    }

    fn insert(&mut self, pipe: Pipe) -> PipeId {
        let id = PipeId(self.next_pipe);
        self.next_pipe += 1;
        self.pipes.insert(id, pipe);
        id
    }

    /// Removes a pipe or feed that has ended. Its unacknowledged frames are sent again over the other pipes, or over the next one.
    pub fn lose_pipe(&mut self, now: Instant, id: PipeId) {
        let Some(pipe) = self.pipes.remove(&id) else { return };
        let lost = pipe.flying().filter(|number| self.outstanding.contains_key(number));
        self.again.extend(lost);
        if self.ordinary().next().is_none() {
            self.alone.get_or_insert(now);
        }
        self.acknowledge_feeds(now);
    }

    /// Returns the time since which there has been no pipe.
    pub fn alone_since(&self) -> Option<Instant> {
        self.alone
    }

    /// Opens a connection. Data can be written before the relay has answered. Returns `None` if there are too many connections.
    pub fn open(&mut self, to: Destination) -> Option<ConnectionId> {
        // The relay ends the link if a connection's id is too far ahead (RELAY-6).
        let is_far_ahead = self.outstanding.len() as u64 > SPAN / 2 || self.control.len() >= MAX_CONTROL;
        if is_far_ahead || self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        let id = ConnectionId(self.next_id);
        self.next_id = self.next_id.checked_add(1)?;
        self.connections.insert(id, Connection::new());
        self.control.push_back((id, Frame::Open { id, to }));
        Some(id)
    }

    /// Reports to the client that the relay has connected.
    pub fn opened(&mut self, id: ConnectionId) {
        self.push_control(id, Frame::Opened { id });
    }

    /// Reports to the client that the relay could not connect, and removes the connection.
    pub fn refuse(&mut self, id: ConnectionId, why: Refusal) {
        self.push_control(id, Frame::Refused { id, why });
        self.forget(id);
    }

    fn push_control(&mut self, id: ConnectionId, frame: Frame) {
        if self.connections.get(&id).is_some_and(|connection| connection.reset.is_none()) {
            self.control.push_back((id, frame));
        }
    }

    fn forget(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.early -= connection.receiving.early();
        Some(connection)
    }

    fn forget_all(&mut self) {
        self.connections.clear();
        self.early = 0;
    }

    /// Asserts the invariants of the state, in builds with debug assertions. Only fuzz targets call this method, because it counts
    /// everything again.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn check(&self) {
        let early = self.connections.values().map(|connection| connection.receiving.early()).sum::<usize>();
        debug_assert_eq!(early, self.early, "early data is miscounted");
        let queued = self.fresh.iter().chain(&self.busy);
        debug_assert!(
            queued.clone().all(|id| self.connections.get(id).is_none_or(|connection| connection.queued)),
            "a queue contains a connection that is not marked as queued"
        );
    }

    /// Returns the state of a connection, or `None` if there is no connection with this id.
    pub fn state(&self, id: ConnectionId) -> Option<ConnectionState> {
        let connection = self.connections.get(&id)?;
        Some(match (&connection.refused, connection.reset) {
            (Some(why), _) => ConnectionState::Refused(why.clone()),
            (None, Some(reason)) => ConnectionState::Reset(reason),
            (None, None) if connection.open => ConnectionState::Open,
            (None, None) => ConnectionState::Opening,
        })
    }

    /// Queues a chunk for sending. If the send buffer is full, the chunk is returned, and [`LinkEvent::Writable`] reports when
    /// there is space.
    ///
    /// # Errors
    /// Returns the chunk if the send buffer is full. Data that would have no receiver is dropped without an error.
    pub fn write(&mut self, id: ConnectionId, chunk: Bytes) -> Result<(), Bytes> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if !connection.sending.has_capacity() {
            connection.sending.full = true;
            return Err(chunk);
        }
        if connection.reset.is_none() && !connection.sending.is_finished() && !chunk.is_empty() {
            connection.sending.push(chunk);
            self.queue(id);
        }
        Ok(())
    }

    /// Ends the sending direction. Data that was written before is still delivered.
    pub fn finish(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.sending.finish();
            self.queue(id);
        }
    }

    /// Returns the next received bytes, in order, or `None` if there are none now; see [`Link::is_at_end`].
    pub fn read(&mut self, id: ConnectionId) -> Option<Bytes> {
        let chunk = self.connections.get_mut(&id)?.receiving.pop()?;
        self.grant(id);
        Some(chunk)
    }

    /// Returns whether the other end has ended its direction and all data was read.
    pub fn is_at_end(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.receiving.is_over())
    }

    /// Stops using the connection. If it has not ended, it is reset at the other end.
    pub fn release(&mut self, id: ConnectionId) {
        let Some(connection) = self.forget(id) else { return };
        if !connection.is_over() {
            self.control.push_back((id, Frame::Reset { id, reason: ResetReason::Reset }));
        }
    }

    /// Stops using the connection in order: written data and the end of the direction are still delivered.
    pub fn abandon(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.sending.finish();
            connection.abandoned = true;
            self.queue(id);
            self.drop_unread(id);
            self.end_abandoned(id);
        }
    }

    /// Reports to the other end that this end has ended all connections and will not open another pipe. BYE is sent over every
    /// pipe, because any pipe may be slow or lost.
    pub fn say_bye(&mut self) {
        self.forget_all();
        self.control.clear();
        if !std::mem::replace(&mut self.is_leaving, true) {
            let pipes: Vec<PipeId> = self.ordinary().map(|(id, _)| *id).collect();
            self.bye_pending.extend(pipes);
        }
    }

    /// Returns the oldest event.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// Returns statistics.
    pub fn stats(&self) -> LinkStats {
        LinkStats {
            connections: self.connections.len(),
            pipes: self.ordinary().count(),
            feeds: self.feeds().count(),
            frames: self.frames,
            repeated: self.repeated,
            duplicates: self.duplicates,
            in_flight: self.pipes.values().map(Pipe::in_flight).sum(),
            received: self.received_bytes,
            fed: self.fed,
        }
    }

    /// Returns the time at which [`Link::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let acks = self.ordinary().filter_map(|(_, pipe)| pipe.ack_due());
        let suspects = self.pipes.values().filter_map(Pipe::suspect_at).filter(|_| self.has_choice());
        acks.chain(self.feed_ack_due()).chain(suspects).min()
    }

    /// Handles the passing of time: the frames of a pipe that acknowledges nothing are sent again over the others (RELAY-10).
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.has_choice() {
            return;
        }
        let Self { pipes, again, outstanding, .. } = self;
        let mut has_lost = false;
        for pipe in pipes.values_mut().filter(|pipe| pipe.suspect_at().is_some_and(|at| at <= now)) {
            again.extend(pipe.suspect().filter(|number| outstanding.contains_key(number)));
            has_lost = true;
        }
        if has_lost {
            self.acknowledge_feeds(now);
        }
    }

    /// Returns whether frames can be sent over more than one pipe.
    fn has_choice(&self) -> bool {
        self.pipes.values().filter(|pipe| self.can_send(pipe)).nth(1).is_some()
    }

    /// Puts a connection into the queue if it has something to send.
    fn queue(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.queued && connection.has_something_to_send() {
            connection.queued = true;
            self.fresh.push_back(id);
        }
    }

    /// Raises a connection's credit once half of it is used.
    fn grant(&mut self, id: ConnectionId) {
        if !self.connections.get(&id).is_some_and(|connection| connection.receiving.wants_grant()) {
            return;
        }
        let others = self.connections.iter().filter(|(other, _)| **other != id);
        let promised: u64 = others.map(|(_, connection)| connection.receiving.promised()).sum();
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(limit) = connection.receiving.grant(AMPLE.saturating_sub(promised))
        {
            connection.grant = Some(limit);
            self.queue(id);
        }
    }

    fn drop_unread(&mut self, id: ConnectionId) {
        while self.read(id).is_some() {}
    }

    /// Ends an abandoned connection once all its data has arrived.
    fn end_abandoned(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id).filter(|connection| connection.abandoned) else { return };
        if connection.is_over() {
            self.forget(id);
        } else if connection.sending.fin_sent() && connection.outstanding == 0 {
            self.forget(id);
            self.control.push_back((id, Frame::Reset { id, reason: ResetReason::Abandoned }));
        }
    }
}
