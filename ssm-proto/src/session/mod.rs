//! A whole session as a value: data channel, handshake, encryption, and streams.

mod carrier;
mod config;
mod error;
mod event;
mod handshake;
mod inherited;
mod linger;
mod port;
mod shell;
#[cfg(test)]
mod tests;
mod unmultiplexed;

use config::MIN_PAYLOAD;
pub use config::{AgentConfig, AgentQuirks, ClientConfig, ConfigError};
pub use error::SessionError;
pub use event::{OpenError, Output, SessionEvent, SessionMode, SessionStats, TerminalSize};

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use bytes::Bytes;

use crate::channel::{ChannelEvent, DataChannel};
use crate::handshake::{AgentHandshake, ClientHandshake, SessionType};
use crate::mux::{MuxConfig, MuxEvent, StreamId, WriteError};
use crate::wire::{ChannelClosed, DecodeError, MAX_PAYLOAD, MessageBuf, PayloadType};
use crate::{Clock, Side, Timeout, TimeoutReason};
use carrier::Carrier;
use handshake::Handshake;
use inherited::Inherited;
use linger::{Lingers, Path};

const LOCAL_PORT_FORWARDING: &str = "LocalPortForwarding";

/// One side of a session of any type: ports, a shell, or a command. A client learns the type from the agent's first message.
///
/// The driver's contract: call one `handle_*` method or one command, then drain [`Session::poll_event`] and
/// [`Session::poll_transmit`] until both return `None`, then wait for input or for [`Session::poll_timeout`]. While
/// [`Session::is_congested`], do not read from the WebSocket.
///
/// A shell or a command ([`SessionMode::Shell`]) is one stream, which the client opens once. It writes the input and
/// reads the output with [`Session::read_output`]. [`SessionEvent::Finished`] is reported when the session is closed.
pub struct Session {
    channel: DataChannel,
    handshake: Handshake,
    carrier: Carrier,
    max_payload: usize,
    mux_config: MuxConfig,
    ports_only: bool,
    quirks: AgentQuirks,
    /// Whether input is refused because the agent's shell is not open yet.
    refusing: bool,
    /// The time before which no session data is sent.
    data_from: Option<Instant>,
    completed_at: Option<Instant>,
    control: VecDeque<(PayloadType, MessageBuf)>,
    /// The size of the client's terminal.
    size: Option<TerminalSize>,
    size_sent: Option<TerminalSize>,
    inherited: Inherited,
    lingers: Lingers,
    /// Whether the session has failed, so that received data is ignored.
    broken: bool,
    events: VecDeque<SessionEvent>,
}

