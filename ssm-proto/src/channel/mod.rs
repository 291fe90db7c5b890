//! The data channel: numbered messages, acknowledged one by one, over a succession of WebSockets. `docs/protocol.md`,
//! DC-*.

mod acks;
mod config;
mod inflight;
mod pacer;
mod reorder;
mod rtt;

pub use config::{ChannelConfig, Retransmission};
pub use pacer::Pace;
pub use rtt::RttEstimator;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use uuid::Uuid;

use crate::window::Window;
use crate::wire::{
    Acknowledge, AgentMessage, ChannelClosed, DecodeError, Header, MessageBuf, MessageType, PayloadType,
};
use crate::{Clock, Side, Timeout, TimeoutReason};
use acks::Acks;
use inflight::{Acked, InFlight};
use pacer::Pacer;
use reorder::ReorderStore;

/// How often a head-only sender checks its oldest message.
const HEAD_SCAN: Duration = Duration::from_millis(100);
/// Initial timeout while the peer may not be ready yet. In most sessions the agent does not acknowledge the first message, and this
/// must not cause a noticeable delay (DC-11).
const QUICK_RTO: Duration = Duration::from_millis(30);
/// Number of quick retransmissions before back-off begins.
const QUICK_TRIES: u32 = 8;
/// Maximum number of retransmissions while nothing is acknowledged. After that, there is one per timeout.
const SILENT_BURST: usize = 32;
/// Interval at which an inactive peer is probed with the oldest message. A probe is needed because the notification that the peer
/// is active again may be lost. If no message is in flight, the next new message is sent as the probe.
const PAUSE_PROBE: Duration = Duration::from_secs(5);
/// Number of messages beyond the window that the handshake and flags may use.
const CONTROL_RESERVE: usize = 64;

/// One end of a data channel.
///
/// After each change of the state, drain [`DataChannel::poll_event`] and [`DataChannel::poll_transmit`] until both
/// return `None`, then wait until [`DataChannel::poll_timeout`].
pub struct DataChannel {
    side: Side,
    config: ChannelConfig,
    clock: Clock,
    rng: Rng,
    connected: bool,
    /// Since when the peer has been inactive, or when it was last probed.
    paused: Option<Instant>,
    /// Whether the peer may not be ready for data yet.
    quick: bool,
    /// Whether in-order data is neither accepted nor acknowledged, because this end is not ready.
    refusing: bool,
    inflight: InFlight,
    /// The window that follows the delay of the path. `None`: only the configured limit applies, as with both official peers.
    window: Option<Window>,
    retransmit_queue: VecDeque<i64>,
    pacer: Option<Pacer>,
    /// The time of the last call of [`DataChannel::handle_timeout`].
    looked_at: Option<Instant>,
    burst_left: usize,
    rtt: RttEstimator,
    expected: i64,
    reorder: ReorderStore,
    acks: Acks,
    events: VecDeque<ChannelEvent>,
    stats: ChannelStats,
}

/// An event that a [`DataChannel`] reports to its owner.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ChannelEvent {
    /// The next payload in order.
    Payload {
        /// The message's number.
        sequence_number: i64,
        /// The payload type.
        payload_type: PayloadType,
        /// The payload.
        payload: Bytes,
    },
    /// The service ended the session.
    Closed(ChannelClosed),
    /// The other end's data channel is inactive. Nothing is sent until it is active again.
    Paused,
    /// The other end is active again.
    Resumed,
}

/// Counters since the start, and the current amount in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelStats {
    /// Numbered messages sent for the first time.
    pub messages_sent: u64,
    /// Numbered messages received in order.
    pub messages_received: u64,
    /// Retransmitted messages.
    pub retransmissions: u64,
    /// Messages received more than once.
    pub duplicates: u64,
    /// Messages received early and buffered.
    pub reordered: u64,
    /// Messages dropped without an acknowledgement: malformed, refused, or beyond a limit.
    pub dropped: u64,
    /// Messages of a type that this end does not handle.
    pub ignored: u64,
    /// Acknowledgements sent.
    pub acks_sent: u64,
    /// Unacknowledged messages.
    pub in_flight: usize,
    /// Size of the unacknowledged messages in bytes.
    pub in_flight_bytes: usize,
    /// Since when an acknowledgement has been outstanding on this WebSocket without any being received; `None` while
    /// none is outstanding.
    pub unacknowledged_since: Option<Instant>,
    /// Size of the reorder buffer's contents in bytes.
    pub reorder_bytes: usize,
    /// Smoothed round-trip time.
    pub srtt: Option<Duration>,
    /// The current rate limit in messages per second; `None`: no limit.
    pub budget: Option<u32>,
}

