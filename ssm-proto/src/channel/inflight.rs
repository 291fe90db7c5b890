//! The in-flight ring: sent messages that are not acknowledged yet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// A ring of consecutive sequence numbers, from the oldest unacknowledged one to the newest.
///
/// ```text
///      base            cursor            base + slots.len()
///       │  sent, some    │  never sent on   │
///       ▼  acknowledged  ▼  this WebSocket  ▼
///   ────┬────────────────┬──────────────────┬────
/// ```
#[derive(Debug, Default)]
pub(super) struct InFlight {
    slots: VecDeque<Slot>,
    base: i64,
    /// Offset from `base` of the first message that was not sent on this WebSocket.
    cursor: usize,
    unacked: usize,
    unacked_bytes: usize,
    /// Lower bound of the earliest deadline: no message is due before this time. Because of this bound, sending and acknowledging
    /// need no search.
    check_at: Option<Instant>,
    /// Since when an acknowledgement has been outstanding without any being received.
    silent_since: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    message: Bytes,
    state: SlotState,
    sent_at: Option<Instant>,
    deadline: Option<Instant>,
    /// Number of times that the message was sent, over all WebSockets.
    sent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Waiting,
    QueuedAgain,
    Acked,
}

/// A message that [`InFlight::transmit`] returns.
pub(super) struct Sent {
    pub(super) message: Bytes,
    pub(super) again: bool,
}

/// The effect of an acknowledgement.
pub(super) enum Acked {
    /// The acknowledgement acknowledges no new message.
    Stale,
    /// The acknowledgement acknowledges a message. `sample` is the round-trip time, unless the message was sent more than once
    /// (Karn's algorithm).
    Fresh { sample: Option<Duration> },
}

impl InFlight {
    pub(super) fn next_sequence_number(&self) -> i64 {
        self.base + i64::try_from(self.slots.len()).unwrap_or(i64::MAX)
    }

    /// Number of messages from the oldest unacknowledged one to the newest. The receiver's reorder buffer must be able
    /// to hold them.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    /// Asserts the invariants of the ring between two calls, in builds with debug assertions.
    #[cfg(feature = "fuzzing")]
    pub(super) fn check(&self, head_only: bool) {
        let waiting = || self.slots.iter().filter(|slot| slot.state != SlotState::Acked);
        debug_assert_eq!(waiting().count(), self.unacked, "unacknowledged messages are miscounted");
        debug_assert_eq!(waiting().map(|slot| slot.message.len()).sum::<usize>(), self.unacked_bytes);
        debug_assert!(self.slots.front().is_none_or(|slot| slot.state != SlotState::Acked), "the window does not move");
        debug_assert!(self.cursor <= self.slots.len(), "the cursor is beyond the end of the ring");
        let searched = if head_only { self.cursor.min(1) } else { self.cursor };
        let due = self.slots.iter().take(searched).filter(|slot| slot.state == SlotState::Waiting);
        let first = due.filter_map(|slot| slot.deadline).min();
        // A head-only sender checks a message only after the message has become the oldest one, which may be after the message's
        // deadline.
        let known = first.is_none_or(|first| self.check_at.is_some_and(|at| head_only || at <= first));
        debug_assert!(known, "a deadline is not covered by check_at: {first:?}, {:?}", self.check_at);
    }

    /// Whether a message has not been sent on this WebSocket yet.
    pub(super) fn has_unsent(&self) -> bool {
        self.cursor < self.slots.len()
    }

    /// Whether the oldest unacknowledged message was sent on this WebSocket.
    pub(super) fn has_sent(&self) -> bool {
        self.cursor > 0
    }

    pub(super) fn unacked(&self) -> usize {
        self.unacked
    }

    pub(super) fn unacked_bytes(&self) -> usize {
        self.unacked_bytes
    }

    /// Since when an acknowledgement has been outstanding on this WebSocket without any being received; `None` while
    /// none is outstanding.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// Stores the message with the number [`InFlight::next_sequence_number`].
    pub(super) fn push(&mut self, message: Bytes) {
        self.unacked += 1;
        self.unacked_bytes += message.len();
        self.slots.push_back(Slot { message, state: SlotState::Waiting, sent_at: None, deadline: None, sent: 0 });
    }

