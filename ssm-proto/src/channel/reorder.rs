//! The reorder buffer: messages that arrived early.

use std::collections::BTreeMap;

use crate::wire::AgentMessage;

/// Keeps messages with numbers above the expected one, up to a limit of messages and a limit of bytes.
#[derive(Debug)]
pub(super) struct ReorderStore {
    messages: BTreeMap<i64, AgentMessage>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

impl ReorderStore {
    pub(super) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, max_messages, max_bytes }
    }

    /// Asserts the invariants of the buffer between two calls, in builds with debug assertions.
    #[cfg(feature = "fuzzing")]
    pub(super) fn check(&self, expected: i64) {
        let bytes: usize = self.messages.values().map(|message| message.payload().len()).sum();
        debug_assert_eq!(bytes, self.bytes, "buffered bytes are miscounted");
        debug_assert!(self.messages.len() <= self.max_messages && bytes <= self.max_bytes, "too much is buffered");
        debug_assert!(self.messages.keys().all(|number| *number >= expected), "an old message is buffered");
    }

    /// Stores a copy of `message`, which may be a slice of a large buffer. Returns `false` if the message does not fit;
    /// it must then not be acknowledged. Returns `true` for a message that is already stored.
    pub(super) fn insert(&mut self, message: AgentMessage) -> bool {
        let size = message.payload().len();
        if self.messages.contains_key(&message.sequence_number()) {
            return true;
        }
        if self.messages.len() >= self.max_messages || self.bytes + size > self.max_bytes {
            return false;
        }
        self.bytes += size;
        self.messages.insert(message.sequence_number(), message.into_owned());
        true
    }

    /// Removes and returns the message with this number.
    pub(super) fn take(&mut self, sequence_number: i64) -> Option<AgentMessage> {
        if self.messages.is_empty() {
            return None;
        }
        let message = self.messages.remove(&sequence_number)?;
        self.bytes -= message.payload().len();
        Some(message)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
