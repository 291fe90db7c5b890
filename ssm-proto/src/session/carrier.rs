//! How the bytes of a session's streams are carried: one interface for the multiplexer, a single connection and a shell.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::event::{OpenError, Output, SessionMode};
use super::shell::Shell;
use super::unmultiplexed::Unmultiplexed;
use crate::mux::{Mux, MuxConfig, MuxEvent, StreamId, WriteError};
use crate::wire::{MessageBuf, PayloadType};
use crate::{Side, Timeout};

/// Interval at which old agents and old clients expect a keep-alive frame, and the time after which they give up (MUX-11).
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) enum Carrier {
    /// The carrier is not known yet, because the handshake is not complete.
    Pending,
    Mux(Mux),
    Unmultiplexed(Unmultiplexed),
    Shell(Shell),
}

impl Carrier {
    /// Creates the carrier for this mode. `old_peer`: the peer expects keep-alive frames.
    pub(super) fn new(side: Side, mode: SessionMode, mut config: MuxConfig, old_peer: bool, now: Instant) -> Self {
        match mode {
            SessionMode::Mux => {
                if old_peer {
                    config.keep_alive = Some(config.keep_alive.map_or(KEEP_ALIVE, |interval| interval.min(KEEP_ALIVE)));
                    config.peer_timeout = (side == Side::Agent).then_some(KEEP_ALIVE_TIMEOUT);
                }
                Self::Mux(Mux::new(side, config, now))
            }
            SessionMode::Basic | SessionMode::Plain => {
                Self::Unmultiplexed(Unmultiplexed::new(side, mode == SessionMode::Basic, &config))
            }
            SessionMode::Shell => Self::Shell(Shell::new(side, config.send_queue, config.receive_store)),
        }
    }

    #[cfg(feature = "fuzzing")]
    pub(super) fn check(&self) {
        match self {
            Self::Pending => {}
            Self::Mux(mux) => mux.check(),
            Self::Unmultiplexed(single) => single.check(),
            Self::Shell(shell) => shell.check(),
        }
    }

    pub(super) fn stream_count(&self) -> usize {
        match self {
            Self::Pending => 0,
            Self::Mux(mux) => mux.stream_count(),
            Self::Unmultiplexed(single) => single.stream_count(),
            Self::Shell(shell) => shell.stream_count(),
        }
    }

    pub(super) fn receive_bytes(&self) -> usize {
        match self {
            Self::Pending => 0,
            Self::Mux(mux) => mux.receive_bytes(),
            Self::Unmultiplexed(single) => single.receive_bytes(),
            Self::Shell(shell) => shell.receive_bytes(),
        }
    }

    /// Returns the stream with the most unread bytes. A single stream cannot block other streams, so there is none then.
    pub(super) fn slowest_reader(&self) -> Option<StreamId> {
        if let Self::Mux(mux) = self { mux.slowest_reader() } else { None }
    }

    pub(super) fn slowest_destination(&self) -> Option<StreamId> {
        if let Self::Mux(mux) = self { mux.slowest_destination() } else { None }
    }

    pub(super) fn is_congested(&self) -> bool {
        match self {
            Self::Pending => false,
            Self::Mux(mux) => mux.is_congested(),
            Self::Unmultiplexed(single) => single.is_congested(),
            Self::Shell(shell) => shell.is_congested(),
        }
    }

    pub(super) fn wants_transmit(&self) -> bool {
        match self {
            Self::Pending => false,
            Self::Mux(mux) => mux.wants_transmit(),
            Self::Unmultiplexed(single) => single.wants_transmit(),
            Self::Shell(shell) => shell.wants_transmit(),
        }
    }

    pub(super) fn open(&mut self) -> Result<StreamId, OpenError> {
        match self {
            Self::Pending => Err(OpenError::NotReady),
            Self::Mux(mux) => Ok(mux.open()),
            Self::Unmultiplexed(single) => single.open().ok_or(OpenError::Busy),
            Self::Shell(shell) => shell.open().ok_or(OpenError::Busy),
        }
    }

    pub(super) fn write(&mut self, id: StreamId, output: Output, data: Bytes) -> Result<(), WriteError> {
        match (self, output) {
            (Self::Pending, _) => Err(WriteError::Closed),
            (Self::Shell(shell), _) => shell.write(id, output, data),
            (_, Output::Stderr) => Err(WriteError::NoStderr),
            (Self::Mux(mux), Output::Stdout) => mux.write(id, data),
            (Self::Unmultiplexed(single), Output::Stdout) => single.write(id, data),
        }
    }

    pub(super) fn writable(&self, id: StreamId) -> usize {
        match self {
            Self::Pending => 0,
            Self::Mux(mux) => mux.writable(id),
            Self::Unmultiplexed(single) => single.writable(id),
            Self::Shell(shell) => shell.writable(id),
        }
    }

    pub(super) fn read(&mut self, id: StreamId) -> Option<(Output, Bytes)> {
        let data = match self {
            Self::Pending => None,
            Self::Mux(mux) => mux.read(id),
            Self::Unmultiplexed(single) => single.read(id),
            Self::Shell(shell) => return shell.read(id),
        };
        data.map(|data| (Output::Stdout, data))
    }

