//! Shells and commands: one stream, with input in one direction and tagged output in the other. `docs/protocol.md`, SHELL-*.

use std::collections::VecDeque;

use bytes::Bytes;

use super::event::{Output, TerminalSize};
use crate::Side;
use crate::mux::{ByteQueue, MuxEvent, ReceiveQueue, StreamId, WriteError};
use crate::wire::{MessageBuf, PayloadType};

/// The id of the only stream.
const STREAM: StreamId = StreamId(1);
const EXIT_CODE: &str = "EXIT_CODE: ";
/// Number of bytes that a change between the outputs counts in addition to the data, so that many small chunks cannot use too much
/// memory.
const CHANGE: usize = 256;

/// ```text
///  client: Waiting ── open ──► Open ── reset, or: finished here, closed by the peer and all read ──► Over
///  agent:                      Open ── reset, or: finished here and all sent ──────────────────────► Over
/// ```
#[derive(Debug)]
pub(super) struct Shell {
    side: Side,
    send_queue: usize,
    receive_store: usize,
    state: ShellState,
    send: VecDeque<Segment>,
    send_bytes: usize,
    /// Unread output in order; no queue is empty.
    receive: VecDeque<(Output, ReceiveQueue)>,
    receive_bytes: usize,
    write_refused: bool,
    finished: bool,
    remote_finished: bool,
    events: VecDeque<MuxEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShellState {
    Waiting,
    Open,
    Over,
}

/// One part of the send queue.
#[derive(Debug)]
enum Segment {
    Data(Output, ByteQueue),
    ExitCode(i64),
}

impl Shell {
    pub(super) fn new(side: Side, send_queue: usize, receive_store: usize) -> Self {
        let mut shell = Self {
            side,
            send_queue,
            receive_store,
            state: ShellState::Waiting,
            send: VecDeque::new(),
            send_bytes: 0,
            receive: VecDeque::new(),
            receive_bytes: 0,
            write_refused: false,
            finished: false,
            remote_finished: false,
            events: VecDeque::new(),
        };
        if side == Side::Agent {
            shell.state = ShellState::Open;
            shell.events.push_back(MuxEvent::Opened(STREAM));
        }
        shell
    }

    /// Opens the stream and reports the data that arrived before. Returns `None` if the stream was opened already.
    pub(super) fn open(&mut self) -> Option<StreamId> {
        if self.state != ShellState::Waiting {
            return None;
        }
        self.state = ShellState::Open;
        if !self.receive.is_empty() {
            self.events.push_back(MuxEvent::Readable(STREAM));
        }
        if self.remote_finished {
            self.report_finished();
        }
        Some(STREAM)
    }

    /// Asserts the invariants of the shell between two calls.
    #[cfg(feature = "fuzzing")]
    pub(super) fn check(&self) {
        let to_send =
            self.send.iter().map(|segment| if let Segment::Data(_, queue) = segment { queue.len() } else { 0 });
        debug_assert_eq!(to_send.sum::<usize>(), self.send_bytes, "unsent bytes are miscounted");
        let unread = self.receive.iter().map(|(_, queue)| queue.len());
        debug_assert_eq!(unread.sum::<usize>(), self.receive_bytes, "unread bytes are miscounted");
        debug_assert!(self.receive.iter().all(|(_, queue)| !queue.is_empty() && queue.is_counted()));
        debug_assert!(
            self.state != ShellState::Over || self.send_bytes + self.receive_bytes == 0,
            "a closed stream has data"
        );
    }

    pub(super) fn stream_count(&self) -> usize {
        usize::from(self.state == ShellState::Open)
    }

    pub(super) fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    pub(super) fn is_congested(&self) -> bool {
        self.receive_bytes + self.receive.len().saturating_sub(1) * CHANGE >= self.receive_store
    }

    pub(super) fn wants_transmit(&self) -> bool {
        !self.send.is_empty()
    }

    pub(super) fn write(&mut self, id: StreamId, output: Output, data: Bytes) -> Result<(), WriteError> {
        if !self.accepts_writes(id) {
            return Err(WriteError::Closed);
        }
        if output == Output::Stderr && self.side == Side::Client {
            return Err(WriteError::NoStderr);
        }
        if self.send_bytes >= self.send_queue {
            self.write_refused = true;
            return Err(WriteError::Full(data));
        }
        if data.is_empty() {
            return Ok(());
        }
        self.send_bytes += data.len();
        match self.send.back_mut() {
            Some(Segment::Data(last, queue)) if *last == output => queue.push(data),
            _ => {
                let mut queue = ByteQueue::default();
                queue.push(data);
                self.send.push_back(Segment::Data(output, queue));
            }
        }
        Ok(())
    }

