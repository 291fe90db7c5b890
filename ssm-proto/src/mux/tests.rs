//! Tests of the multiplexer: two ends connected directly to each other.

use super::*;

struct Ends {
    client: Mux,
    agent: Mux,
    now: Instant,
}

impl Ends {
    fn new(config: MuxConfig) -> Self {
        let now = Instant::now();
        Self { client: Mux::new(Side::Client, config.clone(), now), agent: Mux::new(Side::Agent, config, now), now }
    }

    /// Exchanges everything in both directions. Returns the payloads that the client sent.
    fn exchange(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        while self.client.wants_transmit() || self.agent.wants_transmit() {
            for from_client in [true, false] {
                let (from, to) = match from_client {
                    true => (&mut self.client, &mut self.agent),
                    false => (&mut self.agent, &mut self.client),
                };
                let mut buf = MessageBuf::with_limit(1024, 1024);
                from.poll_transmit(&mut buf);
                if buf.is_empty() {
                    continue;
                }
                to.handle_input(self.now, Bytes::copy_from_slice(buf.payload())).unwrap();
                if from_client {
                    sent.push(buf.payload().to_vec());
                }
            }
        }
        sent
    }

    fn read_all(mux: &mut Mux, id: StreamId) -> Vec<u8> {
        std::iter::from_fn(|| mux.read(id)).flatten().collect()
    }
}

#[test]
fn open_and_first_bytes_share_a_message() {
    let mut ends = Ends::new(MuxConfig::default());
    let id = ends.client.open();
    ends.client.write(id, Bytes::from_static(b"ping")).unwrap();
    let sent = ends.exchange();
    // The last byte is the first byte of the next frame.
    assert_eq!(sent, [b"\x01\x00\x00\x00\x03\x00\x00\x00\x01\x02\x04\x00\x03\x00\x00\x00ping\x01".to_vec()]);
    assert_eq!(ends.agent.poll_event(), Some(MuxEvent::Opened(id)));
    assert_eq!(ends.agent.poll_event(), Some(MuxEvent::Readable(id)));
    assert_eq!(Ends::read_all(&mut ends.agent, id), b"ping");
}

#[test]
fn a_full_send_queue_refuses_and_tells_when_there_is_room() {
    let mut ends = Ends::new(MuxConfig { send_queue: 2000, ..MuxConfig::default() });
    let id = ends.client.open();
    ends.client.write(id, Bytes::from(vec![1; 2000])).unwrap();
    let Err(WriteError::Full(back)) = ends.client.write(id, Bytes::from_static(b"more")) else { panic!("taken") };
    assert_eq!(&back[..], b"more");
    ends.exchange();
    assert_eq!(ends.client.poll_event(), Some(MuxEvent::Writable(id)));
    assert_eq!(Ends::read_all(&mut ends.agent, id).len(), 2000);
}

#[test]
fn a_keystroke_waits_for_one_message_not_for_the_bulk() {
    let mut ends = Ends::new(MuxConfig { send_queue: 1 << 20, ..MuxConfig::default() });
    let bulk = ends.client.open();
    ends.client.write(bulk, Bytes::from(vec![0; 100_000])).unwrap();
    let mut buf = MessageBuf::with_limit(1024, 1024);
    ends.client.poll_transmit(&mut buf);
    ends.agent.handle_input(ends.now, Bytes::copy_from_slice(buf.payload())).unwrap();
    let shell = ends.client.open();
    ends.client.write(shell, Bytes::from_static(b"k")).unwrap();
    let mut next = MessageBuf::with_limit(1024, 1024);
    ends.client.poll_transmit(&mut next);
    assert_eq!(next.payload()[..16], *b"\x00\x00\x00\x05\x00\x00\x00\x01\x02\x01\x00\x05\x00\x00\x00k");
    assert_eq!(next.remaining(), 0, "bulk data fills the rest");
}

/// Returns the data that the agent's library reads from a byte stream. The library skips headers of frames other than PSH without
/// checking their length.
fn as_the_agent_reads(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut data = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(FRAME_HEADER)
        && header[0] == 1
    {
        bytes = rest;
        if header[1] == 2 {
            let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
            let Some((body, rest)) = bytes.split_at_checked(length) else { break };
            data.push((u32::from_le_bytes([header[4], header[5], header[6], header[7]]), body.to_vec()));
            bytes = rest;
        } else if header[1] > 3 {
            break;
        }
    }
    data
}

