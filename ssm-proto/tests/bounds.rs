//! Tests that exceed each limit on what a peer can make this end store or do. The table of limits is in `docs/reliability.md`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ssm_proto::relay::{Destination, Link, MAX_CONNECTIONS, MAX_PIPES, RelaySide};
use ssm_proto::{
    AgentConfig, AgentMessage, ChannelConfig, ClientConfig, Clock, DataChannel, DecodeError, Header, MAX_PAYLOAD,
    MessageBuf, MessageType, Mux, MuxConfig, PayloadType, Retransmission, Session, SessionEvent, Side, publication,
};
use uuid::Uuid;

fn clock(now: Instant) -> Clock {
    Clock { start: now, unix: Duration::from_secs(1_700_000_000) }
}

fn client(now: Instant) -> DataChannel {
    let mut channel = DataChannel::new(Side::Client, ChannelConfig::default(), clock(now), 1);
    channel.handle_connected(now);
    channel
}

fn from_agent(sequence_number: i64, payload_type: PayloadType, payload: &[u8]) -> Bytes {
    let header = Header::new(MessageType::OutputStreamData, 1, Uuid::nil());
    Header { sequence_number, payload_type, ..header }.seal(MessageBuf::from(payload))
}

fn output(sequence_number: i64, payload: &[u8]) -> Bytes {
    from_agent(sequence_number, PayloadType::Output, payload)
}

/// Returns smux frames without data, of streams with ascending numbers.
fn frames(command: u8, count: u32) -> Bytes {
    let frame = |stream: u32| [&[1, command, 0, 0][..], &stream.to_le_bytes()].concat();
    (0..count).flat_map(|number| frame(number * 2 + 3)).collect()
}

#[test]
fn a_payload_has_a_length() {
    assert!(AgentMessage::decode(output(0, &vec![0; MAX_PAYLOAD])).is_ok());
    let refused = AgentMessage::decode(output(0, &vec![0; MAX_PAYLOAD + 1])).map(drop);
    assert!(matches!(refused, Err(DecodeError::PayloadTooLarge { .. })), "{refused:?}");
}

#[test]
fn early_messages_are_kept_up_to_a_number_and_to_a_size() {
    let now = Instant::now();
    let most = ChannelConfig::default();
    let mut many = client(now);
    for number in (1..).take(most.reorder_messages + 50) {
        many.handle_input(now, output(number, b"x")).unwrap();
    }
    assert_eq!((many.stats().reorder_bytes, many.stats().dropped), (most.reorder_messages, 50));
    let acknowledged = std::iter::from_fn(|| many.poll_transmit(now)).count();
    assert_eq!(acknowledged, most.reorder_messages, "a message that is not stored must not be acknowledged");

    let mut large = client(now);
    let payload = vec![0; MAX_PAYLOAD];
    for number in 1..=20 {
        large.handle_input(now, output(number, &payload)).unwrap();
    }
    assert_eq!((large.stats().reorder_bytes, large.stats().dropped), (most.reorder_bytes, 4));
}

#[test]
fn acknowledgements_wait_up_to_a_number_and_then_nothing_is_accepted() {
    let now = Instant::now();
    let mut channel = client(now);
    channel.handle_input(now, output(0, b"x")).unwrap();
    for _ in 0..30_000 {
        channel.handle_input(now, output(0, b"x")).unwrap();
    }
    channel.handle_input(now, output(1, b"y")).unwrap();
    let stats = channel.stats();
    assert_eq!((stats.messages_received, stats.dropped), (1, 10_002), "{stats:?}");
    assert_eq!(std::iter::from_fn(|| channel.poll_transmit(now)).count(), 20_000);
    channel.handle_input(now, output(1, b"y")).unwrap();
    assert_eq!(channel.stats().messages_received, 2, "messages are accepted again once the acknowledgements are sent");
}

#[test]
fn a_window_that_nothing_moves_stays_its_size() {
    let now = Instant::now();
    let mut channel = client(now);
    let payload = || MessageBuf::from([0; 1024].as_slice());
    let sent = (0..100_000).take_while(|_| channel.send(now, PayloadType::Output, payload()).is_ok()).count();
    assert!(sent <= ChannelConfig::default().window, "{sent} messages");
    let controls = (0..100_000).take_while(|_| channel.send(now, PayloadType::Flag, payload()).is_ok()).count();
    assert!(sent + controls <= ChannelConfig::default().window + 64, "{controls} flags beyond the window");
}

