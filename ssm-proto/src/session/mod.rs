//! A whole port session as a value: data channel, handshake, and streams.

mod raw;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::channel::{ChannelConfig, ChannelEvent, ChannelStats, DataChannel};
use crate::handshake::{
    AgentHandshake, ClientHandshake, HandshakeComplete, HandshakeStep, PortProperties, SessionType, Version,
};
use crate::mux::{Mux, MuxConfig, MuxEvent, StreamId, WriteError};
use crate::wire::{ChannelClosed, DecodeError, MessageBuf, PayloadType, PortFlag};
use crate::{Clock, Side, Timeout, TimeoutReason};
use raw::Raw;

/// Knobs of a client's session.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// What the client says its version is. Default: `1.2.764.0`, the oldest that AWS supports.
    pub client_version: String,
    /// Largest payload of a message, in bytes. Default: 1024, as the official client.
    pub max_payload: usize,
    /// The data channel.
    pub channel: ChannelConfig,
    /// The streams.
    pub mux: MuxConfig,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            client_version: "1.2.764.0".into(),
            max_payload: 1024,
            channel: ChannelConfig::default(),
            mux: MuxConfig::default(),
        }
    }
}

/// Knobs of an agent's session.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// What the agent says its version is; decides the mode together with the client's.
    pub agent_version: String,
    /// The document's properties.
    pub properties: PortProperties,
    /// Largest payload of a message, in bytes. Default: 1024, as the official agent.
    pub max_payload: usize,
    /// The data channel.
    pub channel: ChannelConfig,
    /// The streams.
    pub mux: MuxConfig,
    /// Habits of the official agent that a client must survive.
    pub quirks: AgentQuirks,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            agent_version: "3.3.987.0".into(),
            properties: PortProperties { kind: Some(LOCAL_PORT_FORWARDING.into()), ..PortProperties::default() },
            max_payload: 1024,
            channel: ChannelConfig::default(),
            mux: MuxConfig::default(),
            quirks: AgentQuirks::default(),
        }
    }
}

/// Habits of the official agent right after the handshake (HS-8, DC-11). All off by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentQuirks {
    /// For this long after HandshakeComplete, data is acknowledged and thrown away.
    pub discard_for: Duration,
    /// For this long after HandshakeComplete, data is refused without an acknowledgement.
    pub refuse_for: Duration,
}

/// How a session's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMode {
    /// Many streams at a time (smux).
    Mux,
    /// One connection at a time, one after the other: agents up to 3.0.196.0.
    Basic,
    /// The session is one connection (SSH).
    Plain,
}

/// Something that a [`PortSession`] wants its driver to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The handshake is over: streams can be opened.
    Ready(PortMode),
    /// The client opened a stream (agent side).
    Opened(StreamId),
    /// A stream that had nothing to read has something.
    Readable(StreamId),
    /// A stream that refused a write has room.
    Writable(StreamId),
    /// The peer ended the stream: end of file after what is still to be read.
    Finished(StreamId),
    /// The agent could not reach the destination; the stream is over.
    Refused(StreamId),
    /// A text for the person at the client.
    Message(String),
    /// The other end's data channel is inactive.
    Paused,
    /// It is active again.
    Resumed,
    /// The client ends the session (agent side).
    Terminated,
    /// The service ended the session.
    Closed(ChannelClosed),
    /// The session can't go on. Drain [`PortSession::poll_transmit`] once more, then end it.
    Failed(String),
}

/// Why a stream can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The handshake is not over.
    #[error("the session is not ready")]
    NotReady,
    /// The agent carries one connection at a time and there is one.
    #[error("the agent carries one connection at a time")]
    Busy,
}

/// What a session did so far, and what it holds now.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionStats {
    /// The data channel's counters.
    pub channel: ChannelStats,
    /// Streams that are not over.
    pub streams: usize,
    /// Bytes that wait to be read, over all streams.
    pub receive_bytes: usize,
}