/// The window is full. No message was sent; the payload is returned.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// Messages in flight are left out, because they contain users' input and output.
impl fmt::Debug for DataChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataChannel").field("side", &self.side).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl DataChannel {
    /// Creates a channel that is not connected yet. `seed` determines the message ids.
    pub fn new(side: Side, config: ChannelConfig, clock: Clock, seed: u64) -> Self {
        Self {
            side,
            clock,
            rng: Rng::with_seed(seed),
            connected: false,
            paused: None,
            quick: false,
            refusing: false,
            inflight: InFlight::default(),
            window: match config.retransmission {
                Retransmission::PerMessage => Some(Window::new(config.window)),
                Retransmission::HeadOnly => None,
            },
            retransmit_queue: VecDeque::new(),
            pacer: config.pace.map(Pacer::new),
            looked_at: None,
            burst_left: SILENT_BURST,
            rtt: match config.retransmission {
                Retransmission::PerMessage => RttEstimator::new(config.initial_rtt),
                Retransmission::HeadOnly => RttEstimator::seeded(config.initial_rtt),
            },
            expected: 0,
            reorder: ReorderStore::new(config.reorder_messages, config.reorder_bytes),
            acks: Acks::new(config.ack_delay),
            events: VecDeque::new(),
            stats: ChannelStats::default(),
            config,
        }
    }

    /// Returns the counters.
    pub fn stats(&self) -> ChannelStats {
        ChannelStats {
            in_flight: self.inflight.unacked(),
            in_flight_bytes: self.inflight.unacked_bytes(),
            unacknowledged_since: self.inflight.silent_since(),
            reorder_bytes: self.reorder.bytes(),
            srtt: self.rtt.srtt(),
            budget: self.pacer.as_ref().map(Pacer::per_second),
            ..self.stats
        }
    }

    /// Returns whether [`DataChannel::send`] would accept session data. While one message waits for the rate limit, no second
    /// message is accepted, so that data that arrives in the meantime shares the next message.
    pub fn can_send(&self) -> bool {
        // If the peer is inactive and nothing is in flight, the first message is the probe.
        (self.paused.is_none() || self.inflight.span() == 0)
            && !(self.pacer.is_some() && self.inflight.has_unsent())
            && self.inflight.span() < self.config.window
            && self.window.as_ref().is_none_or(|window| window.has_capacity(self.inflight.unacked()))
            && self.inflight.unacked_bytes() < self.config.window_bytes
    }

    /// Returns whether the rate limit does not allow a message now. Callers should hold data back until it does, because more data
    /// then fits into the message.
    pub fn is_paced(&self, now: Instant) -> bool {
        self.pacer.as_ref().is_some_and(|pacer| pacer.ready_at(now).is_some())
    }

    /// Returns when session data that waits for the rate limit may be sent.
    pub fn poll_turn(&self) -> Option<Timeout> {
        let turn = self.turn().filter(|_| self.connected && self.can_send());
        turn.map(|at| Timeout { at, reason: TimeoutReason::Pace })
    }

    /// Asserts the invariants of the channel between two calls, in builds with debug assertions.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn check(&self) {
        self.inflight.check(self.config.retransmission == Retransmission::HeadOnly);
        self.reorder.check(self.expected);
        debug_assert!(self.inflight.span() <= self.config.window + CONTROL_RESERVE, "the window is exceeded");
        debug_assert!(self.acks.is_bounded(), "too many acknowledgements wait");
        let newest = self.inflight.next_sequence_number();
        debug_assert!(self.retransmit_queue.iter().all(|number| (0..newest).contains(number)));
        debug_assert!(self.retransmit_queue.len() <= self.config.window + CONTROL_RESERVE + 1);
    }

    /// Returns whether all sent and all received messages are acknowledged.
    pub fn is_idle(&self) -> bool {
        self.inflight.unacked() == 0 && self.acks.is_empty()
    }

    /// Returns whether the message with this number, which must have been sent, and all messages before it were acknowledged.
    pub fn is_acknowledged(&self, sequence_number: i64) -> bool {
        sequence_number < self.inflight.next_sequence_number() - i64::try_from(self.inflight.span()).unwrap_or(i64::MAX)
    }

    /// Returns the number of the newest message passed to [`DataChannel::send`]; -1 before the first message.
    pub(crate) fn last_sequence_number(&self) -> i64 {
        self.inflight.next_sequence_number() - 1
    }

    /// Returns whether data that the peer sends would be delivered: there is a WebSocket, the peer is not inactive, and no message
    /// is known to be missing.
    pub(crate) fn can_receive(&self) -> bool {
        self.connected && self.paused.is_none() && self.reorder.bytes() == 0
    }

    /// Handles one binary WebSocket message.
    ///
    /// # Errors
    /// Returns an error if the bytes are not a valid message. The message is dropped without an acknowledgement, and the channel
    /// continues.
    pub fn handle_input(&mut self, now: Instant, raw: Bytes) -> Result<(), DecodeError> {
        self.handle_input_through(now, raw, |_, payload| Some(payload))
    }

    /// Does the same as [`DataChannel::handle_input`], and passes each payload through `gate` when it is delivered in order. `gate`
    /// may change the payload. If `gate` returns `None`, the session must end: neither this message nor any later one is delivered.
    /// The message is not acknowledged, unless it arrived early and was acknowledged then.
    ///
    /// # Errors
    /// As for [`DataChannel::handle_input`].
    pub(crate) fn handle_input_through(
        &mut self,
        now: Instant,
        raw: Bytes,
        gate: impl FnMut(PayloadType, Bytes) -> Option<Bytes>,
    ) -> Result<(), DecodeError> {
        let message = AgentMessage::decode(raw).inspect_err(|_| self.stats.dropped += 1)?;
        match (message.message_type(), self.side) {
            (MessageType::OutputStreamData, Side::Client) | (MessageType::InputStreamData, Side::Agent) => {
                self.handle_peer_alive(now);
                self.handle_stream_message(now, message, gate);
            }
            (MessageType::Acknowledge, _) => {
                self.handle_peer_alive(now);
                self.handle_ack(now, &message);
            }
            (MessageType::ChannelClosed, _) => {
                self.events.push_back(ChannelEvent::Closed(ChannelClosed::decode(message.payload())));
            }
            (MessageType::PausePublication, _) => self.handle_pause(now),
            (MessageType::StartPublication, _) => self.handle_start(now),
            (other, _) => {
                self.stats.ignored += 1;
                tracing::debug!(message_type = %other, "message ignored");
            }
        }
        Ok(())
    }

    fn handle_stream_message(
        &mut self,
        now: Instant,
        message: AgentMessage,
        mut gate: impl FnMut(PayloadType, Bytes) -> Option<Bytes>,
    ) {
        let number = message.sequence_number();
        let (ack, payload_type) = (Acknowledge::of(&message), message.payload_type());
        if self.acks.is_full() {
            // A message that cannot be acknowledged must not be accepted either.
            self.stats.dropped += 1;
        } else if number < self.expected {
            // The first acknowledgement may be lost. Without another acknowledgement the agent would retransmit this message
            // forever, and no other message (DC-6).
            self.stats.duplicates += 1;
            self.acks.push_urgent(ack, now);
        } else if number > self.expected {
            if self.reorder.insert(message) {
                // The message is acknowledged now, and not again when it is delivered (DC-5).
                self.stats.reordered += 1;
                self.acks.push_urgent(ack, now);
            } else {
                self.stats.dropped += 1;
            }
        } else if self.is_refused(payload_type) || !self.deliver(message, &mut gate) {
            self.stats.dropped += 1;
        } else {
            match payload_type {
                PayloadType::Output => self.acks.push(ack, now),
                _ => self.acks.push_urgent(ack, now),
            }
            while let Some(next) = self.reorder.take(self.expected) {
                if !self.deliver(next, &mut gate) {
                    break;
                }
            }
        }
    }

    fn is_refused(&self, payload_type: PayloadType) -> bool {
        self.refusing && matches!(payload_type, PayloadType::Output | PayloadType::Size)
    }

    /// Delivers a message in order. Returns `false` if the gate rejected the payload.
    fn deliver(&mut self, message: AgentMessage, gate: &mut impl FnMut(PayloadType, Bytes) -> Option<Bytes>) -> bool {
        let (sequence_number, payload_type) = (message.sequence_number(), message.payload_type());
        let Some(payload) = gate(payload_type, message.into_payload()) else { return false };
        debug_assert_eq!(sequence_number, self.expected, "delivered out of order");
        self.expected += 1;
        self.stats.messages_received += 1;
        self.events.push_back(ChannelEvent::Payload { sequence_number, payload_type, payload });
        true
    }

    fn handle_ack(&mut self, now: Instant, message: &AgentMessage) {
        let Some(number) = Acknowledge::decode_number(message.payload()) else {
            self.stats.ignored += 1;
            return;
        };
        let unacked = self.inflight.unacked();
        if let Acked::Fresh { sample } = self.inflight.acknowledge(number, now) {
            if let Some(window) = &mut self.window {
                let next = self.inflight.next_sequence_number();
                window.handle_ack(now, number, sample, unacked, next);
            }
            self.quick = false;
            self.burst_left = SILENT_BURST;
            if let Some(sample) = sample {
                self.rtt.update(sample);
            }
        }
    }

    fn handle_pause(&mut self, now: Instant) {
        if let Some(pacer) = &mut self.pacer {
            pacer.slow_down(now);
        }
        if self.paused.replace(now).is_none() {
            self.events.push_back(ChannelEvent::Paused);
        }
    }

    /// Handles that the peer has a new WebSocket. Messages sent to its old one may be lost, even if the peer was not known to be
    /// inactive. These messages are sent again as after our own reconnect, without waiting for timeouts, which may have become
    /// long.
    fn handle_start(&mut self, now: Instant) {
        self.handle_peer_alive(now);
        self.send_all_again();
    }

    /// Ends a pause: any message from the peer shows that it is active (DC-12).
    fn handle_peer_alive(&mut self, now: Instant) {
        if self.paused.take().is_some() {
            self.inflight.hasten(now);
            self.events.push_back(ChannelEvent::Resumed);
        }
    }

    /// Handles that a WebSocket is connected, the first or a later one. All unacknowledged messages are sent again once, in order.
    pub fn handle_connected(&mut self, _now: Instant) {
        self.connected = true;
        self.paused = None;
        self.send_all_again();
    }

    fn send_all_again(&mut self) {
        self.burst_left = SILENT_BURST;
        self.retransmit_queue.clear();
        self.inflight.rewind();
    }

    /// Handles that the WebSocket is closed. All state is kept.
    pub fn handle_disconnected(&mut self, now: Instant) {
        self.connected = false;
        if let Some(pacer) = &mut self.pacer {
            pacer.slow_down(now);
        }
    }

    /// Handles the timeouts that have expired. Call it at the time of [`DataChannel::poll_timeout`]; an unnecessary call has no
    /// effect.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.looked_at = Some(now);
        if !self.connected {
            return;
        }
        if let Some(since) = self.paused {
            if now >= since + PAUSE_PROBE {
                self.paused = Some(now);
                self.inflight.queue_head(&mut self.retransmit_queue);
            }
            return;
        }
        if self.inflight.check_at().is_none_or(|at| now < at) {
            return;
        }
        let head_only = self.config.retransmission == Retransmission::HeadOnly;
        let patience = self.rto(1);
        let queued_before = self.retransmit_queue.len();
        self.inflight.take_due(now, self.burst_left, head_only, patience, &mut self.retransmit_queue);
        // In the quick phase a timeout means that the agent is not ready (DC-11), not that the path is congested.
        if let (Some(window), Some(&number), false) =
            (&mut self.window, self.retransmit_queue.get(queued_before), self.quick)
        {
            window.handle_late(number, self.inflight.next_sequence_number());
        }
        // A silent peer is not flooded: once the burst is used up, only the oldest message is retransmitted, as a
        // probe.
        self.burst_left = self.burst_left.saturating_sub(self.retransmit_queue.len() - queued_before).max(1);
    }

    /// Assigns a number to a payload, adds the header and keeps the message until it is acknowledged.
    /// [`DataChannel::poll_transmit`] returns the message.
    ///
    /// # Errors
    /// Returns [`Full`] with the payload when the window is full. Handshake messages and flags may use a reserve beyond the window.
    pub fn send(
        &mut self,
        now: Instant,
        payload_type: PayloadType,
        payload: MessageBuf,
    ) -> Result<i64, Full<MessageBuf>> {
        let refused = match payload_type {
            PayloadType::Output => !self.can_send(),
            _ => self.inflight.span() >= self.config.window + CONTROL_RESERVE,
        };
        if refused {
            return Err(Full(payload));
        }
        let number = self.inflight.next_sequence_number();
        let (message_type, flags) = match self.side {
            Side::Client => (MessageType::InputStreamData, 0),
            // SYN on message 0 (WIRE-11).
            Side::Agent => (MessageType::OutputStreamData, u64::from(number == 0)),
        };
        let (date, id) = self.stamp(now);
        let header = Header { sequence_number: number, flags, payload_type, ..Header::new(message_type, date, id) };
        self.inflight.push(header.seal(payload));
        Ok(number)
    }

    /// Makes retransmissions quick until the first acknowledgement, because the peer may not accept the first data.
    pub fn expect_unready_peer(&mut self) {
        self.quick = true;
    }

    /// Sets whether in-order session data is neither accepted nor acknowledged, as by an agent whose port or terminal is not open
    /// yet.
    pub fn set_refusing(&mut self, refusing: bool) {
        self.refusing = refusing;
    }

    /// Returns the next binary message for the WebSocket. The order is: due acknowledgements, retransmissions, new messages, and
    /// after one of these the delayed acknowledgements.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if !self.connected {
            return None;
        }
        if let Some(ack) = self.acks.pop(now) {
            self.stats.acks_sent += 1;
            let (date, id) = self.stamp(now);
            return Some(ack.encode(date, id));
        }
        if self.is_paced(now) {
            return None;
        }
        let sent = self.transmit(now)?;
        if let Some(pacer) = &mut self.pacer {
            pacer.take(now);
        }
        self.acks.hasten(now);
        Some(sent)
    }

    /// Returns the next message: retransmissions first, then new messages.
    fn transmit(&mut self, now: Instant) -> Option<Bytes> {
        let (rtt, config, quick) = (self.rtt, &self.config, self.quick);
        let rto = |sent| time_out(&rtt, config, quick, sent);
        while let Some(number) = self.retransmit_queue.pop_front() {
            if let Some(sent) = self.inflight.retransmit(number, now, rto) {
                self.stats.retransmissions += 1;
                tracing::trace!(sequence_number = number, "retransmit");
                return Some(sent.message);
            }
        }
        if self.paused.is_some() && self.inflight.has_sent() {
            // An inactive peer receives only probes.
            return None;
        }
        let sent = self.inflight.transmit(now, rto)?;
        if sent.again {
            self.stats.retransmissions += 1;
        } else {
            self.stats.messages_sent += 1;
        }
        Some(sent.message)
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<ChannelEvent> {
        self.events.pop_front()
    }

    /// Returns when [`DataChannel::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        if !self.connected {
            return None;
        }
        let acks = self.acks.due().filter(|at| self.is_to_come(*at));
        let acks = acks.map(|at| Timeout { at, reason: TimeoutReason::Acknowledge });
        let data = match self.paused {
            Some(since) if self.inflight.unacked() > 0 => {
                Some(Timeout { at: since + PAUSE_PROBE, reason: TimeoutReason::PauseProbe })
            }
            Some(_) => None,
            None => {
                let late = self.inflight.check_at().map(|at| Timeout { at, reason: TimeoutReason::Retransmit });
                let waits = self.inflight.has_unsent() || !self.retransmit_queue.is_empty();
                let turn = self.turn().filter(|_| waits);
                Timeout::earliest(late, turn.map(|at| Timeout { at, reason: TimeoutReason::Pace }))
            }
        };
        Timeout::earliest(acks, data)
    }

    /// Returns when the rate limit allows the next message.
    fn turn(&self) -> Option<Instant> {
        self.pacer.as_ref()?.turn().filter(|at| self.is_to_come(*at))
    }

    /// Returns whether [`DataChannel::handle_timeout`] was not called at or after this time. A time that was already handled is not
    /// reported again. Otherwise a caller whose socket was full at that time would be woken again and again while it waits for the
    /// socket.
    fn is_to_come(&self, at: Instant) -> bool {
        self.looked_at.is_none_or(|looked_at| at > looked_at)
    }

    fn rto(&self, sent: u32) -> Duration {
        time_out(&self.rtt, &self.config, self.quick, sent)
    }

    fn stamp(&mut self, now: Instant) -> (u64, Uuid) {
        let id = uuid::Builder::from_random_bytes(self.rng.u128(..).to_be_bytes()).into_uuid();
        (self.clock.unix_millis(now), id)
    }
}

/// Returns the retransmission timeout of a message that was sent `sent` times.
fn time_out(rtt: &RttEstimator, config: &ChannelConfig, quick: bool, sent: u32) -> Duration {
    if config.retransmission == Retransmission::HeadOnly {
        let ticks = rtt.rto().min(Duration::from_secs(1)).as_millis().div_ceil(HEAD_SCAN.as_millis());
        return HEAD_SCAN * u32::try_from(ticks).unwrap_or(10);
    }
    let (base, backed_off) = if quick {
        let quick_rto = rtt.srtt().map_or(config.min_rto, |srtt| QUICK_RTO.max(srtt * 2));
        (quick_rto, sent.saturating_sub(1).saturating_sub(QUICK_TRIES))
    } else {
        (rtt.rto().max(config.min_rto), sent.saturating_sub(1))
    };
    base.saturating_mul(1 << backed_off.min(10)).min(config.max_rto)
}

#[cfg(test)]
mod tests;
