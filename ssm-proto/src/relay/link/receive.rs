//! Handling of received frames.

use std::time::{Duration, Instant};

use super::{Link, LinkError, LinkEvent, MAX_CONTROL, SPAN};
use crate::relay::connection::Connection;
use crate::relay::frame::Frame;
use crate::relay::numbers::{Inserted, Numbers};
use crate::relay::{ConnectionId, Destination, MAX_CONNECTIONS, PipeId, Refusal, RefusalKind, RelaySide, ResetReason};

impl Link {
    /// Handles bytes that were received over a pipe.
    ///
    /// # Errors
    /// Returns an error if the other end violated the protocol. The link and all its connections cannot be used any more.
    pub fn handle_input(&mut self, now: Instant, id: PipeId, bytes: &[u8]) -> Result<(), LinkError> {
        let Some(pipe) = self.pipes.get_mut(&id) else { return Ok(()) };
        pipe.deframer.push(bytes);
        while let Some(pipe) = self.pipes.get_mut(&id) {
            let Some((frame, number, length)) = pipe.deframer.next_frame().map_err(LinkError::Frame)? else { break };
            let is_feed = pipe.feed().is_some();
            if is_feed {
                check_feed(self.side, &frame)?;
            } else if pipe.begin() != matches!(frame, Frame::Have(_)) {
                return Err(LinkError::Lie("a pipe does not begin with HAVE"));
            }
            match frame {
                Frame::Have(numbers) => self.handle_have(&numbers)?,
                Frame::Ack { position, held } => {
                    self.handle_ack(now, id, position, Duration::from_micros(held.into()))?;
                }
                Frame::FeedAck { feed, position, held } => self.handle_feed_ack(now, feed, position, held)?,
                Frame::Bye => {
                    self.forget_all();
                    self.events.push_back(LinkEvent::Bye);
                }
                frame => {
                    pipe.receive(now, length);
                    match self.received.insert(number, 2 * SPAN) {
                        Inserted::New => {
                            *(if is_feed { &mut self.fed } else { &mut self.received_bytes }) += length as u64;
                            self.handle_frame(frame).map_err(LinkError::Lie)?;
                        }
                        Inserted::Known => {
                            self.duplicates += 1;
                            // The relay may not know which frames have arrived over a feed.
                            self.acknowledge_feeds(now);
                        }
                        Inserted::TooFar => return Err(LinkError::Lie("a number far ahead of all others")),
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        id: PipeId,
        position: u64,
        held: Duration,
    ) -> Result<(), LinkError> {
        let Some(pipe) = self.pipes.get_mut(&id) else { return Ok(()) };
        let numbers =
            pipe.handle_ack(now, position, held).ok_or(LinkError::Lie("more is acknowledged than was sent"))?;
        numbers.into_iter().for_each(|number| self.has_arrived(number));
        Ok(())
    }

    /// Handles HAVE, with which a pipe begins: the frames that have arrived at the other end, also over pipes that have ended
    /// since.
    fn handle_have(&mut self, numbers: &Numbers) -> Result<(), LinkError> {
        if !numbers.are_below(self.next_number) {
            return Err(LinkError::Lie("more is acknowledged than was sent"));
        }
        let arrived: Vec<u64> = self.outstanding.keys().copied().filter(|number| numbers.contains(*number)).collect();
        arrived.into_iter().for_each(|number| self.has_arrived(number));
        Ok(())
    }

    /// Records that the frame with this number has arrived and need not be sent again.
    fn has_arrived(&mut self, number: u64) {
        let Some(outstanding) = self.outstanding.remove(&number) else { return };
        self.again.remove(&number);
        if let Some(connection) = self.connections.get_mut(&outstanding.id) {
            connection.outstanding = connection.outstanding.saturating_sub(1);
            self.end_abandoned(outstanding.id);
        }
    }

    /// Handles a frame that arrives for the first time. Frames can arrive out of order.
    fn handle_frame(&mut self, frame: Frame) -> Result<(), &'static str> {
        match frame {
            Frame::Open { id, to } => self.handle_open(id, to),
            Frame::Opened { id } => self.with(id, |connection| {
                connection.open = true;
                Ok(())
            }),
            Frame::Refused { id, why } => self.with(id, |connection| {
                connection.refused = Some(why);
                connection.sending.clear();
                Ok(())
            }),
            Frame::Data { id, offset, data } => {
                self.with(id, |connection| connection.receiving.push(offset, data).map(drop))
            }
            Frame::Fin { id, offset } => self.with(id, |connection| connection.receiving.end(offset)),
            Frame::Credit { id, limit } => {
                self.with(id, |connection| {
                    connection.sending.raise(limit);
                    Ok(())
                })?;
                self.queue(id);
                Ok(())
            }
            Frame::Reset { id, reason } => self.with(id, |connection| {
                connection.reset = Some(reason);
                connection.sending.clear();
                Ok(())
            }),
            Frame::Ack { .. } | Frame::FeedAck { .. } | Frame::Bye | Frame::Have(_) => Ok(()),
        }
    }

    fn handle_open(&mut self, id: ConnectionId, to: Destination) -> Result<(), &'static str> {
        if self.side != RelaySide::Relay {
            return Err("only the client opens connections");
        }
        match self.wanted.insert(id.0.into(), 2 * SPAN) {
            Inserted::New => {}
            Inserted::Known => return Err("a connection is opened twice"),
            Inserted::TooFar => return Err("a connection's number is far ahead of all others"),
        }
        // A correct client acknowledges the answers to earlier requests.
        if self.control.len() >= MAX_CONTROL {
            return Err("more connections are opened than answers are acknowledged");
        }
        if self.connections.len() >= MAX_CONNECTIONS && !self.connections.contains_key(&id) {
            let why = Refusal { kind: RefusalKind::Limit, text: "too many connections".into() };
            self.control.push_back((id, Frame::Refused { id, why }));
            return Ok(());
        }
        let connection = self.connections.entry(id).or_insert_with(Connection::new);
        if connection.reset == Some(ResetReason::Reset) {
            self.forget(id);
            return Ok(());
        }
        connection.open = true;
        self.events.push_back(LinkEvent::Wanted(id, to));
        Ok(())
    }

    /// Applies a change to a connection that exists, or whose OPEN has not arrived yet. Frames that arrive after the end of their
    /// connection are ignored.
    fn with(
        &mut self,
        id: ConnectionId,
        change: impl FnOnce(&mut Connection) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        if !self.connections.contains_key(&id) {
            let is_over = match self.side {
                RelaySide::Client if id.0 >= self.next_id => return Err("a connection that was not opened"),
                RelaySide::Client => true,
                RelaySide::Relay => self.wanted.contains(id.0.into()),
            };
            if is_over || self.connections.len() >= 2 * MAX_CONNECTIONS {
                return Ok(());
            }
            self.connections.insert(id, Connection::new());
        }
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let early = connection.receiving.early();
        change(connection)?;
        self.early = self.early + connection.receiving.early() - early;
        // Each of these pieces waits for a frame with a lower number.
        if self.early as u64 > SPAN {
            return Err("more data is out of order than can be in transit");
        }
        if connection.abandoned {
            self.drop_unread(id);
            self.end_abandoned(id);
        } else if self.side == RelaySide::Client || connection.open {
            self.events.push_back(LinkEvent::Changed(id));
        }
        Ok(())
    }
}

/// Checks a frame of a feed. Frames that a feed may carry can also arrive over any other pipe.
fn check_feed(side: RelaySide, frame: &Frame) -> Result<(), LinkError> {
    if side == RelaySide::Relay || !frame.is_numbered() {
        return Err(LinkError::Lie("a feed carries only numbered frames, to the client"));
    }
    Ok(())
}
