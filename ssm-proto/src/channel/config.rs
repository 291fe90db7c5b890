//! What an owner decides about a channel.

use std::time::Duration;

use super::Pace;

/// Knobs of a [`DataChannel`](super::DataChannel).
#[derive(Clone, Debug)]
pub struct ChannelConfig {
    /// Most messages in flight before [`DataChannel::send`](super::DataChannel::send) refuses; how many there really may be follows the path's delay.
    /// Default: 1000, a tenth of what the official client's reorder buffer holds.
    pub window: usize,
    /// Bytes in flight before [`DataChannel::send`](super::DataChannel::send) refuses. Default: 8 MiB.
    pub window_bytes: usize,
    /// Messages that may wait for an earlier one. Default: 10 000, as the official client.
    pub reorder_messages: usize,
    /// Bytes that may wait for an earlier message. Default: 16 MiB.
    pub reorder_bytes: usize,
    /// Guess of the round trip before the first sample. Default: 100 ms, as both peers.
    pub initial_rtt: Duration,
    /// Shortest retransmission time-out. Default: 200 ms: the agent's loops sleep, its acknowledgements come in bursts.
    pub min_rto: Duration,
    /// Longest retransmission time-out, after back-off. Default: 5 s.
    pub max_rto: Duration,
    /// What is sent again when an acknowledgement is late.
    pub retransmission: Retransmission,
    /// How long the acknowledgement of data may wait for company: for something to send, or for three others, so that they share
    /// a write to the socket. Default: 5 ms, half of what the peers' time-out leaves beyond their mean round trip (DC-9).
    pub ack_delay: Duration,
    /// How many numbered messages may leave per second; acknowledgements do not count. Default: as many as there are.
    pub pace: Option<Pace>,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            window: 1000,
            window_bytes: 8 << 20,
            reorder_messages: 10_000,
            reorder_bytes: 16 << 20,
            initial_rtt: Duration::from_millis(100),
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(5),
            retransmission: Retransmission::PerMessage,
            ack_delay: Duration::from_millis(5),
            pace: None,
        }
    }
}

/// What is sent again when an acknowledgement is late (DC-10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retransmission {
    /// Each message on its own, backing off.
    #[default]
    PerMessage,
    /// Only the oldest, looked at every 100 ms, never backing off: what both official peers do.
    HeadOnly,
}
