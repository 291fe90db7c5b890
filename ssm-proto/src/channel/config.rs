//! The settings of a channel.

use std::time::Duration;

use super::Pace;

/// Settings of a [`DataChannel`](super::DataChannel).
#[derive(Clone, Debug)]
pub struct ChannelConfig {
    /// Maximum number of messages in flight before [`DataChannel::send`](super::DataChannel::send) refuses. Within it,
    /// the actual limit follows the delay of the path. Default: 1000, a tenth of the official client's reorder buffer.
    pub window: usize,
    /// Maximum number of bytes in flight before [`DataChannel::send`](super::DataChannel::send) refuses. Default: 8
    /// MiB.
    pub window_bytes: usize,
    /// Maximum number of messages in the reorder buffer. Default: 10 000, like the official client.
    pub reorder_messages: usize,
    /// Maximum number of bytes in the reorder buffer. Default: 16 MiB.
    pub reorder_bytes: usize,
    /// Assumed round-trip time before the first sample. Default: 100 ms, like both peers.
    pub initial_rtt: Duration,
    /// Minimum retransmission timeout. Default: 200 ms, because the agent's loops sleep and its acknowledgements arrive
    /// in bursts.
    pub min_rto: Duration,
    /// Maximum retransmission timeout, after back-off. Default: 5 s.
    pub max_rto: Duration,
    /// Which messages are retransmitted when an acknowledgement is late. Default: each message by its own deadline.
    pub retransmission: Retransmission,
    /// Maximum delay of an acknowledgement of data. It is sent earlier if there is another message to send or three more
    /// acknowledgements are pending, so that they share a write to the socket. Default: 5 ms, half of the smallest margin that the
    /// peers' retransmission timeout has beyond their mean round-trip time (DC-9).
    pub ack_delay: Duration,
    /// Rate limit of numbered messages; acknowledgements do not count. Default: no limit.
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

/// Which messages are retransmitted when an acknowledgement is late (DC-10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retransmission {
    /// Each message by its own deadline, with back-off.
    #[default]
    PerMessage,
    /// Only the oldest message, checked every 100 ms, without back-off, like both official peers.
    HeadOnly,
}