    /// Returns the next message that was not sent on this WebSocket yet. `rto(n)` is the timeout of a message that was
    /// sent n times.
    pub(super) fn transmit(&mut self, now: Instant, rto: impl Fn(u32) -> Duration) -> Option<Sent> {
        while let Some(slot) = self.slots.get_mut(self.cursor) {
            self.cursor += 1;
            if slot.state != SlotState::Acked {
                let sent = slot.send(now, &rto);
                self.silent_since.get_or_insert(now);
                self.expect_check(now + rto(1));
                return Some(sent);
            }
        }
        None
    }

    /// Returns the message with this number for retransmission, if the message is still queued for retransmission.
    pub(super) fn retransmit(&mut self, number: i64, now: Instant, rto: impl Fn(u32) -> Duration) -> Option<Sent> {
        let offset = self.offset(number)?;
        let slot = self.slots.get_mut(offset).filter(|slot| slot.state == SlotState::QueuedAgain)?;
        let sent = slot.send(now, &rto);
        if let Some(deadline) = slot.deadline {
            self.expect_check(deadline);
        }
        Some(sent)
    }

    pub(super) fn acknowledge(&mut self, number: i64, now: Instant) -> Acked {
        let Some(offset) = self.offset(number) else { return Acked::Stale };
        let Some(slot) = self.slots.get_mut(offset) else { return Acked::Stale };
        if slot.state == SlotState::Acked || slot.sent == 0 {
            return Acked::Stale;
        }
        let sample = slot.sent_at.filter(|_| slot.sent == 1).map(|at| now.saturating_duration_since(at));
        self.unacked -= 1;
        self.unacked_bytes -= slot.message.len();
        slot.state = SlotState::Acked;
        slot.message = Bytes::new();
        while self.slots.front().is_some_and(|slot| slot.state == SlotState::Acked) {
            self.slots.pop_front();
            self.base += 1;
            self.cursor = self.cursor.saturating_sub(1);
        }
        // Only sent messages can be acknowledged, so the silence counts only while a sent message is outstanding.
        self.silent_since = self.has_sent().then_some(now);
        if self.unacked == 0 {
            self.check_at = None;
        }
        Acked::Fresh { sample }
    }

    /// When to call [`InFlight::take_due`]: not later than the first deadline, possibly earlier.
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    /// Queues up to `limit` due messages, oldest first. The others become due again after `patience`.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        limit: usize,
        head_only: bool,
        patience: Duration,
        queue: &mut VecDeque<i64>,
    ) {
        self.check_at = None;
        let mut earliest: Option<Instant> = None;
        let searched = if head_only { 1 } else { self.cursor };
        let mut queued = 0;
        for (number, slot) in (self.base..).zip(self.slots.iter_mut().take(searched)) {
            let (SlotState::Waiting, Some(deadline)) = (slot.state, slot.deadline) else { continue };
            if deadline <= now && queued < limit {
                slot.state = SlotState::QueuedAgain;
                queue.push_back(number);
                queued += 1;
                continue;
            }
            let next = if deadline <= now { now + patience } else { deadline };
            slot.deadline = Some(next);
            earliest = Some(earliest.map_or(next, |e| e.min(next)));
        }
        self.check_at = earliest;
    }

    /// Queues the oldest message if it was sent, as a probe of an inactive or silent peer.
    pub(super) fn queue_head(&mut self, queue: &mut VecDeque<i64>) {
        if let Some(head) = self.slots.front_mut().filter(|slot| self.cursor > 0 && slot.state == SlotState::Waiting) {
            head.state = SlotState::QueuedAgain;
            queue.push_back(self.base);
        }
    }

    /// Makes all messages that were sent and not acknowledged due now.
    pub(super) fn hasten(&mut self, now: Instant) {
        for slot in self.slots.iter_mut().take(self.cursor) {
            slot.deadline = slot.deadline.map(|deadline| deadline.min(now));
        }
        if self.cursor > 0 && self.unacked > 0 {
            self.expect_check(now);
        }
    }

    /// Prepares the ring for a new WebSocket: all unacknowledged messages are sent again once, in order (DC-14).
    pub(super) fn rewind(&mut self) {
        self.cursor = 0;
        self.check_at = None;
        self.silent_since = None;
        for slot in &mut self.slots {
            slot.deadline = None;
            if slot.state == SlotState::QueuedAgain {
                slot.state = SlotState::Waiting;
            }
        }
    }

    fn offset(&self, number: i64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.base)?).ok()
    }

    fn expect_check(&mut self, at: Instant) {
        self.check_at = Some(self.check_at.map_or(at, |check| check.min(at)));
    }
}