const LOCAL_PORT_FORWARDING: &str = "LocalPortForwarding";
/// The agent acknowledges and discards what arrives in the moment after its HandshakeComplete (HS-8).
const GRACE: Duration = Duration::from_millis(5);
/// The same on paths so short that the message would arrive within that moment.
const GRACE_ON_LOOPBACK: Duration = Duration::from_millis(50);
const LOOPBACK_RTT: Duration = Duration::from_millis(1);
/// How often old agents and old clients expect a keep-alive frame, and how long they wait (MUX-11).
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// One side of a port session.
///
/// The driver's contract: call one `handle_*` or one command, then drain [`PortSession::poll_event`] and
/// [`PortSession::poll_transmit`] until both say `None`, then wait for input or for [`PortSession::poll_timeout`]. While
/// [`PortSession::is_congested`], read no more from the WebSocket.
#[derive(Debug)]
pub struct PortSession {
    channel: DataChannel,
    handshake: Handshake,
    carrier: Carrier,
    max_payload: usize,
    mux_config: MuxConfig,
    quirks: AgentQuirks,
    /// Before this, no session data leaves.
    data_from: Option<Instant>,
    completed_at: Option<Instant>,
    control: VecDeque<(PayloadType, MessageBuf)>,
    refusals: usize,
    events: VecDeque<SessionEvent>,
}

#[derive(Debug)]
enum Handshake {
    Client(ClientHandshake),
    Agent(AgentHandshake, PortProperties),
}

#[derive(Debug)]
enum Carrier {
    Pending,
    Mux(Mux),
    Raw(Raw),
}

impl PortSession {
    /// The client's side.
    pub fn client(config: ClientConfig, clock: Clock, seed: u64) -> Self {
        let handshake = Handshake::Client(ClientHandshake::new(config.client_version));
        let channel = DataChannel::new(Side::Client, config.channel, clock, seed);
        Self::new(channel, handshake, config.max_payload, config.mux, AgentQuirks::default())
    }

    /// The agent's side. It asks for the handshake as soon as it is connected.
    pub fn agent(config: AgentConfig, clock: Clock, seed: u64) -> Self {
        let session_type = SessionType::Port(config.properties.clone());
        let handshake = AgentHandshake::new(config.agent_version, &session_type);
        let handshake = Handshake::Agent(handshake, config.properties);
        let channel = DataChannel::new(Side::Agent, config.channel, clock, seed);
        let mut session = Self::new(channel, handshake, config.max_payload, config.mux, config.quirks);
        if let Handshake::Agent(handshake, _) = &mut session.handshake {
            session.control.extend(handshake.start(clock.start).into_message());
        }
        session
    }

    fn new(
        channel: DataChannel,
        handshake: Handshake,
        max_payload: usize,
        mux: MuxConfig,
        quirks: AgentQuirks,
    ) -> Self {
        Self {
            channel,
            handshake,
            carrier: Carrier::Pending,
            max_payload,
            mux_config: MuxConfig { quantum: mux.quantum.max(max_payload), ..mux },
            quirks,
            data_from: None,
            completed_at: None,
            control: VecDeque::new(),
            refusals: 0,
            events: VecDeque::new(),
        }
    }

    /// The agent's version; empty before its handshake request, and on the agent's side.
    pub fn agent_version(&self) -> &str {
        match &self.handshake {
            Handshake::Client(handshake) => handshake.agent_version(),
            Handshake::Agent(..) => "",
        }
    }

    /// Counters.
    pub fn stats(&self) -> SessionStats {
        let (streams, receive_bytes) = match &self.carrier {
            Carrier::Pending => (0, 0),
            Carrier::Mux(mux) => (mux.stream_count(), mux.receive_bytes()),
            Carrier::Raw(raw) => (raw.stream_count(), raw.receive_bytes()),
        };
        SessionStats { channel: self.channel.stats(), streams, receive_bytes }
    }

    /// Whether the receive stores are full: read no more from the WebSocket until streams are read.
    pub fn is_congested(&self) -> bool {
        match &self.carrier {
            Carrier::Pending => false,
            Carrier::Mux(mux) => mux.is_congested(),
            Carrier::Raw(raw) => raw.is_congested(),
        }
    }

