//! Fuzz targets of one side of a session whose peer sends anything: raw messages, and messages that the target makes valid, so that
//! the fuzzer reaches the code after the digest check.

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::input::Input;
use super::keys;
use crate::{
    Acknowledge, AgentConfig, AgentMessage, ClientConfig, Clock, Header, HeaderForm, MessageBuf, MessageType,
    PayloadType, Session, SessionType, StreamId, TerminalSize, publication,
};

/// No sequence of length-prefixed messages, with any contents, makes either side of a session panic.
///
/// # Panics
/// Panics if a session panics.
pub fn session_input(data: &[u8], now: Instant) {
    for mut session in sessions(now) {
        session.handle_connected(now);
        let mut rest = data;
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let (message, tail) = tail.split_at(tail.len().min(usize::from(u16::from_be_bytes(*length))));
            let _ = session.handle_input(now, Bytes::copy_from_slice(message));
            drain(&mut session, now);
            rest = tail;
        }
    }
}

/// Like [`session_input`], with messages whose digest, length and number the target fills in, and with operations of the session's
/// owner between the messages. The session never delivers more data than it received, and its queues keep their limits.
///
/// # Panics
/// Panics if one of these properties or an invariant of the state does not hold.
pub fn sealed_input(data: &[u8], now: Instant) {
    let mut input = Input::new(data);
    let which = input.below(8);
    let Some(session) = sessions(now).nth(which) else { return };
    Hostile { session, now, client: which < 2, next: 0, received: 0, read: 0, streams: Vec::new() }.run(&mut input);
}

/// Returns two clients, the first without encryption of ports, and an agent for each carrier.
fn sessions(now: Instant) -> impl Iterator<Item = Session> {
    let clock = Clock { start: now, unix: Duration::from_secs(1) };
    let clients = [false, true].map(|kms_on_ports| ClientConfig { kms_on_ports, ..ClientConfig::default() });
    let of_type = |session_type| AgentConfig { session_type, ..AgentConfig::default() };
    let kms = |config| AgentConfig { kms: Some(keys::agent_kms()), ..config };
    let agents = [
        AgentConfig::default(),
        of_type(SessionType::StandardStream),
        of_type(SessionType::NonInteractiveCommands),
        kms(of_type(SessionType::StandardStream)),
        AgentConfig { agent_version: "3.0.196.0".into(), ..AgentConfig::default() },
        of_type(SessionType::Port(crate::PortProperties::default())),
    ];
    let clients = clients.into_iter().map(move |config| Session::client(config, clock, 1));
    clients.chain(agents.into_iter().map(move |config| Session::agent(config, clock, 2)))
}

fn drain(session: &mut Session, now: Instant) -> Vec<StreamId> {
    let mut opened = Vec::new();
    while let Some(event) = session.poll_event() {
        keys::answer(session, &event, now);
        if let crate::SessionEvent::Opened(id) = event {
            opened.push(id);
        }
    }
    while session.poll_transmit(now).is_some() {}
    session.check();
    opened
}

struct Hostile {
    session: Session,
    now: Instant,
    client: bool,
    /// The number of the peer's next message, if the peer counts correctly.
    next: i64,
    /// Number of payload bytes that the session received.
    received: usize,
    /// Number of bytes that were read from the session's streams.
    read: usize,
    streams: Vec<StreamId>,
}

impl Hostile {
    fn run(mut self, input: &mut Input<'_>) {
        self.session.handle_connected(self.now);
        while !input.is_empty() {
            match input.below(16) {
                0..8 => self.receive(input),
                8 => self.acknowledge(input),
                9 => self.control(input),
                other => self.operate(other, input),
            }
            let opened = drain(&mut self.session, self.now);
            self.streams.extend(opened);
            self.streams.truncate(64);
        }
        assert!(self.read <= self.received, "{} bytes were read, {} were received", self.read, self.received);
    }

    /// Passes a numbered message to the session. Most messages have the next number.
    fn receive(&mut self, input: &mut Input<'_>) {
        let kind = input.byte();
        let payload_type = PayloadType::from(u32::from(kind % 14));
        let number = match kind >> 4 {
            0..12 => {
                self.next += 1;
                self.next - 1
            }
            other => self.next + i64::from(other) - 14,
        };
        let payload = input.bytes();
        let message_type = if self.client { MessageType::OutputStreamData } else { MessageType::InputStreamData };
        let header = Header { sequence_number: number, payload_type, ..Header::new(message_type, 1, Uuid::nil()) };
        self.received += payload.len();
        let message = header.seal(MessageBuf::from(&*payload));
        assert!(self.session.handle_input(self.now, message).is_ok(), "a sealed message is refused");
    }

    fn acknowledge(&mut self, input: &mut Input<'_>) {
        let message_type = if self.client { MessageType::InputStreamData } else { MessageType::OutputStreamData };
        let sequence_number = match input.byte() {
            255 => i64::MAX,
            254 => i64::MIN,
            number => i64::from(number) - 2,
        };
        let message = Acknowledge { message_type, message_id: Uuid::nil(), sequence_number }.encode(1, Uuid::nil());
        assert!(self.session.handle_input(self.now, message).is_ok());
    }

    fn control(&mut self, input: &mut Input<'_>) {
        let message = match input.below(4) {
            0 => publication(true, 1, Uuid::nil()),
            1 => publication(false, 1, Uuid::nil()),
            2 => {
                let form = if input.flag() { HeaderForm::Full } else { HeaderForm::Short };
                let header = Header { form, ..Header::new(MessageType::ChannelClosed, 1, Uuid::nil()) };
                header.seal(MessageBuf::from(&*input.bytes()))
            }
            _ => {
                let named = MessageType::from_name(&input.bytes()).unwrap_or(MessageType::Acknowledge);
                Header::new(named, 1, Uuid::nil()).seal(MessageBuf::from(&*input.bytes()))
            }
        };
        let is_message = AgentMessage::decode(message.clone()).map(|message| {
            // A numbered message that this function creates has number 0.
            self.received += message.payload().len();
        });
        assert_eq!(self.session.handle_input(self.now, message).is_ok(), is_message.is_ok());
    }

    fn operate(&mut self, operation: usize, input: &mut Input<'_>) {
        let (now, stream) = (self.now, input.pick(&self.streams));
        match (operation, stream) {
            (10, _) if self.client => self.streams.extend(self.session.open()),
            (11, Some(id)) => drop(self.session.write(id, input.bytes())),
            (12, Some(id)) => {
                self.read += std::iter::from_fn(|| self.session.read(id)).map(|chunk| chunk.len()).sum::<usize>();
                self.session.wait_for_data(now, id);
            }
            (13, Some(id)) => match input.below(5) {
                0 => self.session.finish(now, id),
                1 => self.session.close(id),
                2 => self.session.reset(id),
                3 => self.session.abandon(id),
                _ => self.session.refuse(id),
            },
            (14, _) => {
                self.now += input.time();
                self.session.handle_timeout(self.now);
            }
            _ => match input.below(4) {
                0 => self.session.handle_disconnected(now),
                1 => self.session.resize(TerminalSize { cols: input.byte().into(), rows: 24 }),
                2 => self.session.exit(i64::from(input.byte())),
                _ => self.session.handle_connected(now),
            },
        }
    }
}