#[test]
fn a_message_that_the_agent_processes_twice_delivers_nothing_twice() {
    let mut random = 1_u32;
    let mut below = move |limit: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % limit
    };
    let interval = Duration::from_secs(10);
    let mut client =
        Mux::new(Side::Client, MuxConfig { keep_alive: Some(interval), ..MuxConfig::default() }, Instant::now());
    let (mut messages, mut ids) = (Vec::new(), vec![client.open()]);
    while messages.len() < 400 {
        let id = ids[below(u32::try_from(ids.len()).unwrap()) as usize];
        match below(8) {
            0 => ids.push(client.open()),
            // A message that contains only FIN.
            1 => client.close(id),
            2 => client.handle_timeout(client.poll_timeout().unwrap().at).unwrap(),
            // Data that begins like a frame header.
            3 => drop(client.write(id, Bytes::from(vec![1; 3000]))),
            _ => drop(client.write(id, Bytes::from(vec![2; below(2500) as usize]))),
        }
        while client.wants_transmit() {
            let mut message = MessageBuf::with_limit(1024, 1024);
            client.poll_transmit(&mut message);
            assert!(message.len() <= 1024);
            messages.push(message.payload().to_vec());
        }
    }
    for (index, message) in messages.iter().enumerate() {
        let until = messages[..=index].concat();
        let twice = [&until, message, &messages[index + 1..].concat()[..]].concat();
        assert_eq!(as_the_agent_reads(&twice), as_the_agent_reads(&until), "message {index}: {:?}", &message[..9]);
    }
}

#[test]
fn messages_of_the_smallest_size_carry_everything() {
    let mut client = Mux::new(Side::Client, MuxConfig::default(), Instant::now());
    let id = client.open();
    let data: Vec<u8> = (0..200).collect();
    client.write(id, Bytes::from(data.clone())).unwrap();
    client.close(id);
    let mut bytes = Vec::new();
    for _ in 0..200 {
        let mut message = MessageBuf::with_limit(16, 16);
        client.poll_transmit(&mut message);
        bytes.extend_from_slice(message.payload());
    }
    assert!(!client.wants_transmit());
    assert!(
        bytes.ends_with(b"\x01\x01\x00\x00\x03\x00\x00\x00")
            || bytes.ends_with(b"\x01\x01\x00\x00\x03\x00\x00\x00\x01")
    );
    assert_eq!(as_the_agent_reads(&bytes).into_iter().flat_map(|(_, data)| data).collect::<Vec<_>>(), data);
}

#[test]
fn busy_streams_get_equal_shares() {
    let mut ends = Ends::new(MuxConfig { send_queue: 1 << 20, ..MuxConfig::default() });
    let ids = [ends.client.open(), ends.client.open(), ends.client.open()];
    for id in ids {
        ends.client.write(id, Bytes::from(vec![0; 60_000])).unwrap();
    }
    for _ in 0..90 {
        let mut buf = MessageBuf::with_limit(1024, 1024);
        ends.client.poll_transmit(&mut buf);
        ends.agent.handle_input(ends.now, Bytes::copy_from_slice(buf.payload())).unwrap();
    }
    let shares = ids.map(|id| Ends::read_all(&mut ends.agent, id).len());
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(most - least <= 2048, "{shares:?}");
}

#[test]
fn half_close_holds_the_fin_until_the_answer_came() {
    let mut ends = Ends::new(MuxConfig::default());
    let id = ends.client.open();
    ends.client.write(id, Bytes::from_static(b"question")).unwrap();
    ends.client.finish(id);
    ends.exchange();
    assert!(!ends.agent.is_finished(id) && Ends::read_all(&mut ends.agent, id) == b"question");
    assert!(!ends.agent.is_finished(id), "no FIN yet");
    ends.agent.write(id, Bytes::from_static(b"answer")).unwrap();
    ends.agent.finish(id);
    ends.exchange();
    assert_eq!(Ends::read_all(&mut ends.client, id), b"answer");
    assert!(ends.client.is_finished(id));
    assert_eq!((ends.client.stream_count(), ends.agent.stream_count()), (0, 0));
}