/// Buffered data is left out, because it contains users' input and output.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("type", &self.session_type())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Creates the client's side. With invalid settings ([`ClientConfig::check`]) the session fails at once.
    pub fn client(config: ClientConfig, clock: Clock, seed: u64) -> Self {
        let checked = config.check();
        let handshake = ClientHandshake::new(config.client_version, config.identity, config.kms_on_ports);
        let channel = DataChannel::new(Side::Client, config.channel, clock, seed);
        let session = Self::new(channel, Handshake::Client(handshake), config.max_payload, config.mux);
        let mut session =
            Self { ports_only: config.ports_only, inherited: Inherited::new(config.inherited), ..session };
        if let Err(error) = checked {
            session.fail_once(error.into());
        }
        session
    }

    /// Creates the agent's side. It requests the handshake as soon as it is connected, or is ready immediately if the session needs
    /// no handshake. With invalid settings ([`AgentConfig::check`]) the session fails at once.
    pub fn agent(config: AgentConfig, clock: Clock, seed: u64) -> Self {
        let checked = config.check();
        let mut handshake = AgentHandshake::new(config.agent_version, config.session_type, config.kms, config.identity);
        let first = handshake.start(clock.start);
        let channel = DataChannel::new(Side::Agent, config.channel, clock, seed);
        let session = Self::new(channel, Handshake::Agent(handshake), config.max_payload, config.mux);
        let mut session = Self { quirks: config.quirks, ..session };
        match (checked, first) {
            (Err(error), _) => session.fail_once(error.into()),
            (Ok(()), Some(step)) => session.perform(clock.start, step),
            (Ok(()), None) => session.begin_without_handshake(clock.start),
        }
        session
    }

    fn new(channel: DataChannel, handshake: Handshake, max_payload: usize, mux: MuxConfig) -> Self {
        let max_payload = max_payload.clamp(MIN_PAYLOAD, MAX_PAYLOAD);
        Self {
            channel,
            handshake,
            carrier: Carrier::Pending,
            max_payload,
            mux_config: MuxConfig { quantum: mux.quantum.max(max_payload), ..mux },
            ports_only: false,
            quirks: AgentQuirks::default(),
            refusing: false,
            data_from: None,
            completed_at: None,
            control: VecDeque::new(),
            size: None,
            size_sent: None,
            inherited: Inherited::Unwatched,
            lingers: Lingers::default(),
            broken: false,
            events: VecDeque::new(),
        }
    }

    /// Returns the agent's version; empty before its handshake request, in sessions without a handshake, and on the agent's side.
    pub fn agent_version(&self) -> &str {
        match &self.handshake {
            Handshake::Client(handshake) => handshake.agent_version(),
            Handshake::Agent(_) => "",
        }
    }

    /// Returns what the session carries; `None` on the client's side until the agent has sent it.
    pub fn session_type(&self) -> Option<&SessionType> {
        self.handshake.session_type()
    }

    /// Returns the counters.
    pub fn stats(&self) -> SessionStats {
        SessionStats {
            channel: self.channel.stats(),
            streams: self.carrier.stream_count(),
            receive_bytes: self.carrier.receive_bytes(),
        }
    }

    /// Returns whether the receive buffers are full. The driver must then read nothing more from the WebSocket until streams are
    /// read.
    pub fn is_congested(&self) -> bool {
        self.carrier.is_congested()
    }

    /// Returns the stream for whose reader the session waits while it is congested; see
    /// [`Mux::slowest_reader`](crate::Mux::slowest_reader). `None` if there is only one stream.
    pub fn slowest_reader(&self) -> Option<StreamId> {
        self.carrier.slowest_reader()
    }

    /// Returns the stream for whose destination the session probably waits while nothing is acknowledged; see
    /// [`Mux::slowest_destination`](crate::Mux::slowest_destination). `None` if there is only one stream.
    pub fn slowest_destination(&self) -> Option<StreamId> {
        self.carrier.slowest_destination()
    }

    /// Asserts the invariants of the state, in builds with debug assertions. Only tests and fuzz targets call this method, because
    /// it counts everything again.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn check(&self) {
        self.channel.check();
        self.carrier.check();
    }

    /// Returns whether all sent data is acknowledged and nothing is queued.
    pub fn is_idle(&self) -> bool {
        !self.wants_transmit() && self.control.is_empty() && self.channel.is_idle()
    }

    fn wants_transmit(&self) -> bool {
        self.carrier.wants_transmit() || self.due_size().is_some() || self.lingers.wants_probe()
    }

    /// Handles one binary WebSocket message.
    ///
    /// # Errors
    /// Returns an error if the bytes are not a valid message. The message is dropped without an acknowledgement, and the session
    /// continues.
    pub fn handle_input(&mut self, now: Instant, raw: Bytes) -> Result<(), DecodeError> {
        self.refuse_while_unready(now);
        let mut undecryptable = None;
        self.channel.handle_input_through(now, raw, |payload_type, payload| {
            self.handshake.admit(payload_type, payload).inspect_err(|error| undecryptable.clone_from(error)).ok()
        })?;
        while let Some(event) = self.channel.poll_event() {
            match event {
                ChannelEvent::Payload { payload_type, payload, .. } => self.handle_payload(now, payload_type, payload),
                ChannelEvent::Closed(closed) => self.handle_closed(closed),
                ChannelEvent::Paused => self.events.push_back(SessionEvent::Paused),
                ChannelEvent::Resumed => self.events.push_back(SessionEvent::Resumed),
            }
        }
        if let Some(error) = undecryptable {
            self.fail_once(error);
        }
        self.watch_inherited(now);
        self.collect_events();
        self.watch_silence(now);
        Ok(())
    }

    fn refuse_while_unready(&mut self, now: Instant) {
        let early = self.completed_at.is_some_and(|at| now < at + self.quirks.refuse_for);
        self.channel.set_refusing(self.refusing || early);
    }

    fn handle_payload(&mut self, now: Instant, payload_type: PayloadType, payload: Bytes) {
        if !self.handshake.is_complete() {
            self.handle_handshake(now, payload_type, &payload);
        }
        // A message that shows that there is no handshake is session data itself (HS-1).
        if self.handshake.is_complete() {
            self.handle_session_payload(now, payload_type, payload);
        }
    }

    fn handle_session_payload(&mut self, now: Instant, payload_type: PayloadType, payload: Bytes) {
        match (payload_type, &self.carrier, &self.handshake) {
            (PayloadType::Output, _, _) => self.handle_data(now, Output::Stdout, payload),
            (PayloadType::Flag, _, _) => self.handle_flag(&payload),
            (PayloadType::StdErr, Carrier::Shell(_), Handshake::Client(_)) => {
                self.handle_data(now, Output::Stderr, payload)
            }
            (PayloadType::ExitCode, Carrier::Shell(_), Handshake::Client(_)) => match shell::exit_code(&payload) {
                Some(code) => self.events.push_back(SessionEvent::ExitCode(code)),
                None => tracing::debug!("unreadable exit code ignored"),
            },
            (PayloadType::Size, Carrier::Shell(_), Handshake::Agent(_)) => match serde_json::from_slice(&payload) {
                Ok(size) => self.events.push_back(SessionEvent::Resized(size)),
                Err(_) => tracing::debug!("unreadable terminal size ignored"),
            },
            (other, ..) => tracing::debug!(payload_type = ?other, "payload ignored"),
        }
    }

    fn handle_data(&mut self, now: Instant, output: Output, data: Bytes) {
        if self.broken || data.is_empty() || self.completed_at.is_some_and(|at| now < at + self.quirks.discard_for) {
            return;
        }
        let outcome = match &mut self.carrier {
            Carrier::Pending => Ok(()),
            Carrier::Mux(mux) => mux.handle_input(now, data),
            Carrier::Unmultiplexed(single) => {
                single.handle_input(now, data);
                Ok(())
            }
            Carrier::Shell(shell) => {
                shell.handle_input(output, data);
                Ok(())
            }
        };
        if let Err(error) = outcome {
            self.fail_once(error.into());
        }
        self.collect_events();
    }

    /// Reports a failure once, even if the peer retransmits the message that caused it.
    fn fail_once(&mut self, error: SessionError) {
        if !std::mem::replace(&mut self.broken, true) {
            self.events.push_back(SessionEvent::Failed(error));
        }
    }

    fn handle_closed(&mut self, closed: ChannelClosed) {
        self.carrier.handle_closed();
        self.collect_events();
        self.events.push_back(SessionEvent::Closed(closed));
    }

    /// Handles that a WebSocket is connected, the first or a later one. All unacknowledged messages are sent again once, in order.
    pub fn handle_connected(&mut self, now: Instant) {
        self.channel.handle_connected(now);
        if self.inherited == Inherited::Unconnected {
            self.inherited = Inherited::Silent(now);
        }
        if let Carrier::Unmultiplexed(single) = &mut self.carrier {
            single.handle_connected(now);
        }
        self.watch_silence(now);
    }

    /// Handles that the WebSocket is closed. All state is kept.
    pub fn handle_disconnected(&mut self, now: Instant) {
        self.channel.handle_disconnected(now);
        self.watch_silence(now);
    }

    /// Handles the timeouts that have expired. Call it at the time of [`Session::poll_timeout`]; an unnecessary call has no effect.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.channel.handle_timeout(now);
        if self.data_from.is_some_and(|at| now >= at) {
            self.data_from = None;
        }
        self.handle_answer_timeout(now);
        self.watch_inherited(now);
        if let Err(silence) = self.carrier.handle_timeout(now) {
            self.events.push_back(SessionEvent::Failed(SessionError::NoKeepAlive(silence)));
        }
        self.collect_events();
        self.watch_silence(now);
    }

    /// Gives up the half-closed streams whose remote side was silent for too long.
    fn watch_silence(&mut self, now: Instant) {
        if let Carrier::Unmultiplexed(single) = &mut self.carrier {
            single.look(now, self.channel.can_receive(), |number| self.channel.is_acknowledged(number));
        }
        if self.lingers.is_empty() {
            return;
        }
        let channel = &self.channel;
        let path = Path {
            can_receive: channel.can_receive() && !self.carrier.is_congested(),
            srtt: channel.stats().srtt,
            arrived: |number| channel.is_acknowledged(number),
        };
        let silence = self.mux_config.linger;
        for stream in self.lingers.look(now, path) {
            let answered = self.carrier.is_answered(stream);
            if !self.carrier.end_by_silence() {
                self.carrier.abandon(stream);
                self.events.push_back(SessionEvent::Silent { stream, answered, silence });
            }
        }
        self.collect_events();
    }

    /// Opens a stream (client side). The one stream of a shell can be opened even after the session was closed, to read the data
    /// that was received.
    ///
    /// # Errors
    /// Returns [`OpenError::NotReady`] before the handshake is complete. Returns [`OpenError::Busy`] if only one connection is
    /// possible, until no more data of the last connection is expected.
    pub fn open(&mut self) -> Result<StreamId, OpenError> {
        let id = self.carrier.open();
        self.collect_events();
        id
    }

    /// Queues data to be sent on a stream.
    ///
    /// # Errors
    /// Returns [`WriteError::Full`] with the data if the queue is full; no data is ever dropped. Returns [`WriteError::Closed`] if
    /// the stream is closed.
    pub fn write(&mut self, id: StreamId, data: Bytes) -> Result<(), WriteError> {
        self.carrier.write(id, Output::Stdout, data)
    }

    /// Queues data like [`Session::write`], for a command whose outputs are kept separate (agent side). Both outputs share one
    /// queue and keep their order.
    ///
    /// # Errors
    /// Returns the errors of [`Session::write`], and [`WriteError::NoStderr`] if the session has no standard error.
    pub fn write_output(&mut self, id: StreamId, output: Output, data: Bytes) -> Result<(), WriteError> {
        self.carrier.write(id, output, data)
    }

    /// Returns the number of bytes that can be written before the stream's send queue is full.
    pub fn writable(&self, id: StreamId) -> usize {
        self.carrier.writable(id)
    }

    /// Removes and returns the next chunk of a stream's unread data.
    pub fn read(&mut self, id: StreamId) -> Option<Bytes> {
        self.read_output(id).map(|(_, chunk)| chunk)
    }

    /// Reads like [`Session::read`], and also returns which output the chunk belongs to.
    pub fn read_output(&mut self, id: StreamId) -> Option<(Output, Bytes)> {
        self.carrier.read(id)
    }

    /// Records that the reader of a stream has processed all data that it has read and waits for more. Silence of the remote side
    /// counts only from then on: a stream whose reader never waits is never given up (see
    /// [`MuxConfig::linger`](crate::MuxConfig::linger)).
    ///
    /// Returns whether [`Session::poll_timeout`] may have become earlier.
    pub fn wait_for_data(&mut self, now: Instant, id: StreamId) -> bool {
        self.carrier.set_reader_waits(id);
        self.lingers.reader_waits(now, id)
    }

    /// Returns whether the peer ended the stream and all its data was read; `true` for a stream that has ended.
    pub fn is_finished(&self, id: StreamId) -> bool {
        self.carrier.is_finished(id)
    }

    /// Ends the local sending side of a stream; see [`Mux::finish`](crate::Mux::finish).
    pub fn finish(&mut self, now: Instant, id: StreamId) {
        let was_held = self.carrier.is_held(id);
        self.carrier.finish(id);
        if self.carrier.is_held(id) && !was_held {
            let last = (!self.carrier.has_unsent(id)).then(|| self.channel.last_sequence_number());
            let limit = self.carrier.linger(self.mux_config.linger);
            self.lingers.begin(now, id, limit, last, self.carrier.reader_waits(id));
            self.watch_silence(now);
        }
    }

    /// Ends a stream in both directions without waiting for an answer; see [`Mux::close`](crate::Mux::close).
    pub fn close(&mut self, id: StreamId) {
        self.lingers.end(id);
        self.carrier.close(id);
    }

    /// Drops a stream and its queued data immediately.
    pub fn reset(&mut self, id: StreamId) {
        self.lingers.end(id);
        self.carrier.reset(id);
    }

    /// Ends a stream without a reader, once the queued data is sent; see [`Mux::abandon`](crate::Mux::abandon).
    pub fn abandon(&mut self, id: StreamId) {
        self.lingers.end(id);
        self.carrier.abandon(id);
    }

    /// Sets the size of the client's terminal. The latest size is kept until the session is known to be a shell and is ready.
    pub fn resize(&mut self, size: TerminalSize) {
        self.size = Some(size);
    }

    /// Reports that the command ended (agent side of a shell or a command): sends the exit code after all data written before. Call
    /// it before [`Session::finish`], which ends the stream.
    pub fn exit(&mut self, code: i64) {
        if let Carrier::Shell(shell) = &mut self.carrier {
            shell.exit(code);
        }
    }

    /// Sets whether input and sizes are neither accepted nor acknowledged, so that the client retransmits them (agent side). This
    /// is used while the terminal is not open yet.
    pub fn set_refusing(&mut self, refusing: bool) {
        self.refusing = refusing;
    }

    /// Returns the next binary message for the WebSocket.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        while let Some((payload_type, payload)) = self.control.pop_front() {
            if let Err(refused) = self.channel.send(now, payload_type, payload) {
                self.control.push_front((payload_type, refused.0));
                break;
            }
        }
        if let Some(message) = self.channel.poll_transmit(now) {
            return Some(message);
        }
        if self.data_from.is_some()
            || !self.control.is_empty()
            || !self.channel.can_send()
            || self.channel.is_paced(now)
        {
            return None;
        }
        self.send_data(now);
        self.channel.poll_transmit(now)
    }

    fn send_data(&mut self, now: Instant) {
        let special = self.take_size().or_else(|| self.take_probe());
        let next = special.or_else(|| self.carrier.poll_transmit(self.max_payload));
        self.collect_events();
        let Some((payload_type, mut buf)) = next else { return };
        if let Some(cipher) = self.handshake.cipher() {
            match cipher.seal_payload(payload_type, buf) {
                Ok(sealed) => buf = sealed,
                Err(error) => return self.events.push_back(SessionEvent::Failed(SessionError::Unencryptable(error))),
            }
        }
        // The caller has checked that the window is not full.
        let Ok(number) = self.channel.send(now, payload_type, buf) else { return };
        match (payload_type, &mut self.carrier) {
            (PayloadType::Flag, Carrier::Unmultiplexed(single)) => single.flag_sent(number),
            (PayloadType::Size, Carrier::Mux(_) | Carrier::Unmultiplexed(_)) => self.lingers.probe_sent(now, number),
            _ => {}
        }
        self.lingers.sent(number, |id| self.carrier.has_unsent(id));
    }

    /// Returns a message that agents acknowledge and otherwise ignore in a port session (PORT-10), if a probe is due.
    fn take_probe(&self) -> Option<(PayloadType, MessageBuf)> {
        const UNUSED_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };
        self.lingers.wants_probe().then(|| (PayloadType::Size, shell::size_payload(UNUSED_SIZE)))
    }

    fn take_size(&mut self) -> Option<(PayloadType, MessageBuf)> {
        let size = self.due_size()?;
        self.size_sent = Some(size);
        Some((PayloadType::Size, shell::size_payload(size)))
    }

    fn due_size(&self) -> Option<TerminalSize> {
        let (Handshake::Client(_), Carrier::Shell(_)) = (&self.handshake, &self.carrier) else { return None };
        self.size.filter(|size| self.size_sent != Some(*size))
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// Returns when [`Session::handle_timeout`] must be called next, and why.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        let answer = self.answer_timeout().map(|at| Timeout { at, reason: TimeoutReason::HandshakeAnswer });
        let grace = self.data_from.map(|at| Timeout { at, reason: TimeoutReason::HandshakeGrace });
        let waits = self.data_from.is_none() && self.wants_transmit();
        let turn = if waits { self.channel.poll_turn() } else { None };
        let own = Timeout::earliest(Timeout::earliest(answer, grace), turn);
        let own = Timeout::earliest(own, self.inherited.poll_timeout());
        let own = Timeout::earliest(own, self.lingers.poll_timeout());
        Timeout::earliest(own, Timeout::earliest(self.carrier.poll_timeout(), self.channel.poll_timeout()))
    }

    /// Converts stream events into events for the driver.
    fn collect_events(&mut self) {
        while let Some(event) = self.carrier.poll_event() {
            let event = match event {
                MuxEvent::Opened(id) => SessionEvent::Opened(id),
                MuxEvent::Readable(id) => {
                    self.lingers.data_arrived(id, self.carrier.linger(self.mux_config.linger));
                    SessionEvent::Readable(id)
                }
                MuxEvent::Writable(id) => SessionEvent::Writable(id),
                MuxEvent::Finished(id) => {
                    self.lingers.end(id);
                    SessionEvent::Finished(id)
                }
                MuxEvent::Refused(id) => {
                    self.lingers.end(id);
                    SessionEvent::Refused(id)
                }
            };
            self.events.push_back(event);
        }
    }
}