    /// Whether everything that was sent is acknowledged and nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        let carrier_idle = match &self.carrier {
            Carrier::Pending => true,
            Carrier::Mux(mux) => !mux.wants_transmit(),
            Carrier::Raw(raw) => raw.pending_hint() == 0,
        };
        carrier_idle && self.control.is_empty() && self.channel.is_idle()
    }

    /// One binary WebSocket message arrived.
    ///
    /// # Errors
    /// The bytes are no message. They are dropped without an acknowledgement; the session lives on.
    pub fn handle_input(&mut self, now: Instant, raw: Bytes) -> Result<(), DecodeError> {
        self.refuse_while_unready(now);
        self.channel.handle_input(now, raw)?;
        while let Some(event) = self.channel.poll_event() {
            match event {
                ChannelEvent::Payload { payload_type, payload, .. } => self.handle_payload(now, payload_type, payload),
                ChannelEvent::Closed(closed) => self.handle_closed(closed),
                ChannelEvent::Paused => self.events.push_back(SessionEvent::Paused),
                ChannelEvent::Resumed => self.events.push_back(SessionEvent::Resumed),
            }
        }
        self.collect_events();
        Ok(())
    }

    fn refuse_while_unready(&mut self, now: Instant) {
        if self.quirks.refuse_for > Duration::ZERO {
            let ready = self.completed_at.is_none_or(|at| now >= at + self.quirks.refuse_for);
            self.channel.set_refusing(!ready);
        }
    }

    fn handle_payload(&mut self, now: Instant, payload_type: PayloadType, payload: Bytes) {
        if !self.handshake.is_complete() {
            return self.handle_handshake(now, payload_type, &payload);
        }
        match payload_type {
            PayloadType::Output => self.handle_data(now, payload),
            PayloadType::Flag => self.handle_flag(&payload),
            other => tracing::debug!(payload_type = ?other, "payload ignored"),
        }
    }

    /// Before the handshake is complete, everything else is acknowledged and discarded, as the official agent does (HS-8).
    fn handle_handshake(&mut self, now: Instant, payload_type: PayloadType, payload: &[u8]) {
        let (step, outcome) = match &mut self.handshake {
            Handshake::Client(handshake) => handshake.handle_payload(payload_type, payload),
            Handshake::Agent(handshake, _) => match handshake.handle_payload(now, payload_type, payload) {
                Ok(step) => (step, Ok(())),
                Err(error) => (None, Err(error)),
            },
        };
        match step {
            Some(HandshakeStep::Complete(complete)) => self.complete(now, complete),
            Some(step) => self.control.extend(step.into_message()),
            None => {}
        }
        if let Err(error) = outcome {
            self.events.push_back(SessionEvent::Failed(error.to_string()));
        }
    }

    fn complete(&mut self, now: Instant, complete: HandshakeComplete) {
        self.completed_at = Some(now);
        let (side, mode, old_peer) = match &self.handshake {
            Handshake::Client(handshake) => match handshake.session_type() {
                Some(SessionType::Port(port)) => {
                    let mode = port_mode(port, handshake.agent_multiplexes());
                    (Side::Client, mode, handshake.agent_expects_keep_alive())
                }
                other => {
                    let name = other.map_or("nothing", SessionType::name);
                    let text = format!("the session carries {name}, not a port: check the document");
                    return self.events.push_back(SessionEvent::Failed(text));
                }
            },
            Handshake::Agent(handshake, port) => {
                let body = serde_json::to_vec(&complete).unwrap_or_default();
                self.control.push_back((PayloadType::HandshakeComplete, MessageBuf::from(body.as_slice())));
                let agent_multiplexes = handshake.agent_multiplexes();
                let mode = port_mode(port, agent_multiplexes && handshake.client_multiplexes());
                (Side::Agent, mode, handshake.client_sends_keep_alive())
            }
        };
        if side == Side::Client {
            let short = self.channel.stats().srtt.is_some_and(|srtt| srtt < LOOPBACK_RTT);
            self.data_from = Some(now + if short { GRACE_ON_LOOPBACK } else { GRACE });
            self.channel.expect_unready_peer();
        }
        self.carrier = self.new_carrier(now, side, mode, old_peer);
        if !complete.customer_message.is_empty() {
            self.events.push_back(SessionEvent::Message(complete.customer_message));
        }
        self.events.push_back(SessionEvent::Ready(mode));
    }

    fn new_carrier(&self, now: Instant, side: Side, mode: PortMode, old_peer: bool) -> Carrier {
        let mut config = self.mux_config.clone();
        if mode != PortMode::Mux {
            return Carrier::Raw(Raw::new(side, mode == PortMode::Basic, config.send_queue, config.receive_store));
        }
        if old_peer {
            config.keep_alive = Some(config.keep_alive.map_or(KEEP_ALIVE, |interval| interval.min(KEEP_ALIVE)));
            config.peer_timeout = (side == Side::Agent).then_some(KEEP_ALIVE_TIMEOUT);
        }
        Carrier::Mux(Mux::new(side, config, now))
    }

    fn handle_data(&mut self, now: Instant, data: Bytes) {
        if self.completed_at.is_some_and(|at| now < at + self.quirks.discard_for) {
            return;
        }
        let outcome = match &mut self.carrier {
            Carrier::Pending => Ok(()),
            Carrier::Mux(mux) => mux.handle_input(now, data),
            Carrier::Raw(raw) => {
                raw.handle_input(now, data, |number| self.channel.is_acknowledged(number));
                Ok(())
            }
        };
        if let Err(error) = outcome {
            self.events.push_back(SessionEvent::Failed(format!("the stream of frames is broken: {error}")));
        }
        self.collect_events();
    }

    fn handle_flag(&mut self, payload: &[u8]) {
        match PortFlag::decode(payload) {
            Some(PortFlag::TerminateSession) => self.events.push_back(SessionEvent::Terminated),
            Some(PortFlag::ConnectToPortError) => self.refusals += 1,
            Some(PortFlag::DisconnectToPort) => {
                if let Carrier::Raw(raw) = &mut self.carrier {
                    raw.handle_disconnect();
                }
            }
            None => tracing::debug!("unknown flag ignored"),
        }
        self.collect_events();
    }

    fn handle_closed(&mut self, closed: ChannelClosed) {
        if let Carrier::Raw(raw) = &mut self.carrier {
            raw.handle_closed();
        }
        self.collect_events();
        self.events.push_back(SessionEvent::Closed(closed));
    }

    /// A WebSocket is up, the first or a later one: what is unacknowledged goes again, once, in order.
    pub fn handle_connected(&mut self, now: Instant) {
        self.channel.handle_connected(now);
    }

    /// The WebSocket is gone. Everything is kept.
    pub fn handle_disconnected(&mut self, now: Instant) {
        self.channel.handle_disconnected(now);
    }

    /// The clock reached what [`PortSession::poll_timeout`] said; a spurious call changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.channel.handle_timeout(now);
        if self.data_from.is_some_and(|at| now >= at) {
            self.data_from = None;
        }
        if let Handshake::Agent(handshake, _) = &mut self.handshake
            && let Err(error) = handshake.handle_timeout(now)
        {
            self.events.push_back(SessionEvent::Failed(error.to_string()));
        }
        match &mut self.carrier {
            Carrier::Pending => {}
            Carrier::Mux(mux) => {
                if let Err(silence) = mux.handle_timeout(now) {
                    let text = format!("the other end sent no keep-alive for {} s", silence.as_secs());
                    self.events.push_back(SessionEvent::Failed(text));
                }
            }
            Carrier::Raw(raw) => raw.handle_timeout(now),
        }
        self.collect_events();
    }

    /// Opens a stream (client side).
    ///
    /// # Errors
    /// [`OpenError::NotReady`] before the handshake is over; [`OpenError::Busy`] where only one connection is possible.
    pub fn open(&mut self) -> Result<StreamId, OpenError> {
        match &mut self.carrier {
            Carrier::Pending => Err(OpenError::NotReady),
            Carrier::Mux(mux) => Ok(mux.open()),
            Carrier::Raw(raw) => {
                let id = raw.open().ok_or(OpenError::Busy);
                self.collect_events();
                id
            }
        }
    }

    /// Queues data of a stream.
    ///
    /// # Errors
    /// [`WriteError::Full`] gives the data back; nothing is ever dropped.
    pub fn write(&mut self, id: StreamId, data: Bytes) -> Result<(), WriteError> {
        match &mut self.carrier {
            Carrier::Pending => Err(WriteError::Closed),
            Carrier::Mux(mux) => mux.write(id, data),
            Carrier::Raw(raw) => raw.write(id, data),
        }
    }

    /// Bytes that [`PortSession::write`] would take now without a refusal of the next.
    pub fn writable(&self, id: StreamId) -> usize {
        match &self.carrier {
            Carrier::Pending => 0,
            Carrier::Mux(mux) => mux.writable(id),
            Carrier::Raw(raw) => raw.writable(id),
        }
    }

    /// Takes the next chunk of a stream that waits to be read.
    pub fn read(&mut self, id: StreamId) -> Option<Bytes> {
        match &mut self.carrier {
            Carrier::Pending => None,
            Carrier::Mux(mux) => mux.read(id),
            Carrier::Raw(raw) => raw.read(id),
        }
    }

    /// Whether the peer ended the stream and everything was read; `true` for a stream that is over.
    pub fn is_finished(&self, id: StreamId) -> bool {
        match &self.carrier {
            Carrier::Pending => true,
            Carrier::Mux(mux) => mux.is_finished(id),
            Carrier::Raw(raw) => raw.is_finished(id),
        }
    }

    /// The local end of a stream sends nothing more; see [`Mux::finish`].
    pub fn finish(&mut self, now: Instant, id: StreamId) {
        match &mut self.carrier {
            Carrier::Pending => {}
            Carrier::Mux(mux) => mux.finish(now, id),
            Carrier::Raw(raw) => raw.finish(now, id),
        }
    }

    /// Ends a stream at both ends without waiting for an answer; see [`Mux::close`].
    pub fn close(&mut self, id: StreamId) {
        match &mut self.carrier {
            Carrier::Pending => {}
            Carrier::Mux(mux) => mux.close(id),
            Carrier::Raw(raw) => raw.reset(id),
        }
    }

    /// Drops a stream now, with what waits in it.
    pub fn reset(&mut self, id: StreamId) {
        match &mut self.carrier {
            Carrier::Pending => {}
            Carrier::Mux(mux) => mux.reset(id),
            Carrier::Raw(raw) => raw.reset(id),
        }
    }

    /// Ends a stream whose answer nobody wants, once what waits to be sent is sent; see [`Mux::abandon`].
    pub fn abandon(&mut self, id: StreamId) {
        match &mut self.carrier {
            Carrier::Pending => {}
            Carrier::Mux(mux) => mux.abandon(id),
            Carrier::Raw(raw) => raw.abandon(id),
        }
    }

    /// The destination of a stream can't be reached (agent side): says so, then ends the stream (PORT-6).
    pub fn refuse(&mut self, id: StreamId) {
        let flag = PortFlag::ConnectToPortError.encode();
        self.control.push_back((PayloadType::Flag, MessageBuf::from(flag.as_slice())));
        self.reset(id);
    }

    /// Tells the agent to end the session (client side). The API's TerminateSession is the sure way.
    pub fn terminate(&mut self) {
        let understood = match (&self.handshake, &self.carrier) {
            (Handshake::Client(_), Carrier::Mux(_)) => true,
            (Handshake::Client(handshake), Carrier::Raw(_)) => {
                Version::new(handshake.agent_version()).client_sees_newer_than(Version::TERMINATE_FLAG)
            }
            _ => false,
        };
        if understood {
            let flag = PortFlag::TerminateSession.encode();
            self.control.push_back((PayloadType::Flag, MessageBuf::from(flag.as_slice())));
        }
    }

    /// The next binary message for the WebSocket.
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
        if self.data_from.is_some() || !self.control.is_empty() || !self.channel.can_send() {
            return None;
        }
        self.send_data(now);
        self.channel.poll_transmit(now)
    }

    fn send_data(&mut self, now: Instant) {
        let mut buf = match &mut self.carrier {
            Carrier::Pending => return,
            Carrier::Mux(mux) if !mux.wants_transmit() => return,
            Carrier::Mux(mux) => {
                let mut buf = MessageBuf::with_limit(self.max_payload, mux.pending_hint());
                mux.poll_transmit(&mut buf);
                buf
            }
            Carrier::Raw(raw) => {
                let mut buf = MessageBuf::with_limit(self.max_payload, raw.pending_hint());
                raw.poll_transmit(&mut buf);
                buf
            }
        };
        let mut payload_type = PayloadType::Output;
        let mut flag = None;
        if let (true, Carrier::Raw(raw)) = (buf.is_empty(), &mut self.carrier) {
            flag = raw.take_flag();
            if let Some(flag) = flag {
                (payload_type, buf) = (PayloadType::Flag, MessageBuf::from(flag.encode().as_slice()));
            }
        }
        self.collect_events();
        if buf.is_empty() {
            return;
        }
        // The caller saw that the window has room.
        if let (Ok(number), Some(_), Carrier::Raw(raw)) =
            (self.channel.send(now, payload_type, buf), flag, &mut self.carrier)
        {
            raw.flag_sent(number);
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// When [`PortSession::handle_timeout`] is to be called next, and what for.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        let carrier = match &self.carrier {
            Carrier::Pending => None,
            Carrier::Mux(mux) => mux.poll_timeout(),
            Carrier::Raw(raw) => raw.poll_timeout(),
        };
        let answer = match &self.handshake {
            Handshake::Client(_) => None,
            Handshake::Agent(handshake, _) => handshake.poll_timeout(),
        };
        let answer = answer.map(|at| Timeout { at, reason: TimeoutReason::HandshakeAnswer });
        let grace = self.data_from.map(|at| Timeout { at, reason: TimeoutReason::HandshakeGrace });
        let own = Timeout::earliest(answer, grace);
        Timeout::earliest(own, Timeout::earliest(carrier, self.channel.poll_timeout()))
    }

    /// Turns what happened to streams into what the driver sees.
    fn collect_events(&mut self) {
        loop {
            let event = match &mut self.carrier {
                Carrier::Pending => None,
                Carrier::Mux(mux) => mux.poll_event(),
                Carrier::Raw(raw) => raw.poll_event(),
            };
            let Some(event) = event else { return };
            let event = match event {
                MuxEvent::Opened(id) => SessionEvent::Opened(id),
                MuxEvent::Readable(id) => SessionEvent::Readable(id),
                MuxEvent::Writable(id) => SessionEvent::Writable(id),
                // The flag names no stream; the FIN that follows it does (PORT-6).
                MuxEvent::Finished { stream, received_any: false } if self.refusals > 0 => {
                    self.refusals -= 1;
                    SessionEvent::Refused(stream)
                }
                MuxEvent::Finished { stream, .. } => SessionEvent::Finished(stream),
            };
            self.events.push_back(event);
        }
    }
}

impl Handshake {
    fn is_complete(&self) -> bool {
        match self {
            Self::Client(handshake) => handshake.is_complete(),
            Self::Agent(handshake, _) => handshake.is_complete(),
        }
    }
}

fn port_mode(port: &PortProperties, multiplexes: bool) -> PortMode {
    match port.kind.as_deref() {
        Some(LOCAL_PORT_FORWARDING) if multiplexes => PortMode::Mux,
        Some(LOCAL_PORT_FORWARDING) => PortMode::Basic,
        _ => PortMode::Plain,
    }
}
