//! Feeds: pipes that only the relay sends over. The client acknowledges feeds over ordinary pipes.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Link, LinkError};
use crate::relay::frame::Frame;
use crate::relay::pipe::Pipe;
use crate::relay::{FeedId, MAX_FEEDS, PipeId, RelaySide};

impl Link {
    /// Adds a feed whose greeting is done. The relay sends nothing over the feed before the client's first acknowledgement, and
    /// nothing while there is no ordinary pipe. Returns `None` if there are too many feeds. Remove the feed with
    /// [`Link::lose_pipe`].
    pub fn add_feed(&mut self, now: Instant, id: FeedId) -> Option<PipeId> {
        if self.feeds().count() >= MAX_FEEDS {
            return None;
        }
        let feed = Pipe::new_feed(self.side, now, id);
        Some(self.insert(feed))
    }

    /// Returns whether this is a feed that the client has not acknowledged yet. Its other end may be another program.
    pub fn is_unproved_feed(&self, id: PipeId) -> bool {
        self.pipes.get(&id).is_some_and(Pipe::is_unproved_feed)
    }

    pub(super) fn feeds(&self) -> impl Iterator<Item = &Pipe> {
        self.pipes.values().filter(|pipe| pipe.feed().is_some())
    }

    pub(super) fn ordinary(&self) -> impl Iterator<Item = (&PipeId, &Pipe)> {
        self.pipes.iter().filter(|(_, pipe)| pipe.feed().is_none())
    }

    /// Returns whether this end can send frames over the pipe.
    pub(super) fn can_send(&self, pipe: &Pipe) -> bool {
        pipe.feed().is_none() || (self.side == RelaySide::Relay && self.alone.is_none())
    }

    /// Acknowledges the client's feeds again, because the last acknowledgements may be lost.
    pub(super) fn acknowledge_feeds(&mut self, now: Instant) {
        if self.side == RelaySide::Client {
            let feeds = self.pipes.values_mut().filter(|pipe| pipe.feed().is_some());
            feeds.for_each(|feed| feed.acknowledge_again(now));
        }
    }

    /// Returns when a feed must be acknowledged.
    pub(super) fn feed_ack_due(&self) -> Option<Instant> {
        self.alone.is_none().then(|| self.feeds().filter_map(Pipe::ack_due).min())?
    }

    /// Returns the next acknowledgement of a feed. It is sent over the pipe over which a frame arrived last, because that pipe
    /// surely works.
    pub(super) fn next_feed_ack(&mut self, now: Instant) -> Option<(PipeId, Bytes)> {
        let over = self.ordinary().max_by_key(|(_, pipe)| pipe.last_received()).map(|(id, _)| *id)?;
        for pipe in self.pipes.values_mut().filter(|pipe| pipe.ack_due().is_some_and(|due| due <= now)) {
            if let Some(feed) = pipe.feed()
                && let Some((position, held)) = pipe.take_ack(now)
            {
                return Some((over, Frame::FeedAck { feed, position, held }.encode(0)));
            }
        }
        None
    }

    /// Handles the client's acknowledgement of a position of a feed. An unknown feed is ignored, because it may have ended in the
    /// meantime.
    pub(super) fn handle_feed_ack(
        &mut self,
        now: Instant,
        feed: FeedId,
        position: u64,
        held: u32,
    ) -> Result<(), LinkError> {
        if self.side != RelaySide::Relay {
            return Err(LinkError::Lie("only the client has feeds to acknowledge"));
        }
        let Some((id, pipe)) = self.pipes.iter_mut().find(|(_, pipe)| pipe.feed() == Some(feed)) else { return Ok(()) };
        pipe.begin();
        let id = *id;
        self.handle_ack(now, id, position, Duration::from_micros(held.into()))
    }
}