    pub(super) fn writable(&self, id: StreamId) -> usize {
        if self.accepts_writes(id) { self.send_queue.saturating_sub(self.send_bytes) } else { 0 }
    }

    /// Agent side: queues the exit code after the data that was written before.
    pub(super) fn exit(&mut self, code: i64) {
        if self.side == Side::Agent && self.state == ShellState::Open {
            self.send.push_back(Segment::ExitCode(code));
        }
    }

    pub(super) fn read(&mut self, id: StreamId) -> Option<(Output, Bytes)> {
        if !self.is_open(id) {
            return None;
        }
        let (output, queue) = self.receive.front_mut()?;
        let (output, chunk) = (*output, queue.pop()?);
        if queue.is_empty() {
            self.receive.pop_front();
        }
        self.receive_bytes -= chunk.len();
        self.end_if_done();
        Some((output, chunk))
    }

    pub(super) fn is_finished(&self, id: StreamId) -> bool {
        !self.is_open(id) || (self.remote_finished && self.receive.is_empty())
    }

    /// Ends the local direction without a message, because the protocol has no message for the end of the input.
    pub(super) fn finish(&mut self, id: StreamId) {
        if self.is_open(id) {
            self.finished = true;
            self.end_if_done();
        }
    }

    pub(super) fn reset(&mut self, id: StreamId) {
        if self.is_open(id) {
            self.end();
        }
    }

    pub(super) fn handle_input(&mut self, output: Output, data: Bytes) {
        if self.state == ShellState::Over || self.remote_finished {
            return;
        }
        if self.receive.is_empty() && self.state == ShellState::Open {
            self.events.push_back(MuxEvent::Readable(STREAM));
        }
        self.receive_bytes += data.len();
        match self.receive.back_mut() {
            Some((last, queue)) if *last == output => queue.push(data),
            other => {
                // Short chunks that alternate between the outputs must not keep one buffer alive each.
                if let Some((_, queue)) = other {
                    queue.settle();
                }
                let mut queue = ReceiveQueue::default();
                queue.push(data);
                self.receive.push_back((output, queue));
            }
        }
    }

