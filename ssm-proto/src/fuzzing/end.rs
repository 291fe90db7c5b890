//! One side of a pair: its session, what is on the way to it, and the bytes of its streams.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::sessions::{MESSAGE, RECEIVE_TOTAL, REORDER_BYTES, WINDOW, WINDOW_BYTES};
use crate::{Output, Session, SessionEvent, StreamId, WriteError};

pub(super) struct End {
    pub(super) session: Session,
    pub(super) connected: bool,
    /// On the way to this end.
    pub(super) inbox: VecDeque<Bytes>,
    /// A message that this end was sent before.
    pub(super) old: Option<Bytes>,
    pub(super) streams: BTreeMap<StreamId, Flow>,
}

/// One end's part of a stream.
#[derive(Default)]
pub(super) struct Flow {
    pub(super) written: [usize; 2],
    pub(super) read: [usize; 2],
    /// Whose bytes are read, where streams are not named: the writer's number, and the place of the first byte.
    pub(super) source: Option<(u8, usize)>,
    pub(super) finished: bool,
    /// This end gave it up, or was told that it is over without its bytes.
    pub(super) given_up: bool,
}

/// The byte at this place of a stream: its number's last bits, and the place's.
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
        let room = self.session.writable(id);
        match self.session.write_output(id, output, data) {
            Ok(()) => self.flow(id).written.get_mut(place).into_iter().for_each(|written| *written += length),
            Err(WriteError::Full(data)) => assert!(room == 0 && data.len() == length, "refused with room"),
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
            assert_eq!(*byte, byte_at(id, place, *read), "stream {id} gives a wrong byte at {read}");
            *read += 1;
        }
    }

    /// An agent's connection gives the bytes of one connection of the client, in order. An agent whose destination has closed
    /// connects again when more of them arrive, and the client is not told: its connection goes on with the next answer.
    pub(super) fn take_unnamed(&mut self, id: StreamId, chunk: &[u8], is_agent: bool) {
        let flow = self.flow(id);
        for byte in chunk {
            let place = usize::from(byte & 31);
            let (mut source, mut begin) = *flow.source.get_or_insert((byte >> 5, place));
            let [read, _] = &mut flow.read;
            if byte >> 5 != source {
                assert!(!is_agent, "connection {id} gives bytes of two connections");
                (source, begin, *read) = (byte >> 5, place, 0);
                flow.source = Some((source, begin));
            }
            assert_eq!(place, (begin + *read) % 29, "connection {id} gives a wrong byte at {read}");
            *read += 1;
        }
    }

    pub(super) fn lose(&mut self, at: usize) {
        drop(self.inbox.remove(at));
    }

    /// A message comes twice, or an old one again, now or behind all others.
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
        // What was in transit to a buffer that just became full, with the reorder buffer behind it.
        assert!(stats.receive_bytes <= RECEIVE_TOTAL + REORDER_BYTES + MESSAGE, "{stats:?}");
    }
}
