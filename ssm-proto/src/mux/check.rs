//! The invariants of the multiplexer's state.

use super::stream::{LocalEnd, Stream};
use super::{MAX_FORGOTTEN, MAX_SLACK, MAX_STREAMS, Mux};
use crate::Side;

impl Mux {
    /// Asserts the invariants of the multiplexer between two calls, in builds with debug assertions.
    pub(crate) fn check(&self) {
        let sum = |of: fn(&Stream) -> usize| self.streams.values().map(of).sum::<usize>();
        debug_assert_eq!(sum(|stream| stream.receive.len()), self.receive_bytes, "unread bytes are miscounted");
        debug_assert!(
            self.receive_slack <= MAX_SLACK,
            "{} bytes of memory are kept alive without need",
            self.receive_slack
        );
        let over = self.streams.values().filter(|stream| stream.receive.len() >= self.config.receive_store).count();
        debug_assert_eq!(over, self.streams_over_limit, "full streams are miscounted");
        debug_assert!(self.side == Side::Client || self.streams.len() <= MAX_STREAMS, "too many streams");
        debug_assert!(self.forgotten.len() <= MAX_FORGOTTEN, "{} streams are remembered", self.forgotten.len());
        let queued = self.fresh.iter().chain(&self.busy);
        debug_assert!(
            queued.clone().all(|id| self.streams.get(id).is_some_and(|stream| stream.scheduled)),
            "a queue contains a stream that is not marked as scheduled"
        );
        let scheduled = self.streams.values().filter(|stream| stream.scheduled).count();
        debug_assert_eq!(queued.count(), scheduled, "a stream is queued twice or not at all");
        debug_assert!(self.streams.values().all(Stream::is_consistent), "a stream's state is inconsistent");
    }
}

impl Stream {
    fn is_consistent(&self) -> bool {
        self.send.is_counted()
            && self.receive.is_counted()
            // A stream that has something to send must be scheduled; otherwise its data would never be sent.
            && (self.scheduled || !self.has_something_to_send())
            && (self.local != LocalEnd::Finished || self.send.is_empty())
            && (!self.discard || self.receive.is_empty())
            && (self.scheduled || !self.is_over())
    }
}