    pub(super) fn is_finished(&self, id: StreamId) -> bool {
        match self {
            Self::Pending => true,
            Self::Mux(mux) => mux.is_finished(id),
            Self::Unmultiplexed(single) => single.is_finished(id),
            Self::Shell(shell) => shell.is_finished(id),
        }
    }

    pub(super) fn finish(&mut self, id: StreamId) {
        match self {
            Self::Pending => {}
            Self::Mux(mux) => mux.finish(id),
            Self::Unmultiplexed(single) => single.finish(id),
            Self::Shell(shell) => shell.finish(id),
        }
    }

    /// Returns whether the local end of the stream finished and the remote side was not notified (client side).
    pub(super) fn is_held(&self, id: StreamId) -> bool {
        match self {
            Self::Pending | Self::Shell(_) => false,
            Self::Mux(mux) => mux.is_held(id),
            Self::Unmultiplexed(single) => single.is_held(id),
        }
    }

    pub(super) fn has_unsent(&self, id: StreamId) -> bool {
        match self {
            Self::Pending | Self::Shell(_) => false,
            Self::Mux(mux) => mux.has_unsent(id),
            Self::Unmultiplexed(single) => single.has_unsent(id),
        }
    }

    pub(super) fn set_reader_waits(&mut self, id: StreamId) {
        match self {
            Self::Pending | Self::Shell(_) => {}
            Self::Mux(mux) => mux.set_reader_waits(id),
            Self::Unmultiplexed(single) => single.set_reader_waits(id),
        }
    }

    pub(super) fn reader_waits(&self, id: StreamId) -> bool {
        match self {
            Self::Pending | Self::Shell(_) => false,
            Self::Mux(mux) => mux.reader_waits(id),
            Self::Unmultiplexed(single) => single.reader_waits(),
        }
    }

    /// Returns how much silence ends a half-closed stream: `usual`, unless the carrier has its own value.
    pub(super) fn linger(&self, usual: Duration) -> Duration {
        if let Self::Unmultiplexed(single) = self { single.linger() } else { usual }
    }

    /// Returns whether the remote side sent anything that could be an answer.
    pub(super) fn is_answered(&self, id: StreamId) -> bool {
        match self {
            Self::Pending | Self::Shell(_) => false,
            Self::Mux(mux) => mux.is_answered(id),
            Self::Unmultiplexed(single) => single.is_answered(),
        }
    }

    /// Handles that the remote side of a half-closed stream was silent for the linger time. Returns `true` if this is how an answer
    /// ends with this carrier; the end of the stream is then reported as an event.
    pub(super) fn end_by_silence(&mut self) -> bool {
        if let Self::Unmultiplexed(single) = self { single.end_by_silence() } else { false }
    }

    pub(super) fn close(&mut self, id: StreamId) {
        match self {
            Self::Mux(mux) => mux.close(id),
            other => other.reset(id),
        }
    }

    pub(super) fn reset(&mut self, id: StreamId) {
        match self {
            Self::Pending => {}
            Self::Mux(mux) => mux.reset(id),
            Self::Unmultiplexed(single) => single.reset(id),
            Self::Shell(shell) => shell.reset(id),
        }
    }

    pub(super) fn abandon(&mut self, id: StreamId) {
        match self {
            Self::Pending => {}
            Self::Mux(mux) => mux.abandon(id),
            Self::Unmultiplexed(single) => single.abandon(id),
            Self::Shell(shell) => shell.reset(id),
        }
    }

    pub(super) fn handle_closed(&mut self) {
        match self {
            Self::Pending | Self::Mux(_) => {}
            Self::Unmultiplexed(single) => single.handle_closed(),
            Self::Shell(shell) => shell.handle_closed(),
        }
    }

    /// Handles the timeouts that have expired. The error is the duration of the silence of a peer that should send keep-alive
    /// frames.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), Duration> {
        match self {
            Self::Mux(mux) => mux.handle_timeout(now),
            Self::Pending | Self::Unmultiplexed(_) | Self::Shell(_) => Ok(()),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Timeout> {
        match self {
            Self::Mux(mux) => mux.poll_timeout(),
            Self::Unmultiplexed(single) => single.poll_timeout(),
            Self::Pending | Self::Shell(_) => None,
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<MuxEvent> {
        match self {
            Self::Pending => None,
            Self::Mux(mux) => mux.poll_event(),
            Self::Unmultiplexed(single) => single.poll_event(),
            Self::Shell(shell) => shell.poll_event(),
        }
    }

    /// Returns the next payload, of up to `limit` bytes.
    pub(super) fn poll_transmit(&mut self, limit: usize) -> Option<(PayloadType, MessageBuf)> {
        match self {
            Self::Pending => None,
            Self::Mux(mux) => {
                if !mux.wants_transmit() {
                    return None;
                }
                let mut buf = MessageBuf::with_limit(limit, mux.pending_hint());
                mux.poll_transmit(&mut buf);
                (!buf.is_empty()).then_some((PayloadType::Output, buf))
            }
            Self::Unmultiplexed(single) => {
                let mut buf = MessageBuf::with_limit(limit, single.pending_hint());
                single.poll_transmit(&mut buf);
                if !buf.is_empty() {
                    return Some((PayloadType::Output, buf));
                }
                single.take_flag().map(|flag| (PayloadType::Flag, MessageBuf::from(flag.encode().as_slice())))
            }
            Self::Shell(shell) => shell.poll_transmit(limit),
        }
    }
}
