//! The bodies of the fuzz targets, as ordinary functions that tests also run over the corpus.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::relay::{BlockDecoder, Compressor, Destination, Greeting, Link, LinkEvent, RelaySecret, RelaySide};
use crate::{
    Acknowledge, AgentConfig, AgentKms, AgentMessage, ClientConfig, Clock, DataKey, Deframer, MessageBuf, MessageType,
    PlaintextKey, Session, SessionEvent, SessionType,
};

/// Any bytes decode to a message or to an error. A decoded message, encoded again, gives the same bytes. Both ways to
/// read an acknowledgement give the same number.
///
/// # Panics
/// If one of these properties does not hold.
pub fn decode_message(data: &[u8]) {
    let Ok(message) = AgentMessage::decode(Bytes::copy_from_slice(data)) else { return };
    if message.message_type() == MessageType::Acknowledge
        && let Some(ack) = Acknowledge::decode(message.payload())
    {
        assert_eq!(Acknowledge::decode_number(message.payload()), Some(ack.sequence_number));
    }
    let again = message.header().seal_with_digest(MessageBuf::from(message.payload()), message.payload_digest());
    let twice = AgentMessage::decode(again).expect("what was written can be read");
    assert_eq!(twice.header(), message.header());
    assert_eq!(twice.payload(), message.payload());
}

/// Any bytes, split anywhere, give frames or an error. The frames never contain more data than the input.
///
/// # Panics
/// If one of these properties does not hold.
pub fn deframe(data: &[u8]) {
    let mut deframer = Deframer::new(1);
    let cut = data.first().map_or(1, |byte| usize::from(*byte) + 1);
    let mut out = 0;
    for chunk in data.chunks(cut) {
        deframer.push(Bytes::copy_from_slice(chunk));
        loop {
            match deframer.next_frame() {
                Ok(Some(frame)) => out += frame.data.len(),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(out <= data.len());
}

/// No sequence of length-prefixed messages, whatever they contain, makes either side of a session panic.
///
/// # Panics
/// If a session does.
pub fn session_input(data: &[u8], now: Instant) {
    let clock = Clock { start: now, unix: Duration::from_secs(1) };
    let kms = AgentKms {
        key_id: "alias/k".into(),
        challenge: None,
        require_acknowledgement: false,
        proof: [1; 64],
        first_nonce: [2; 12],
    };
    let shell = AgentConfig { session_type: SessionType::StandardStream, ..AgentConfig::default() };
    let encrypted = AgentConfig { kms: Some(kms), ..shell.clone() };
    let client = Session::client(ClientConfig::default(), clock, 1);
    let agents = [AgentConfig::default(), shell, encrypted].map(|config| Session::agent(config, clock, 2));
    for mut session in std::iter::once(client).chain(agents) {
        session.handle_connected(now);
        let mut rest = data;
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let (message, tail) = tail.split_at(tail.len().min(usize::from(u16::from_be_bytes(*length))));
            let _ = session.handle_input(now, Bytes::copy_from_slice(message));
            while let Some(event) = session.poll_event() {
                answer_kms(&mut session, &event, now);
            }
            while session.poll_transmit(now).is_some() {}
            rest = tail;
        }
    }
}

fn answer_kms(session: &mut Session, event: &SessionEvent, now: Instant) {
    let Some(plaintext) = PlaintextKey::new(&[0; 64]) else { return };
    match event {
        SessionEvent::DataKeyNeeded(_) => {
            session.provide_data_key(now, &DataKey { plaintext, ciphertext: Bytes::from_static(b"k") }, [3; 12]);
        }
        SessionEvent::DecryptNeeded(..) => session.provide_plaintext_key(now, &plaintext),
        _ => {}
    }
}

/// Any bytes over a relay's pipe leave both ends of a link alive or end it with an error, and what a connection gives is never
/// more than came. The same bytes as a greeting and as blocks are refused or harmless.
///
/// # Panics
/// If that does not hold.
pub fn relay_input(data: &[u8], now: Instant) {
    for side in [RelaySide::Client, RelaySide::Relay] {
        let _ = Greeting::new(side, RelaySecret::new([1; 32]), [2; 16]).handle_input(data);
        let mut link = Link::new(side, now);
        let Some(pipe) = link.add_pipe() else { return };
        let mut known: Vec<_> = Destination::new("db", 80).and_then(|to| link.open(to)).into_iter().collect();
        let mut given = 0;
        for piece in data.chunks(data.first().map_or(1, |byte| usize::from(*byte) + 1)) {
            if link.handle_input(now, pipe, piece).is_err() {
                break;
            }
            while let Some(event) = link.poll_event() {
                if let LinkEvent::Wanted(id, _) = event {
                    known.push(id);
                    link.opened(id);
                }
            }
            given += known.iter().filter_map(|id| link.read(*id)).map(|chunk| chunk.len()).sum::<usize>();
            while link.poll_transmit(now).is_some() {}
        }
        assert!(given <= data.len());
    }
    let (mut decoder, mut compressor) = (BlockDecoder::default(), Compressor::default());
    let mut blocks = Bytes::copy_from_slice(data);
    while let Ok(Some(_)) = decoder.decode(&mut compressor, &mut blocks) {}
}