    /// Handles the end of the session. Data that was received can still be read.
    pub(super) fn handle_closed(&mut self) {
        if !self.remote_finished && self.state != ShellState::Over {
            self.remote_finished = true;
            if self.state == ShellState::Open {
                self.report_finished();
            }
            self.end_if_done();
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<MuxEvent> {
        self.events.pop_front()
    }

    /// Returns the next payload: data of one output, up to `limit` bytes, or the exit code.
    pub(super) fn poll_transmit(&mut self, limit: usize) -> Option<(PayloadType, MessageBuf)> {
        let next = match self.send.front_mut()? {
            Segment::Data(output, queue) => {
                let mut buf = MessageBuf::with_limit(limit, queue.len());
                let length = limit.min(queue.len());
                queue.copy_to(&mut buf, length);
                self.send_bytes -= length;
                let payload_type = if *output == Output::Stderr { PayloadType::StdErr } else { PayloadType::Output };
                (payload_type, buf)
            }
            Segment::ExitCode(code) => {
                (PayloadType::ExitCode, MessageBuf::from(format!("{EXIT_CODE}{code}").as_bytes()))
            }
        };
        if !matches!(self.send.front(), Some(Segment::Data(_, queue)) if !queue.is_empty()) {
            self.send.pop_front();
        }
        if self.write_refused && self.send_bytes <= self.send_queue / 2 {
            self.write_refused = false;
            self.events.push_back(MuxEvent::Writable(STREAM));
        }
        self.end_if_done();
        Some(next)
    }

    fn is_open(&self, id: StreamId) -> bool {
        id == STREAM && self.state == ShellState::Open
    }

    fn accepts_writes(&self, id: StreamId) -> bool {
        self.is_open(id) && !self.finished && !self.remote_finished
    }

    fn report_finished(&mut self) {
        self.events.push_back(MuxEvent::Finished(STREAM));
    }

    fn end_if_done(&mut self) {
        let peer_done = match self.side {
            Side::Client => self.remote_finished && self.receive.is_empty(),
            Side::Agent => self.send.is_empty(),
        };
        if self.finished && peer_done && self.state == ShellState::Open {
            self.end();
        }
    }

    fn end(&mut self) {
        self.state = ShellState::Over;
        self.send.clear();
        self.receive.clear();
        (self.send_bytes, self.receive_bytes) = (0, 0);
    }
}

/// Parses the payload with a command's exit code.
pub(super) fn exit_code(payload: &[u8]) -> Option<i64> {
    std::str::from_utf8(payload).ok()?.trim().strip_prefix(EXIT_CODE.trim_end())?.trim_start().parse().ok()
}

/// Encodes a terminal's size.
pub(super) fn size_payload(size: TerminalSize) -> MessageBuf {
    MessageBuf::from(format!(r#"{{"cols":{},"rows":{}}}"#, size.cols, size.rows).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(side: Side) -> Shell {
        Shell::new(side, 100, 100)
    }

    fn sent(shell: &mut Shell, limit: usize) -> Vec<(PayloadType, Vec<u8>)> {
        let next = || shell.poll_transmit(limit).map(|(kind, buf)| (kind, buf.payload().to_vec()));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn output_of_both_kinds_and_the_exit_code_keep_their_order() {
        let mut agent = shell(Side::Agent);
        let writes = [(Output::Stdout, "a"), (Output::Stdout, "bcd"), (Output::Stderr, "e"), (Output::Stdout, "f")];
        for (output, text) in writes {
            agent.write(STREAM, output, Bytes::from_static(text.as_bytes())).unwrap();
        }
        agent.exit(-7);
        agent.finish(STREAM);
        let expected = [
            (PayloadType::Output, b"abc".to_vec()),
            (PayloadType::Output, b"d".to_vec()),
            (PayloadType::StdErr, b"e".to_vec()),
            (PayloadType::Output, b"f".to_vec()),
            (PayloadType::ExitCode, b"EXIT_CODE: -7".to_vec()),
        ];
        assert_eq!(sent(&mut agent, 3), expected);
        assert_eq!(agent.stream_count(), 0);
    }

    #[test]
    fn a_full_queue_gives_back_and_tells_when_there_is_room() {
        let mut client = shell(Side::Client);
        assert_eq!(client.open(), Some(STREAM));
        assert_eq!(client.open(), None);
        client.write(STREAM, Output::Stdout, Bytes::from(vec![1; 100])).unwrap();
        assert!(
            matches!(client.write(STREAM, Output::Stdout, Bytes::from_static(b"x")), Err(WriteError::Full(x)) if x == "x")
        );
        assert_eq!(client.writable(STREAM), 0);
        client.poll_transmit(49).unwrap();
        assert_eq!(client.poll_event(), None);
        client.poll_transmit(1).unwrap();
        assert_eq!(client.poll_event(), Some(MuxEvent::Writable(STREAM)));
        assert!(matches!(client.write(STREAM, Output::Stderr, Bytes::new()), Err(WriteError::NoStderr)));
    }

    #[test]
    fn what_came_before_the_end_is_read_even_by_who_opens_late() {
        let mut client = shell(Side::Client);
        client.handle_input(Output::Stdout, Bytes::from_static(b"out"));
        client.handle_input(Output::Stderr, Bytes::from_static(b"err"));
        client.handle_closed();
        assert_eq!(client.poll_event(), None, "the stream is not open yet");
        let id = client.open().unwrap();
        assert_eq!(client.poll_event(), Some(MuxEvent::Readable(id)));
        assert_eq!(client.poll_event(), Some(MuxEvent::Finished(id)));
        client.finish(id);
        assert!(!client.is_finished(id));
        assert_eq!(client.read(id), Some((Output::Stdout, Bytes::from_static(b"out"))));
        assert_eq!(client.read(id), Some((Output::Stderr, Bytes::from_static(b"err"))));
        assert!(client.is_finished(id) && client.stream_count() == 0 && client.receive_bytes() == 0);
    }

    #[test]
    fn a_full_receive_store_is_congestion_until_it_is_read() {
        let mut client = shell(Side::Client);
        let id = client.open().unwrap();
        client.handle_input(Output::Stdout, Bytes::from(vec![0; 100]));
        assert!(client.is_congested());
        client.read(id).unwrap();
        assert!(!client.is_congested());
        client.reset(id);
        client.handle_input(Output::Stdout, Bytes::from(vec![0; 100]));
        assert_eq!(client.receive_bytes(), 0, "the data has no reader");
    }

    #[test]
    fn exit_codes_are_read_as_agents_write_them() {
        assert_eq!(exit_code(b"EXIT_CODE: 7"), Some(7));
        assert_eq!(exit_code(b"EXIT_CODE: 3221225786"), Some(0xC000_013A));
        assert_eq!(exit_code(b"EXIT_CODE: -1\n"), Some(-1));
        assert_eq!(exit_code(b"EXIT_CODE: x"), None);
        assert_eq!(exit_code(b"\xff"), None);
    }
}