#[test]
fn an_abandoned_stream_still_sends_what_waits() {
    let mut ends = Ends::new(MuxConfig::default());
    let id = ends.client.open();
    ends.client.write(id, Bytes::from(vec![7; 5000])).unwrap();
    ends.client.abandon(id);
    ends.exchange();
    assert_eq!(Ends::read_all(&mut ends.agent, id), vec![7; 5000]);
    assert!(ends.agent.is_finished(id));
    assert_eq!(ends.client.stream_count(), 0);
}

#[test]
fn a_refusal_belongs_to_the_stream_that_it_was_said_of_also_once_that_is_forgotten() {
    // The refusal of the dropped stream arrives after its FIN was sent, when the stream is already forgotten, or before.
    for fin_sent in [true, false] {
        let mut ends = Ends::new(MuxConfig::default());
        let [dropped, next, refused] = [ends.client.open(), ends.client.open(), ends.client.open()];
        ends.exchange();
        ends.client.abandon(dropped);
        if fin_sent {
            ends.exchange();
        }
        ends.client.handle_refusal();
        ends.agent.reset(dropped);
        ends.exchange();
        ends.agent.finish(next);
        ends.exchange();
        ends.client.handle_refusal();
        ends.agent.reset(refused);
        ends.exchange();
        let events: Vec<_> = std::iter::from_fn(|| ends.client.poll_event()).collect();
        assert_eq!(events, [MuxEvent::Finished(next), MuxEvent::Refused(refused)], "{fin_sent}");
    }
}

#[test]
fn a_stream_for_which_something_came_was_not_refused() {
    let mut ends = Ends::new(MuxConfig::default());
    let [dropped, refused] = [ends.client.open(), ends.client.open()];
    ends.client.abandon(dropped);
    ends.agent.write(dropped, Bytes::from_static(b"too late")).unwrap_err();
    let mut late = frame::header(FrameKind::Psh, dropped, 4).to_vec();
    late.extend(b"late");
    ends.exchange();
    ends.client.handle_input(ends.now, late.into()).unwrap();
    ends.client.handle_refusal();
    ends.client.handle_input(ends.now, Bytes::copy_from_slice(&frame::header(FrameKind::Fin, dropped, 0))).unwrap();
    ends.agent.reset(refused);
    ends.exchange();
    assert_eq!(std::iter::from_fn(|| ends.client.poll_event()).collect::<Vec<_>>(), [MuxEvent::Refused(refused)]);
}

#[test]
fn data_for_unknown_streams_is_discarded_silently() {
    let mut ends = Ends::new(MuxConfig::default());
    let stray =
        [&frame::header(FrameKind::Psh, StreamId(99), 2)[..], b"xx", &frame::header(FrameKind::Fin, StreamId(99), 0)];
    ends.client.handle_input(ends.now, Bytes::from(stray.concat())).unwrap();
    assert_eq!(ends.client.poll_event(), None);
    assert!(!ends.client.wants_transmit());
}

#[test]
fn a_full_receive_store_is_congestion_until_it_is_read() {
    let mut ends = Ends::new(MuxConfig { receive_store: 3000, ..MuxConfig::default() });
    let id = ends.client.open();
    ends.client.write(id, Bytes::from(vec![0; 3000])).unwrap();
    ends.exchange();
    assert!(ends.agent.is_congested());
    assert_eq!(ends.agent.receive_bytes(), 3000);
    ends.agent.read(id).unwrap();
    assert!(!ends.agent.is_congested());
    ends.agent.reset(id);
    assert_eq!(ends.agent.receive_bytes(), 0);
}

#[test]
fn a_keep_alive_holds_a_peer_that_counts_the_silence_and_nobody_else_sends_one() {
    let (keep_alive, peer_timeout) = (Some(Duration::from_secs(10)), Some(Duration::from_secs(30)));
    let mut ends = Ends::new(MuxConfig { keep_alive, peer_timeout, ..MuxConfig::default() });
    let start = ends.now;
    for second in 1..=300 {
        ends.now = start + Duration::from_secs(second);
        ends.client.handle_timeout(ends.now).unwrap();
        ends.agent.handle_timeout(ends.now).unwrap();
        ends.exchange();
    }
    let mut ends = Ends::new(MuxConfig::default());
    assert_eq!(ends.client.poll_timeout(), None);
    ends.client.handle_timeout(ends.now + Duration::from_secs(300)).unwrap();
    assert!(!ends.client.wants_transmit());
}