/// A peer that acknowledges nothing receives a burst, and then one message for each timeout of at least 200 ms: of the oldest
/// message and of the messages of the burst.
#[test]
fn a_silent_peer_is_not_flooded() {
    let now = Instant::now();
    let mut channel = client(now);
    while channel.send(now, PayloadType::Output, MessageBuf::from(b"x".as_slice())).is_ok() {}
    while channel.poll_transmit(now).is_some() {}
    let mut at = now;
    for minute in 0..10 {
        let end = at + Duration::from_secs(60);
        let before = channel.stats().retransmissions;
        while let Some(timeout) = channel.poll_timeout().filter(|timeout| timeout.at < end) {
            at = timeout.at;
            channel.handle_timeout(at);
            while channel.poll_transmit(at).is_some() {}
        }
        at = end;
        let again = channel.stats().retransmissions - before;
        assert!(again <= 32 + 2 * 300, "{again} retransmissions in minute {minute}");
    }
}

#[test]
fn unread_data_is_congestion_for_one_stream_and_for_all_together() {
    let now = Instant::now();
    let config = MuxConfig::default();
    let data = |stream: u32| [&[1, 2, 0, 0x80][..], &stream.to_le_bytes(), &[7; 0x8000]].concat();
    let fill = |streams: u32| {
        let mut agent = Mux::new(Side::Agent, config.clone(), now);
        agent.handle_input(now, frames(0, streams)).unwrap();
        let mut count = 0;
        while !agent.is_congested() {
            agent.handle_input(now, data((count % streams) * 2 + 3).into()).unwrap();
            count += 1;
        }
        agent.receive_bytes()
    };
    assert_eq!(fill(1), config.receive_store);
    assert_eq!(fill(100), config.receive_total);
}

#[test]
fn streams_are_opened_up_to_a_number() {
    let now = Instant::now();
    let mut agent = Mux::new(Side::Agent, MuxConfig::default(), now);
    for _ in 0..2 {
        agent.handle_input(now, frames(0, 100_000)).unwrap();
    }
    assert_eq!(agent.stream_count(), 65_536);
    assert_eq!(std::iter::from_fn(|| agent.poll_event()).count(), 65_536, "further streams are not reported");
    let mut client = Mux::new(Side::Client, MuxConfig::default(), now);
    client.handle_input(now, frames(0, 1000)).unwrap();
    assert_eq!((client.stream_count(), client.poll_event()), (0, None), "an agent must not open streams");
}

/// Bodies are JSON. Their nesting depth must be limited, because it uses stack.
#[test]
fn json_has_a_depth() {
    let now = Instant::now();
    let deep = format!(r#"{{"AgentVersion":"3.3.987.0","RequestedClientActions":{}"#, "[".repeat(200_000));
    let mut client = Session::client(ClientConfig::default(), clock(now), 1);
    client.handle_connected(now);
    client.handle_input(now, from_agent(0, PayloadType::HandshakeRequest, deep.as_bytes())).unwrap();
    let failed = std::iter::from_fn(|| client.poll_event()).any(|event| matches!(event, SessionEvent::Failed(_)));
    assert!(failed, "the body was accepted");
    let closed =
        Header::new(MessageType::ChannelClosed, 1, Uuid::nil()).seal(MessageBuf::from("[".repeat(200_000).as_bytes()));
    client.handle_input(now, closed).unwrap();
    assert!(std::iter::from_fn(|| client.poll_event()).any(|event| matches!(event, SessionEvent::Closed(_))));
}

#[test]
fn an_agent_waits_for_the_handshake_for_a_time() {
    let now = Instant::now();
    let mut agent = Session::agent(AgentConfig::default(), clock(now), 1);
    agent.handle_connected(now);
    let mut at = now;
    let failed = loop {
        while agent.poll_transmit(at).is_some() {}
        if std::iter::from_fn(|| agent.poll_event()).any(|event| matches!(event, SessionEvent::Failed(_))) {
            break at;
        }
        at = agent.poll_timeout().unwrap().at;
        agent.handle_timeout(at);
    };
    assert_eq!(failed - now, Duration::from_secs(15));
}

#[test]
fn a_link_has_so_many_pipes_and_connections() {
    let mut link = Link::new(RelaySide::Client, Instant::now());
    assert_eq!(std::iter::from_fn(|| link.add_pipe()).count(), MAX_PIPES);
    let mut open = || link.open(Destination::new("db", 80).unwrap());
    assert_eq!(std::iter::from_fn(&mut open).count(), MAX_CONNECTIONS);
}

/// Repeated notifications of the service are one event, until the opposite notification arrives.
#[test]
fn repeated_words_of_the_service_are_one_event() {
    let now = Instant::now();
    let channel = ChannelConfig { retransmission: Retransmission::HeadOnly, ..ChannelConfig::default() };
    let mut client = Session::client(ClientConfig { channel, ..ClientConfig::default() }, clock(now), 1);
    client.handle_connected(now);
    for _ in 0..1000 {
        client.handle_input(now, publication(false, 1, Uuid::nil())).unwrap();
    }
    assert_eq!(std::iter::from_fn(|| client.poll_event()).count(), 1);
}