impl Slot {
    fn send(&mut self, now: Instant, rto: impl Fn(u32) -> Duration) -> Sent {
        let again = self.sent > 0;
        self.sent = self.sent.saturating_add(1);
        self.sent_at = Some(now);
        self.deadline = Some(now + rto(self.sent));
        self.state = SlotState::Waiting;
        Sent { message: self.message.clone(), again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTO: Duration = Duration::from_millis(200);

    fn ring_of(count: u8, now: Instant) -> InFlight {
        let mut ring = InFlight::default();
        for byte in 0..count {
            ring.push(Bytes::copy_from_slice(&[byte]));
        }
        while ring.transmit(now, |_| RTO).is_some() {}
        ring
    }

    #[test]
    fn samples_come_only_from_messages_sent_once() {
        let now = Instant::now();
        let mut ring = ring_of(2, now);
        let mut queue = VecDeque::new();
        ring.take_due(now + RTO, 1, false, RTO, &mut queue);
        assert_eq!(queue, [0]);
        assert!(ring.retransmit(0, now + RTO, |_| RTO).unwrap().again);
        let later = now + RTO * 2;
        assert!(matches!(ring.acknowledge(0, later), Acked::Fresh { sample: None }));
        assert!(matches!(ring.acknowledge(1, later), Acked::Fresh { sample: Some(rtt) } if rtt == RTO * 2));
        assert!(matches!(ring.acknowledge(1, later), Acked::Stale));
        assert_eq!((ring.span(), ring.check_at()), (0, None));
    }

    #[test]
    fn a_rewind_sends_what_is_unacknowledged_in_order() {
        let now = Instant::now();
        let mut ring = ring_of(5, now);
        ring.acknowledge(1, now);
        ring.acknowledge(3, now);
        ring.rewind();
        let mut again = Vec::new();
        while let Some(sent) = ring.transmit(now, |_| RTO) {
            assert!(sent.again);
            again.push(sent.message[0]);
        }
        assert_eq!(again, [0, 2, 4]);
    }

    #[test]
    fn silence_counts_from_the_last_acknowledgement_and_only_while_one_is_waited_for() {
        let now = Instant::now();
        let mut ring = ring_of(2, now);
        assert_eq!(ring.silent_since(), Some(now));
        ring.push(Bytes::from_static(b"unsent"));
        ring.acknowledge(0, now + RTO);
        assert_eq!(ring.silent_since(), Some(now + RTO));
        ring.acknowledge(0, now + RTO * 2);
        assert_eq!(ring.silent_since(), Some(now + RTO), "a repeated acknowledgement changes nothing");
        ring.acknowledge(1, now + RTO * 2);
        assert_eq!(ring.silent_since(), None, "the third was not sent yet");
        ring.transmit(now + RTO * 3, |_| RTO);
        assert_eq!(ring.silent_since(), Some(now + RTO * 3));
        ring.rewind();
        assert_eq!(ring.silent_since(), None, "a new WebSocket starts without silence");
    }

    #[test]
    fn acknowledgements_of_numbers_never_sent_are_ignored() {
        let now = Instant::now();
        let mut ring = ring_of(1, now);
        ring.push(Bytes::from_static(b"unsent"));
        for number in [-1, 1, 2, i64::MAX, i64::MIN] {
            assert!(matches!(ring.acknowledge(number, now), Acked::Stale), "{number}");
        }
        assert_eq!(ring.unacked(), 2);
    }
}