#[test]
fn a_peer_that_must_send_keep_alives_and_does_not_is_given_up() {
    let mut ends = Ends::new(MuxConfig { peer_timeout: Some(Duration::from_secs(30)), ..MuxConfig::default() });
    assert!(ends.agent.handle_timeout(ends.now + Duration::from_secs(29)).is_ok());
    assert!(ends.agent.handle_timeout(ends.now + Duration::from_secs(30)).is_err());
    let nop = Bytes::copy_from_slice(&frame::header(FrameKind::Nop, StreamId(0), 0));
    ends.agent.handle_input(ends.now + Duration::from_secs(20), nop).unwrap();
    assert!(ends.agent.handle_timeout(ends.now + Duration::from_secs(45)).is_ok());
}

/// Returns a message whose memory can be observed: `alive` has one reference for each message that is not freed.
fn counted(message: Vec<u8>, alive: &std::sync::Arc<()>) -> Bytes {
    struct Counted(Vec<u8>, #[expect(dead_code, reason = "only its reference count is used")] std::sync::Arc<()>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Counted(message, alive.clone()))
}

#[test]
fn a_byte_that_waits_keeps_no_message_alive() {
    const MESSAGE: usize = 1 << 20;
    let alive = std::sync::Arc::new(());
    let now = Instant::now();
    let mut client = Mux::new(Side::Client, MuxConfig::default(), now);
    let streams: Vec<StreamId> = (0..3).map(|_| client.open()).collect();
    for _ in 0..50 {
        let mut message = Vec::with_capacity(MESSAGE);
        for stream in &streams {
            message.extend(frame::header(FrameKind::Psh, *stream, 1));
            message.push(7);
        }
        while message.len() < MESSAGE {
            message.extend(frame::header(FrameKind::Nop, StreamId(0), 0));
        }
        client.handle_input(now, counted(message, &alive)).unwrap();
    }
    // The deframer may still hold the last message.
    assert!(std::sync::Arc::strong_count(&alive) <= 2, "messages of 1 MiB are kept alive");
    for stream in streams {
        assert_eq!(Ends::read_all(&mut client, stream), [7; 50]);
    }
}

#[test]
fn many_streams_with_a_byte_each_keep_few_buffers_alive() {
    const BUFFER: usize = 32 << 10;
    let alive = std::sync::Arc::new(());
    let now = Instant::now();
    let mut client = Mux::new(Side::Client, MuxConfig::default(), now);
    let streams: Vec<StreamId> = (0..2000).map(|_| client.open()).collect();
    let mut most = 0;
    for stream in streams.iter().cycle().take(10_000) {
        let mut buffer = frame::header(FrameKind::Psh, *stream, 1).to_vec();
        buffer.push(7);
        let length = buffer.len();
        buffer.resize(BUFFER, 0);
        client.handle_input(now, counted(buffer, &alive).slice(..length)).unwrap();
        most = most.max(std::sync::Arc::strong_count(&alive) - 1);
    }
    assert!(most * BUFFER <= MAX_SLACK + BUFFER, "{most} buffers were kept alive");
    assert_eq!(client.receive_bytes(), 10_000);
    for stream in streams {
        assert_eq!(Ends::read_all(&mut client, stream), [7; 5]);
    }
    assert_eq!((client.receive_bytes(), client.receive_slack), (0, 0));
}

#[test]
fn forgotten_streams_are_remembered_up_to_a_number() {
    let mut ends = Ends::new(MuxConfig::default());
    for _ in 0..MAX_FORGOTTEN + 10 {
        let id = ends.client.open();
        ends.client.reset(id);
        ends.exchange();
    }
    assert_eq!((ends.client.stream_count(), ends.client.forgotten.len()), (0, MAX_FORGOTTEN));
    ends.client.check();
}
