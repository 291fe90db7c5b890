//! Frames to send, and the selection of the pipe that carries each frame.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Link, Outstanding, SPAN};
use crate::relay::connection::Next;
use crate::relay::frame::{Frame, MAX_DATA};
use crate::relay::pipe::Pipe;
use crate::relay::{ConnectionId, LinkEvent, PipeId};

/// Half of the frame size that is used with several slow pipes. Small frames let all pipes share the data.
const MIN_DATA: usize = 2 << 10;

impl Link {
    /// Returns the next bytes to send, and their pipe. Call this method until it returns `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(PipeId, Bytes)> {
        if let Some(due) = self.transmit_due(now) {
            return Some(due);
        }
        let id = self.best_pipe()?;
        let (number, frame) = self.next_frame()?;
        let pipe = self.pipes.get_mut(&id)?;
        pipe.send(now, number, frame.len());
        // A pending acknowledgement is sent in the same message.
        Some((
            id,
            match pipe.take_ack(now) {
                Some((position, held)) => {
                    let mut both = BytesMut::from(Frame::Ack { position, held }.encode(0).as_ref());
                    both.extend_from_slice(&frame);
                    both.freeze()
                }
                None => frame,
            },
        ))
    }

    /// Returns the next frame that belongs to a pipe itself and is due.
    fn transmit_due(&mut self, now: Instant) -> Option<(PipeId, Bytes)> {
        while let Some(id) = self.beginnings.pop_front() {
            if self.pipes.contains_key(&id) {
                return Some((id, Frame::Have(self.received.numbers()).encode(0)));
            }
        }
        while let Some(id) = self.bye_pending.pop_front() {
            if self.pipes.contains_key(&id) {
                return Some((id, Frame::Bye.encode(0)));
            }
        }
        self.next_ack(now).or_else(|| self.next_feed_ack(now))
    }

    fn next_ack(&mut self, now: Instant) -> Option<(PipeId, Bytes)> {
        let is_due = |pipe: &Pipe| pipe.feed().is_none() && pipe.ack_due().is_some_and(|due| due <= now);
        let (id, pipe) = self.pipes.iter_mut().find(|(_, pipe)| is_due(pipe))?;
        let (position, held) = pipe.take_ack(now)?;
        Some((*id, Frame::Ack { position, held }.encode(0)))
    }

    /// Returns the pipe that may send and over which a frame would arrive soonest.
    fn best_pipe(&self) -> Option<PipeId> {
        let available = self.pipes.iter().filter(|(_, pipe)| pipe.has_capacity() && self.can_send(pipe));
        available.min_by_key(|(_, pipe)| pipe.load()).map(|(id, _)| *id)
    }

    fn next_frame(&mut self) -> Option<(u64, Bytes)> {
        while let Some(number) = self.again.pop_first() {
            if let Some(outstanding) = self.outstanding.get(&number) {
                self.repeated += 1;
                return Some((number, outstanding.frame.clone()));
            }
        }
        let oldest = self.outstanding.first_key_value().map_or(self.next_number, |(number, _)| *number);
        if self.next_number - oldest >= SPAN {
            return None;
        }
        let number = self.next_number;
        let (id, frame) = match self.control.pop_front() {
            Some((id, frame)) => (id, frame.encode(number)),
            None => self.next_of_connections(number)?,
        };
        self.next_number += 1;
        self.frames += 1;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.outstanding += 1;
        }
        self.outstanding.insert(number, Outstanding { frame: frame.clone(), id });
        Some((number, frame))
    }

    /// Returns the next frame of the connection whose turn it is.
    fn next_of_connections(&mut self, number: u64) -> Option<(ConnectionId, Bytes)> {
        let max = self.data_size();
        while let Some(id) = self.fresh.pop_front().or_else(|| self.busy.pop_front()) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            if connection.reset.is_some() {
                continue;
            }
            let frame = match (connection.grant.take(), connection.sending.next()) {
                (Some(limit), _) => Frame::Credit { id, limit }.encode(number),
                (None, Next::Data) => connection.sending.take(id, max, number),
                (None, Next::Fin(offset)) => {
                    connection.sending.sent_fin();
                    Frame::Fin { id, offset }.encode(number)
                }
                (None, Next::Nothing) => continue,
            };
            if connection.sending.full && connection.sending.has_capacity() {
                connection.sending.full = false;
                self.events.push_back(LinkEvent::Writable(id));
            }
            if connection.has_something_to_send() {
                connection.queued = true;
                self.busy.push_back(id);
            }
            return Some((id, frame));
        }
        None
    }

    /// Returns the size of DATA frames. Over several slow pipes, small frames make data arrive sooner. Over a fast pipe, large
    /// frames cost less.
    fn data_size(&self) -> usize {
        let slowest = self.pipes.values().map(|pipe| pipe.load().1).max().unwrap_or_default();
        if self.has_choice() && slowest > Duration::from_millis(2) { MIN_DATA * 2 } else { MAX_DATA }
    }
}
