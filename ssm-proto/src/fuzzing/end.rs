//! One side of a pair: its session, the messages in transit to it, and the bytes of its streams.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::sessions::{MESSAGE, RECEIVE_TOTAL, REORDER_BYTES, WINDOW, WINDOW_BYTES};
use crate::{Output, Session, SessionEvent, StreamId, WriteError};

pub(super) struct End {
    pub(super) session: Session,
    pub(super) connected: bool,
    /// The messages in transit to this end.
    pub(super) inbox: VecDeque<Bytes>,
    /// The last message that was delivered to this end.
    pub(super) old: Option<Bytes>,
    pub(super) streams: BTreeMap<StreamId, Flow>,
}

/// One end's part of a stream.
#[derive(Default)]
pub(super) struct Flow {
    pub(super) written: [usize; 2],
    pub(super) read: [usize; 2],
    /// Where streams have no common id, the origin of the bytes that are read: the tag of the writer's stream and the position of
    /// the first byte.
    pub(super) source: Option<(u8, usize)>,
    pub(super) finished: bool,
    /// Whether this end gave the stream up, or a session event reported that the stream ended without its remaining bytes.
    pub(super) given_up: bool,
}

/// Returns the expected byte at a position of a stream: the last bits of the stream's id, and the position modulo 29.
fn byte_at(id: StreamId, output: usize, at: usize) -> u8 {
    let place = u8::try_from((at + output * 13) % 29).unwrap_or(0);
    (tag(id) << 5) | place
}

fn tag(id: StreamId) -> u8 {
    u8::try_from(id.0 % 8).unwrap_or(0)
}

fn place_of(output: Output) -> usize {
    usize::from(output == Output::Stderr)
}

impl End {
    pub(super) fn new(session: Session) -> Self {
        Self { session, connected: false, inbox: VecDeque::new(), old: None, streams: BTreeMap::new() }
    }

    pub(super) fn flow(&mut self, id: StreamId) -> &mut Flow {
        self.streams.entry(id).or_default()
    }

    pub(super) fn open(&mut self, side: usize) {
        if side == 0
            && self.streams.len() < 24
            && let Ok(id) = self.session.open()
        {
            self.flow(id);
        }
    }

    pub(super) fn note(&mut self, event: &SessionEvent) {
        match event {
            SessionEvent::Opened(id) => drop(self.flow(*id)),
            SessionEvent::Refused(id) | SessionEvent::Silent { stream: id, .. } => self.flow(*id).given_up = true,
            _ => {}
        }
    }

    pub(super) fn write(&mut self, id: StreamId, length: usize, output: Output) {
        let place = place_of(output);
        let written = self.flow(id).written.get(place).copied().unwrap_or(0);
        let data: Bytes = (written..written + length).map(|at| byte_at(id, place, at)).collect();
        let capacity = self.session.writable(id);
        match self.session.write_output(id, output, data) {
            Ok(()) => self.flow(id).written.get_mut(place).into_iter().for_each(|written| *written += length),
            Err(WriteError::Full(data)) => {
                assert!(capacity == 0 && data.len() == length, "a write was refused although the queue had capacity")
            }
            Err(_) => {}
        }
    }

    pub(super) fn give_up(&mut self, id: StreamId, act: impl FnOnce(&mut Session, StreamId)) {
        self.flow(id).given_up = true;
        act(&mut self.session, id);
    }

    pub(super) fn take_named(&mut self, id: StreamId, output: Output, chunk: &[u8]) {
        let place = place_of(output);
        let Some(read) = self.flow(id).read.get_mut(place) else { return };
        for byte in chunk {
            assert_eq!(*byte, byte_at(id, place, *read), "stream {id} delivered a wrong byte at {read}");
            *read += 1;
        }
    }

    /// A connection of the agent delivers the bytes of one connection of the client, in order. When the destination has closed, the
    /// agent connects again as soon as more bytes arrive, without a message to the client. The client's connection then continues
    /// with the answer of the next one.
    pub(super) fn take_unnamed(&mut self, id: StreamId, chunk: &[u8], is_agent: bool) {
        let flow = self.flow(id);
        for byte in chunk {
            let place = usize::from(byte & 31);
            let (mut source, mut begin) = *flow.source.get_or_insert((byte >> 5, place));
            let [read, _] = &mut flow.read;
            if byte >> 5 != source {
                assert!(!is_agent, "connection {id} delivered bytes of two connections");
                (source, begin, *read) = (byte >> 5, place, 0);
                flow.source = Some((source, begin));
            }
            assert_eq!(place, (begin + *read) % 29, "connection {id} delivered a wrong byte at {read}");
            *read += 1;
        }
    }

    pub(super) fn lose(&mut self, at: usize) {
        drop(self.inbox.remove(at));
    }

    /// Delivers a message twice, or an old message again, before or after all other messages.
    pub(super) fn repeat(&mut self, at: usize, last: bool) {
        let Some(message) = self.inbox.get(at).cloned().or_else(|| self.old.clone()) else { return };
        if last { self.inbox.push_back(message) } else { self.inbox.push_front(message) }
    }

    pub(super) fn check(&self) {
        self.session.check();
        let stats = self.session.stats();
        assert!(stats.channel.in_flight <= WINDOW + 64 + 1, "{stats:?}");
        assert!(stats.channel.in_flight_bytes <= WINDOW_BYTES + 66 * MESSAGE, "{stats:?}");
        assert!(stats.channel.reorder_bytes <= REORDER_BYTES, "{stats:?}");
        // The receive buffers may exceed their limit by the data in transit when they became full, and by the reorder buffer.
        assert!(stats.receive_bytes <= RECEIVE_TOTAL + REORDER_BYTES + MESSAGE, "{stats:?}");
    }
}
