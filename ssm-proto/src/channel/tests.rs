//! Tests of the times at which acknowledgements are sent.

use super::*;

const DELAY: Duration = Duration::from_millis(5);

/// Returns a client's channel, and `count` messages from an agent's channel for it.
fn client_and_messages(count: usize) -> (DataChannel, Vec<Bytes>, Instant) {
    let now = Instant::now();
    let clock = Clock { start: now, unix: Duration::from_secs(1_700_000_000) };
    let [mut client, mut agent] =
        [Side::Client, Side::Agent].map(|side| DataChannel::new(side, ChannelConfig::default(), clock, 1));
    client.handle_connected(now);
    agent.handle_connected(now);
    let messages = (0..count).map(|_| {
        agent.send(now, PayloadType::Output, MessageBuf::from(b"x".as_slice())).expect("the window is open");
        agent.poll_transmit(now).expect("the message was sent")
    });
    let messages = messages.collect();
    (client, messages, now)
}

/// Returns the types of all messages that are sent now.
fn leaving(channel: &mut DataChannel, now: Instant) -> Vec<MessageType> {
    channel.handle_timeout(now);
    let raw = std::iter::from_fn(|| channel.poll_transmit(now));
    raw.map(|raw| AgentMessage::decode(raw).expect("a message").message_type()).collect()
}

#[test]
fn an_acknowledgement_waits_for_company_but_not_for_long() {
    let (mut client, messages, now) = client_and_messages(1);
    client.handle_input(now, messages[0].clone()).unwrap();
    assert_eq!(leaving(&mut client, now), []);
    assert!(!client.is_idle(), "the peer waits for the acknowledgement");
    let timeout = client.poll_timeout().unwrap();
    assert_eq!((timeout.at, timeout.reason), (now + DELAY, TimeoutReason::Acknowledge));
    assert_eq!(leaving(&mut client, timeout.at), [MessageType::Acknowledge]);
    assert!(client.is_idle());
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn four_acknowledgements_wait_no_longer() {
    let (mut client, messages, now) = client_and_messages(4);
    for message in messages {
        assert_eq!(leaving(&mut client, now), []);
        client.handle_input(now, message).unwrap();
    }
    assert_eq!(leaving(&mut client, now), [MessageType::Acknowledge; 4]);
}

#[test]
fn what_is_sent_takes_the_acknowledgements_along() {
    let (mut client, messages, now) = client_and_messages(2);
    for message in messages {
        client.handle_input(now, message).unwrap();
    }
    client.send(now, PayloadType::Output, MessageBuf::from(b"y".as_slice())).unwrap();
    let ack = MessageType::Acknowledge;
    assert_eq!(leaving(&mut client, now), [MessageType::InputStreamData, ack, ack]);
}

#[test]
fn what_is_early_or_came_before_is_acknowledged_at_once() {
    let (mut client, messages, now) = client_and_messages(2);
    client.handle_input(now, messages[1].clone()).unwrap();
    assert_eq!(leaving(&mut client, now), [MessageType::Acknowledge], "early");
    client.handle_input(now, messages[0].clone()).unwrap();
    assert_eq!(leaving(&mut client, now), [], "in turn");
    client.handle_input(now, messages[0].clone()).unwrap();
    assert_eq!(leaving(&mut client, now), [MessageType::Acknowledge; 2], "again");
}

#[test]
fn a_message_that_waits_for_an_earlier_one_keeps_no_buffer_alive() {
    let (mut client, messages, now) = client_and_messages(20);
    let buffer: Bytes = messages.iter().flatten().copied().collect();
    let mut rest = buffer.clone();
    let first = rest.split_to(messages[0].len());
    for message in &messages[1..] {
        client.handle_input(now, rest.split_to(message.len())).unwrap();
    }
    drop((rest, first));
    assert_eq!(client.stats().reordered, 19);
    assert!(buffer.is_unique(), "early messages are slices of the read buffer");
    client.handle_input(now, messages[0].clone()).unwrap();
    assert_eq!(client.stats().messages_received, 20);
}
